"""The pager of a node: which pages are in memory, of all parts that it has a copy of.

Theory of operation
-------------------
Pages fill a part from its tail, and consumers take them from its head. What lies between goes
to files as soon as all pages together take up more than their room, or those of one part more
than its limit, and comes back before a cursor arrives. The pager decides; it hands out `Job`s
and is told what became of them, so it knows neither files nor threads, and never waits.

    too much in memory:  the page farthest from any cursor  ── has a file ──▶ let go of
                                                            └─ none ──▶ WritePage ──▶ let go of
    a cursor came:       that page, and those that follow it within the window ──▶ ReadPage

A page that is being written is still in memory, and read there. If it is needed no more by
the time it is written, its file is removed again.

Small things
------------
- A tail is sealed before it is full if memory is short, or if nothing was added to it for
  a while: the batches in it take up less room then, and it can be written.
- A page of which less than a quarter is needed is packed anew before it is written; one that
  is away already is read for it when such pages make up half of all files, or when the disk is
  full. So one message that nobody acknowledges cannot keep a page's room for ever.

When the disk does not do what it should
----------------------------------------
- A page that cannot be written stays in memory, and is tried again. Memory fills; then the
  node gives publishers no credit. What is acknowledged meanwhile makes room in both.
- A page that cannot be read is *damaged*. Whoever owns the pager asks other copies for its
  messages and gives them back (`mended`), or says that nobody has them (`give_up`): then
  readers pass over them until an operator has them skipped.

Rules
-----
1. What is asked of the disk and not answered yet is bounded: `WRITES_MAX`, `READS_MAX`.
2. No page is read if that would take memory beyond its room by more than the window; but
   there is always one read, or a consumer might wait for ever.
3. Whoever reads without consuming (`peek`) gets a copy of one block, and moves nothing.
4. A part above its limit lets go of pages of its own only, and of none that the window has, or
   what is read ahead would be read for nothing. So the window is a quarter of it at most: on
   both sides of a cursor that is half, and fresh and returned messages have one cursor each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final, NamedTuple, assert_never

import msgspec

from paging.disk import (
    READS_MAX as READS_MAX,
    WRITES_MAX as WRITES_MAX,
    BlockRead,
    Done,
    Fault,
    Job,
    JobFailed,
    PageRead,
    ReadBlock,
    ReadPage,
    RemoveBook,
    RemovePages,
    WritePage,
    Written,
)
from paging.page import Away, Loaded, Page, packed_anew
from paging.pagefile import Block, Book, PageKey
from paging.pages import PAGE_BYTES, Entry, Pages, Shelf, Tally
from paging.ranges import Range
from tanist.wire.batch import Batch

AHEAD_BYTES: Final = 8 << 20
"""Wanted in memory from a cursor on, per part."""
PART_RESIDENT_BYTES_MAX: Final = 1 << 40
"""In memory, of one part: as good as no limit."""
ROOM_BYTES_MIN: Final = 8 << 20
"""Pages may always take up so much, whatever else the budget is spent on."""
BELOW: Final = 1 / 16
"""Of their room: pages are let go of until they take up so much less than it."""
RETRY_S: Final = 1.0
"""After a failure of the disk, until it is tried again."""
READ_TRIES: Final = 3
"""A page is damaged after so many errors that may have been passing ones."""
SWEEP_S: Final = 5.0
"""A tail that did not change for so long is sealed."""
TAIL_BYTES_MIN: Final = 4 << 10
"""Below it a tail is not sealed for its age, since a page costs a few hundred bytes itself."""
SHORT_TAIL_BYTES_MIN: Final = 64 << 10
"""The same where memory is short."""
SPARSE_BYTES_MIN: Final = 64 << 20
"""Of sparse pages in files: below it none is packed anew unless the disk is full."""


class PageDamaged(NamedTuple):
    """A page cannot be read. `sentence` says why, for people."""

    book: Book
    first: int
    end: int
    sentence: str


class DiskTrouble(NamedTuple):
    """Pages cannot be written. Said once, until it is over."""

    fault: Fault
    sentence: str


class DiskRecovered(NamedTuple):
    """Pages can be written again."""


News = PageDamaged | DiskTrouble | DiskRecovered


class Peeked(NamedTuple):
    """A batch for somebody who does not consume; None if it could not be read."""

    token: int
    found: tuple[Batch, int] | None
    block: Block | None = None
    """What was read for it, with the batches beside that one."""


class Counts(msgspec.Struct, frozen=True):
    """Derived when they are asked for."""

    pages: int
    """Sealed ones, wherever they are."""
    pages_away: int
    tail_bytes: int
    """What the open pages take up in memory."""
    hits: int
    """Pages that had been away, and were in memory when a consumer came to them."""
    misses: int
    """Pages that a consumer had to wait for."""
    writing: int
    reading: int
    wanted: int
    damaged: int


class _Read:
    """A page that is being read, or that waits for it."""

    __slots__ = ("tries",)

    def __init__(self) -> None:
        self.tries = 0


_Place = tuple[Pages, int]
"""A sealed page, by its part's pages and its first offset."""


_Victim = tuple[int, Book, int, Pages]
"""Its distance, below 0; whose it is, so that the order of equals is always the same; the page."""


class Pager:
    """See the module docstring.

    Args:
        page_bytes: When a page is sealed.
        ahead_bytes: Wanted in memory from a cursor on, per part.
        part_resident_bytes_max: What one part may take up in memory, whatever room there is.
            Kept to within three pages; fewer than four pages count as four.
        room_bytes_min: Pages may always take up so much in memory, whatever is said in a turn.
    """

    def __init__(
        self,
        *,
        page_bytes: int = PAGE_BYTES,
        ahead_bytes: int = AHEAD_BYTES,
        part_resident_bytes_max: int = PART_RESIDENT_BYTES_MAX,
        room_bytes_min: int = ROOM_BYTES_MIN,
    ) -> None:
        self._room_bytes_min = room_bytes_min
        self._page_bytes = page_bytes
        self._part_bytes_max = part_resident_bytes_max
        self._ahead = max(1, min(ahead_bytes, part_resident_bytes_max // 4) // page_bytes)
        self._books: dict[Pages, Book] = {}
        self._tallies: dict[Tally, None] = {}
        self._copies = count(1)
        self._tokens = count(1)
        self._holding: dict[Pages, None] = {}
        """Who has sealed pages, perhaps in memory."""
        self._above: dict[Pages, None] = {}
        """Who takes up more than one part may, unless that was found to be in the window."""
        self._writing: dict[PageKey, tuple[Pages, Page]] = {}
        self._busy: dict[Pages, set[int]] = {}
        """Pages that are being written, by their first offset."""
        self._wanted: OrderedDict[_Place, _Read] = OrderedDict()
        self._reading: dict[PageKey, tuple[_Place, _Read]] = {}
        self._peeks: dict[int, tuple[Pages, int]] = {}
        self._spare: dict[_Place, None] = {}
        """Pages in memory that are in a file, too."""
        self._sparse: dict[_Place, int] = {}
        """Pages in files of which little is needed, and their bytes."""
        self._sparse_bytes = 0
        self._repacking: set[_Place] = set()
        self._damaged: dict[_Place, str] = {}
        self._removed: list[PageKey] = []
        self._closed: list[Book] = []
        self._arrived: dict[Pages, None] = {}
        self._news: list[News] = []
        self._peeked: list[Peeked] = []
        self._write_at = 0.0
        """Not before that, after a failure; else 0."""
        self._read_at = 0.0
        self._sweep_at = 0.0
        self._ends_seen: dict[Pages, int] = {}
        self.trouble: DiskTrouble | None = None

    # Parts

    def shelf(self, sid: int, gen: int) -> Shelf:
        """For one copy of a stream."""
        tally, copy = Tally(), next(self._copies)
        self._tallies[tally] = None

        def new_pages(part: int) -> Pages:
            pages = Pages(page_bytes=self._page_bytes, ahead=self._ahead, keeper=self, tally=tally)
            self._books[pages] = Book(sid, gen, part, copy)
            return pages

        return Shelf(tally, new_pages, copy)

    def retain(self, tallies: set[Tally]) -> None:
        """All other copies are no more."""
        gone = [tally for tally in self._tallies if tally not in tallies]
        for tally in gone:
            for pages in [pages for pages in self._books if pages.tally is tally]:
                pages.close()
            del self._tallies[tally]

    def book_of(self, pages: Pages) -> Book:
        return self._books[pages]

    @property
    def resident_bytes(self) -> int:
        """What all pages take up in memory."""
        return sum(tally.resident_bytes for tally in self._tallies)

    @property
    def disk_bytes(self) -> int:
        """Batches of pages that are in files only."""
        return sum(tally.disk_bytes for tally in self._tallies)

    def counts(self) -> Counts:
        """`O(parts)`."""
        return Counts(
            pages=sum(pages.count - 1 for pages in self._books),
            pages_away=sum(pages.away for pages in self._books),
            tail_bytes=sum(pages.tail_bytes for pages in self._books),
            hits=sum(pages.hits for pages in self._books),
            misses=sum(pages.misses for pages in self._books),
            writing=len(self._writing),
            reading=len(self._reading) + len(self._peeks),
            wanted=len(self._wanted),
            damaged=len(self._damaged),
        )

    # The keeper of pages

    def sealed(self, pages: Pages, page: Page) -> None:
        self._holding[pages] = None
        self._grew(pages)

    def dropped(self, pages: Pages, page: Entry, first: int) -> None:
        self._forget((pages, first))
        if pages in self._busy:
            self._busy[pages].discard(first)
        if page.version:
            self._removed.append(PageKey(self._books[pages], first, page.version))

    def thinned(self, pages: Pages, first: int) -> None:
        place = (pages, first)
        page = pages.sealed(first)
        assert page is not None
        if place not in self._sparse and place not in self._damaged:
            self._sparse[place] = page.bytes
            self._sparse_bytes += page.bytes

    def want(self, pages: Pages, first: int) -> None:
        place = (pages, first)
        page = pages.sealed(first)
        assert page is not None
        if place in self._wanted or place in self._damaged:
            return
        if PageKey(self._books[pages], first, page.version) not in self._reading:
            self._wanted[place] = _Read()

    def closed(self, pages: Pages) -> None:
        book = self._books.pop(pages)
        self._closed.append(book)
        self._holding.pop(pages, None)
        self._above.pop(pages, None)
        self._busy.pop(pages, None)
        self._arrived.pop(pages, None)
        self._ends_seen.pop(pages, None)
        for places in (self._wanted, self._spare, self._sparse, self._repacking, self._damaged):
            for place in [place for place in places if place[0] is pages]:
                self._forget(place)

    def _grew(self, pages: Pages) -> None:
        if pages.resident_bytes > self._part_bytes_max:
            self._above[pages] = None

    def _forget(self, place: _Place) -> None:
        self._wanted.pop(place, None)
        self._spare.pop(place, None)
        self._sparse_bytes -= self._sparse.pop(place, 0)
        self._damaged.pop(place, None)
        self._repacking.discard(place)

    # A turn

    def end_turn(self, now: float, room_bytes: int, jobs: list[Job]) -> None:
        """Ask the disk for what this turn made necessary. `room_bytes`: of all pages."""
        room = max(room_bytes, self._room_bytes_min)
        if now >= self._write_at:
            self._write_at = 0.0
        if now >= self._read_at:
            self._read_at = 0.0
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._sweep()
        if self._above:
            self._shrink_parts(jobs)
        if self.resident_bytes > room:
            self._make_room(room, jobs)
        elif self.trouble is not None and not self._write_at and not self._writing:
            self._probe(jobs)
            self._write_at = now + RETRY_S
        if self._sparse:
            self._want_sparse()
        if self._wanted and not self._read_at:
            self._read(room, jobs)
        if self._removed:
            jobs.append(RemovePages(self._removed))
            self._removed = []
        jobs.extend(RemoveBook(book) for book in self._closed)
        self._closed.clear()

    def next_deadline(self) -> float | None:
        """When to call `end_turn` again, if nothing happens before."""
        deadlines = [self._sweep_at] if self._books else []
        if self._write_at:
            deadlines.append(self._write_at)
        if self._wanted and self._read_at:
            deadlines.append(self._read_at)
        return min(deadlines, default=None)

    def _sweep(self) -> None:
        """Seal the tails that are old."""
        for pages in self._books:
            end = pages.end
            if pages.tail_bytes >= TAIL_BYTES_MIN and self._ends_seen.get(pages) == end:
                pages.seal()
            self._ends_seen[pages] = end

    def _shrink_parts(self, jobs: list[Job]) -> None:
        while self._above:
            pages = next(iter(self._above))
            if not self._shrink(pages, jobs):
                return  # It is first in the next turn, too.
            del self._above[pages]

    def _shrink(self, pages: Pages, jobs: list[Job]) -> bool:
        """Bring a part down to its limit. False if a page must be written, and none can be now."""
        excess = pages.resident_bytes - self._part_bytes_max
        for first in self._busy.get(pages, _NOBODY):
            excess -= _in_memory(pages, first).resident_bytes
        while excess > 0:
            found = pages.farthest(self._busy.get(pages, _NOBODY))
            if found is None or found[0] <= self._ahead:
                return True  # All that is left is in the window.
            freed = self._free(pages, found[1], jobs)
            if not freed:
                return False
            excess -= freed
        return True

    def _make_room(self, room: int, jobs: list[Job]) -> None:
        leaving = sum(
            page.resident_bytes
            for pages, page in self._writing.values()
            if pages.sealed(page.first) is page  # Else it is counted no more.
        )
        resident = self.resident_bytes - leaving
        target = int(room * (1 - BELOW))
        if resident <= room:
            return  # What is being written will do.
        if not self._can_write:
            self._let_go_spare(resident - room - self._ahead * self._page_bytes)
            return
        farthest = self._farthest()
        if not farthest:
            for pages in self._books:
                if pages.tail_bytes >= SHORT_TAIL_BYTES_MIN:
                    pages.seal()
            farthest = self._farthest()
        while farthest and resident > target:
            _, _, first, pages = heappop(farthest)
            freed = self._free(pages, first, jobs)
            if not freed:
                return
            resident -= freed
            self._push(farthest, pages)

    @property
    def _can_write(self) -> bool:
        return not self._write_at and len(self._writing) < WRITES_MAX

    def _free(self, pages: Pages, first: int, jobs: list[Job]) -> int:
        """Let go of a page, or have it written first: so many bytes. 0 if it cannot be now."""
        page = _in_memory(pages, first)
        freed_bytes = page.resident_bytes
        if page.version:
            self._let_go(pages, first, page.version)
        elif self._can_write:
            assert isinstance(page, Page), "what was read has a file"
            self._write(pages, page, jobs)
        else:
            return 0
        return freed_bytes

    def _let_go(self, pages: Pages, first: int, version: int) -> None:
        self._spare.pop((pages, first), None)
        pages.let_go(first, version)

    def _let_go_spare(self, excess_bytes: int) -> None:
        """Nothing can be written now: so that memory does not fill with what was only read."""
        if excess_bytes <= 0:
            return
        by_distance = [(-pages.distance(first), first, pages) for pages, first in self._spare]
        for distance, first, pages in sorted(by_distance, key=lambda spare: spare[:2]):
            if excess_bytes <= 0 or not distance:
                return
            page = _in_memory(pages, first)
            excess_bytes -= page.resident_bytes
            self._let_go(pages, first, page.version)

    def _probe(self, jobs: list[Job]) -> None:
        """Write some page, to see whether the disk is well again."""
        for _, _, first, pages in self._farthest():
            page = pages.sealed(first)
            if isinstance(page, Page) and not page.version:
                self._write(pages, page, jobs)
                return

    def _farthest(self) -> list[_Victim]:
        """A heap: of each part the page in memory that is farthest from its cursors."""
        heap: list[_Victim] = []
        for pages in list(self._holding):
            if pages.count == 1:
                del self._holding[pages]
            else:
                self._push(heap, pages)
        heapify(heap)
        return heap

    def _push(self, heap: list[_Victim], pages: Pages) -> None:
        found = pages.farthest(self._busy.get(pages, _NOBODY))
        if found is not None:
            distance, first = found
            heappush(heap, (-distance, self._books[pages], first, pages))

    def _write(self, pages: Pages, page: Page, jobs: list[Job]) -> None:
        if page.sparse:
            page = self._repack(pages, page)
        page.versions += 1
        key = PageKey(self._books[pages], page.first, page.versions)
        self._writing[key] = (pages, page)
        self._busy.setdefault(pages, set()).add(page.first)
        jobs.append(WritePage(key, page.end, page.images()))

    def _repack(self, pages: Pages, page: Page | Loaded) -> Page:
        assert pages.reader is not None
        fresh = packed_anew(page, pages.reader.live)
        self._spare.pop((pages, page.first), None)
        if page.version:
            self._removed.append(PageKey(self._books[pages], page.first, page.version))
        pages.put(page.first, fresh)
        return fresh

    def _want_sparse(self) -> None:
        """Have pages read of which little is needed, so that they are packed anew."""
        full = self.trouble is not None and self.trouble.fault is Fault.FULL
        if len(self._repacking) >= 1:
            return
        if not full and self._sparse_bytes < max(SPARSE_BYTES_MIN, self.disk_bytes // 2):
            return
        place = next(iter(self._sparse))
        self._sparse_bytes -= self._sparse.pop(place)
        if isinstance(_entry(place), Away):
            self._repacking.add(place)
            self.want(*place)

    def _read(self, room: int, jobs: list[Job]) -> None:
        free = room + self._ahead * self._page_bytes - self.resident_bytes
        free -= sum(page.bytes for place, _ in self._reading.values() if (page := _entry(place)))
        while self._wanted and len(self._reading) + len(self._peeks) < READS_MAX:
            place = next(iter(self._wanted))
            page = _entry(place)
            if not isinstance(page, Away):
                del self._wanted[place]
                continue
            free -= page.bytes
            if free < 0 and self._reading:
                return
            read = self._wanted.pop(place)
            key = PageKey(self._books[place[0]], place[1], page.version)
            self._reading[key] = (place, read)
            jobs.append(ReadPage(key))

    # Readers that do not consume

    def peek(self, pages: Pages, offset: int, jobs: list[Job]) -> Peeked | int:
        """The batch with a message that is not done with, or a token for which it will come.

        Nothing is let go of for it, and nothing stays in memory because of it. Nobody has more
        than a few tokens at a time: see `can_peek`.
        """
        at = pages.page_with(offset)
        if at is None or not isinstance(at[1], Away):
            return Peeked(0, pages.batch_at(offset))
        first, page = at
        if not page.version:
            return Peeked(0, None)  # What was split off a damaged page has no file.
        token = next(self._tokens)
        key = PageKey(self._books[pages], first, page.version)
        self._peeks[token] = (pages, offset)
        jobs.append(ReadBlock(key, offset, token))
        return token

    @property
    def can_peek(self) -> bool:
        """Whether the disk has time for somebody who does not consume."""
        return len(self._reading) + len(self._peeks) < READS_MAX // 2

    def take_peeked(self) -> list[Peeked]:
        peeked, self._peeked = self._peeked, []
        return peeked

    # Answers of the disk

    def handle(self, done: Done, now: float) -> None:
        match done:
            case Written():
                self._written(done)
            case PageRead():
                place, _ = self._reading.pop(done.key)
                self._was_read(place, done)
            case BlockRead():
                _, offset = self._peeks.pop(done.token)
                self._peeked.append(Peeked(done.token, done.block.find(offset), done.block))
            case JobFailed():
                self._failed(done, now)
            case _:
                assert_never(done)

    def _written(self, done: Written) -> None:
        pages, page = self._writing.pop(done.key)
        if self.trouble is not None:
            self.trouble = None
            self._write_at = 0.0
            self._news.append(DiskRecovered())
        busy = self._busy.get(pages)
        if busy is None:
            return  # The part is no more, and its files with it.
        busy.discard(page.first)
        if pages.sealed(page.first) is page:
            page.version = done.key.version
            self._spare[pages, page.first] = None
            if pages.distance(page.first) > self._ahead:
                self._let_go(pages, page.first, page.version)
            self._grew(pages)
        else:
            self._removed.append(done.key)

    def _was_read(self, place: _Place, done: PageRead) -> None:
        pages, first = place
        page = _entry(place) if pages in self._books else None
        if not isinstance(page, Away) or page.version != done.key.version:
            return  # It was needed no more.
        if page.end != done.image.end:
            return  # It was split, since it seemed to be damaged.
        pages.take_in(first, done.image)
        self._damaged.pop(place, None)
        self._spare[place] = None
        self._holding[pages] = None
        self._grew(pages)
        self._arrived[pages] = None
        if place in self._repacking:
            self._repacking.discard(place)
            loaded = pages.sealed(first)
            assert isinstance(loaded, Loaded)
            self._repack(pages, loaded)

    def _failed(self, failed: JobFailed, now: float) -> None:
        match failed.job:
            case WritePage(key=key):
                pages, _ = self._writing.pop(key)
                self._busy.get(pages, set()).discard(key.first)
                self._grew(pages)
                self._write_at = now + RETRY_S
                if self.trouble is None:
                    self._news.append(DiskTrouble(failed.fault, failed.sentence))
                self.trouble = DiskTrouble(failed.fault, failed.sentence)
            case ReadPage(key=key):
                place, read = self._reading.pop(key)
                read.tries += 1
                page = _entry(place)
                if not isinstance(page, Away) or page.version != key.version:
                    return  # It was needed no more.
                if place in self._damaged:
                    return  # Found so by another reader.
                self._repacking.discard(place)
                if failed.fault is Fault.BROKEN and read.tries < READ_TRIES:
                    self._read_at = now + RETRY_S
                    self._wanted[place] = read
                else:
                    self._damage(place, failed.sentence)
            case ReadBlock(key=key, token=token):
                pages, _ = self._peeks.pop(token)
                self._peeked.append(Peeked(token, None))
                page = _entry((pages, key.first))
                if failed.fault is Fault.BROKEN or page is None or page.version != key.version:
                    return
                if isinstance(page, Away):
                    self._damage((pages, key.first), failed.sentence)
                else:
                    self._repack(pages, page)  # While it is in memory.
            case _:
                assert_never(failed.job)

    def _damage(self, place: _Place, sentence: str) -> None:
        page = _entry(place)
        assert page is not None
        if place in self._damaged:
            return
        self._forget(place)
        self._damaged[place] = sentence
        book = self._books[place[0]]
        self._news.append(PageDamaged(book, place[1], page.end, sentence))

    # Damaged pages

    def is_damaged(self, pages: Pages, first: int) -> bool:
        """Whether this page is needed, and cannot be read."""
        return (pages, first) in self._damaged

    def mended(self, pages: Pages, first: int, page: Page) -> None:
        """All messages of a damaged page that are not done with, had from another copy."""
        place = (pages, first)
        if place not in self._damaged:
            return  # It is needed no more.
        old = pages.sealed(first)
        assert isinstance(old, Away)
        self._forget(place)
        if old.version:
            self._removed.append(PageKey(self._books[pages], first, old.version))
        pages.put(first, page)
        self._holding[pages] = None
        self._grew(pages)
        self._arrived[pages] = None

    def split(self, pages: Pages, first: int, cuts: Sequence[int]) -> None:
        """Make several of a damaged page, so that each can be mended or given up by itself."""
        sentence = self._damaged[pages, first]
        pages.split(first, cuts)
        for at in cuts:
            self._damaged[pages, at] = sentence

    def give_up(self, pages: Pages, first: int) -> None:
        """No copy has what a damaged page had: readers pass over it."""
        if (pages, first) in self._damaged:
            page = pages.sealed(first)
            assert page is not None
            pages.lost.merge(Range(first, page.end))
            self._arrived[pages] = None  # What comes after it can be handed out.

    # For whoever owns it

    def take_arrived(self) -> list[Book]:
        """The parts of which a consumer can read more than before."""
        arrived, self._arrived = self._arrived, {}
        return [self._books[pages] for pages in arrived]

    def take_news(self) -> list[News]:
        news, self._news = self._news, []
        return news

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(pages)`."""
        for tally in self._tallies:
            mine = [pages for pages in self._books if pages.tally is tally]
            assert tally.bytes == sum(pages.bytes for pages in mine)
            assert tally.resident_bytes == sum(pages.resident_bytes for pages in mine)
            assert tally.disk_bytes == sum(pages.disk_bytes for pages in mine)
        busy = {pages: firsts for pages, firsts in self._busy.items() if firsts}
        writing: dict[Pages, set[int]] = {}
        for pages, written in self._writing.values():
            if pages.sealed(written.first) is written:
                writing.setdefault(pages, set()).add(written.first)
        assert busy == writing
        assert len(self._writing) <= WRITES_MAX
        assert self._above.keys() <= self._books.keys()
        assert len(self._reading) <= READS_MAX
        for place in (*self._wanted, *self._damaged, *self._sparse, *self._repacking):
            assert place[0] in self._books
            assert _entry(place) is not None, "a page that is needed no more"
        assert self._sparse_bytes == sum(self._sparse.values())
        for place in self._damaged:
            assert isinstance(_entry(place), Away), "damaged, but in memory"
            assert place not in self._wanted
        for pages in self._books:
            for first in pages.firsts():
                page = pages.sealed(first)
                spare = page is not None and not isinstance(page, Away) and page.version > 0
                assert spare == ((pages, first) in self._spare)
        for pages in self._books:
            assert pages.count == 1 + pages.away or pages in self._holding
            for run in pages.lost:
                lost = pages.page_with(run.first)
                assert lost is not None, "lost, but in memory"
                assert (pages, lost[0]) in self._damaged, "lost, but not damaged"


_NOBODY: Final[frozenset[int]] = frozenset()


def _entry(place: _Place) -> Entry | None:
    pages, first = place
    return pages.sealed(first)


def _in_memory(pages: Pages, first: int) -> Page | Loaded:
    page = pages.sealed(first)
    assert page is not None, "it is needed no more"
    assert not isinstance(page, Away), "it is not in memory"
    return page
