"""Sets of offsets as runs, and numbers by offset: the same answers as a plain set gives."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import paging.ranges
from paging.ranges import Counted, Range, RangeMap, Ranges
from paging.spans import Spans

OFFSET_MAX = 40  # Small, so that runs touch, split and fill up all the time.
WIDE_MAX = 330  # Five spans of `Small` and a bit.


class Small(Ranges):
    """Spans so small that they change their form all the time."""

    __slots__ = ()

    SPAN_BITS = 6
    RUNS_MAX = 8


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
    # Given that nobody may make a container
    def refuse(*, span_bits: int, runs_max: int) -> Spans:
        raise AssertionError("a container was made")

    monkeypatch.setattr(paging.ranges, "Spans", refuse)

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


@pytest.mark.parametrize(
    "run", [(4, 6), (0, 1), (9, 10), (0, 30), (12, 21), (25, 26), (8, 12), (5, 20)]
)
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


def runs_of(plain: set[int]) -> list[Range]:
    """The runs that a plain set consists of."""
    firsts = sorted(offset for offset in plain if offset - 1 not in plain)
    ends = sorted(offset + 1 for offset in plain if offset + 1 not in plain)
    return [Range(first, end) for first, end in zip(firsts, ends, strict=True)]


wide_runs = st.tuples(st.integers(0, WIDE_MAX - 1), st.integers(1, 140)).map(
    lambda pair: Range(pair[0], min(pair[0] + pair[1], WIDE_MAX))
)
combs = st.builds(
    lambda run, step, width: [
        Range(first, min(first + width, run.end)) for first in range(run.first, run.end, step)
    ],
    wide_runs,
    st.integers(3, 5),
    st.integers(1, 2),
)


class RangesAgainstAPlainSet(RuleBasedStateMachine):
    """Whatever is done to both, they hold the same, and say the same in the same runs."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Small()
        self.plain: set[int] = set()

    @rule(run=wide_runs)
    def add_what_is_missing(self, run: Range) -> None:
        for gap in self.queue.gaps(run):
            self.queue.add(gap)
        self.plain |= set(range(*run))

    @rule(run=wide_runs)
    def merge(self, run: Range) -> None:
        self.queue.merge(run)
        self.plain |= set(range(*run))

    @rule(run=wide_runs)
    def remove_what_is_there(self, run: Range) -> None:
        for part in self.queue.within(run):
            self.queue.remove(part)
        self.plain -= set(range(*run))

    @rule(run=wide_runs)
    def discard(self, run: Range) -> None:
        assert self.queue.discard(run) == runs_of(self.plain & set(range(*run)))
        self.plain -= set(range(*run))

    @rule(comb=combs)
    def make_holes(self, comb: list[Range]) -> None:
        for run in comb:
            self.queue.discard(run)
            self.plain -= set(range(*run))

    @rule(comb=combs)
    def fill_in_between(self, comb: list[Range]) -> None:
        for run in reversed(comb):
            self.queue.merge(run)
            self.plain |= set(range(*run))

    @rule(count_max=st.integers(1, 100))
    def pop_first(self, count_max: int) -> None:
        popped = self.queue.pop_first(count_max)
        first = next(iter(runs_of(self.plain)), None)
        assert popped == (first and Range(first.first, min(first.end, first.first + count_max)))
        self.plain -= set(range(*popped)) if popped else set()

    @rule()
    def remove_the_last_run(self) -> None:
        for run in runs_of(self.plain)[-1:]:
            self.queue.remove(run)
            self.plain -= set(range(*run))

    @rule(question=wide_runs)
    def ask(self, question: Range) -> None:
        asked = set(range(*question))
        assert self.queue.covers(question) == (asked <= self.plain)
        assert self.queue.within(question) == runs_of(asked & self.plain)
        assert self.queue.gaps(question) == runs_of(asked - self.plain)

    @invariant()
    def holds_the_same(self) -> None:
        self.queue.check()
        expected = runs_of(self.plain)
        assert list(self.queue) == expected
        assert self.queue.runs == len(expected)
        assert self.queue.count == len(self.plain)
        assert bool(self.queue) == bool(self.plain)
        assert self.queue.first == (expected[0] if expected else None)


TestRangesAgainstAPlainSet = RangesAgainstAPlainSet.TestCase
TestRangesAgainstAPlainSet.settings = settings(max_examples=100, stateful_step_count=40)


def test_spans_change_their_form_all_the_time_and_nobody_notices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a set with small spans, and a count of those that changed
    changes = {"_condense": 0, "_settle": 0}
    for name in changes:
        change = getattr(Spans, name)

        def counting(
            spans: Spans, at: int, name: str = name, change: Callable[[Spans, int], None] = change
        ) -> None:
            before = spans.bitmaps
            change(spans, at)
            changes[name] += spans.bitmaps != before

        monkeypatch.setattr(Spans, name, counting)
    queue, plain, random = Small(), set[int](), Random(1)

    # When small runs come and go, from nearly empty to nearly full and back
    for step in range(9000):
        first = random.randrange(WIDE_MAX)
        run = Range(first, first + random.choice((1, 1, 2, 8)))
        if random.random() < (0.98, 0.02)[step // 400 % 2]:
            queue.merge(run)
            plain |= set(range(*run))
        else:
            queue.discard(run)
            plain -= set(range(*run))
        queue.check()
        assert list(queue) == runs_of(plain)

    # Then spans became bitmaps, and runs again, by the dozen
    assert min(changes.values()) > 50


@pytest.mark.parametrize("borders", [(64,), (64, 128), (128,), (64, 128, 192)])
def test_what_touches_across_a_border_is_one_run(borders: tuple[int, ...]) -> None:
    # Given spans that are bitmaps, but for a hole at both sides of each border
    queue = Small(Range(300, 301))
    for first in range(0, 256, 2):
        if all(not border - 4 <= first < border + 4 for border in borders):
            queue.add(Range(first, first + 1))
    before = queue.runs

    # When the holes are filled
    for border in borders:
        queue.add(Range(border - 3, border))
        queue.add(Range(border, border + 3))

    # Then each is one run, in every respect
    expected = [Range(border - 3, border + 3) for border in borders]
    assert [run for run in queue if run.size == 6] == expected
    assert all(queue.covers(run) for run in expected)
    assert queue.within(Range(0, 256)) == list(queue)[:-1]
    assert queue.runs == before + len(borders)
    queue.check()


def test_a_long_run_that_ends_in_bitmaps_goes_and_comes_as_one() -> None:
    # Given two bitmaps with ten spans between them that are all in
    queue = Small(Range(900, 901))
    long = Range(50, 720)
    for first in [*range(0, 48, 2), *range(722, 768, 2)]:
        queue.add(Range(first, first + 1))
    queue.add(long)
    whole = list(queue)

    # When all of the long run goes, and comes back in two halves
    queue.remove(long)
    without = queue.within(Range(48, 722))
    queue.add(Range(400, 720))
    queue.add(Range(50, 400))

    # Then it was not there, and is one run again
    assert without == []
    assert list(queue) == whole
    assert long in whole
    queue.check()


def test_a_last_run_that_comes_down_to_bitmaps_takes_what_touches_it() -> None:
    # Given a bitmap that ends with its span, a run behind it, and the last run
    queue = Small(Range(300, 400))
    for first in range(0, 60, 2):
        queue.add(Range(first, first + 1))
    queue.add(Range(62, 64))
    queue.add(Range(64, 200))

    # When the last run comes down to them, and then goes
    queue.add(Range(200, 300))
    joined = list(queue)[-1]
    queue.remove(Range(62, 400))

    # Then it had taken in both, and what is last now is the end of the bitmap
    assert joined == Range(62, 400)
    assert list(queue)[-1] == Range(58, 59)
    queue.check()


@pytest.mark.parametrize("run", [(3, 4), (2, 3), (0, 64), (60, 140), (40, 192), (190, 300)])
def test_what_does_not_fit_is_a_mistake_in_bitmaps_too(run: tuple[int, int]) -> None:
    # Given two bitmaps with a run of their own between them
    def made() -> Small:
        queue = Small(Range(500, 501))
        for first in [*range(0, 64, 2), *range(128, 192, 2)]:
            queue.add(Range(first, first + 1))
        queue.add(Range(70, 100))
        return queue

    # When something is added or removed that is in only in part, then it is refused
    with pytest.raises(AssertionError):
        made().add(Range(*run) if run != (3, 4) else Range(2, 4))
    with pytest.raises(AssertionError):
        made().remove(Range(*run) if run != (2, 3) else Range(2, 4))


def every_second(count: int, order: Random | None) -> Ranges:
    """Of so many offsets, all that is left when every second one has gone."""
    queue = Ranges(Range(0, count))
    firsts = list(range(0, count, 2))
    if order:
        order.shuffle(firsts)
    for first in firsts:
        queue.remove(Range(first, first + 1))
    return queue


@pytest.mark.parametrize("order", [None, Random(1)], ids=["in order", "in random order"])
def test_every_second_of_two_million_messages_takes_less_than_a_byte_each(
    order: Random | None,
) -> None:
    # Given two million messages, when every second one goes
    queue = every_second(2_000_000, order)

    # Then what is left takes an eighth of a byte for each message, and a little
    assert queue.runs == queue.count == 1_000_000
    assert queue.bookkeeping_bytes < 2_000_000 / 7


def few_runs() -> Ranges:
    return ranges(*((first, first + 1) for first in range(0, 1_000_000, 4_000)))


def many_runs() -> Ranges:
    return ranges(*((first, first + 9) for first in range(0, 1_000_000, 200)))


def bitmaps() -> Ranges:
    return every_second(100_000, Random(1))


def mixed() -> Ranges:
    queue = many_runs()
    for first in range(0, 100_000, 100):
        queue.discard(Range(first + 50, first + 51))
        queue.merge(Range(first + 70, first + 71))
    return queue


def attempts() -> RangeMap:
    numbers = RangeMap()
    for first in range(0, 60_000, 6):
        for _ in range(first // 6 % 4):
            numbers.raise_by_one(Range(first, first + 1), value_max=9)
    return numbers


@pytest.mark.parametrize("make", [few_runs, many_runs, bitmaps, mixed, attempts])
def test_what_it_takes_up_is_what_it_says_within_a_third(
    make: Callable[[], Ranges | RangeMap],
) -> None:
    # Given that memory is measured
    gc.collect()
    tracemalloc.start()

    # When a set is made
    made = make()

    # Then it tells about what the allocator says
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.bookkeeping_bytes == pytest.approx(taken, rel=0.3)


def test_a_set_that_has_become_one_run_again_takes_up_no_more_than_one() -> None:
    # Given a set that is kept in bitmaps
    queue = bitmaps()
    before = queue.bookkeeping_bytes

    # When its holes are filled
    queue.merge(Range(0, 100_000))

    # Then nothing of them is left
    assert before > 12_500
    assert queue.bookkeeping_bytes == Ranges().bookkeeping_bytes


def test_equal_sets_give_equal_runs_whatever_came_first() -> None:
    # Given every third of many offsets, in three orders, and once by way of all of them
    firsts = list(range(0, 100_000, 3))
    shuffled = firsts.copy()
    Random(1).shuffle(shuffled)

    # When they are put in, or what is between them is taken out
    made = [ranges(*((at, at + 1) for at in order)) for order in (firsts, firsts[::-1], shuffled)]
    whole = Ranges(Range(0, 100_001))
    for first in shuffled:
        whole.remove(Range(first + 1, min(first + 3, 100_001)))
    made.append(whole)

    # Then they cannot be told apart
    assert list(made[0]) == [Range(first, first + 1) for first in firsts]
    assert all(list(each) == list(made[0]) for each in made[1:])
    for each in made:
        each.check()


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
