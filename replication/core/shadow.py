"""A copy that follows an owner in one epoch: it receives, asks for what it lacks, and confirms.

Theory of operation
-------------------
The log is aligned with the owner's before this object exists (`joining.py`), so what comes in
this epoch fits or is missing something. Segments come by the group, which may lose, repeat and
reorder, or over the link, which does not. What is ahead of the log waits in a buffer; what is
missing is asked for when the group has been read until it was empty and a short time has passed
without progress.

A receipt says "I hold everything up to here, in this epoch". It goes out at once when the
stream was idle, else once in a while, and is repeated at each tick, so that a lost one does
not matter, and so that the owner hears from a copy to which it has nothing to say.

Rules
-----
1. Nothing is applied here: that may fail, and then the whole copy is another matter. What
   may be is what is known to be committed, since the tail can be cut and the state cannot.
2. A segment that does not fit is dropped if it came by the group: anybody may have damaged it.
   If the owner itself sent it over the link, the logs differ, and this copy is void.
3. The end of an epoch is the end of this object: nobody gives receipts in an old epoch.
4. While `filling` no receipt is given: the copy that counts is still another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

from replication.core.copy import Copy
from replication.core.identity import Incarnation
from replication.core.machine import OpT, ResultT
from replication.core.messages import Nak, Receipt, Segments, Tick
from replication.core.seat import Seat
from replication.core.segment import Segment
from replication.core.stream_events import Effect, Send


class Shadow(Generic[OpT, ResultT]):
    """See the module docstring.

    Attributes:
        fill_end: The copy counts once its log has reached this; 0: it does already.
        release: The highest that the owner said in a tick.
    """

    def __init__(
        self,
        seat: Seat,
        copy: Copy[OpT, ResultT],
        *,
        owner: Incarnation,
        epoch: int,
        known_end: int,
        fill_end: int,
        numbers: Iterator[int],
        now: float,
    ) -> None:
        self.copy = copy
        self.owner = owner
        self.epoch = epoch
        self.fill_end = fill_end
        self.release = 0
        self._seat = seat
        self._limits = seat.limits
        self._numbers = numbers
        # The owner's log has at least this end: what is missing below it is a gap.
        self._known_end = known_end
        self._ahead: dict[int, tuple[Segment, bool]] = {}  # With: came over the link.
        self._ahead_bytes = 0
        self._group_is_empty = True
        self._nak_at: float | None = now if self._gap() else None
        self._nak_wait_s = self._limits.nak_s_min
        self._tick = 0
        self._receipt_at: float | None = None
        self._receipt_sent_at = -1.0
        self._unreceipted_bytes = 0

    @property
    def filling(self) -> bool:
        return self.copy.log.end < self.fill_end

    # What comes in

    def receive(
        self, message: Segments, now: float, outbox: list[Effect], *, by_link: bool
    ) -> None:
        """Ops of this epoch's owner."""
        copy, log = self.copy, self.copy.log
        self._group_is_empty &= by_link
        end_before, bytes_before = log.end, log.bytes_total
        for segment in message.segments:
            if segment.end_seq > self._known_end:
                self._known_end = segment.end_seq
            if segment.first_seq == log.end:
                self._take(segment, by_link)
            elif segment.first_seq > log.end:
                self._keep_ahead(segment, by_link)
            else:
                self._seat.counts["repair not needed" if message.repair else "duplicate"] += 1
        while self._ahead and (waiting := self._ahead.pop(log.end, None)):
            self._ahead_bytes -= waiting[0].size
            if not self._take(*waiting):
                break
        if log.end != end_before:
            self._unreceipted_bytes += log.bytes_total - bytes_before
            if message.repair and self._ahead:
                self._forget_repaired()
            self._progressed(now)
            # Nothing else was under way when this was sent: somebody waits for just this.
            self._confirm(now, outbox, was_idle=message.commit >= end_before - 1)
        elif self._group_is_empty:
            self._watch_gap(now)
        copy.commit = max(copy.commit, message.commit)

    def tick(self, message: Tick, now: float, outbox: list[Effect], *, by_link: bool) -> None:
        """The owner says how far it is. It comes on two roads, and is answered once."""
        self._group_is_empty &= by_link
        self._known_end = max(self._known_end, message.log_end)
        self.release = max(self.release, message.release)
        self.copy.commit = max(self.copy.commit, message.commit)
        self.copy.log.trim(
            bytes_max=self._limits.repair_bytes,
            # What is not known to be committed may be what another copy lacks after a
            # takeover by this one.
            below=self.copy.applied + 1,
        )
        if self._group_is_empty:
            self._watch_gap(now)
        if message.number > self._tick:
            self._tick = message.number
            self.send_receipt(now, outbox)

    def group_drained(self, now: float) -> None:
        self._group_is_empty = True
        self._watch_gap(now)

    def wake(self, now: float, outbox: list[Effect]) -> None:
        if self._receipt_at is not None and now >= self._receipt_at:
            self.send_receipt(now, outbox)
        if self._nak_at is not None and now >= self._nak_at:
            self._ask(now, outbox)

    def next_deadline(self) -> float | None:
        if self._receipt_at is None:
            return self._nak_at
        return self._receipt_at if self._nak_at is None else min(self._receipt_at, self._nak_at)

    # The log

    def _take(self, segment: Segment, by_link: bool) -> bool:
        log = self.copy.log
        if segment.chain_before == log.chain and segment.created_epoch <= self.epoch:
            if segment.intact():
                log.append(segment)
                return True
            self._seat.counts["damaged"] += 1
        elif by_link:
            self.copy.void = f"the owner's log differs below op {log.end}"
        else:
            self._seat.counts["does not fit"] += 1
        return False

    def _keep_ahead(self, segment: Segment, by_link: bool) -> None:
        first = segment.first_seq
        if first in self._ahead and not by_link:
            return
        if self._ahead_bytes + segment.size > self._limits.window_bytes:
            self._seat.counts["too far ahead"] += 1
            return
        if first in self._ahead:
            self._ahead_bytes -= self._ahead[first][0].size
        self._ahead_bytes += segment.size
        self._ahead[first] = (segment, by_link)

    def _forget_repaired(self) -> None:
        for first in [first for first in self._ahead if first < self.copy.log.end]:
            self._ahead_bytes -= self._ahead.pop(first)[0].size

    # What is missing

    def _gap(self) -> bool:
        return self._known_end > self.copy.log.end

    def _progressed(self, now: float) -> None:
        self._nak_at = None
        self._nak_wait_s = self._limits.nak_s_min
        if self._group_is_empty:
            self._watch_gap(now)

    def _watch_gap(self, now: float) -> None:
        if not self._gap():
            self._nak_at = None
        elif self._nak_at is None:
            self._nak_at = now + self._limits.gap_s

    def _ask(self, now: float, outbox: list[Effect]) -> None:
        first = self.copy.log.end
        last = (min(self._ahead) if self._ahead else self._known_end) - 1
        self._seat.counts["nak"] += 1
        head = self._seat.head(self.copy.gen, self.epoch)
        outbox.append(Send(self.owner, Nak(*head, first, last)))
        self._nak_at = now + self._nak_wait_s
        self._nak_wait_s = min(2 * self._nak_wait_s, self._limits.nak_s_max)

    # Receipts

    def _confirm(self, now: float, outbox: list[Effect], *, was_idle: bool) -> None:
        due_at = self._receipt_sent_at + self._limits.receipt_s
        if was_idle or now >= due_at or self._unreceipted_bytes >= self._limits.receipt_bytes:
            self.send_receipt(now, outbox)
        elif self._receipt_at is None:
            self._receipt_at = due_at

    def send_receipt(self, now: float, outbox: list[Effect]) -> None:
        """Say how far this copy is. Nothing, while it is not the one that counts."""
        self._receipt_at = None
        self._unreceipted_bytes = 0
        if self.fill_end or self.copy.void:
            return
        self._receipt_sent_at = now
        outbox.append(
            Send(
                self.owner,
                Receipt(
                    *self._seat.head(self.copy.gen, self.epoch),
                    next(self._numbers),
                    self._tick,
                    self.copy.log.end - 1,
                    self.copy.applied,
                    max(0, self._seat.free_bytes()),
                ),
            )
        )

    def check(self) -> None:
        """Verify every invariant. For tests and simulation."""
        self.copy.check()
        assert self._ahead_bytes == sum(segment.size for segment, _ in self._ahead.values())
        assert all(first >= self.copy.log.end for first in self._ahead)
