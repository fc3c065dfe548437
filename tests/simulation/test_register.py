"""The register under simulated weather, and the proof that this finds mistakes."""

from __future__ import annotations

import pytest

from tests.simulation.register_mutants import MUTANTS
from tests.simulation.register_world import Counts, Mutant, RegisterWorld

CHUNK = 200
CHUNKS = 8

# Ten times the schedules that each took in earlier trials of the same kind.
BUDGETS = {
    "a ballot is used for a second value": 80,
    "a promise is kept in memory": 41_750,
    "an answer leaves before it is durable": 980,
    "an accept does not raise the promise": 4_440,
    "an accept ignores the promise": 10,
    "a late promise counts": 1_430,
    "a wiped acceptor keeps its identity": 170,
    "a timeout is a no": 470,
    "a batch is applied twice": 10,
    "the value that promises show is ignored": 10,
}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_breaks_an_invariant_and_none_is_idle(chunk: int) -> None:
    total = Counts()

    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        total.add(_run(seed))

    # A simulation in which one of these did not happen has not tested the register.
    assert total.changes > 5 * CHUNK
    assert total.reads > 2 * CHUNK
    assert total.formed > CHUNK // 10
    assert total.crashes > CHUNK // 2
    assert total.wipes > CHUNK // 50
    assert total.cuts > CHUNK // 2
    assert total.disk_errors > CHUNK // 10
    assert total.nacks > CHUNK
    assert total.unknown_yes > CHUNK // 4
    assert total.unknown_no > CHUNK // 4
    assert total.given_up > CHUNK // 2


@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    # All are found much earlier than the budget; were one found later by a change of the
    # simulation, the search below would still tell whether it is found at all.
    budget = min(BUDGETS[mistake], 200)

    seed = _first_that_fails(MUTANTS[mistake], 0, budget)

    assert seed is not None, f"{mistake}: not found in {budget} schedules"


@pytest.mark.long
@pytest.mark.parametrize("start", [100_000, 200_000, 300_000])
@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_planted_mistake_is_found_from_any_seed(mistake: str, start: int) -> None:
    budget = BUDGETS[mistake]

    seed = _first_that_fails(MUTANTS[mistake], start, budget)

    assert seed is not None, f"{mistake}: not found in {budget} schedules from {start}"


@pytest.mark.long
def test_no_schedule_of_many_breaks_an_invariant() -> None:
    for seed in range(1_000_000, 1_040_000):
        _run(seed)


def test_a_seed_is_a_schedule() -> None:
    first = RegisterWorld(4).run()

    second = RegisterWorld(4).run()

    assert second == first


def _run(seed: int) -> Counts:
    try:
        return RegisterWorld(seed).run()
    except AssertionError as error:
        error.add_note(f"replay: python -m tests.simulation --world register --seed {seed}")
        raise


def _first_that_fails(mutant: Mutant, start: int, count: int) -> int | None:
    for seed in range(start, start + count):
        try:
            RegisterWorld(seed, mutant).run()
        except AssertionError:
            return seed
    return None
