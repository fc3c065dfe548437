"""The whole cluster and its clients, simulated: nothing is lost, and planted mistakes are found.

A schedule is a whole history with faults and takes half a second to two, so `make test` runs
some of each profile; `make simulate` runs thousands, and every planted mistake at its full budget.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.cluster_mutants import MUTANTS
from tests.simulation.cluster_world import ClusterWorld
from tests.simulation.faults import Profile

QUICK = {Profile.PLAIN: 36, Profile.TIGHT: 20, Profile.STEADY: 12}
LONG = {Profile.PLAIN: 2_000, Profile.TIGHT: 2_000, Profile.STEADY: 1_000}
HAPPENS = {
    Profile.PLAIN: ("lost", "graces that ended"),
    Profile.TIGHT: ("cuts", "refilled", "double takeovers"),
    Profile.STEADY: ("double takeovers", "graces that ended"),
}
"""What must have happened besides `ALWAYS`: each profile is there for something."""
ALWAYS = (
    "takeovers",
    "adopted",
    "expanded",
    "held",
    "resumed with held",
    "resumed in doubt",
    "redelivered",
)
FOUND_SOON = {
    "delivered and confirmed before release": 10,
    "what returns has no flag": 10,
    "shadows forget some acks": 4,
    "a client does not present what it holds": 10,
    "a client does not present its unanswered acks": 10,
}
"""Schedules until they are found, with some to spare: nearly all take one or two."""
BUDGET = 400
"""Schedules for each of the others: ten times what the rarest of them took."""


def run(profile: Profile, seeds: range) -> Counter[str]:
    """What happened in these schedules. Raises at the first violation, which names its seed."""
    rare: Counter[str] = Counter()
    for seed in seeds:
        try:
            report = ClusterWorld(seed, profile).run()
        except AssertionError as error:
            world = {Profile.PLAIN: "cluster"}.get(profile, f"cluster-{profile}")
            error.add_note(f"replay: python -m tests.simulation --world {world} --seed {seed}")
            raise
        rare += report.rare
        for name in report.messages.__slots__:
            rare[name] += getattr(report.messages, name)
    return rare


def found_within(mistake: str, budget: int, start: int = 0) -> bool:
    profile, mutant = MUTANTS[mistake]
    for seed in range(start, start + budget):
        try:
            with mutant.planted():
                ClusterWorld(seed, profile).run()
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("profile", Profile)
def test_no_schedule_shows_a_client_what_must_not_be(profile: Profile) -> None:
    # Given some schedules of faults, when they have run and everything has healed
    rare = run(profile, range(QUICK[profile]))

    # Then nothing was violated, and there was something to be violated
    assert rare["confirmed"] > 100 * QUICK[profile]
    assert rare["acked"] > 100 * QUICK[profile]
    idle = [name for name in (*ALWAYS, *HAPPENS[profile]) if not rare[name]]
    assert not idle, f"these schedules have not tested the cluster: {idle} never happened"


def test_a_seed_is_a_schedule() -> None:
    first = ClusterWorld(3, Profile.TIGHT).run()

    second = ClusterWorld(3, Profile.TIGHT).run()

    assert second == first


@pytest.mark.parametrize("mistake", FOUND_SOON)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    assert found_within(mistake, FOUND_SOON[mistake])


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("profile", Profile)
def test_no_schedule_of_many_shows_what_must_not_be(profile: Profile) -> None:
    assert run(profile, range(10_000, 10_000 + LONG[profile]))["confirmed"] > 0


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mistake", [name for name in MUTANTS if name not in FOUND_SOON])
def test_a_rarer_mistake_is_found_in_the_long_run(mistake: str) -> None:
    assert found_within(mistake, BUDGET, start=20_000)
