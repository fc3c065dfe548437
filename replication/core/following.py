"""A copy that is nobody's owner: how it comes to follow one, and what becomes of it meanwhile.

    NEWEPOCH ──▶ the log fits         cut at the common point ──▶ shadow: receipts
            └──▶ it does not          a fresh copy is filled ──▶ swapped in ──▶ shadow
                                      or, if the owner has not all ops any more, it waits

`joining.py` decides which of these it is, `shadow.py` receives. The copy that counts stays
until the fresh one has all that the owner had when it told of its epoch.

A void copy (applying an op failed, or its log is another one than the owner's) is never
elected. It says VOID as long as the map shows it in sync, so that nobody waits for it, and is
filled anew like any other: by then it has all that it ever confirmed. If the fresh copy becomes
void too, the fault is not in this copy but in this program: it stays void for this epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Generic

from replication.core.copy import Copy
from replication.core.events import Level
from replication.core.identity import Incarnation
from replication.core.joining import GoOn, Refill, WaitForTransfer, difference, plan, sound
from replication.core.machine import Machine, OpT, ResultT
from replication.core.messages import Aligned, Join, NewEpoch, Segments, Tick, Void
from replication.core.seat import Seat
from replication.core.shadow import Shadow
from replication.core.stream_events import (
    CopyVoid,
    Distrust,
    Effect,
    Joined,
    Note,
    Send,
)


class Following(Generic[OpT, ResultT]):
    """See the module docstring.

    Attributes:
        copy: The one that counts.
        shadow: What follows an owner in this epoch; with the copy that counts, or a fresh one.
        why: Why this copy cannot follow; empty if it does, or need not.
        heard_release: The highest release that an owner said in a tick, for the copy that counts.
    """

    def __init__(self, seat: Seat, make: Callable[[int], Machine[OpT, ResultT]]) -> None:
        self.copy: Copy[OpT, ResultT] = Copy(0, make(0))
        self.shadow: Shadow[OpT, ResultT] | None = None
        self.why = ""
        self.heard_release = 0
        self._seat = seat
        self._sid = seat.sid
        self._make = make
        self._hopeless_in = 0  # The epoch in which a fresh copy became void as well.
        self._receipts = count(1)

    @property
    def kept_bytes(self) -> int:
        kept = self.copy.log.bytes_kept
        if self.shadow is not None and self.shadow.copy is not self.copy:
            kept += self.shadow.copy.log.bytes_kept
        return kept

    @property
    def machines(self) -> list[Machine[OpT, ResultT]]:
        """Of the copy that counts, and of a fresh one that is being filled."""
        copies = [self.copy]
        if self.shadow is not None and self.shadow.copy is not self.copy:
            copies.append(self.shadow.copy)
        return [copy.machine for copy in copies]

    def stop(self) -> None:
        """From now on nobody is followed or confirmed to."""
        self.shadow = None
        self.why = ""

    def begin_anew(self, gen: int) -> None:
        """Another life of the content, which begins with nothing."""
        self.copy = Copy(gen, self._make(gen))
        self.heard_release = 0

    def offer(self, owner: Incarnation, epoch: int, why: str, outbox: list[Effect]) -> None:
        """Say what is here; and why it cannot follow, if it cannot."""
        copy = self.copy
        head = self._seat.head(copy.gen, epoch)
        outbox.append(Send(owner, Join(*head, copy.history, copy.log.end, copy.applied, why)))

    def follow(
        self,
        owner: Incarnation,
        offer: NewEpoch,
        now: float,
        outbox: list[Effect],
        *,
        in_sync: bool,
    ) -> None:
        """An owner tells of its epoch, which is the highest that was seen.

        `in_sync`: so the map has it for this copy.
        """
        shadow = self.shadow
        if not sound(offer) or (shadow is not None and shadow.owner != owner):
            sentence = f"{owner} says what no owner of stream {self._sid} can say"
            outbox.append(Distrust(self._sid, owner, sentence))
            return
        if shadow is None and not self.copy.void and (why := difference(self.copy, offer)):
            self._declare_void(self.copy, why, outbox)
        if self.copy.void and in_sync:
            # To each new owner: the one before may have died with the knowledge.
            self._say_void(owner, offer.epoch, outbox)
        if shadow is not None:
            if shadow.copy.log.end >= offer.first_kept:
                # It was told before. Nothing is cut a second time: this copy may be ahead
                # of what the owner had when it wrote that.
                if shadow.fill_end:
                    self.offer(owner, offer.epoch, self.why, outbox)
                else:
                    self._say_aligned(shadow, now, outbox)
                return
            # What is missing is not kept any more.
            self.shadow = None
        step = plan(self.copy, offer)
        if isinstance(step, Refill) and self._hopeless_in == offer.epoch:
            step = WaitForTransfer(f"{step.why}; a fresh copy became void, too")
        if isinstance(step, GoOn):
            cut = self.copy.cut(step.common)
            self._seat.counts["cut"] += cut
            if cut:
                self._seat.counts["cuts"] += 1
            self.copy.history = offer.history
            self.why = ""
            shadow = self._begin_shadow(owner, self.copy, offer, now, fill_end=0)
            self._say_aligned(shadow, now, outbox)
        elif isinstance(step, Refill):
            fresh = Copy(self.copy.gen, self._make(self.copy.gen))
            fresh.history = offer.history
            self.why = f"is filled anew: {step.why}"
            self._seat.counts["refills"] += 1
            shadow = self._begin_shadow(owner, fresh, offer, now, fill_end=offer.log_end)
            self.offer(owner, offer.epoch, self.why, outbox)
            self._after(shadow, now, outbox)
        else:
            self._wait(step, outbox)
            self.offer(owner, offer.epoch, self.why, outbox)

    def receive(
        self, message: Segments | Tick, now: float, outbox: list[Effect], *, by_link: bool
    ) -> None:
        """What the owner that is followed says of its log."""
        shadow = self.shadow
        assert shadow is not None
        if isinstance(message, Segments):
            shadow.receive(message, now, outbox, by_link=by_link)
        else:
            shadow.tick(message, now, outbox, by_link=by_link)
        self._after(shadow, now, outbox)

    def apply(self, copy: Copy[OpT, ResultT], seq: int, outbox: list[Effect]) -> None:
        """Apply the tail up to `seq`. If the machine raises the copy is void."""
        try:
            copy.apply_through(seq)
        # Whatever the machine raises is a bug in it, and makes the copy worthless.
        except Exception as error:
            why = f"applying an op after {copy.applied} of stream {self._sid} failed: {error!r}"
            self._declare_void(copy, why, outbox)

    def _declare_void(self, copy: Copy[OpT, ResultT], why: str, outbox: list[Effect]) -> None:
        copy.void = why
        self._seat.counts["void"] += 1
        outbox.append(Note(Level.ERROR, "a copy is void", {"sid": self._sid, "why": why}))
        if copy is self.copy:
            outbox.append(CopyVoid(self._sid, why))

    def _say_void(self, owner: Incarnation, epoch: int, outbox: list[Effect]) -> None:
        outbox.append(Send(owner, Void(*self._seat.head(self.copy.gen, epoch))))

    def _wait(self, step: WaitForTransfer, outbox: list[Effect]) -> None:
        if not self.why:
            self._seat.counts["waits for transfer"] += 1
            fields: dict[str, object] = {"sid": self._sid, "why": step.why}
            outbox.append(Note(Level.WARNING, "a copy waits for transfer", fields))
        self.why = step.why

    def _begin_shadow(
        self,
        owner: Incarnation,
        copy: Copy[OpT, ResultT],
        offer: NewEpoch,
        now: float,
        *,
        fill_end: int,
    ) -> Shadow[OpT, ResultT]:
        self.shadow = Shadow(
            self._seat,
            copy,
            owner=owner,
            epoch=offer.epoch,
            known_end=offer.log_end,
            fill_end=fill_end,
            numbers=self._receipts,
            now=now,
        )
        return self.shadow

    def _say_aligned(self, shadow: Shadow[OpT, ResultT], now: float, outbox: list[Effect]) -> None:
        copy = shadow.copy
        head = self._seat.head(copy.gen, shadow.epoch)
        outbox.append(Send(shadow.owner, Aligned(*head, copy.log.end - 1, copy.applied)))
        outbox.append(Joined(self._sid, copy.gen, shadow.epoch))
        shadow.send_receipt(now, outbox)

    def _after(self, shadow: Shadow[OpT, ResultT], now: float, outbox: list[Effect]) -> None:
        """What was received may have been applied, may not fit, or may be the last that lacked."""
        copy = shadow.copy
        if not copy.void:
            self.apply(copy, min(copy.commit, copy.log.end - 1), outbox)
        else:
            self._declare_void(copy, copy.void, outbox)
        if copy is self.copy:
            # Of a fresh copy's ticks the old one, which still answers questions, knows nothing.
            self.heard_release = max(self.heard_release, shadow.release)
        if copy.void:
            self.shadow = None
            if copy is self.copy:
                self._say_void(shadow.owner, shadow.epoch, outbox)
            else:
                self._hopeless_in = shadow.epoch
        elif shadow.fill_end and not shadow.filling:
            # Nothing can have been released without this copy's receipts, if it is in sync:
            # so the fresh one has all that the old one may be needed for.
            shadow.fill_end = 0
            self.copy = copy
            self.why = ""
            self._seat.counts["refilled"] += 1
            self._say_aligned(shadow, now, outbox)

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(segments)`."""
        self.copy.check()
        shadow = self.shadow
        if shadow is not None:
            assert (shadow.copy is self.copy) == (shadow.fill_end == 0)
            assert not shadow.copy.void
            shadow.check()
