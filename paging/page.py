"""A page: consecutive batches, as they came or as they were read from a file.

Theory of operation
-------------------
A *block* holds one large batch, or many small ones; it is what is freed as a whole when the
last of its messages is dropped. A *page* holds consecutive blocks and is sealed when it is
full. Where a sealed page is, is one of three things:

    Page      in memory, built from batches
    Loaded    in memory, read from its file, in one piece that is freed as a whole
    Away      in its file only

Nothing is kept per message but the batch's own table. A batch of its own costs some 250
bytes as Python objects, which is nothing beside 60 KB and far too much beside 100 bytes:
small batches are therefore packed into one bytes object as soon as 64 KiB of them have
come together, with 4 bytes for each (where it starts, and its first offset, both counted
from the block's start), and made into a `Batch` again when somebody asks.

Rules
-----
1. How a node cuts its pages and blocks is its own affair. Nothing here may reach the
   replicated state or its digest.
2. A page keeps its file, if it has one, until its last message is dropped: letting go of a
   page that was read costs nothing.
3. What is `Away` is a few numbers: there may be a million of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final, Protocol

import msgspec

from paging.pagefile import Block, BlockImage, PageImage
from paging.ranges import Range, Ranges
from tanist.wire.batch import Batch

Piece = tuple[Batch, int, int]
"""Messages of one batch: the batch, the index of the first of them, how many."""

SMALL_BYTES: Final = 8 << 10
"""A batch below this shares a block. Above it, objects of its own are 3 % of it at most."""

BLOCK_BYTES: Final = 1 << 16
"""The most that small batches share. Both offsets inside a block fit 16 bits then."""

SPARSE: Final = 0.25
"""A page with a smaller share of its messages left is packed anew before it is written."""

# What the objects take up beside the bytes themselves, on CPython 3.11.
_LOOSE_OVERHEAD: Final = 240  # A `Batch`, its numbers, and the header of its bytes object.
_LONE_OVERHEAD: Final = _LOOSE_OVERHEAD + 80
_SHARED_OVERHEAD: Final = 260
_PACKED_OVERHEAD: Final = 4
_LOADED_OVERHEAD: Final = 600


class _Lone:
    """A block of one large batch, as it came."""

    __slots__ = ("batch", "first", "live")

    def __init__(self, batch: Batch, first: int) -> None:
        self.batch = batch
        self.first = first
        self.live = batch.count

    @property
    def size(self) -> int:
        return self.batch.size

    @property
    def resident_bytes(self) -> int:
        return self.batch.size + _LONE_OVERHEAD

    def find(self, offset: int) -> tuple[Batch, int]:
        return self.batch, self.first

    def image(self) -> BlockImage:
        batch = self.batch
        data: bytes | memoryview = batch.data
        if batch.size < len(data):
            data = memoryview(data)[batch.start : batch.start + batch.size]
        return BlockImage(self.first, data, None)


class _Filling:
    """A block of small batches, as they came. More may go in."""

    __slots__ = ("_batches", "_firsts", "first", "live", "size")

    def __init__(self, first: int) -> None:
        self.first = first
        self.live = 0
        self.size = 0
        self._batches: list[Batch] = []
        self._firsts = array("Q")

    @property
    def resident_bytes(self) -> int:
        return self.size + _SHARED_OVERHEAD + _LOOSE_OVERHEAD * len(self._batches)

    def takes(self, batch: Batch, first: int) -> bool:
        """A message takes 32 bytes at least; but a page that is packed anew has gaps."""
        return self.size + batch.size <= BLOCK_BYTES and first - self.first <= 0xFFFF

    def append(self, batch: Batch, first: int) -> None:
        self._batches.append(batch)
        self._firsts.append(first)
        self.live += batch.count
        self.size += batch.size

    def find(self, offset: int) -> tuple[Batch, int]:
        at = bisect_right(self._firsts, offset) - 1
        return self._batches[at], self._firsts[at]

    def packed(self, end: int) -> _Packed:
        """Nothing more comes before `end`: give up the objects, keep the bytes."""
        base = self.first
        slices = [b.data[b.start : b.start + b.size] for b in self._batches]
        starts = accumulate(map(len, slices[:-1]), initial=0)
        places = [
            first - base << 16 | start for first, start in zip(self._firsts, starts, strict=True)
        ]
        return _Packed(base, end, b"".join(slices), array("I", places), self.live)


class _Packed(Block):
    """A block of small batches in one bytes object, as it would be read from a file."""

    __slots__ = ("live",)

    def __init__(self, first: int, end: int, data: bytes, places: array[int], live: int) -> None:
        super().__init__(first, end, data, 0, len(data), places)
        self.live = live

    @property
    def resident_bytes(self) -> int:
        assert self.places is not None
        return self.size + _SHARED_OVERHEAD + _PACKED_OVERHEAD * len(self.places)


_Block = _Lone | _Filling | _Packed


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
        "left_out",
        "live",
        "resident_bytes",
        "version",
        "versions",
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
        self.version = 0
        """Of the file that it was written to; 0: none."""
        self.versions = 0
        """The last one that a file of it has, had, or may have got when a write failed."""
        self.left_out = 0
        """Messages within its offsets that it never took in, because they were done with."""
        self._blocks: list[_Block | None] = []  # None: freed.
        self._firsts = array("Q")  # Of each block, freed or not.
        self._filling: _Filling | None = None  # The last block, if more goes in.

    @property
    def sparse(self) -> bool:
        return _is_sparse(self)

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
            if block is None or not block.takes(batch, first):
                self.seal()
                block = self._filling = _Filling(first)
                self._blocks.append(block)
                self._firsts.append(first)
                self.resident_bytes += block.resident_bytes
            block.append(batch, first)
            self.resident_bytes += size + _LOOSE_OVERHEAD
        self.end = first + batch.count
        self.live += batch.count
        self.bytes += size
        self.bytes_taken += size

    def skip(self, end: int) -> None:
        """The messages up to `end` are done with: the next one that comes is that one."""
        assert end >= self.end
        self.left_out += end - self.end
        self.end = end

    def seal(self) -> None:
        """Nothing more goes into the last block. Of a whole page that is the end of it."""
        block = self._filling
        if block is not None:
            self._filling = None
            self._blocks[-1] = packed = block.packed(self.end)
            self.resident_bytes += packed.resident_bytes - block.resident_bytes

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
                freed += block.size
                self.resident_bytes -= block.resident_bytes
            first = block_end
        self.bytes -= freed
        return freed

    def images(self) -> list[BlockImage]:
        """The blocks that are needed, to be written. Nothing is copied."""
        assert self._filling is None, "only a sealed page is written"
        return [block.image() for block in self._blocks if isinstance(block, _Lone | _Packed)]

    def check(self, live: Ranges) -> None:
        """Verify every invariant against the offsets that must be here; `O(batches)`."""
        assert len(self._blocks) == len(self._firsts)
        held = [block for block in self._blocks if block is not None]
        assert sum(block.live for block in held) == self.live
        assert sum(block.size for block in held) == self.bytes
        assert sum(block.resident_bytes for block in held) == self.resident_bytes
        assert self._filling is None or self._filling is self._blocks[-1]
        ends = [*self._firsts, self.end][1:]
        for first, end, block in zip(self._firsts, ends, self._blocks, strict=True):
            needed = live.within(Range(first, end))
            assert sum(run.size for run in needed) == (block.live if block is not None else 0)
            for run in needed:
                assert block is not None
                _check_run(block, run)


class Loaded:
    """A page as it was read from its file."""

    __slots__ = ("bytes", "end", "first", "image", "left_out", "live", "version")

    def __init__(self, image: PageImage, away: Away) -> None:
        assert (image.first, image.end) == (away.first, away.end)
        self.image = image
        self.first, self.end = away.first, away.end
        self.live = away.live
        self.bytes = away.bytes
        """As long as it lives, what it was when it was let go of: nothing is freed in part."""
        self.version = away.version
        self.left_out = away.left_out

    @property
    def resident_bytes(self) -> int:
        return len(self.image.data) + _LOADED_OVERHEAD

    def find(self, offset: int) -> tuple[Batch, int]:
        """The batch with a message that is not dropped, and the batch's first offset."""
        return self.image.find(offset)

    def drop(self, first: int, end: int) -> int:
        """Messages of this page are needed no more. Returns the bytes that were freed."""
        self.live -= end - first
        assert self.live >= 0, "dropped twice"
        return 0 if self.live else self.bytes

    def check(self, live: Ranges) -> None:
        """Verify that each message that must be here is; `O(batches)`."""
        needed = live.within(Range(self.first, self.end))
        assert sum(run.size for run in needed) == self.live
        for run in needed:
            _check_run(self, run)


class Away(msgspec.Struct, gc=False):
    """A page that is in its file only.

    Its fields are chosen by what their numbers take up: 32 bytes each, but nothing if the index
    or the page after it has them anyway, as both offsets, or if they are small, as is what has
    gone of a page that nobody has come to yet.
    """

    first: int
    end: int
    gone: int
    """Messages within its offsets that are not needed, or never were in it."""
    bytes: int

    @staticmethod
    def of(
        first: int, end: int, *, live: int, bytes_: int, version: int, left_out: int = 0
    ) -> Away:
        gone = end - first - live
        if version == 1 and not left_out:
            return Away(first, end, gone, bytes_)
        return _AwayOther(first, end, gone, bytes_, version, left_out)

    @property
    def version(self) -> int:
        return 1

    @property
    def left_out(self) -> int:
        return 0

    @property
    def live(self) -> int:
        return self.end - self.first - self.gone

    @property
    def sparse(self) -> bool:
        return _is_sparse(self)

    def drop(self, first: int, end: int) -> int:
        """Messages of this page are needed no more. Returns the bytes that were freed."""
        self.gone += end - first
        assert self.live >= 0, "dropped twice"
        return 0 if self.live else self.bytes


class _AwayOther(Away, gc=False):
    """One that was packed anew, or has no file of its own. Most have no need of these fields."""

    version: int
    left_out: int


def away(page: Page | Loaded, version: int) -> Away:
    """What is kept of a page that lies in its file of this version."""
    return Away.of(
        page.first,
        page.end,
        live=page.live,
        bytes_=page.bytes,
        version=version,
        left_out=page.left_out,
    )


class Source(Protocol):
    """Where the messages of a page can be had."""

    @property
    def first(self) -> int: ...

    @property
    def end(self) -> int: ...

    def find(self, offset: int) -> tuple[Batch, int]:
        """The batch with a message that is needed, and the batch's first offset."""


def pieces(find: Callable[[int], tuple[Batch, int]], run: Range) -> Iterator[Piece]:
    """The messages of a run, batch by batch, from where each is found by its offset."""
    offset, end = run
    while offset < end:
        batch, first = find(offset)
        index = offset - first
        count = min(batch.count - index, end - offset)
        yield batch, index, count
        offset += count


def packed_anew(page: Source, live: Ranges) -> Page:
    """The messages of a page that are left, without the room of those that are not."""
    fresh = Page(page.first)
    for run in live.within(Range(page.first, page.end)):
        fresh.skip(run.first)
        for batch, index, count in pieces(page.find, run):
            fresh.append(Batch.trusted(batch.slice(index, count)))
    fresh.seal()
    fresh.skip(page.end)
    return fresh


def _is_sparse(page: Page | Away) -> bool:
    # Of those that it took in: else one that was packed anew would be packed for ever.
    return page.live < SPARSE * (page.end - page.first - page.left_out)


def _check_run(block: _Block | Loaded, run: Range) -> None:
    offset = run.first
    while offset < run.end:
        batch, first = block.find(offset)
        assert first <= offset < first + batch.count, "a message is not where it is looked for"
        offset = first + batch.count
