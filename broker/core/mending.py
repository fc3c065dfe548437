"""Mending: a page that cannot be read is put together again from other copies.

Theory of operation
-------------------
A page that fails its checksum is no loss as long as another copy has its messages. The node
asks the other copies, those in sync first, one after the other, for what it has not got yet;
what comes is verified and becomes a page in memory, as if it had just been published:

    damaged ──▶ asking: a round of all copies ── has all ──▶ mended, and readable again
                  ▲            │ something is missing
                  └── pause ───┤
                               └ after ROUNDS_MAX ──▶ what is missing is lost: reported,
                                                      and passed over; the rest is mended

Whether another copy is ahead or behind makes no difference: what is done with there will be
done with here in a moment, and what has not come there yet will have come in the next round.

What is lost stays so, and is reported, until an operator has it skipped, which is an op that
only the owner appends; or until a copy turns up that has it after all: it is still asked for
now and then. A shadow's loss is none as long as the owner can read what it is about.

Rules
-----
1. Only copies that serve or follow the same epoch are asked for, and an answer counts in that
   epoch only: a deposed owner may have other messages at the same offsets.
2. `ERRANDS_MAX` pages are asked for at once, one question each. Others wait.
3. Nothing is lost but what no copy could read: before that is given up, the page is split.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from sortedcontainers import SortedDict

from broker.core.copies import Copies, Copy
from broker.core.events import DiskJobs, Effect, Level, Log
from broker.core.lending import Lending
from broker.core.mending_messages import Found, Wanted, encode_wanted, read
from paging.disk import Job
from paging.page import packed_anew
from paging.pagefile import Book
from paging.pager import PageDamaged, Pager
from paging.part import Part
from paging.ranges import Range, Ranges
from replication.core.identity import Incarnation
from replication.core.member import SaidAside
from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Batch

ERRANDS_MAX: Final = 4
"""Pages that are asked for at once. What came of them is in memory beside the budget."""
ROUNDS_MAX: Final = 6
"""Through all copies, without result, until a page is lost."""
PAUSE_S: Final = 0.5
"""Between two rounds."""
ANSWER_S_MAX: Final = 2.0
"""After it a copy has not answered, and the next one is asked."""
LOST_AGAIN_S: Final = 30.0
"""After it what is lost is asked for again."""

_Place = tuple[Book, int]


@dataclass(slots=True, eq=False)
class _Errand:
    """A page that cannot be read."""

    book: Book
    page: Range
    why: str
    again_at: float
    """When the next round begins, if none is going on."""
    rounds: int = 0
    lost: bool = False
    # Of the round that is going on:
    epoch: int = 0
    left: deque[Incarnation] = field(default_factory=deque)
    asked: Incarnation | None = None
    token: int = 0
    at: int = 0
    answer_by: float = 0.0
    was_busy: bool = False
    pieces: SortedDict[int, Batch] = field(default_factory=SortedDict)
    have: Ranges = field(default_factory=Ranges)

    def forget(self) -> None:
        """What came in this round. The next one asks for all of it."""
        self.pieces = SortedDict()
        self.have = Ranges()


class _Source:
    """What came of a page, to be read as a page is."""

    def __init__(self, page: Range, pieces: SortedDict[int, Batch]) -> None:
        self.first, self.end = page
        self._pieces = pieces

    def find(self, offset: int) -> tuple[Batch, int]:
        first, batch = self._pieces.peekitem(self._pieces.bisect_right(offset) - 1)
        return batch, first


class Mending:
    """See the module docstring. It answers what others ask, too (`Lending`)."""

    def __init__(self, copies: Copies, pager: Pager) -> None:
        self._copies = copies
        self._pager = pager
        self._lending = Lending(copies, pager)
        self._errands: dict[_Place, _Errand] = {}
        self._by_token: dict[int, _Errand] = {}
        """Those that wait for an answer."""
        self._tokens = 0

    # What happens

    def damaged(self, news: PageDamaged, now: float) -> None:
        page = Range(news.first, news.end)
        self._errands[news.book, news.first] = _Errand(news.book, page, news.sentence, now)

    def heard(self, news: SaidAside, now: float, outbox: list[Effect]) -> None:
        """Another copy asks, or answers."""
        try:
            said = read(news.payload)
        except RemoteProtocolError as error:
            fields: dict[str, object] = {"peer": str(news.who), "why": str(error)}
            outbox.append(Log(Level.WARNING, "dropped what a peer said of a page", fields))
            return
        if isinstance(said, Wanted):
            self._lending.asked(news.who, news.sid, news.gen, said, outbox)
        else:
            self._found(news, said, now, outbox)

    def map_changed(self, now: float) -> None:
        """There may be other copies than before."""
        for errand in self._errands.values():
            errand.again_at = min(errand.again_at, now)

    def end_turn(self, now: float, outbox: list[Effect]) -> None:
        jobs: list[Job] = []
        self._lending.end_turn(jobs, outbox)
        if jobs:
            outbox.append(DiskJobs(jobs))
        for errand in [e for e in self._by_token.values() if now >= e.answer_by]:
            self._ask_next(errand, now, outbox)
        for errand in list(self._errands.values()):
            if len(self._by_token) >= ERRANDS_MAX:
                return
            if errand.asked is None and now >= errand.again_at:
                self._begin(errand, now, outbox)

    def next_deadline(self) -> float | None:
        deadlines = [errand.answer_by for errand in self._by_token.values()]
        if len(self._by_token) < ERRANDS_MAX:
            deadlines += [e.again_at for e in self._errands.values() if e.asked is None]
        if self._lending.has_work:
            deadlines.append(0.0)
        return min(deadlines, default=None)

    # A round

    def _begin(self, errand: _Errand, now: float, outbox: list[Effect]) -> None:
        found = self._needed(errand)
        if found is None:
            del self._errands[errand.book, errand.page.first]
            return
        copy, _ = found
        errand.again_at = now + PAUSE_S
        if not copy.epoch:
            return  # It is not known yet what this copy is worth.
        errand.epoch = copy.epoch
        errand.left = deque(self._copies.others(errand.book.sid))
        errand.was_busy = False
        self._ask_next(errand, now, outbox)

    def _ask_next(self, errand: _Errand, now: float, outbox: list[Effect]) -> None:
        """Ask the next copy for what is missing, or end the round."""
        self._by_token.pop(errand.token, None)
        errand.asked = None
        found = self._needed(errand)
        if found is None:
            del self._errands[errand.book, errand.page.first]
            return
        copy, part = found
        missing = self._missing(errand, part)
        if not missing:
            self._mend(errand, copy, part, outbox)
        elif errand.left:
            errand.asked = errand.left.popleft()
            self._ask(errand, Range(missing[0].first, missing[-1].end), now, outbox)
        else:
            self._end_round(errand, copy, part, now, outbox)

    def _ask(self, errand: _Errand, run: Range, now: float, outbox: list[Effect]) -> None:
        assert errand.asked is not None
        book = errand.book
        self._tokens += 1
        errand.token, errand.at = self._tokens, run.first
        errand.answer_by = now + ANSWER_S_MAX
        self._by_token[errand.token] = errand
        wanted = Wanted(errand.token, errand.epoch, book.part, run.first, run.end)
        self._copies.say(errand.asked, book.sid, book.gen, encode_wanted(wanted), outbox)

    def _found(self, news: SaidAside, said: Found, now: float, outbox: list[Effect]) -> None:
        errand = self._by_token.get(said.token)
        if errand is None or news.who != errand.asked or news.sid != errand.book.sid:
            return  # It comes late.
        found = self._needed(errand)
        if found is None or found[0].epoch != errand.epoch or said.epoch != errand.epoch:
            errand.left.clear()
            errand.was_busy = True  # Of another epoch: it says nothing of this one.
            self._ask_next(errand, now, outbox)
            return
        _, part = found
        if not self._take_in(errand, part, said):
            fields: dict[str, object] = {"peer": str(news.who), "page": str(errand.page)}
            outbox.append(Log(Level.WARNING, "a peer gave what nobody asked for", fields))
            self._ask_next(errand, now, outbox)
            return
        if said.through <= errand.at:
            errand.was_busy = True
            self._ask_next(errand, now, outbox)
            return
        rest = [run for run in self._missing(errand, part) if run.end > said.through]
        if rest and said.through < errand.page.end:
            self._by_token.pop(errand.token)
            first = max(rest[0].first, said.through)
            self._ask(errand, Range(first, rest[-1].end), now, outbox)
        else:
            self._ask_next(errand, now, outbox)

    def _take_in(self, errand: _Errand, part: Part, said: Found) -> bool:
        if said.pieces:
            last, batch = said.pieces[-1]
            if said.pieces[0][0] < errand.at or last + batch.count > errand.page.end:
                return False
        for first, batch in said.pieces:
            for gap in errand.have.gaps(Range(first, first + batch.count)):
                cut = Batch.trusted(batch.slice(gap.first - first, gap.size))
                errand.pieces[gap.first] = cut
                errand.have.add(gap)
        return True

    def _end_round(
        self, errand: _Errand, copy: Copy, part: Part, now: float, outbox: list[Effect]
    ) -> None:
        if not errand.was_busy:
            errand.rounds += 1
        if errand.rounds >= ROUNDS_MAX:
            for piece in self._split(errand, part):
                if not self._missing(piece, part):
                    self._mend(piece, copy, part, outbox)
                elif not piece.lost:
                    piece.lost = True
                    self._pager.give_up(part.pages, piece.page.first)
                    fields = self._fields(piece, copy, part)
                    outbox.append(Log(Level.ERROR, "messages are lost", fields))
                piece.again_at = now + LOST_AGAIN_S
                piece.forget()
        else:
            errand.again_at = now + PAUSE_S
            errand.forget()

    def _split(self, errand: _Errand, part: Part) -> list[_Errand]:
        """Errands for what is there and for what is missing, by turns, instead of this one."""
        page, needed = errand.page, part.live.within(errand.page)
        there = [(run, True) for all_ in needed for run in errand.have.within(all_)]
        missing = [(run, False) for run in self._missing(errand, part)]
        cuts: list[int] = []
        before: bool | None = None
        for run, is_there in sorted(there + missing):
            if before is not None and is_there != before:
                cuts.append(run.first)
            before = is_there
        if not cuts:
            return [errand]
        self._pager.split(part.pages, page.first, cuts)
        made = [
            replace(errand, page=Range(first, end))
            for first, end in pairwise((page.first, *cuts, page.end))
        ]
        self._errands.update({(piece.book, piece.page.first): piece for piece in made})
        return made

    def _mend(self, errand: _Errand, copy: Copy, part: Part, outbox: list[Effect]) -> None:
        fields = self._fields(errand, copy, part)
        page = packed_anew(_Source(errand.page, errand.pieces), part.live)
        self._pager.mended(part.pages, errand.page.first, page)
        del self._errands[errand.book, errand.page.first]
        outbox.append(Log(Level.INFO, "a page was had again from another copy", fields))

    # What is needed

    def _needed(self, errand: _Errand) -> tuple[Copy, Part] | None:
        """The part, unless the page is needed no more, or can be read again."""
        book = errand.book
        copy = self._copies.here(book.sid)
        if copy is None or copy.office.shelf.copy != book.copy:
            return None
        if not copy.office.has_part(book.part):
            return None
        part = copy.office.part(book.part)
        return (copy, part) if self._pager.is_damaged(part.pages, errand.page.first) else None

    @staticmethod
    def _missing(errand: _Errand, part: Part) -> list[Range]:
        return [gap for run in part.live.within(errand.page) for gap in errand.have.gaps(run)]

    # For people

    def document(self, sid: int) -> list[dict[str, object]]:
        """The pages of one post office that cannot be read here."""
        found: list[dict[str, object]] = []
        for errand in self._errands.values():
            needed = self._needed(errand) if errand.book.sid == sid else None
            if needed is not None:
                fields = self._fields(errand, *needed)
                found.append({**fields, "state": "lost" if errand.lost else "asking"})
        return found

    def lost(self, sid: int) -> dict[str, int]:
        """By queue of one post office: how many messages wait there and cannot be read."""
        found: dict[str, int] = {}
        for errand in self._errands.values():
            needed = self._needed(errand) if errand.lost and errand.book.sid == sid else None
            if needed is not None:
                copy, part = needed
                queue = copy.office.queue_name(errand.book.part)
                waiting = sum(run.size for run in part.waiting(errand.page))
                if waiting:
                    found[queue] = found.get(queue, 0) + waiting
        return found

    @staticmethod
    def _fields(errand: _Errand, copy: Copy, part: Part) -> dict[str, object]:
        live = sum(run.size for run in part.live.within(errand.page))
        return {
            "queue": copy.office.queue_name(errand.book.part),
            "post_office": errand.book.sid,
            "first": errand.page.first,
            "end": errand.page.end,
            "messages": live,
            "in_flight": live - sum(run.size for run in part.waiting(errand.page)),
            "why": errand.why,
        }
