"""Sets of offsets, and small numbers by offset, kept as disjoint runs.

Theory of operation
-------------------
A part speaks of its messages by the million and changes them by the run, so a set of
offsets is a sequence of runs: sorted, disjoint, and never touching, because two runs that
touch are one. Equal sets therefore always look alike, however they are kept and whatever
came first; digests rely on it.

The last run is kept as two numbers. A set that grows at its end and shrinks at its front,
as the ready messages of a healthy queue do, is one run for all its life: it costs a
comparison and an addition, and no container is ever made. What lies before the last run is
in `Spans`, and nothing of it touches the last run.

A run there takes 16 bytes, and where there are very many of them each offset takes a bit: so
a set of which every second offset is missing takes 1/8 byte for an offset, and no set takes
more than 1/7 beside 400 bytes for each span of 32,768 in which it has something.

Costs are given in runs. Nothing here looks at a single offset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import count
from typing import ClassVar, Final, NamedTuple

from paging.spans import Spans, joined

_RANGES_BYTES: Final = 160  # The object, and three numbers that are not small.
_MAP_BYTES: Final = 120


class Range(NamedTuple):
    """The offsets from `first` up to, but without, `end`."""

    first: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.first


class Ranges:
    """A set of offsets. A run that is given is never empty."""

    __slots__ = ("_end", "_first", "_older", "count")

    SPAN_BITS: ClassVar = 15
    """With less, sparse sets pay more for their spans; with more, each bit that is changed and
    each change of a span's form costs more, and saves nothing."""

    RUNS_MAX: ClassVar = 256
    """Of a span. As many take as much as its bits."""

    def __init__(self, run: Range | None = None) -> None:
        self._first, self._end = run or (0, 0)  # The last run; empty if the set is.
        self._older: Spans | None = None  # What lies before it. None, never empty.
        self.count = self._end - self._first
        """How many offsets are in the set."""

    def __bool__(self) -> bool:
        return self._first < self._end

    def __iter__(self) -> Iterator[Range]:
        """The runs, by offset. The set must not change meanwhile."""
        if self._older is not None:
            yield from map(Range._make, joined(self._older.pieces(0, self._first)))
        if self._first < self._end:
            yield Range(self._first, self._end)

    @property
    def runs(self) -> int:
        """How many runs the set consists of, as they are iterated. `O(spans)`."""
        return (self._older.runs if self._older is not None else 0) + (self._first < self._end)

    @property
    def bookkeeping_bytes(self) -> int:
        """About what the set takes up in memory. `O(1)`."""
        return _RANGES_BYTES + (self._older.bookkeeping_bytes if self._older is not None else 0)

    @property
    def first(self) -> Range | None:
        """The first run. `O(1)`; of a span kept as bits, some 10 µs at most."""
        if self._older is not None:
            return Range._make(next(joined(self._older.pieces(0, self._first))))
        return Range(self._first, self._end) if self._first < self._end else None

    def add(self, run: Range) -> None:
        """Put in a run none of which is in. `O(log runs)`; at the end of the set `O(1)`."""
        first, end = run
        assert first < end
        self.count += end - first
        if first > self._end or self._first == self._end:
            if self._first < self._end:
                self._earlier().add(self._first, self._end)
            self._first, self._end = run
        elif first == self._end:
            self._end = end
        elif end < self._first:
            self._earlier().add(first, end)
        else:
            assert end == self._first, "already in"
            if self._older is not None:
                first = self._older.take_back(first)
                self._forget_if_empty()
            self._first = first

    def remove(self, run: Range) -> None:
        """Take out a run all of which is in. `O(log runs)`; from the only run `O(1)`."""
        first, end = run
        assert first < end
        self.count -= end - first
        if first < self._first:
            assert self._older is not None, "not in"
            assert end < self._first, "not in"
            self._older.remove(first, end)
            self._forget_if_empty()
            return
        assert end <= self._end, "not in"
        if first == self._first:
            if end < self._end:
                self._first = end
            elif self._older is not None:
                self._first, self._end = self._older.pop_last()
                self._forget_if_empty()
            else:
                self._first = end
        elif end == self._end:
            self._end = first
        else:
            self._earlier().add(self._first, first)
            self._first = end

    def covers(self, run: Range) -> bool:
        """Whether all of a run is in. `O(log runs)`."""
        first, end = run
        if first >= self._first:
            return end <= self._end
        if self._older is None or end >= self._first:
            return False
        return next(joined(self._older.pieces(first, end)), None) == run

    def within(self, run: Range) -> list[Range]:
        """Which parts of a run are in. `O(log runs)`, and the parts."""
        first, end = run
        found: list[Range] = []
        if first < self._first and self._older is not None:
            pieces = self._older.pieces(first, min(end, self._first))
            found.extend(map(Range._make, joined(pieces)))
        first, end = max(first, self._first), min(end, self._end)
        if first < end:
            found.append(Range(first, end))
        return found

    def gaps(self, run: Range) -> list[Range]:
        """Which parts of a run are not in. `O(log runs)`, and the parts."""
        found: list[Range] = []
        at = run.first
        for inside in self.within(run):
            if at < inside.first:
                found.append(Range(at, inside.first))
            at = inside.end
        if at < run.end:
            found.append(Range(at, run.end))
        return found

    def merge(self, run: Range) -> None:
        """Put in what of a run is not in yet. `O(spans)` of the run."""
        if run.first < self._end:
            if self.covers(run):
                return
            self._clear(run)
        self.add(run)

    def discard(self, run: Range) -> list[Range]:
        """Take out what of a run is in, and say what that was. `O(log runs)`, and the parts."""
        found = self.within(run)
        if len(found) == 1:
            self.remove(found[0])
        elif found:
            self._clear(run)
        return found

    def pop_first(self, count_max: int) -> Range | None:
        """Take out the first run, or its first `count_max` offsets."""
        run = self.first
        if run is None:
            return None
        run = Range(run.first, min(run.end, run.first + count_max))
        self.remove(run)
        return run

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(runs)`."""
        count, last_end = 0, -1
        for first, end in self:
            assert last_end < first, "runs overlap, touch, or are not in order"
            assert first < end, "a run is empty"
            count, last_end = count + end - first, end
        assert count == self.count
        if self._older is not None:
            assert self._older, "a container that nothing is in"
            assert self._first < self._end, "the last run is missing"
            self._older.check()

    def _clear(self, run: Range) -> None:
        first, end = run
        if first < self._first and self._older is not None:
            self.count -= self._older.clear(first, min(end, self._first))
            self._forget_if_empty()
        first, end = max(first, self._first), min(end, self._end)
        if first < end:
            self.remove(Range(first, end))

    def _earlier(self) -> Spans:
        if self._older is None:
            self._older = Spans(span_bits=self.SPAN_BITS, runs_max=self.RUNS_MAX)
        return self._older

    def _forget_if_empty(self) -> None:
        if not self._older:
            self._older = None


class Counted(NamedTuple):
    """A run of offsets that all have the same number."""

    run: Range
    value: int


class RangeMap:
    """A number above 0 for some offsets; all others have 0. Read as runs of equal numbers.

    It is kept as one set for each binary digit, of the offsets whose numbers have it. So it
    is as small as `Ranges` are, times the digits of the highest number, and a run that
    counts once more is added as one adds on paper, with two sets touched on average.
    """

    __slots__ = ("_digits",)

    def __init__(self) -> None:
        self._digits: list[Ranges] = []  # The lowest one first; the highest is not empty.

    def __bool__(self) -> bool:
        return bool(self._digits)

    def __iter__(self) -> Iterator[Counted]:
        """The runs, by offset. The map must not change meanwhile."""
        return _counted(merge(*map(_changes, self._digits, count())))

    @property
    def bookkeeping_bytes(self) -> int:
        """About what the map takes up in memory. `O(1)`."""
        return _MAP_BYTES + sum(digit.bookkeeping_bytes for digit in self._digits)

    def within(self, run: Range) -> list[Counted]:
        """The numbers above 0 in a run. `O(log runs)`, and the parts."""
        if len(self._digits) == 1:
            return [Counted(inside, 1) for inside in self._digits[0].within(run)]
        changes: list[tuple[int, int]] = []
        for place, digit in enumerate(self._digits):
            changes += _changes(digit.within(run), place)
        return list(_counted(sorted(changes)))

    def raise_by_one(self, run: Range, *, value_max: int) -> None:
        """Count each offset of a run once more, up to `value_max`. `O(log runs)`, and the parts."""
        carry = [run]
        if len(self._digits) >= value_max.bit_length():
            # Only now can something be at the limit already.
            raised = Ranges(run)
            for inside, value in self.within(run):
                if value >= value_max:
                    raised.remove(inside)
            carry = list(raised)
        for digit in self._digits:
            ones: list[Range] = []
            for part in carry:
                zeros = digit.gaps(part)
                ones += digit.discard(part)
                for zero in zeros:
                    digit.add(zero)
            carry = ones
        if carry:
            highest = Ranges()
            for part in carry:
                highest.add(part)
            self._digits.append(highest)

    def clear(self, run: Range) -> list[Counted]:
        """Set all of a run to 0, and say what was there. `O(log runs)`, and the parts."""
        found = self.within(run)
        if found:
            for digit in self._digits:
                digit.discard(run)
            while self._digits and not self._digits[-1]:
                self._digits.pop()
        return found

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(runs)`."""
        for digit in self._digits:
            digit.check()
        assert not self._digits or self._digits[-1], "the highest digit is 0 everywhere"
        last_end, last_value = -1, 0
        for (first, end), value in self:
            assert last_end <= first < end, "runs overlap or are empty"
            assert value > 0
            assert last_end < first or last_value != value, "equal neighbours are not joined"
            last_end, last_value = end, value


def _changes(runs: Iterable[Range], place: int) -> Iterator[tuple[int, int]]:
    """Where a binary digit changes, in order, and what it is worth."""
    for first, end in runs:
        yield first, 1 << place
        yield end, 1 << place


def _counted(changes: Iterable[tuple[int, int]]) -> Iterator[Counted]:
    """The numbers that come of all digits' changes, which are in order."""
    at = value = 0
    for offset, worth in changes:
        if at < offset:
            if value:
                yield Counted(Range(at, offset), value)
            at = offset
        value ^= worth
