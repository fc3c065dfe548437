"""A stream under simulated weather, and the proof that this finds mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.faults import Profile
from tests.simulation.stream_mutants import MUTANTS, Mutant
from tests.simulation.stream_world import run_world

CHUNK = 100
CHUNKS = {Profile.PLAIN: 3, Profile.TIGHT: 1, Profile.STEADY: 1}

# The profile that finds it soonest, and ten times the schedules that it took in earlier trials
# of the same kind.
BUDGETS = {
    "waits for the smaller set only": (Profile.TIGHT, 130),
    "a joiner is not waited for": (Profile.PLAIN, 80),
    "release asks need": (Profile.PLAIN, 4_860),
    "a majority is enough": (Profile.TIGHT, 130),
    "a joiner is proposed before it caught up": (Profile.TIGHT, 400),
    "a joiner is measured by a commit that lags": (Profile.TIGHT, 600),
    "an unknown outcome is a no": (Profile.TIGHT, 470),
    "effects leave before release": (Profile.PLAIN, 100),
    "an answer without an op leaves at once": (Profile.PLAIN, 100),
    "deliveries leave whoever follows": (Profile.PLAIN, 13_000),
    "shrinks below min_copies on silence": (Profile.PLAIN, 1_090),
    "another node shrinks": (Profile.STEADY, 240),
    "a restarted node counts as in sync": (Profile.PLAIN, 20),
    "takeover by a copy that is not in sync": (Profile.PLAIN, 20),
    "takeover throws out a live owner": (Profile.PLAIN, 210),
    "ops of an old epoch are accepted": (Profile.TIGHT, 790),
    "receipts go on in an epoch that is not followed": (Profile.TIGHT, 170),
    "receipts of an old epoch count": (Profile.TIGHT, 490),
    "a history keeps entries beyond its log": (Profile.TIGHT, 340),
    "a deposed owner keeps its tail": (Profile.TIGHT, 30),
    "a log is cut below applied": (Profile.TIGHT, 30),
    "the tail is dropped at promotion": (Profile.TIGHT, 30),
    "serves before the tail is applied": (Profile.TIGHT, 40),
    "a shadow skips an op": (Profile.PLAIN, 40),
    "a receipt is not cumulative": (Profile.PLAIN, 10),
}
QUICK = 60
"""Schedules of `make test` for each mistake: nearly all are found much earlier than the budget."""
RARE = "deliveries leave whoever follows"
"""Takes hundreds of schedules; `test_stream_owner.py` has a test of the rule itself."""


@pytest.mark.parametrize(
    ("profile", "chunk"),
    [(profile, chunk) for profile, chunks in CHUNKS.items() for chunk in range(chunks)],
)
def test_no_schedule_breaks_an_invariant_and_none_is_idle(profile: Profile, chunk: int) -> None:
    total: Counter[str] = Counter()

    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        total += run_world(seed, profile)

    # A simulation in which one of these did not happen has not tested the streams.
    assert total["released"] > 20 * CHUNK
    assert total["deliveries"] > 10 * CHUNK
    assert total["Takeover"] > CHUNK // 4
    assert total["promoted again within a second"] > CHUNK // 10
    assert total["adopted ops"] > CHUNK
    assert total["Expand"] > CHUNK
    assert total["repair"] > CHUNK
    assert total["refilled"] > 0
    assert total["cuts"] > 0
    assert total["held"] > CHUNK // 2
    assert total["stops"] > CHUNK // 2
    assert total["Expand refused"] > 0
    assert total["unknown was yes"] > 0
    assert total["unknown was no"] > 0
    if profile is not Profile.TIGHT:
        assert total["crashes"] > CHUNK
        assert total["declared lost"] > 0
    else:
        assert total["deliveries withheld"] > 0


def test_a_seed_is_a_schedule_whatever_the_order_of_hashes() -> None:
    program = (
        "from tests.simulation.stream_world import run_world\n"
        "print([sorted(run_world(seed).items()) for seed in range(8)])"
    )

    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]

    assert said[0] == said[1]


def test_every_planted_mistake_has_a_budget() -> None:
    assert sorted(BUDGETS) == sorted(MUTANTS)


@pytest.mark.parametrize("mistake", [mistake for mistake in BUDGETS if mistake != RARE])
def test_a_planted_mistake_is_found(mistake: str) -> None:
    profile, budget = BUDGETS[mistake]

    seed = _first_that_fails(MUTANTS[mistake], profile, min(budget, QUICK))

    assert seed is not None, f"{mistake}: not found in {min(budget, QUICK)} schedules"


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mistake", BUDGETS)
def test_a_planted_mistake_is_found_in_other_schedules_too(mistake: str) -> None:
    profile, budget = BUDGETS[mistake]

    seed = _first_that_fails(MUTANTS[mistake], profile, budget, first=10_000)

    assert seed is not None, f"{mistake}: not found in {budget} schedules"


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("profile", CHUNKS)
def test_no_schedule_of_many_breaks_an_invariant(profile: Profile) -> None:
    released = sum(run_world(seed, profile)["released"] for seed in range(20_000, 22_000))

    assert released > 100_000


def _first_that_fails(mutant: Mutant, profile: Profile, count: int, first: int = 0) -> int | None:
    with mutant.planted():
        for seed in range(first, first + count):
            try:
                run_world(seed, profile)
            # Some mistakes break a core before an invariant is looked at.
            except (AssertionError, LookupError):
                return seed
    return None
