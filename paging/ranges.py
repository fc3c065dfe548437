"""Sets of offsets, and small numbers by offset, kept as disjoint runs.

Theory of operation
-------------------
A part speaks of its messages by the million and changes them by the run, so a set of
offsets is a sequence of runs: sorted, disjoint, and never touching, because two runs that
touch are one. Equal sets therefore always look alike, which digests rely on.

The last run is kept as two numbers. A set that grows at its end and shrinks at its front,
as the ready messages of a healthy queue do, is one run for all its life: it costs a
comparison and an addition, and no sorted container is ever made. Only what lies before the
last run is in a `SortedDict`, by the *end* of each run: so taking from the front of a run
changes a value and no key, and the run that covers an offset is the first one whose end is
above it.

Costs are given in runs. Nothing here looks at a single offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

_END_ABOVE = (False, True)  # For `irange`: without its minimum itself.


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

    def __init__(self, run: Range | None = None) -> None:
        self._first, self._end = run or (0, 0)  # The last run; empty if the set is.
        self._older: SortedDict[int, int] | None = None  # Runs before it: end -> first.
        self.count = self._end - self._first
        """How many offsets are in the set."""

    def __bool__(self) -> bool:
        return self._first < self._end

    def __iter__(self) -> Iterator[Range]:
        """The runs, by offset. The set must not change meanwhile."""
        if self._older:
            for end, first in self._older.items():
                yield Range(first, end)
        if self._first < self._end:
            yield Range(self._first, self._end)

    @property
    def runs(self) -> int:
        """How many runs the set consists of."""
        return len(self._older or ()) + (self._first < self._end)

    @property
    def first(self) -> Range | None:
        """The first run. `O(1)`."""
        if self._older:
            end, first = self._older.peekitem(0)
            return Range(first, end)
        return Range(self._first, self._end) if self._first < self._end else None

    def add(self, run: Range) -> None:
        """Put in a run none of which is in. `O(log runs)`; at the end of the set `O(1)`."""
        first, end = run
        assert first < end
        self.count += end - first
        if first > self._end or self._first == self._end:
            if self._first < self._end:
                self._earlier()[self._end] = self._first
            self._first, self._end = run
        elif first == self._end:
            self._end = end
        else:
            self._add_before(first, end)

    def _add_before(self, first: int, end: int) -> None:
        if end == self._first and not self._older:
            self._first = first
            return
        older = self._earlier()
        after = next(older.irange(first, None, _END_ABOVE), None)
        if after is None:
            assert end <= self._first, "already in"
            joined = older.pop(first, None)
            if joined is not None:
                first = joined
            if end == self._first:
                self._first = first
            else:
                older[end] = first
            return
        assert end <= older[after], "already in"
        joined = older.pop(first, None)
        if joined is not None:
            first = joined
        older[after if end == older[after] else end] = first

    def remove(self, run: Range) -> None:
        """Take out a run all of which is in. `O(log runs)`; from the only run `O(1)`."""
        first, end = run
        assert first < end
        self.count -= end - first
        if first < self._first:
            self._remove_before(first, end)
            return
        assert end <= self._end, "not in"
        if first == self._first:
            if end < self._end:
                self._first = end
            elif self._older:
                self._end, self._first = self._older.popitem()
            else:
                self._first = end
        elif end == self._end:
            self._end = first
        else:
            self._earlier()[first] = self._first
            self._first = end

    def _remove_before(self, first: int, end: int) -> None:
        assert self._older, "not in"
        older = self._older
        after = next(older.irange(first, None, _END_ABOVE), None)
        assert after is not None, "not in"
        start = older[after]
        assert start <= first, "not in"
        assert end <= after, "not in"
        if end < after:
            older[after] = end
        else:
            del older[after]
        if start < first:
            older[first] = start

    def covers(self, run: Range) -> bool:
        """Whether all of a run is in. `O(log runs)`."""
        first, end = run
        if first >= self._first:
            return end <= self._end
        if not self._older:
            return False
        after = next(self._older.irange(first, None, _END_ABOVE), None)
        return after is not None and self._older[after] <= first and end <= after

    def within(self, run: Range) -> list[Range]:
        """Which parts of a run are in. `O(log runs)`, and the parts."""
        first, end = run
        found: list[Range] = []
        if first < self._first and self._older:
            for run_end in self._older.irange(first, None, _END_ABOVE):
                run_first = self._older[run_end]
                if run_first >= end:
                    return found
                found.append(Range(max(run_first, first), min(run_end, end)))
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
        """Put in what of a run is not in yet."""
        for gap in self.gaps(run):
            self.add(gap)

    def discard(self, run: Range) -> list[Range]:
        """Take out what of a run is in, and say what that was."""
        found = self.within(run)
        for inside in found:
            self.remove(inside)
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
        assert self._first < self._end or not self._older, "the last run is missing"

    def _earlier(self) -> SortedDict[int, int]:
        if self._older is None:
            self._older = SortedDict()
        return self._older


class Counted(NamedTuple):
    """A run of offsets that all have the same number."""

    run: Range
    value: int


# Most parts never have one, and an empty `SortedDict` of each part's own is 1.3 KB.
_NO_NUMBERS: Final[SortedDict[int, tuple[int, int]]] = SortedDict()


class RangeMap:
    """A number above 0 for some offsets; all others have 0. Kept as runs of equal numbers."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs = _NO_NUMBERS  # end -> (first, value)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __iter__(self) -> Iterator[Counted]:
        """The runs, by offset. The map must not change meanwhile."""
        for end, (first, value) in self._runs.items():
            yield Counted(Range(first, end), value)

    def within(self, run: Range) -> list[Counted]:
        """The numbers above 0 in a run. `O(log runs)`, and the parts."""
        found: list[Counted] = []
        for end in self._runs.irange(run.first, None, _END_ABOVE):
            first, value = self._runs[end]
            if first >= run.end:
                break
            found.append(Counted(Range(max(first, run.first), min(end, run.end)), value))
        return found

    def raise_by_one(self, run: Range, *, value_max: int) -> None:
        """Count each offset of a run once more, up to `value_max`. `O(log runs)`, and the parts."""
        pieces: list[Counted] = []
        at = run.first
        for inside, value in self.clear(run):
            if at < inside.first:
                pieces.append(Counted(Range(at, inside.first), 1))
            pieces.append(Counted(inside, min(value + 1, value_max)))
            at = inside.end
        if at < run.end:
            pieces.append(Counted(Range(at, run.end), 1))
        for inside, value in pieces:
            self._put(inside, value)

    def clear(self, run: Range) -> list[Counted]:
        """Set all of a run to 0, and say what was there. `O(log runs)`, and the parts."""
        found = self.within(run) if self._runs else []
        for (first, end), value in found:
            whole_end = next(self._runs.irange(first, None, _END_ABOVE))
            whole_first, _ = self._runs.pop(whole_end)
            if whole_first < first:
                self._runs[first] = (whole_first, value)
            if end < whole_end:
                self._runs[whole_end] = (end, value)
        return found

    def _put(self, run: Range, value: int) -> None:
        """Give a run, all of which has 0, a number. Joins it with equal neighbours."""
        if self._runs is _NO_NUMBERS:
            self._runs = SortedDict()
        first, end = run
        before = self._runs.get(first)
        if before is not None and before[1] == value:
            del self._runs[first]
            first = before[0]
        after_end = next(self._runs.irange(end, None, _END_ABOVE), None)
        if after_end is not None and self._runs[after_end] == (end, value):
            end = after_end
        self._runs[end] = (first, value)

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(runs)`."""
        last_end, last_value = -1, 0
        for (first, end), value in self:
            assert last_end <= first < end, "runs overlap or are empty"
            assert value > 0
            assert last_end < first or last_value != value, "equal neighbours are not joined"
            last_end, last_value = end, value
