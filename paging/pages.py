"""The bytes of a part: a run of sealed pages, and one open page at the tail.

Theory of operation
-------------------
Batches never change, so storing them is keeping them findable by offset. *Pages* finds a page
by its first offset, in a sorted container that an access to the tail does not touch. Sealed
pages may be away, in files; who keeps them there is the `Keeper`, which is told of each page
that is sealed or needed no more, and is asked for those that a consumer will want next:

           append                    sealed            written, and far from any cursor
    ──────────────▶ tail ──────────────▶ Page ────────────────────────▶ Away
                                          ▲                              │ wanted
                                          └─────── let go of ── Loaded ◀─┘

Rules
-----
1. How a node cuts its pages is its own affair. Nothing here may reach the replicated state or
   its digest: `append` and `drop` never wait for a page, and work alike wherever it lies.
2. Who reads asks `resident_end` first, and comes again later if the page is away. What a
   reader was given stays readable for as long as he holds it.
3. No batch pins bytes that are not its own: what was cut from a much larger record is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple, Protocol

from sortedcontainers import SortedDict, SortedList

from paging.page import Away, Loaded, Page, Piece, away, pieces
from paging.pagefile import PageImage
from paging.ranges import Range, Ranges
from tanist.wire.batch import Batch

PAGE_BYTES: Final = 1 << 20
"""Batches a page takes in before it is sealed. One block may go beyond it."""

Entry = Page | Loaded | Away


class Tally:
    """Sums over several parts, kept by their pages: of a post office, in most cases."""

    __slots__ = ("bytes", "disk_bytes", "resident_bytes")

    def __init__(self) -> None:
        self.bytes = 0
        """Batches held, wherever they are: a batch counts until its block is freed."""
        self.resident_bytes = 0
        """What pages take up in memory, objects included."""
        self.disk_bytes = 0
        """Batches of those that are away."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where one copy of a post office keeps its pages."""

    tally: Tally
    new_pages: Callable[[int], Pages]
    """Makes those of one part, by its number."""
    copy: int = 0
    """Tells the copies of one post office apart that this process had, if there is a pager."""

    @staticmethod
    def in_memory(*, page_bytes: int = PAGE_BYTES) -> Shelf:
        """A shelf without a pager: all pages stay in memory."""
        tally = Tally()
        return Shelf(tally, lambda part: Pages(page_bytes=page_bytes, tally=tally))


class Reader(Protocol):
    """The part: it knows which messages are needed, and which are wanted next."""

    @property
    def live(self) -> Ranges:
        """All messages that are not done with."""

    def cursors(self) -> tuple[int | None, int | None]:
        """The next message that was returned, and the next fresh one."""


class Keeper(Protocol):
    """Where sealed pages are kept that need not be in memory."""

    def sealed(self, pages: Pages, page: Page) -> None:
        """One more page that may go."""

    def dropped(self, pages: Pages, page: Entry, first: int) -> None:
        """A sealed page is needed no more."""

    def thinned(self, pages: Pages, first: int) -> None:
        """Of a page that is away, little is needed."""

    def want(self, pages: Pages, first: int) -> None:
        """A page that is away is wanted in memory."""

    def closed(self, pages: Pages) -> None:
        """None of these is needed any more."""


class _Memory:
    """Keeps all pages in memory: for tests, and for what is small."""

    def sealed(self, pages: Pages, page: Page) -> None: ...

    def dropped(self, pages: Pages, page: Entry, first: int) -> None: ...

    def thinned(self, pages: Pages, first: int) -> None: ...

    def want(self, pages: Pages, first: int) -> None:
        raise AssertionError("no page is away")

    def closed(self, pages: Pages) -> None: ...


IN_MEMORY: Final = _Memory()

# Most parts never fill a page, and an empty `SortedDict` of each part's own is 1.3 KB.
_NO_PAGES: Final[SortedDict[int, Entry]] = SortedDict()
_NONE_RESIDENT: Final[SortedList[int]] = SortedList()


class Head(NamedTuple):
    """What is handed out at once."""

    run: Range
    pieces: tuple[Piece, ...]
    """All of its messages, batch by batch."""
    bodies_len: int


class Pages:
    """All batches of a part that are still needed, by the offsets of their messages.

    Args:
        page_bytes: When the tail page is sealed. Every node may choose its own.
        ahead: Sealed pages that are wanted in memory from a consumer's cursor on.
        keeper: Who takes sealed pages out of memory.
        tally: Where the sums are kept.
    """

    __slots__ = (
        "_ahead",
        "_keeper",
        "_page_bytes",
        "_reading",
        "_recent",
        "_recent_end",
        "_recent_first",
        "_resident",
        "_sealed",
        "_tail",
        "bytes",
        "hits",
        "lost",
        "misses",
        "reader",
        "resident_bytes",
        "tally",
    )

    def __init__(
        self,
        *,
        page_bytes: int = PAGE_BYTES,
        ahead: int = 0,
        keeper: Keeper = IN_MEMORY,
        tally: Tally | None = None,
    ) -> None:
        assert page_bytes > 0
        self._page_bytes = page_bytes
        self._ahead = ahead
        self._keeper = keeper
        self.tally = tally or Tally()
        self.reader: Reader | None = None
        """Set by the part."""
        self.lost = Ranges()
        """Messages that no copy can read any more, until an operator has them skipped."""
        self._sealed = _NO_PAGES  # By first offset.
        self._resident = _NONE_RESIDENT  # Those of them that are in memory.
        self._tail = Page(0)
        self._reading = -1  # The sealed page that a consumer read last, by its first offset.
        self.bytes = 0
        """Batches held, wherever they are: a batch counts until its block is freed."""
        self.resident_bytes = 0
        """What all pages take up in memory, objects included."""
        self.hits = 0
        """Pages that had been away and were there again when the cursor arrived."""
        self.misses = 0
        """Pages for which a consumer waited."""
        # The batch that was asked for last: a large one is handed out in several runs.
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
    def away(self) -> int:
        """How many pages are in files only."""
        return len(self._sealed) - len(self._resident)

    @property
    def tail_bytes(self) -> int:
        """What the open page takes up in memory."""
        return self._tail.resident_bytes

    @property
    def disk_bytes(self) -> int:
        """Batches of the pages that are in files only. `O(pages in memory)`."""
        here = sum(self._sealed[at].bytes for at in self._resident)
        return self.bytes - self._tail.bytes - here

    # What the part does

    def append(self, batch: Batch) -> int:
        """Take a batch in. Returns the offset of its first message. `O(1)`."""
        if len(batch.data) > 2 * batch.size + 64:  # 64: the fixed part of an op is its own.
            batch = Batch.trusted(batch.data[batch.start : batch.start + batch.size])
        tail, tally = self._tail, self.tally
        first, before = tail.end, tail.resident_bytes
        tail.append(batch)
        self.bytes += batch.size
        tally.bytes += batch.size
        grown = tail.resident_bytes - before
        self.resident_bytes += grown
        tally.resident_bytes += grown
        if tail.bytes_taken >= self._page_bytes:
            self.seal()
        return first

    def seal(self) -> None:
        """Close the tail page, and open the next one. For a tail that is old, not full."""
        tail = self._tail
        if tail.end > tail.first:
            before = tail.resident_bytes
            tail.seal()
            self._count(tail.resident_bytes - before)
            if self._sealed is _NO_PAGES:
                self._sealed, self._resident = SortedDict(), SortedList()
            self._sealed[tail.first] = tail
            self._resident.add(tail.first)
            self._tail = Page(tail.end)
            self._keeper.sealed(self, tail)

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
            before = tail.resident_bytes
            freed += tail.drop(first, end)
            self._count(tail.resident_bytes - before)
            if not tail.live:
                # Else a queue that is always drained would fill pages with nothing.
                self._count(-tail.resident_bytes)
                self._tail = Page(tail.end)
        if freed:
            self.bytes -= freed
            self.tally.bytes -= freed
            self._recent = None  # It may be among what was freed, and would stay.

    def _drop_sealed(self, first: int, end: int) -> int:
        sealed = self._sealed
        freed = 0
        lowest = next(sealed.irange(None, first, reverse=True))
        for at in list(sealed.irange(lowest, end, (True, False))):
            page = sealed[at]
            if first <= at and page.end <= end:
                freed += page.bytes  # All of it, so nobody has to look inside.
                self._gone(at, page)
            else:
                assert first < page.end, "dropped twice"
                resident = None if isinstance(page, Away) else page.resident_bytes
                freed += page.drop(max(first, at), min(end, page.end))
                if not page.live:
                    self._gone(at, page, resident)
                elif not isinstance(page, Away):
                    self._count(page.resident_bytes - (resident or 0))
                elif page.sparse:
                    self._keeper.thinned(self, at)
        return freed

    def _gone(self, first: int, page: Entry, resident: int | None = None) -> None:
        del self._sealed[first]
        if self.lost:
            self.lost.discard(Range(first, page.end))
        if isinstance(page, Away):
            self.tally.disk_bytes -= page.bytes
        else:
            self._resident.remove(first)
            self._count(-(page.resident_bytes if resident is None else resident))
        self._keeper.dropped(self, page, first)

    def close(self) -> None:
        """The part is no more."""
        tally = self.tally
        tally.bytes -= self.bytes
        self._count(-self.resident_bytes)
        tally.disk_bytes -= self.disk_bytes
        self._sealed, self._resident, self._tail = _NO_PAGES, _NONE_RESIDENT, Page(self.end)
        self.bytes = 0
        self._recent = None
        self._keeper.closed(self)

    # Reading

    def resident_end(self, offset: int, enough: int) -> int:
        """Up to where what follows `offset` can be read now: `offset` itself if it is away.

        For a consumer's cursor: what is away is fetched, and what comes after it, too. It is
        not looked beyond `enough`. `O(log pages)`, and the pages up to there.
        """
        tail = self._tail
        if offset >= tail.first:
            return tail.end
        at = self._page_of(offset)
        page = self._sealed[at]
        away = isinstance(page, Away)
        if at != self._reading:
            if away:
                self.misses += 1
            elif isinstance(page, Loaded):
                self.hits += 1
            self._reading = at
            self._want_ahead(at)
        elif away:
            self._want_ahead(at)
        if away:
            return offset
        end = page.end
        while end < enough and not isinstance(self._sealed.get(end), Away):
            end = tail.end if end == tail.first else self._sealed[end].end
        return end

    def _want_ahead(self, at: int) -> None:
        sealed = self._sealed
        rank = sealed.bisect_left(at)
        for first in sealed.keys()[rank : rank + 1 + self._ahead]:
            if isinstance(sealed[first], Away):
                self._keeper.want(self, first)

    def batch_at(self, offset: int) -> tuple[Batch, int]:
        """The batch with this message, and the batch's first offset. `O(log pages)`.

        The message must be in memory, and must not have been dropped.
        """
        if self._recent is not None and self._recent_first <= offset < self._recent_end:
            return self._recent, self._recent_first
        page: Entry = self._tail
        if offset < self._tail.first:
            at = self._page_of(offset)
            page = self._sealed[at]
            assert at <= offset < page.end, "no page has that message"
        assert not isinstance(page, Away), "the page is not in memory"
        batch, first = page.find(offset)
        self._recent, self._recent_first, self._recent_end = batch, first, first + batch.count
        return batch, first

    def pieces(self, run: Range) -> Iterator[Piece]:
        """The messages of a run, batch by batch. None of them may have been dropped."""
        return pieces(self.batch_at, run)

    def fitting(self, run: Range, bytes_max: int) -> Head:
        """The beginning of a run that has at most `bytes_max` bytes of bodies.

        One message at least. `O(batches + log messages of the last one)`.
        """
        offset, bodies_len = run.first, 0
        found: list[Piece] = []
        for piece in self.pieces(run):
            batch, index, count = piece
            base = batch.end_of(index - 1)
            piece_len = batch.end_of(index + count - 1) - base
            left = bytes_max - bodies_len
            if piece_len > left:
                if not found or batch.end_of(index) - base <= left:
                    count = batch.fitting(index, count, left)
                    found.append((batch, index, count))
                    bodies_len += batch.end_of(index + count - 1) - base
                    offset += count
                return Head(Range(run.first, offset), tuple(found), bodies_len)
            found.append(piece)
            bodies_len += piece_len
            offset += count
        return Head(run, tuple(found), bodies_len)

    # What the keeper does

    def sealed(self, first: int) -> Entry | None:
        """The sealed page that begins there, if it is still needed."""
        return self._sealed.get(first)

    def firsts(self) -> Iterator[int]:
        """Where the sealed pages begin."""
        return iter(self._sealed)

    def page_with(self, offset: int) -> tuple[int, Entry] | None:
        """The sealed page with this message, and where it begins. None: it is in the tail."""
        if offset >= self._tail.first:
            return None
        at = self._page_of(offset)
        return at, self._sealed[at]

    def distance(self, first: int) -> int:
        """How many pages the one that begins at `first` is away from the nearest cursor."""
        rank = self._sealed.bisect_left(first)
        return min(abs(rank - self._rank(at)) for at in self._cursors())

    def farthest(self, busy: frozenset[int] | set[int]) -> tuple[int, int] | None:
        """(distance, first offset) of the page in memory that is farthest from any cursor.

        Distances are counted in pages. None of `busy` is named. `O(log pages + busy)`.
        """
        found = [(self.distance(at), at) for at in self._candidates(busy)]
        return max(found, default=None)

    def _candidates(self, busy: frozenset[int] | set[int]) -> Iterator[int]:
        """The first from both ends, and from the middle between the two cursors to both sides.

        No other can be farther: from each of these places the distances only fall.
        """
        resident = self._resident
        walks = [reversed(resident), iter(resident)]
        ranks = [self._rank(at) for at in self._cursors()]
        if len(ranks) == 2 and resident:
            middle = self._sealed.keys()[min(sum(ranks) // 2, len(self._sealed) - 1)]
            walks.append(resident.irange(None, middle, reverse=True))
            walks.append(resident.irange(middle, None, (False, True)))
        for walk in walks:
            found = next((at for at in walk if at not in busy), None)
            if found is not None:
                yield found

    def let_go(self, first: int, version: int) -> None:
        """A page lies in its file of this version: it is not needed in memory."""
        page = self._sealed[first]
        assert not isinstance(page, Away)
        self._resident.remove(first)
        left = self._sealed[first] = away(page, version)
        self._count(-page.resident_bytes)
        self.tally.disk_bytes += page.bytes
        self._recent = None
        if left.sparse:
            self._keeper.thinned(self, first)

    def take_in(self, first: int, image: PageImage) -> None:
        """A page that was away has been read."""
        left = self._sealed[first]
        assert isinstance(left, Away)
        page = Loaded(image, left)
        if self.lost:
            self.lost.discard(Range(first, page.end))
        self._sealed[first] = page
        self._resident.add(first)
        self.tally.disk_bytes -= page.bytes
        self._count(page.resident_bytes)

    def split(self, first: int, cuts: Sequence[int]) -> None:
        """A page that is away becomes several, of which each later one begins at a cut.

        All of them must have messages that are needed. The file remains the first one's.
        """
        old = self._sealed[first]
        assert isinstance(old, Away)
        assert self.reader is not None
        bytes_left, version = old.bytes, old.version
        for at, end in pairwise((first, *cuts, old.end)):
            live = sum(run.size for run in self.reader.live.within(Range(at, end)))
            assert live, "a page that nobody needs"
            size = bytes_left if end == old.end else old.bytes * live // old.live
            self._sealed[at] = Away.of(at, end, live=live, bytes_=size, version=version)
            bytes_left, version = bytes_left - size, 0

    def put(self, first: int, page: Page) -> None:
        """The same messages in another page: packed anew, or had again from another copy."""
        old = self._sealed[first]
        assert (page.live, page.end) == (old.live, old.end)
        if self.lost:
            self.lost.discard(Range(first, page.end))
        if isinstance(old, Away):
            self._resident.add(first)
            self.tally.disk_bytes -= old.bytes
        else:
            self._count(-old.resident_bytes)
        page.versions = old.versions if isinstance(old, Page) else old.version
        self._sealed[first] = page
        freed = old.bytes - page.bytes
        self.bytes -= freed
        self.tally.bytes -= freed
        self._count(page.resident_bytes)
        self._recent = None

    def check(self, live: Ranges) -> None:
        """Verify every invariant against the offsets that must be here; `O(batches)`."""
        pages = [*self._sealed.items(), (self._tail.first, self._tail)]
        at = 0
        for first, page in pages:
            assert at <= first <= page.end, "pages overlap"
            assert page.live or page is self._tail, "a page that nobody needs"
            assert sum(run.size for run in live.within(Range(first, page.end))) == page.live
            if not isinstance(page, Away):
                assert page.first == first
                page.check(live)
            at = page.end
        assert sum(page.live for _, page in pages) == live.count, "a message without a page"
        assert sum(page.bytes for _, page in pages) == self.bytes
        assert sum(page.bytes for _, page in pages if isinstance(page, Away)) == self.disk_bytes
        in_memory = [page for _, page in pages if not isinstance(page, Away)]
        assert sum(page.resident_bytes for page in in_memory) == self.resident_bytes
        assert self._tail.bytes_taken < self._page_bytes
        resident = [at for at, page in self._sealed.items() if not isinstance(page, Away)]
        assert resident == list(self._resident)

    def _page_of(self, offset: int) -> int:
        at = next(self._sealed.irange(None, offset, reverse=True), None)
        assert at is not None, "no page has that message"
        return at

    def _count(self, grown_bytes: int) -> None:
        self.resident_bytes += grown_bytes
        self.tally.resident_bytes += grown_bytes

    def _cursors(self) -> list[int]:
        found = self.reader.cursors() if self.reader is not None else (None, None)
        return [at for at in found if at is not None] or [self.end]

    def _rank(self, offset: int) -> int:
        if offset >= self._tail.first:
            return len(self._sealed)
        return max(0, self._sealed.bisect_right(offset) - 1)
