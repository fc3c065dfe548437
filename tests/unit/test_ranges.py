"""Sets of offsets as runs, and numbers by offset: the same answers as a plain set gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st
from sortedcontainers import SortedDict

import paging.ranges
from paging.ranges import Counted, Range, RangeMap, Ranges

OFFSET_MAX = 40  # Small, so that runs touch, split and fill up all the time.

runs = st.tuples(st.integers(0, OFFSET_MAX - 1), st.integers(1, 12)).map(
    lambda pair: Range(pair[0], pair[0] + pair[1])
)
steps = st.lists(st.tuples(st.sampled_from(["add", "remove", "pop"]), runs), max_size=40)


def ranges(*runs: tuple[int, int]) -> Ranges:
    made = Ranges()
    for first, end in runs:
        made.add(Range(first, end))
    return made


def offsets(found: list[Range]) -> set[int]:
    return {offset for run in found for offset in range(*run)}


def test_runs_that_touch_are_one_run_whatever_came_first() -> None:
    # Given three neighbours and a stranger
    parts = [(0, 3), (3, 5), (5, 9), (20, 30)]

    # When they are added forwards, backwards and with the middle last
    orders = [parts, parts[::-1], [parts[0], parts[2], parts[3], parts[1]]]
    made = [ranges(*order) for order in orders]

    # Then the sets look alike
    assert [list(each) for each in made] == [[Range(0, 9), Range(20, 30)]] * 3


def test_a_hole_splits_a_run_and_filling_it_joins_the_two() -> None:
    # Given one run
    queue = ranges((0, 10))

    # When its middle is taken out and put back
    queue.remove(Range(4, 6))
    split = list(queue)
    queue.add(Range(4, 6))

    # Then it was two runs in between
    assert split == [Range(0, 4), Range(6, 10)]
    assert list(queue) == [Range(0, 10)]


def test_a_set_that_grows_at_its_end_and_shrinks_at_its_front_makes_no_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given that nobody may make a sorted container
    def refuse() -> SortedDict[int, int]:
        raise AssertionError("a sorted container was made")

    monkeypatch.setattr(paging.ranges, "SortedDict", refuse)

    # When runs come in at the end and leave at the front, to emptiness and beyond
    queue = Ranges()
    for first in range(0, 100, 10):
        queue.add(Range(first, first + 10))
        queue.remove(Range(first, first + 7))
        queue.remove(Range(first + 7, first + 10))
    queue.add(Range(200, 300))
    queue.add(Range(150, 200))

    # Then there is one run, and none was made
    assert list(queue) == [Range(150, 300)]


@pytest.mark.parametrize("run", [(4, 6), (0, 1), (9, 10), (0, 30), (12, 21), (25, 26), (8, 12)])
def test_adding_what_is_partly_in_already_is_a_mistake(run: tuple[int, int]) -> None:
    # Given two runs
    queue = ranges((0, 10), (20, 30))

    # When something is added that overlaps them, then it is refused
    with pytest.raises(AssertionError):
        queue.add(Range(*run))


@pytest.mark.parametrize("run", [(9, 11), (10, 12), (5, 25), (19, 21), (29, 31), (40, 41)])
def test_removing_what_is_not_all_in_is_a_mistake(run: tuple[int, int]) -> None:
    # Given two runs
    queue = ranges((0, 10), (20, 30))

    # When something is removed that reaches beyond them, then it is refused
    with pytest.raises(AssertionError):
        queue.remove(Range(*run))


def test_the_first_run_is_popped_piece_by_piece() -> None:
    # Given two runs
    queue = ranges((0, 5), (8, 9))

    # When the set is popped until it is empty
    popped = [queue.pop_first(3) for _ in range(4)]

    # Then no pop crosses from one run into the next
    assert popped == [Range(0, 3), Range(3, 5), Range(8, 9), None]
    assert not queue


@settings(max_examples=400)
@given(steps=steps, question=runs)
def test_ranges_answer_as_a_plain_set_of_offsets_does(
    steps: list[tuple[str, Range]], question: Range
) -> None:
    # Given a set of runs and a plain set
    queue, plain = Ranges(), set[int]()

    # When the same is done to both
    for what, run in steps:
        if what == "add":
            queue.merge(run)
            plain |= set(range(*run))
        elif what == "remove":
            assert offsets(queue.discard(run)) == plain & set(range(*run))
            plain -= set(range(*run))
        else:
            popped = queue.pop_first(run.size)
            assert (popped.first if popped else None) == min(plain, default=None)
            plain -= offsets([popped] if popped else [])
        queue.check()

    # Then they hold the same and say the same
    asked = set(range(*question))
    assert offsets(list(queue)) == plain
    assert queue.count == len(plain)
    assert queue.runs == len(list(queue))
    assert bool(queue) == bool(plain)
    assert queue.first == next(iter(queue), None)
    assert queue.covers(question) == (asked <= plain)
    assert offsets(queue.within(question)) == asked & plain
    assert offsets(queue.gaps(question)) == asked - plain


def test_a_number_is_counted_up_to_its_limit_and_no_further() -> None:
    # Given a map in which one offset has been counted once more than its neighbours
    numbers = RangeMap()
    numbers.raise_by_one(Range(0, 10), value_max=2)
    numbers.raise_by_one(Range(4, 5), value_max=2)

    # When all are counted once more
    numbers.raise_by_one(Range(0, 10), value_max=2)

    # Then all are at the limit, and one run
    assert list(numbers) == [Counted(Range(0, 10), 2)]


@settings(max_examples=400)
@given(steps=st.lists(st.tuples(st.booleans(), runs), max_size=30), question=runs)
def test_a_range_map_answers_as_a_plain_dict_does(
    steps: list[tuple[bool, Range]], question: Range
) -> None:
    # Given a map of runs and a number for each offset
    numbers, plain = RangeMap(), dict.fromkeys(range(OFFSET_MAX + 12), 0)

    # When the same is done to both
    for counted, run in steps:
        if counted:
            numbers.raise_by_one(run, value_max=4)
        else:
            numbers.clear(run)
        for offset in range(*run):
            plain[offset] = min(plain[offset] + 1, 4) if counted else 0
        numbers.check()

    # Then they hold the same and say the same
    def expanded(found: list[Counted]) -> dict[int, int]:
        return {offset: value for run, value in found for offset in range(*run)}

    assert expanded(list(numbers)) == {at: n for at, n in plain.items() if n}
    asked = {at: plain[at] for at in range(*question) if plain[at]}
    assert expanded(numbers.within(question)) == asked
    assert bool(numbers) == any(plain.values())


def test_empty_maps_do_not_share_what_is_put_into_one_of_them() -> None:
    # Given two maps
    one, other = RangeMap(), RangeMap()

    # When something is counted in the first
    one.raise_by_one(Range(0, 1), value_max=9)

    # Then the second is still empty
    assert one
    assert not other
    assert not RangeMap()
