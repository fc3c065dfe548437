"""The worlds that can be simulated, by the name that the command line knows them by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from tests.simulation.cluster_world import ClusterWorld
from tests.simulation.faults import Profile
from tests.simulation.register_world import RegisterWorld
from tests.simulation.stream_world import run_world


@dataclass(frozen=True, slots=True)
class Report:
    """What happened in one schedule: counters by name."""

    counts: dict[str, int]

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self.counts.items())


def _register(seed: int) -> Report:
    return Report(asdict(RegisterWorld(seed).run()))


def _streams(profile: Profile) -> Callable[[int], Report]:
    return lambda seed: Report(dict(run_world(seed, profile)))


def _cluster(profile: Profile) -> Callable[[int], Report]:
    def run(seed: int) -> Report:
        report = ClusterWorld(seed, profile).run()
        return Report({**asdict(report.messages), **report.rare, "events": report.events})

    return run


WORLDS: Final[dict[str, Callable[[int], Report]]] = {
    "cluster": _cluster(Profile.PLAIN),
    "cluster-tight": _cluster(Profile.TIGHT),
    "cluster-steady": _cluster(Profile.STEADY),
    "cluster-paged": _cluster(Profile.PAGED),
    "register": _register,
    "streams": _streams(Profile.PLAIN),
    "streams-tight": _streams(Profile.TIGHT),
    "streams-steady": _streams(Profile.STEADY),
}
"""Each runs one seed; an invariant that does not hold is raised as an `AssertionError`."""
