"""The whole cluster and its clients, simulated: nothing is lost, and planted mistakes are found.

A schedule is a whole history with faults and takes about a second, so `make test` runs some of
each profile; `make simulate` runs hundreds, and every planted mistake at its full budget.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.cluster_mutants import MUTANTS
from tests.simulation.cluster_world import ClusterWorld
from tests.simulation.faults import Profile

QUICK = {Profile.PLAIN: 16, Profile.TIGHT: 8, Profile.STEADY: 6}
LONG = {Profile.PLAIN: 300, Profile.TIGHT: 200, Profile.STEADY: 100}
FOUND_SOON = {
    "delivered and confirmed before release": 4,
    "shadows forget some acks": 4,
    "the grace runs on for a session that came back": 8,
}
"""Schedules until they are found, with some to spare."""
BUDGET = 200
"""Schedules for each of the others."""


def run(profile: Profile, seeds: range) -> Counter[str]:
    """What happened in these schedules. Raises at the first violation, which names its seed."""
    rare: Counter[str] = Counter()
    for seed in seeds:
        try:
            report = ClusterWorld(seed, profile).run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {profile}: {error}") from error
        rare += report.rare
        rare["confirmed"] += report.messages.confirmed
        rare["acked"] += report.messages.acked
    return rare


def found_within(mistake: str, budget: int) -> bool:
    profile, mutant = MUTANTS[mistake]
    for seed in range(budget):
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
    assert rare["promoted"] > QUICK[profile]
    assert rare["adopted"] > 0


@pytest.mark.parametrize("mistake", FOUND_SOON)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    assert found_within(mistake, FOUND_SOON[mistake])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("profile", Profile)
def test_no_schedule_of_many_shows_what_must_not_be(profile: Profile) -> None:
    assert run(profile, range(10_000, 10_000 + LONG[profile]))["confirmed"] > 0


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mistake", [name for name in MUTANTS if name not in FOUND_SOON])
def test_a_rarer_mistake_is_found_in_the_long_run(mistake: str) -> None:
    assert found_within(mistake, BUDGET)
