"""The other copies of an owner's stream: how they come to follow it, and what is sent to them.

    INVITE ──▶ JOIN ──▶ NEWEPOCH ──▶ ALIGNED or a receipt: it follows
      each second       again, until it follows         │
                            ▲                           ▼
                            └── too far behind ──── NAK ──▶ REPAIR

Whether a copy is waited for is decided elsewhere (`in_sync_set.py`). Here joiners and members
are the same.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from replication.core.backup import Backup
from replication.core.copy import Copy
from replication.core.events import Level
from replication.core.growing_log import GrowingLog
from replication.core.identity import Incarnation
from replication.core.messages import (
    Aligned,
    Invite,
    Join,
    Nak,
    NewEpoch,
    Receipt,
    Segments,
    Tick,
    encode,
)
from replication.core.release import Release
from replication.core.seat import Seat
from replication.core.segment import Segment
from replication.core.stream_events import Effect, Note, Publish, Send
from replication.core.ticks import Ticks


class Backups:
    """All that the owner has heard from or waits for, by who they are.

    Attributes:
        listening_since: Before that nobody's silence counts, since this process stood still.
        ticks: What is sent to all of them.
    """

    def __init__(
        self,
        seat: Seat,
        # What the machine is does not matter here.
        copy: Copy[Any, Any],
        growing: GrowingLog[Any, Any],
        release: Release,
        *,
        epoch: int,
        now: float,
    ) -> None:
        self.listening_since = now
        self.ticks = Ticks(seat.limits, now)
        self._seat = seat
        self._limits = seat.limits
        self._head = seat.head(copy.gen, epoch)
        self._copy = copy
        self._growing = growing
        self._log = copy.log
        self._release = release
        self._by_who: dict[Incarnation, Backup] = {}
        self._invited: dict[Incarnation, float] = {}
        self._complained: set[Incarnation] = set()

    def __contains__(self, who: Incarnation) -> bool:
        return who in self._by_who

    def __iter__(self) -> Iterator[Backup]:
        return iter(self._by_who.values())

    def __getitem__(self, who: Incarnation) -> Backup:
        return self._by_who[who]

    def get(self, who: Incarnation) -> Backup | None:
        return self._by_who.get(who)

    def meet(self, who: Incarnation, now: float) -> Backup:
        backup = self._by_who.get(who)
        if backup is None:
            backup = self._by_who[who] = Backup(who, now)
        return backup

    def silent_s(self, backup: Backup, now: float) -> float:
        return now - max(backup.heard_at, self.listening_since)

    # How they come to follow

    def greet(self, backup: Backup, now: float, outbox: list[Effect]) -> None:
        """Tell it of this epoch, unless it was just told."""
        if now < backup.greeted_at + self._limits.greet_s:
            return
        backup.greeted_at = now
        if backup.greeted_first_at is None:
            backup.greeted_first_at = now
        log, sealed_end = self._log, self._growing.sealed_end
        # What is not sealed is nobody's business yet.
        message = NewEpoch(
            *self._head,
            self._copy.history,
            sealed_end,
            log.chain_at(sealed_end) or 0,
            min(log.first_kept, sealed_end),
        )
        outbox.append(Send(backup.who, message))

    def joined(self, backup: Backup, message: Join, now: float, outbox: list[Effect]) -> None:
        """It offers its copy, or says why it cannot go on."""
        who = backup.who
        backup.heard_at = now
        self._invited.pop(who, None)
        if message.why:
            if who not in self._complained:
                self._complained.add(who)  # Its reason may change with each op.
                outbox.append(
                    Note(
                        Level.WARNING,
                        "a copy does not follow",
                        {"sid": self._seat.sid, "peer": str(who), "why": message.why},
                    )
                )
            backup.why = message.why
            backup.aligned = False
            # A copy that gives up takes back what it said it holds, also if it counts.
            backup.receipt = 0
        elif not backup.aligned:
            self.greet(backup, now, outbox)

    def aligned(self, backup: Backup, message: Aligned, now: float) -> None:
        backup.heard_at = now
        self._align(backup)

    def _align(self, backup: Backup) -> None:
        if backup.aligned or backup.void:
            return
        backup.aligned = True
        backup.why = ""
        self._complained.discard(backup.who)
        backup.first_end = self._growing.sealed_end
        if backup.greeted_first_at is not None:
            # The greeting counts as tick 0. Which of several it answers is not known.
            backup.answered_at = max(backup.answered_at, backup.greeted_first_at)

    def invite(
        self,
        targets: Sequence[Incarnation],
        waited_for: Container[Backup],
        now: float,
        outbox: list[Effect],
        *,
        silence_s: float,
    ) -> None:
        """Ask those who shall hold a copy for theirs, and forget who is needed no more."""
        for who, backup in list(self._by_who.items()):
            if backup in waited_for:
                continue
            # Who said that its copy is void, and was let go, begins anew like a stranger.
            gone = backup.dead or backup.void
            if who not in targets or gone or self.silent_s(backup, now) >= silence_s:
                del self._by_who[who]
        for who in targets:
            if (
                who not in self._by_who
                and now >= self._invited.get(who, float("-inf")) + self._limits.invite_s
            ):
                self._invited[who] = now
                outbox.append(Send(who, Invite(*self._head)))
        for backup in self._by_who.values():
            # One that said why it cannot follow is asked again as rarely as a stranger.
            patience_s = self._limits.invite_s if backup.why else self._limits.greet_s
            if not backup.aligned and not backup.void and now >= backup.greeted_at + patience_s:
                self.greet(backup, now, outbox)

    # What they say

    def confirms_too_much(self, message: Receipt) -> bool:
        """Whether nobody can have received that."""
        return message.contig >= self._growing.sealed_end or message.tick > self.ticks.number

    def confirmed(self, backup: Backup, message: Receipt, now: float) -> bool:
        """A receipt. Whether it says more than those before."""
        backup.heard_at = now
        backup.dead = False  # A dial that was refused is a proof that can be false.
        if not backup.aligned:
            self._align(backup)
        grew = message.contig > backup.receipt
        if grew:
            log = self._log
            backup.receipt = message.contig
            backup.receipt_bytes = log.bytes_total - log.bytes_from(message.contig + 1)
            backup.progress_at = now
        if message.number > backup.number:
            backup.number = message.number
            backup.free = message.free
            backup.applied = message.applied
        sent_at = self.ticks.sent_at(message.tick)
        if sent_at is not None and sent_at > backup.answered_at:
            backup.answered_at = sent_at
        return grew

    def asked(self, backup: Backup, message: Nak, now: float, outbox: list[Effect]) -> None:
        """It lacks ops: send it some."""
        sealed_end = self._growing.sealed_end
        if message.first >= sealed_end:
            return
        backup.heard_at = now
        if message.first < self._log.first_kept:
            # It is too far behind. It learns that from what it is told of the log.
            self.greet(backup, now, outbox)
            return
        first, asked_at = backup.repaired
        if first == message.first and now < asked_at + self._limits.gap_s:
            return
        backup.repaired = (message.first, now)
        group: list[Segment] = []
        size = 0
        for segment in self._log.from_(message.first, self._limits.repair_answer_bytes):
            if segment.first_seq > message.last or segment.first_seq >= sealed_end:
                break
            if group and size + segment.wire_bytes > self._limits.segment_bytes:
                self._send_repair(backup.who, group, outbox)
                group, size = [], 0
            group.append(segment)
            size += segment.wire_bytes
        if group:
            self._send_repair(backup.who, group, outbox)

    # What is sent to all

    def send_segments(self, segments: Sequence[Segment], outbox: list[Effect]) -> None:
        if not self._by_who:
            return
        commit = self._release.commit
        idle = commit == segments[0].first_seq - 1
        by_link = idle and sum(s.wire_bytes for s in segments) < self._limits.link_bytes_max
        for segment in segments:
            message = Segments(*self._head, commit, False, (segment,))
            if by_link:
                for who, backup in self._by_who.items():
                    if backup.aligned:
                        outbox.append(Send(who, message))
            else:
                outbox.append(Publish(encode(message)))

    def send_tick(self, now: float, outbox: list[Effect], *, memory_s: float) -> None:
        ticks, release = self.ticks, self._release
        by_group = ticks.take(now, heard=bool(self._by_who), memory_s=memory_s)
        facts = (release.commit, self._growing.sealed_end, release.released, ticks.number)
        for who, backup in self._by_who.items():
            outbox.append(Send(who, Tick(*self._head, *facts, backup.number)))
        if by_group:
            outbox.append(Publish(encode(Tick(*self._head, *facts, 0))))

    def _send_repair(self, who: Incarnation, segments: list[Segment], outbox: list[Effect]) -> None:
        self._seat.counts["repair"] += 1
        message = Segments(*self._head, self._release.commit, True, tuple(segments))
        outbox.append(Send(who, message))

    # Facts

    def lags(self) -> list[tuple[Incarnation, int]]:
        """How many ops each is behind."""
        last = self._growing.end - 1
        return [(who, last - backup.receipt) for who, backup in sorted(self._by_who.items())]

    def trim(self, waited_for: Iterable[Backup]) -> None:
        """Forget old segments, none that anybody of need may still ask for."""
        log, limits = self._log, self._limits
        held_back = [backup.receipt for backup in waited_for]
        if log.bytes_kept <= 2 * limits.repair_bytes:
            # A joiner is waited for, but not for ever.
            held_back += [backup.receipt for backup in self]
        log.trim(
            bytes_max=limits.repair_bytes,
            below=min([self._growing.own_receipt, *held_back]) + 1,
        )
