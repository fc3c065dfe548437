"""The bytes of a part: a run of sealed pages, and one open page at the tail.

Theory of operation
-------------------
Batches never change, so storing them is keeping them findable by offset. Three levels do
that. A *block* holds one large batch, or many small ones; it is what is freed as a whole
when the last of its messages is dropped. A *page* holds consecutive blocks and is sealed
when it is full; only the tail page is open. *Pages* finds a page by its first offset, in a
sorted container that an access to the tail does not touch.

Nothing is kept per message but the batch's own table. A batch of its own costs some 250
bytes as Python objects, which is nothing beside 60 KB and far too much beside 100 bytes:
small batches are therefore packed into one bytes object as soon as 64 KiB of them have
come together, with 4 bytes for each (where it starts, and its first offset, both counted
from the block's start), and made into a `Batch` again when somebody asks.

Rules
-----
1. How a node cuts its pages and blocks is its own affair. Nothing here may reach the
   replicated state or its digest.
2. Who asks for a batch does not know where it lay. Whether a page's bytes are in memory is
   the business of `Page` alone; `resident_bytes` is what it takes up there.
3. No batch pins bytes that are not its own: what was cut from a much larger record is copied.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from sortedcontainers import SortedDict

from paging.ranges import Range, Ranges
from tanist.wire.batch import Batch

PAGE_BYTES: Final = 1 << 20
"""Batches a page takes in before it is sealed. One block may go beyond it."""

SMALL_BYTES: Final = 8 << 10
"""A batch below this shares a block. Above it, objects of its own are 3 % of it at most."""

BLOCK_BYTES: Final = 1 << 16
"""The most that small batches share. Both offsets inside a block fit 16 bits then."""

# What the objects take up beside the bytes themselves, on CPython 3.11.
_LOOSE_OVERHEAD: Final = 240  # A `Batch`, its numbers, and the header of its bytes object.
_LONE_OVERHEAD: Final = _LOOSE_OVERHEAD + 80
_SHARED_OVERHEAD: Final = 260
_PACKED_OVERHEAD: Final = 4


Piece = tuple[Batch, int, int]
"""Messages of one batch: the batch, the index of the first of them, how many."""


class _Lone:
    """A block of one large batch, as it came."""

    __slots__ = ("batch", "first", "live")

    def __init__(self, batch: Batch, first: int) -> None:
        self.batch = batch
        self.first = first
        self.live = batch.count

    @property
    def bytes(self) -> int:
        return self.batch.size

    @property
    def resident_bytes(self) -> int:
        return self.batch.size + _LONE_OVERHEAD

    def find(self, offset: int) -> tuple[Batch, int]:
        return self.batch, self.first


class _Shared:
    """A block of small batches: loose while it fills, packed from then on."""

    __slots__ = ("_loose", "_packed", "_places", "bytes", "first", "live")

    def __init__(self, first: int) -> None:
        self.first = first
        self.live = 0
        self.bytes = 0
        self._loose: list[Batch] | None = []
        self._packed = b""
        # For each batch, in the upper 16 bits its first offset, counted from `first`; in the
        # lower ones where it starts in `_packed`. One array, since each costs 80 bytes.
        self._places = array("I")

    @property
    def resident_bytes(self) -> int:
        each = _PACKED_OVERHEAD if self._loose is None else _LOOSE_OVERHEAD
        return self.bytes + _SHARED_OVERHEAD + each * len(self._places)

    def takes(self, batch: Batch) -> bool:
        return self.bytes + batch.size <= BLOCK_BYTES

    def append(self, batch: Batch, first: int) -> None:
        assert self._loose is not None, "packed already"
        self._loose.append(batch)
        self._places.append(first - self.first << 16 | self.bytes)
        self.live += batch.count
        self.bytes += batch.size

    def pack(self) -> None:
        """Nothing more comes: give up the objects, keep the bytes."""
        assert self._loose is not None, "packed already"
        self._packed = b"".join([b.data[b.start : b.start + b.size] for b in self._loose])
        self._loose = None
        self._places = self._places[:]  # Without the room to grow.

    def find(self, offset: int) -> tuple[Batch, int]:
        at = bisect_right(self._places, offset - self.first << 16 | 0xFFFF) - 1
        place = self._places[at]
        if self._loose is None:
            batch = Batch.trusted(self._packed, place & 0xFFFF)
        else:
            batch = self._loose[at]
        return batch, self.first + (place >> 16)


class Page:
    """Consecutive batches, open or sealed. It knows which blocks are needed, not by whom."""

    __slots__ = (
        "_blocks",
        "_filling",
        "_firsts",
        "bytes",
        "bytes_taken",
        "end",
        "first",
        "live",
        "resident_bytes",
    )

    def __init__(self, first: int) -> None:
        self.first = self.end = first
        self.live = 0
        """How many of its messages are not dropped."""
        self.bytes = 0
        """Batches in blocks that are not freed."""
        self.resident_bytes = 0
        """What they take up in memory, objects included."""
        self.bytes_taken = 0
        """Batches that it ever took in: by this it is sealed."""
        self._blocks: list[_Lone | _Shared | None] = []  # None: freed.
        self._firsts = array("Q")  # Of each block, freed or not.
        self._filling: _Shared | None = None  # The last block, if more goes in.

    def append(self, batch: Batch) -> None:
        first, size = self.end, batch.size
        if size >= SMALL_BYTES:
            self.seal()
            lone = _Lone(batch, first)
            self._blocks.append(lone)
            self._firsts.append(first)
            self.resident_bytes += lone.resident_bytes
        else:
            block = self._filling
            if block is None or not block.takes(batch):
                self.seal()
                block = self._filling = _Shared(first)
                self._blocks.append(block)
                self._firsts.append(first)
                self.resident_bytes += block.resident_bytes
            block.append(batch, first)
            self.resident_bytes += size + _LOOSE_OVERHEAD
        self.end = first + batch.count
        self.live += batch.count
        self.bytes += size
        self.bytes_taken += size

    def seal(self) -> None:
        """Nothing more goes into the last block. Of a whole page that is the end of it."""
        block = self._filling
        if block is not None:
            self._filling = None
            self.resident_bytes -= block.resident_bytes
            block.pack()
            self.resident_bytes += block.resident_bytes

    def find(self, offset: int) -> tuple[Batch, int]:
        """The batch with a message that is not dropped, and the batch's first offset."""
        block = self._blocks[bisect_right(self._firsts, offset) - 1]
        assert block is not None, "a dropped message was asked for"
        return block.find(offset)

    def drop(self, first: int, end: int) -> int:
        """Messages of this page are needed no more. Returns the bytes that were freed."""
        firsts, blocks = self._firsts, self._blocks
        self.live -= end - first
        freed = 0
        at = bisect_right(firsts, first) - 1
        while first < end:
            block = blocks[at]
            assert block is not None, "dropped twice"
            at += 1
            block_end = firsts[at] if at < len(firsts) else self.end
            block.live -= min(end, block_end) - first
            assert block.live >= 0, "dropped twice"
            if not block.live:
                blocks[at - 1] = None
                if block is self._filling:
                    self._filling = None
                freed += block.bytes
                self.resident_bytes -= block.resident_bytes
            first = block_end
        self.bytes -= freed
        return freed

    def check(self, live: Ranges) -> None:
        """Verify every invariant against the offsets that must be here; `O(batches)`."""
        assert len(self._blocks) == len(self._firsts)
        held = [block for block in self._blocks if block is not None]
        assert sum(block.live for block in held) == self.live
        assert sum(block.bytes for block in held) == self.bytes
        assert sum(block.resident_bytes for block in held) == self.resident_bytes
        assert self._filling is None or self._filling is self._blocks[-1]
        ends = [*self._firsts, self.end][1:]
        for first, end, block in zip(self._firsts, ends, self._blocks, strict=True):
            needed = sum(run.size for run in live.within(Range(first, end)))
            assert needed == (block.live if block is not None else 0)
            offset = first
            while block is not None and offset < end:
                batch, batch_first = block.find(offset)
                assert batch_first == offset, "batches of a block leave a gap"
                offset += batch.count
            assert block is None or offset == end


# Most parts never fill a page, and an empty `SortedDict` of each part's own is 1.3 KB.
_NO_PAGES: Final[SortedDict[int, Page]] = SortedDict()


class Pages:
    """All batches of a part that are still needed, by the offsets of their messages.

    Args:
        page_bytes: When the tail page is sealed. Every node may choose its own.
    """

    __slots__ = (
        "_page_bytes",
        "_recent",
        "_recent_end",
        "_recent_first",
        "_sealed",
        "_tail",
        "bytes",
    )

    def __init__(self, *, page_bytes: int = PAGE_BYTES) -> None:
        assert page_bytes > 0
        self._page_bytes = page_bytes
        self._sealed = _NO_PAGES  # By first offset.
        self._tail = Page(0)
        self.bytes = 0
        """Batches held, wherever they are: a batch counts until its block is freed."""
        # The batch that was asked for last: what plans a delivery asks for it, and so does
        # what makes the frames of it.
        self._recent: Batch | None = None
        self._recent_first = self._recent_end = 0

    @property
    def end(self) -> int:
        """The offset that the next message will have."""
        return self._tail.end

    @property
    def count(self) -> int:
        """How many pages there are, with the open one."""
        return len(self._sealed) + 1

    @property
    def resident_bytes(self) -> int:
        """What all pages take up in memory. `O(pages)`."""
        return self._tail.resident_bytes + sum(
            page.resident_bytes for page in self._sealed.values()
        )

    def append(self, batch: Batch) -> int:
        """Take a batch in. Returns the offset of its first message. `O(1)`."""
        if len(batch.data) > 2 * batch.size + 64:  # 64: the fixed part of an op is its own.
            batch = Batch.trusted(batch.data[batch.start : batch.start + batch.size])
        tail = self._tail
        first = tail.end
        tail.append(batch)
        self.bytes += batch.size
        if tail.bytes_taken >= self._page_bytes:
            self.seal()
        return first

    def seal(self) -> None:
        """Close the tail page, and open the next one. For a tail that is old, not full."""
        tail = self._tail
        if tail.end > tail.first:
            tail.seal()
            if self._sealed is _NO_PAGES:
                self._sealed = SortedDict()
            self._sealed[tail.first] = tail
            self._tail = Page(tail.end)

    def batch_at(self, offset: int) -> tuple[Batch, int]:
        """The batch with this message, and the batch's first offset. `O(log pages)`.

        The message must not have been dropped.
        """
        if self._recent is not None and self._recent_first <= offset < self._recent_end:
            return self._recent, self._recent_first
        page = self._tail
        if offset < page.first:
            at = next(self._sealed.irange(None, offset, reverse=True), None)
            assert at is not None, "no page has that message"
            page = self._sealed[at]
        assert page.first <= offset < page.end, "no page has that message"
        batch, first = page.find(offset)
        self._recent, self._recent_first, self._recent_end = batch, first, first + batch.count
        return batch, first

    def pieces(self, run: Range) -> Iterator[Piece]:
        """The messages of a run, batch by batch. None of them may have been dropped."""
        offset, end = run
        while offset < end:
            batch, first = self.batch_at(offset)
            index = offset - first
            count = min(batch.count - index, end - offset)
            yield batch, index, count
            offset += count

    def fitting(self, run: Range, bytes_max: int) -> Range:
        """The beginning of a run that has at most `bytes_max` bytes of bodies.

        One message at least. `O(batches + log messages of the last one)`.
        """
        offset = run.first
        for batch, index, count in self.pieces(run):
            base = batch.end_of(index - 1)
            bodies_len = batch.end_of(index + count - 1) - base
            if bodies_len > bytes_max:
                if offset == run.first or batch.end_of(index) - base <= bytes_max:
                    offset += batch.fitting(index, count, bytes_max)
                return Range(run.first, offset)
            bytes_max -= bodies_len
            offset += count
        return run

    def drop(self, run: Range) -> None:
        """Messages are needed no more. Frees each block and page that has no others left."""
        first, end = run
        tail = self._tail
        assert first < end <= tail.end
        freed = 0
        if first < tail.first:
            freed = self._drop_sealed(first, min(end, tail.first))
            first = max(first, tail.first)
        if first < end:
            freed += tail.drop(first, end)
            if not tail.live:
                # Else a queue that is always drained would fill pages with nothing.
                self._tail = Page(tail.end)
        if freed:
            self.bytes -= freed
            self._recent = None  # It may be among what was freed, and would stay.

    def _drop_sealed(self, first: int, end: int) -> int:
        sealed = self._sealed
        freed = 0
        lowest = next(sealed.irange(None, first, reverse=True))
        for page in [sealed[at] for at in sealed.irange(lowest, end, (True, False))]:
            if first <= page.first and page.end <= end:
                freed += page.bytes  # All of it, so nobody has to look inside.
                del sealed[page.first]
            else:
                assert first < page.end, "dropped twice"
                freed += page.drop(max(first, page.first), min(end, page.end))
                if not page.live:
                    del sealed[page.first]
        return freed

    def check(self, live: Ranges) -> None:
        """Verify every invariant against the offsets that must be here; `O(batches)`."""
        pages = [*self._sealed.values(), self._tail]
        at = 0
        for page in pages:
            assert at <= page.first <= page.end, "pages overlap"
            assert page.live or page is self._tail, "a page that nobody needs"
            page.check(live)
            at = page.end
        for first, page in self._sealed.items():
            assert first == page.first
        assert sum(page.live for page in pages) == live.count, "a message without a page"
        assert sum(page.bytes for page in pages) == self.bytes
        assert self._tail.bytes_taken < self._page_bytes
