"""A bit for each number: the same answers as a plain set gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from paging.bitmap import Bitmap
from paging.spans import joined

SIZE = 2064  # Two chunks of a search, and a bit.

runs = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 1100)).map(
    lambda pair: (pair[0], min(sum(pair), SIZE))
)


def bitmap(*runs: tuple[int, int]) -> Bitmap:
    made = Bitmap(SIZE)
    for first, end in runs:
        made.fill(first, end)
    return made


def numbers(found: Bitmap) -> set[int]:
    return {number for piece in found.pieces(0, SIZE) for number in range(*piece)}


def test_filling_what_is_partly_in_is_a_mistake() -> None:
    # Given a run
    some = bitmap((10, 20))

    # When a run that overlaps it is put in, then it is refused
    with pytest.raises(AssertionError):
        some.fill(19, 30)


@pytest.mark.parametrize("run", [(0, 1), (7, 9), (8, 16), (0, SIZE), (SIZE - 1, SIZE)])
def test_a_run_that_goes_in_comes_out_as_it_was(run: tuple[int, int]) -> None:
    # Given a run that begins and ends anywhere in a byte
    some = bitmap(run)

    # When it is looked for
    found = list(joined(some.pieces(0, SIZE)))

    # Then it is there, and begins and ends where it did
    assert found == [run]
    assert some.runs == 1
    assert (some.first_of(run[1]), some.last_end()) == run
    assert some.wipe(*run) == run[1] - run[0]
    assert some.runs == 0


def test_nothing_is_in_outside() -> None:
    # Given a bitmap in which all is in
    some = bitmap((0, SIZE))

    # When it is asked what is before it and behind it, then that is nothing
    assert (some.has(-1), some.has(SIZE)) == (0, 0)


def test_the_last_run_is_found_however_far_it_is_from_the_end() -> None:
    # Given a run at the very front, and one that ends at its chunk's end
    front, back = bitmap((2, 4)), bitmap((1, 2), (3, 1024))

    # When they are looked for from the end
    ends = front.last_end(), back.last_end()

    # Then they are found, and where they begin
    assert ends == (4, 1024)
    assert (front.first_of(4), back.first_of(1024)) == (2, 3)
    assert back.first_of(3) == 3


@settings(max_examples=200)
@given(
    steps=st.lists(st.tuples(st.booleans(), runs), max_size=25), question=runs, end=st.integers(1)
)
def test_a_bitmap_answers_as_a_plain_set_does(
    steps: list[tuple[bool, tuple[int, int]]], question: tuple[int, int], end: int
) -> None:
    # Given a bitmap and a plain set
    some, plain = Bitmap(SIZE), set[int]()

    # When the same is done to both
    for fills, run in steps:
        asked = set(range(*run))
        if fills:
            some.wipe(*run)
            some.fill(*run)
            plain |= asked
        else:
            assert some.wipe(*run) == len(plain & asked)
            plain -= asked
        some.check()

    # Then they hold the same and say the same
    asked = set(range(*question))
    assert numbers(some) == plain
    assert some.count(*question) == len(plain & asked)
    assert some.runs == sum(1 for number in plain if number - 1 not in plain)
    assert [some.has(number) for number in range(SIZE)] == [n in plain for n in range(SIZE)]
    pieces = [set(range(*piece)) for piece in some.pieces(*question)]
    assert set().union(*pieces) == plain & asked
    end = end % SIZE + 1
    assert some.first_of(end) == max((n + 1 for n in range(end) if n not in plain), default=0)
    if plain:
        assert some.last_end() == max(plain) + 1
