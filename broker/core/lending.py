"""Lending: what this node's copies give to others that cannot read a page of theirs.

Theory of operation
-------------------
The asker names offsets of a part, and gets what of them is not done with here: from memory at
once, from a file by a reader that moves nothing (`Pager.peek`). One answer has what is in
memory, or one block of a file; the asker comes again for what follows.

Rules
-----
1. Only a copy of the same gen, which serves or follows the same epoch, has the same messages
   at the same offsets. Any other says that it has nothing.
2. Consumers come first: no file is read for others while the disk is busy for them.
3. Who asks waits here: `WAITING_MAX` at most, of whom `TURN_MAX` are answered in a turn.
   One more is told at once that nothing was looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from broker.core.copies import Copies
from broker.core.events import Effect
from broker.core.mending_messages import Found, Pieces, Wanted, encode_found
from paging.disk import Job
from paging.page import Away
from paging.pager import Pager, Peeked
from paging.part import Part
from paging.ranges import Range
from replication.core.identity import Incarnation
from tanist.wire.batch import Batch

ANSWER_BYTES_MAX: Final = 256 << 10
"""Of batches in one answer; a single one may be larger."""
ANSWER_PIECES_MAX: Final = 1_000
"""Of batches in memory in one answer."""
WAITING_MAX: Final = 32
"""Questions that wait for the disk."""
TURN_MAX: Final = 4
"""Questions that are looked at in one turn."""


@dataclass(slots=True, eq=False)
class _Question:
    who: Incarnation
    sid: int
    gen: int
    wanted: Wanted
    page_end: int = 0
    """Of the page that is being read for it."""


class Lending:
    """See the module docstring."""

    def __init__(self, copies: Copies, pager: Pager) -> None:
        self._copies = copies
        self._pager = pager
        self._waiting: OrderedDict[tuple[Incarnation, int], _Question] = OrderedDict()
        """By who asks, and his token: he asks for one thing at a time under it."""
        self._peeking: dict[int, _Question] = {}

    def asked(
        self, who: Incarnation, sid: int, gen: int, wanted: Wanted, outbox: list[Effect]
    ) -> None:
        question = _Question(who, sid, gen, wanted)
        key = (who, wanted.token)
        if key not in self._waiting and len(self._waiting) + len(self._peeking) >= WAITING_MAX:
            self._say(question, wanted.first, [], outbox)
        else:
            self._waiting[key] = question

    def end_turn(self, jobs: list[Job], outbox: list[Effect]) -> None:
        """Look at questions, and at what came from the disk for them."""
        for peeked in self._pager.take_peeked():
            question = self._peeking.pop(peeked.token, None)
            if question is not None:
                self._was_read(question, peeked, outbox)
        for key, question in list(self._waiting.items())[:TURN_MAX]:
            if self._look(question, jobs, outbox):
                del self._waiting[key]
            else:
                self._waiting.move_to_end(key)

    @property
    def has_work(self) -> bool:
        """Whether something can be done at once. Else the disk says when."""
        return bool(self._waiting) and self._pager.can_peek

    def _look(self, question: _Question, jobs: list[Job], outbox: list[Effect]) -> bool:
        """Answer, or have a block read. False: the disk is busy."""
        part = self._part(question)
        if part is None:
            self._say(question, question.wanted.end, [], outbox)
            return True
        pages = part.pages
        pieces: Pieces = []
        size = 0
        for run in _needed(part, question.wanted):
            offset = run.first
            while offset < run.end:
                at = pages.page_with(offset)
                away = at is not None and isinstance(at[1], Away)
                full = size >= ANSWER_BYTES_MAX or len(pieces) >= ANSWER_PIECES_MAX
                if full or (away and pieces):
                    self._say(question, offset, pieces, outbox)
                    return True
                if at is not None and away:
                    return self._peek(question, part, offset, at[1].end, jobs, outbox)
                offset = _take(*pages.batch_at(offset), offset, run.end, pieces)
                size += pieces[-1][1].size
        self._say(question, question.wanted.end, pieces, outbox)
        return True

    def _peek(
        self,
        question: _Question,
        part: Part,
        offset: int,
        page_end: int,
        jobs: list[Job],
        outbox: list[Effect],
    ) -> bool:
        if not self._pager.can_peek:
            return False
        question.page_end = page_end
        token = self._pager.peek(part.pages, offset, jobs)
        if isinstance(token, int):
            self._peeking[token] = question
        else:
            self._was_read(question, token, outbox)
        return True

    def _was_read(self, question: _Question, peeked: Peeked, outbox: list[Effect]) -> None:
        part, wanted, block = self._part(question), question.wanted, peeked.block
        if part is None:
            self._say(question, wanted.end, [], outbox)
            return
        if block is None:
            # It cannot be read here either.
            self._say(question, min(wanted.end, question.page_end), [], outbox)
            return
        pieces: Pieces = []
        end = min(wanted.end, block.end)
        for run in _needed(part, wanted._replace(end=end)):
            offset = max(run.first, block.first)
            while offset < run.end:
                offset = _take(*block.find(offset), offset, run.end, pieces)
        self._say(question, end, pieces, outbox)

    def _part(self, question: _Question) -> Part | None:
        """The part in a copy that has the same messages, if this node has one."""
        copy = self._copies.here(question.sid)
        wanted = question.wanted
        if copy is None or copy.gen != question.gen or copy.epoch != wanted.epoch or not copy.epoch:
            return None
        return copy.office.part(wanted.part) if copy.office.has_part(wanted.part) else None

    def _say(self, question: _Question, through: int, pieces: Pieces, outbox: list[Effect]) -> None:
        wanted = question.wanted
        payload = encode_found(Found(wanted.token, wanted.epoch, through, pieces))
        self._copies.say(question.who, question.sid, question.gen, payload, outbox)


def _needed(part: Part, wanted: Wanted) -> list[Range]:
    end = min(wanted.end, part.end)
    return part.live.within(Range(wanted.first, end)) if wanted.first < end else []


def _take(batch: Batch, first: int, offset: int, end: int, pieces: Pieces) -> int:
    """Take from a batch what follows `offset` and is needed. Returns the offset after it."""
    index = offset - first
    count = min(batch.count - index, end - offset)
    pieces.append((offset, Batch.trusted(batch.slice(index, count))))
    return offset + count
