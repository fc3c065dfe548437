"""The log of one copy: segments without a gap, of which the newest are kept.

Ops are numbered from 1. `end` is the number of the next one, so an empty log ends at 1.
Segments at the front are forgotten once nobody is expected to ask for them; what they said is
in the machine's state.
"""

from __future__ import annotations

from bisect import bisect_right

from replication.core.segment import Segment


class OpLog:
    """What `at` means everywhere: the number of an op that begins a segment, or the end.

    Attributes:
        end: Number of the next op.
        chain: Of all ops so far.
        bytes_total: Of all records ever appended and not cut; it measures distances.
        bytes_kept: The same, of the segments that are still there.
        bytes_lent: What of these the machine may keep as the same objects.
    """

    __slots__ = (
        "_ends",
        "_firsts",
        "_segments",
        "bytes_kept",
        "bytes_lent",
        "bytes_total",
        "chain",
        "end",
    )

    def __init__(self) -> None:
        self.end = 1
        self.chain = 0
        self.bytes_total = 0
        self.bytes_kept = 0
        self.bytes_lent = 0
        self._segments: list[Segment] = []
        self._firsts: list[int] = []
        self._ends: list[int] = []  # `bytes_total` after each segment.

    @property
    def first_kept(self) -> int:
        """The lowest op that another copy can have from here; the end, if there is none."""
        return self._firsts[0] if self._firsts else self.end

    def append(self, segment: Segment) -> None:
        assert segment.first_seq == self.end
        assert segment.chain_before == self.chain
        self._segments.append(segment)
        self._firsts.append(segment.first_seq)
        self.bytes_total += segment.size
        self.bytes_kept += segment.size
        self.bytes_lent += segment.lent
        self._ends.append(self.bytes_total)
        self.end = segment.end_seq
        self.chain = segment.chain_after

    def cut(self, at: int) -> int:
        """Take back all ops from `at` on. Says how many these were."""
        assert at <= self.end
        if at == self.end:
            return 0
        index = self._index(at)
        gone = self._segments[index:]
        assert gone[0].first_seq == at, "a log is cut between two segments"
        size = sum(segment.size for segment in gone)
        self.bytes_total -= size
        self.bytes_kept -= size
        self.bytes_lent -= sum(segment.lent for segment in gone)
        self.chain = gone[0].chain_before
        count, self.end = self.end - at, at
        del self._segments[index:], self._firsts[index:], self._ends[index:]
        return count

    def from_(self, seq: int, bytes_max: int) -> list[Segment]:
        """Segments from the one that holds `seq` on, of about `bytes_max`; at least one."""
        found: list[Segment] = []
        size = 0
        for index in range(self._index(seq), len(self._segments)):
            segment = self._segments[index]
            if found and size + segment.wire_bytes > bytes_max:
                break
            found.append(segment)
            size += segment.wire_bytes
        return found

    def between(self, first: int, end: int) -> list[Segment]:
        """The segments of the ops from `first` on and below `end`, which ends a segment."""
        if first >= end:
            return []
        segments = self._segments[self._index(first) : self._index(end - 1) + 1]
        assert segments[0].first_seq == first
        assert segments[-1].end_seq == end, "commit moves by whole segments"
        return segments

    def chain_at(self, at: int) -> int | None:
        """The chain below `at`, if that is still known here."""
        if at == self.end:
            return self.chain
        if not self.first_kept <= at < self.end:
            return None
        segment = self._segments[self._index(at)]
        return segment.chain_before if segment.first_seq == at else None

    def bytes_from(self, at: int) -> int:
        """Bytes of the ops from `at` on. Counts what is kept; `O(log segments)`."""
        if at >= self.end:
            return 0
        if at <= self.first_kept:
            return self.bytes_kept
        index = self._index(at)
        return self.bytes_total - self._ends[index] + self._segments[index].size

    def trim(self, *, bytes_max: int, below: int) -> None:
        """Forget the oldest segments above `bytes_max`, but none that reaches to `below`.

        Waits until there is an eighth too much, since each time the lists are moved.
        """
        if self.bytes_kept <= bytes_max + bytes_max // 8:
            return
        count, kept = 0, self.bytes_kept
        for segment in self._segments:
            if kept <= bytes_max or segment.end_seq > below:
                break
            kept -= segment.size
            self.bytes_lent -= segment.lent
            count += 1
        del self._segments[:count], self._firsts[:count], self._ends[:count]
        self.bytes_kept = kept

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(segments)`."""
        kept = self._segments
        at = self.first_kept
        for before, segment in zip([None, *kept], kept, strict=False):
            assert segment.first_seq == at
            assert before is None or before.chain_after == segment.chain_before
            at = segment.end_seq
        assert at == self.end
        assert self.bytes_kept == sum(segment.size for segment in kept)
        assert self.bytes_lent == sum(segment.lent for segment in kept)
        assert not kept or kept[-1].chain_after == self.chain

    def _index(self, seq: int) -> int:
        assert self.first_kept <= seq < self.end
        return bisect_right(self._firsts, seq) - 1
