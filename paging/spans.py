"""A set of offsets in pieces: in aligned spans, each of them as runs or as bits.

Theory of operation
-------------------
The offsets are cut into *spans* of `1 << span_bits`. A span of which something is in has a
*leaf*, and that is one of two things:

    Runs      first and end of each run whose last offset is in this span: 16 bytes a run
    Bitmap    a bit for each offset of this span: as much as `runs_max` runs take

A run is with the span of its last offset, however far it comes from, and what it covers on
its way needs no leaf: a long run costs as much as a short one. Runs that become more than
`runs_max` are made into a bitmap, and a bitmap of half as many is made into runs. That is so
far apart that the change, 0.2 ms, is paid for by those that led to it.

Where a bitmap begins and ends runs are cut, and only there do two pieces touch: who asks for
runs has to join them. A bitmap is never empty and never full. So a run all of which is in, or
none, meets two bitmaps at most, at its two ends, and one run between them: to put it in or to
take it out costs a few microseconds, and at most two of those changes.

The leaves are in a sorted list: the next leaf is the next element. A new one moves 8 bytes
for each that is behind it, which for 10⁹ offsets, 30,000 leaves, is 10 µs.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from paging.bitmap import Bitmap

# What objects take up, on CPython 3.11. A test measures whether it adds up.
_SPANS_BYTES: Final = 220
_LEAF_BYTES: Final = 56  # Its key, and its places in the two lists.
_RUNS_BYTES: Final = 180  # Two arrays, and their room to grow.
_RUN_BYTES: Final = 17
_BITMAP_BYTES: Final = 96

Piece = tuple[int, int]
"""First and end. In here there is no `Range`: making one costs as much as finding it."""


class Runs:
    """The runs whose last offset is in one span, in order."""

    __slots__ = ("ends", "firsts")

    def __init__(self) -> None:
        self.firsts = array("Q")
        self.ends = array("Q")


class Spans:
    """A set of offsets, in pieces.

    Args:
        span_bits: A span has two to the power of it offsets.
        runs_max: With more runs than this a span is kept as bits.
    """

    __slots__ = ("_bits", "_keys", "_leaves", "_runs", "_runs_max", "_size", "bitmaps")

    def __init__(self, *, span_bits: int, runs_max: int) -> None:
        assert runs_max > 1
        self._bits = span_bits
        self._size = 1 << span_bits
        self._runs_max = runs_max
        self._keys: list[int] = []  # Spans that have a leaf: their offsets >> span_bits.
        self._leaves: list[Runs | Bitmap] = []  # In the same order.
        self._runs = 0  # In all leaves that are `Runs`.
        self.bitmaps = 0
        """How many spans are kept as bits."""

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def bookkeeping_bytes(self) -> int:
        """About what it takes up in memory. `O(1)`."""
        return (
            _SPANS_BYTES
            + _LEAF_BYTES * len(self._keys)
            + _RUNS_BYTES * (len(self._keys) - self.bitmaps)
            + _RUN_BYTES * self._runs
            + (_BITMAP_BYTES + self._size // 8) * self.bitmaps
        )

    @property
    def runs(self) -> int:
        """How many runs the set consists of, those that touch counted once. `O(spans)`."""
        runs = self._runs
        if not self.bitmaps:
            return runs
        border = -1  # Where the leaf before this one ends, if it has the last offset of it.
        for key, leaf in zip(self._keys, self._leaves, strict=True):
            base = key << self._bits
            if isinstance(leaf, Bitmap):
                runs += leaf.runs - (border == base and leaf.has(0))
                border = base + self._size if leaf.has(self._size - 1) else -1
            else:
                runs -= leaf.firsts[0] == border
                border = leaf.ends[-1]
        return runs

    def pieces(self, first: int, end: int) -> Iterator[Piece]:
        """What of a run is in, in order. A piece may touch the next one."""
        for at in range(bisect_left(self._keys, first >> self._bits), len(self._keys)):
            leaf = self._leaves[at]
            if isinstance(leaf, Bitmap):
                base = self._keys[at] << self._bits
                if base >= end:
                    return
                for low, high in leaf.pieces(max(first - base, 0), min(end - base, self._size)):
                    yield base + low, base + high
            else:
                ends, firsts = leaf.ends, leaf.firsts
                for i in range(bisect_right(ends, first), len(ends)):
                    low = firsts[i]
                    if low >= end:
                        return
                    yield max(low, first), min(ends[i], end)

    def add(self, first: int, end: int) -> None:
        """Put in a run none of which is in."""
        if self.bitmaps:
            key, last = first >> self._bits, end - 1 >> self._bits
            border = key + 1 << self._bits
            if (at := self._bitmap_at(key)) >= 0:
                self._fill(at, first, min(end, border))
                first = border
            if last != key and (at := self._bitmap_at(last)) >= 0:
                self._fill(at, last << self._bits, end)
                end = last << self._bits
        if first < end:
            self._add_run(first, end)

    def remove(self, first: int, end: int) -> None:
        """Take out a run all of which is in."""
        if self.bitmaps:
            key, last = first >> self._bits, end - 1 >> self._bits
            border = key + 1 << self._bits
            if (at := self._bitmap_at(key)) >= 0:
                self._wipe(at, first, min(end, border))
                first = border
            if last != key and (at := self._bitmap_at(last)) >= 0:
                self._wipe(at, last << self._bits, end)
                end = last << self._bits
        if first < end:
            self._remove_run(first, end)

    def clear(self, first: int, end: int) -> int:
        """Take out what of a run is in, and say how many that were. `O(spans)` of the run."""
        start = stop = bisect_left(self._keys, first >> self._bits)
        kept: list[tuple[int, Runs | Bitmap]] = []
        cut: Piece | None = None  # What is left of a run that began before.
        count = 0
        for at in range(start, len(self._keys)):
            key, leaf = self._keys[at], self._leaves[at]
            if isinstance(leaf, Bitmap):
                base = key << self._bits
                if base >= end:
                    break
                low, high = max(first - base, 0), min(end - base, self._size)
                if high - low < self._size:
                    count += leaf.wipe(low, high)
                    kept.append((key, leaf))
                else:
                    count += leaf.count(low, high)
                    self.bitmaps -= 1
            else:
                ends, firsts = leaf.ends, leaf.firsts
                low, high = bisect_right(ends, first), bisect_left(firsts, end)
                if low < high:
                    if firsts[low] < first:
                        cut = firsts[low], first
                        firsts[low] = first
                    if ends[high - 1] > end:
                        count += end - firsts[high - 1]
                        high -= 1
                        firsts[high] = end
                    count += sum(ends[low:high]) - sum(firsts[low:high])
                    self._runs -= high - low
                    del ends[low:high], firsts[low:high]
                if ends:
                    kept.append((key, leaf))
            stop = at + 1
            if isinstance(leaf, Runs) and leaf.ends and leaf.ends[-1] > end:
                break
        self._keys[start:stop] = [key for key, _ in kept]
        self._leaves[start:stop] = [leaf for _, leaf in kept]
        if cut:
            self._insert_and_limit(*cut)
        for key, leaf in kept:
            if isinstance(leaf, Bitmap):
                self._settle(bisect_left(self._keys, key))
        return count

    def take_back(self, end: int) -> int:
        """Take out the last run if it ends at `end`, and say where it began; else `end`.

        Nothing behind `end` is in.
        """
        while self._keys:
            at, leaf = len(self._keys) - 1, self._leaves[-1]
            if isinstance(leaf, Bitmap):
                base = self._keys[-1] << self._bits
                assert base + leaf.last_end() <= end, "already in"
                if end <= base + self._size:
                    first = base + leaf.first_of(end - base)
                    if first < end:
                        # Its other runs are left, so this one does not go on before it.
                        self._wipe(at, first, end)
                        return first
                return end
            assert leaf.ends[-1] <= end, "already in"
            if leaf.ends[-1] < end:
                return end
            end = leaf.firsts[-1]
            self._delete(at, len(leaf.ends) - 1)
        return end

    def pop_last(self) -> Piece:
        """Take out the last run. There must be one."""
        key, leaf = self._keys[-1], self._leaves[-1]
        if isinstance(leaf, Bitmap):
            end = (key << self._bits) + leaf.last_end()
        else:
            end = leaf.ends[-1]
        return self.take_back(end), end

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(runs)`."""
        assert self._keys == sorted(set(self._keys))
        assert len(self._keys) == len(self._leaves)
        runs = bitmaps = last_end = 0
        may_touch = True
        for key, leaf in zip(self._keys, self._leaves, strict=True):
            base = key << self._bits
            border = base + self._size
            if isinstance(leaf, Bitmap):
                leaf.check()
                assert leaf.size == self._size
                assert leaf.runs > self._runs_max // 2, "a bitmap that has few runs left"
                assert last_end <= base, "a run reaches into a bitmap"
                last_end, may_touch = border, True
                bitmaps += 1
                continue
            # One more, since the bitmap behind may have cut off what began here.
            assert 0 < len(leaf.ends) <= self._runs_max + 1, "too many runs, or none"
            for first, end in zip(leaf.firsts, leaf.ends, strict=True):
                assert first < end, "a run is empty"
                assert base < end <= border, "a run is not where its last offset is"
                assert first > last_end or (may_touch and first == last_end), "runs touch"
                last_end, may_touch = end, False
                runs += 1
        assert runs == self._runs
        assert bitmaps == self.bitmaps
        assert sum(1 for _ in joined(self.pieces(0, last_end))) == self.runs

    def _bitmap_at(self, key: int) -> int:
        """Where the leaf of a span is if it is a bitmap; else -1."""
        at = bisect_left(self._keys, key)
        if at < len(self._keys) and self._keys[at] == key and type(self._leaves[at]) is Bitmap:
            return at
        return -1

    def _fill(self, at: int, first: int, end: int) -> None:
        leaf, base = self._leaves[at], self._keys[at] << self._bits
        assert isinstance(leaf, Bitmap)
        leaf.fill(first - base, end - base)
        self._settle(at)

    def _wipe(self, at: int, first: int, end: int) -> None:
        leaf, base = self._leaves[at], self._keys[at] << self._bits
        assert isinstance(leaf, Bitmap)
        count = leaf.wipe(first - base, end - base)
        assert count == end - first, "not in"
        self._settle(at)

    def _settle(self, at: int) -> None:
        """Make a bitmap into runs if it has few left; if it is full, it has one."""
        leaf = self._leaves[at]
        assert isinstance(leaf, Bitmap)
        if leaf.runs > self._runs_max // 2:
            return
        base = self._keys[at] << self._bits
        del self._keys[at], self._leaves[at]
        self.bitmaps -= 1
        for first, end in joined(leaf.pieces(0, self._size)):
            self._add_run(base + first, base + end)  # Joins those at the borders.

    def _condense(self, at: int) -> None:
        """Make runs into a bitmap, and cut those that go beyond it."""
        leaf, base = self._leaves[at], self._keys[at] << self._bits
        assert isinstance(leaf, Runs)
        bitmap = Bitmap(self._size)
        begin = leaf.firsts[0]
        leaf.firsts[0] = max(begin, base)
        for first, end in zip(leaf.firsts, leaf.ends, strict=True):
            bitmap.fill(first - base, end - base)
        self._runs -= len(leaf.ends)
        self._leaves[at] = bitmap
        self.bitmaps += 1
        after = self._leaves[at + 1] if at + 1 < len(self._leaves) else None
        if isinstance(after, Runs) and after.firsts[0] < base + self._size:
            bitmap.fill(after.firsts[0] - base, self._size)
            after.firsts[0] = base + self._size
        if begin < base:
            self._insert(begin, base)

    def _above(self, offset: int) -> tuple[int, int]:
        """Where the first run is that ends above an offset, if no bitmap comes before it.

        Its leaf's place and its own in there. The leaf may be a bitmap, or the end.
        """
        key = offset >> self._bits
        at = bisect_left(self._keys, key)
        if at < len(self._keys) and self._keys[at] == key:
            leaf = self._leaves[at]
            if isinstance(leaf, Runs):
                i = bisect_right(leaf.ends, offset)
                if i < len(leaf.ends):
                    return at, i
            at += 1
        return at, 0

    def _add_run(self, first: int, end: int) -> None:
        """Put in a run of which nothing is in a bitmap's span, and join it with others."""
        at, i = self._above(first)
        after = self._leaves[at] if at < len(self._leaves) else None
        joins: Runs | None = None
        if isinstance(after, Runs):
            assert end <= after.firsts[i], "already in"
            joins = after if end == after.firsts[i] else None
        elif after is not None:
            assert end <= self._keys[at] << self._bits, "already in"
        before_at = at if i else at - 1
        before = self._leaves[before_at] if before_at >= 0 else None
        if isinstance(before, Runs):
            j = i - 1 if i else len(before.ends) - 1
            if before.ends[j] == first:
                if not joins and self._keys[before_at] == end - 1 >> self._bits:
                    before.ends[j] = end
                    return
                first = before.firsts[j]
                if joins:
                    joins.firsts[i] = first
                self._delete(before_at, j)  # May move the leaf that it is joined to.
                if not joins:
                    self._insert_and_limit(first, end)
                return
        if joins:
            joins.firsts[i] = first
        else:
            self._insert_and_limit(first, end)

    def _remove_run(self, first: int, end: int) -> None:
        """Take out a run of which nothing is in a bitmap's span."""
        at, i = self._above(first)
        assert at < len(self._leaves), "not in"
        leaf = self._leaves[at]
        assert isinstance(leaf, Runs), "not in"
        begin, stop = leaf.firsts[i], leaf.ends[i]
        assert begin <= first, "not in"
        assert end <= stop, "not in"
        if end < stop:
            leaf.firsts[i] = end
        elif begin < first and self._keys[at] == first - 1 >> self._bits:
            leaf.ends[i] = first
            return
        else:
            self._delete(at, i)
        if begin < first:
            self._insert_and_limit(begin, first)

    def _insert_and_limit(self, first: int, end: int) -> None:
        at = self._insert(first, end)
        leaf = self._leaves[at]
        if isinstance(leaf, Runs) and len(leaf.ends) > self._runs_max:
            self._condense(at)

    def _insert(self, first: int, end: int) -> int:
        """Put in a run that touches no other one. Returns where its leaf is."""
        key = end - 1 >> self._bits
        at = bisect_left(self._keys, key)
        if at == len(self._keys) or self._keys[at] != key:
            self._keys.insert(at, key)
            self._leaves.insert(at, Runs())
        leaf = self._leaves[at]
        assert isinstance(leaf, Runs)
        i = bisect_left(leaf.ends, end)
        leaf.firsts.insert(i, first)
        leaf.ends.insert(i, end)
        self._runs += 1
        return at

    def _delete(self, at: int, i: int) -> None:
        leaf = self._leaves[at]
        assert isinstance(leaf, Runs)
        del leaf.firsts[i], leaf.ends[i]
        self._runs -= 1
        if not leaf.ends:
            del self._keys[at], self._leaves[at]


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Pieces in order, those that touch as one."""
    begin, stop = -1, -1
    for first, end in pieces:
        if first != stop:
            if begin < stop:
                yield begin, stop
            begin = first
        stop = end
    if begin < stop:
        yield begin, stop
