"""One ownership of a stream: from the promotion in some epoch until a higher one is heard of.

Theory of operation
-------------------
An op is applied and numbered when it is appended. At the end of the turn the open segment is
closed and sent. What the op causes outside is an *effect*, and waits under the op's number:

    append ──▶ sealed, sent ──▶ commit ──▶ release ──▶ its effects leave
                               all of need   and min |S| ≥ min_copies
                               hold it

*need* is everybody whom the register may count as in sync: the committed set, the result of a
change whose outcome is not known, and a joiner that is about to be proposed. Only receipts
of this epoch count; so nothing leaves in an epoch before all of need follow it, which is what
fences off the owner before this one.

*S* is each in-sync set that the register may hold now: the committed one, and the result of a
change under way. Release asks the smallest of them, not need: a member that was shrunk away
still sends receipts, but nobody would elect it.

Each part of this has a class of its own, and here they are told of each other's news:

    growing_log   ops are applied, numbered, closed into segments
    backups       the other copies: greeted, invited, repaired, told how far the owner is
    in_sync_set   whom of them to wait for, and each change of that
    release       commit, release, and the effects that wait for it

Rules
-----
1. Commit and release never fall.
2. The own copy counts only from the next turn on, so that no caller of `append` can rely on an
   effect at once, not even where there is one copy only.
3. Nothing is sent of a turn in which applying failed.
4. What is not aligned has receipt 0: it holds up commit by that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic

from replication.core.backups import Backups
from replication.core.clustermap import ClusterMap
from replication.core.copy import Copy
from replication.core.growing_log import GrowingLog
from replication.core.identity import Incarnation
from replication.core.in_sync_set import Held as Held, InSyncSet
from replication.core.machine import OpT, ResultT
from replication.core.messages import Aligned, Join, Nak, Receipt
from replication.core.release import Release
from replication.core.seat import Seat
from replication.core.stream_events import Distrust, Effect


class Owner(Generic[OpT, ResultT]):
    """See the module docstring.

    Attributes:
        append: Applies an op and puts it into the open segment; see `GrowingLog.append`.
        answer: Takes an effect of the log's last op; see `Release.answer`.
    """

    append: Callable[[OpT], ResultT]
    answer: Callable[[object], None]

    def __init__(
        self,
        seat: Seat,
        copy: Copy[OpT, ResultT],
        *,
        epoch: int,
        value: ClusterMap,
        tokens: Iterator[int],
        now: float,
    ) -> None:
        self.copy = copy
        self.epoch = epoch
        self._seat = seat
        self._limits = seat.limits
        self._growing: GrowingLog[OpT, ResultT] = GrowingLog(
            copy, sid=seat.sid, epoch=epoch, segment_bytes=seat.limits.segment_bytes, now=now
        )
        self._release = Release(self._growing, sid=seat.sid)
        self._backups = Backups(seat, copy, self._growing, self._release, epoch=epoch, now=now)
        self._in_sync = InSyncSet(
            seat,
            epoch=epoch,
            value=value,
            tokens=tokens,
            backups=self._backups,
            growing=self._growing,
            release=self._release,
            now=now,
        )
        self.append = self._growing.append  # Not one call more than needed, for each op.
        self.answer = self._release.answer
        self._look_for_room()
        self._turn_at = now

    def begin(self, before: Incarnation | None, now: float, outbox: list[Effect]) -> None:
        """The tail is applied and the history written: tell the others.

        `before` owned the stream until now.
        """
        self._in_sync.begin(before, now)
        for backup in self._in_sync.waited_for:
            self._backups.greet(backup, now, outbox)
        self._review(now, outbox)

    # Facts

    @property
    def failed(self) -> str:
        """Applying raised: nothing more is done here."""
        return self._growing.failed

    @property
    def log_end(self) -> int:
        """Number of the next op."""
        return self._growing.end

    @property
    def commit(self) -> int:
        """All of need hold the ops through this one; 0 until they have followed the epoch."""
        return self._release.commit

    @property
    def release(self) -> int:
        return self._release.released

    @property
    def copies_released(self) -> int:
        """The smallest in-sync set that the register could hold, when `release` last grew."""
        return self._release.copies

    @property
    def held(self) -> Held | None:
        """Set while release waits for copies."""
        return self._in_sync.held

    @property
    def need(self) -> tuple[Incarnation, ...]:
        return self._in_sync.need

    @property
    def joiners(self) -> tuple[Incarnation, ...]:
        return self._in_sync.joiners

    def lags(self) -> list[tuple[Incarnation, int]]:
        """How many ops each other copy is behind."""
        return self._backups.lags()

    def room(self) -> int:
        """Bytes of publishes that may be appended now."""
        growing, in_sync = self._growing, self._in_sync
        if growing.failed or in_sync.held is not None:
            return 0
        limits = self._limits
        if limits.window_ops * 9 // 10 <= growing.end - 1 - self._release.commit:
            return 0
        total = growing.bytes_total
        room = limits.window_bytes * 9 // 10 - (total - self._release.commit_bytes)
        room = min(room, self._free * 9 // 10 - (total - self._free_at_bytes))
        for backup in in_sync.waited_for:
            if not backup.aligned:
                return 0
            room = min(room, backup.free * 9 // 10 - (total - backup.receipt_bytes))
        return max(0, room)

    def full(self) -> bool:
        """Whether so much waits for the other copies that nothing more should be taken on.

        Publishes stop before, at what `room` says; this is for all else that is asked of an
        owner: what is acknowledged, planned or called back. It is no prohibition: what ends a
        channel may always be appended.
        """
        limits, release, end = self._limits, self._release, self._growing.end
        return (
            release.waiting >= limits.window_ops
            or end - 1 - release.commit >= limits.window_ops
            or self._growing.bytes_total - release.commit_bytes >= limits.window_bytes
        )

    def may_deliver(self, now: float) -> bool:
        """Whether all others of need followed this epoch recently, by our own clock.

        What releases a delivery may have lain in a socket for long. Who has taken over since,
        or follows who has, answered no newer tick.
        """
        oldest = now - self._answers_count_s
        return all(backup.answered_at > oldest for backup in self._in_sync.waited_for)

    def unanswered_since(self) -> float | None:
        """Since when one of need that is not proven dead was not heard; None: all are dead."""
        heard = [backup.heard_at for backup in self._in_sync.waited_for if not backup.dead]
        return min(heard, default=None)

    # Turns and time

    def turn(self, now: float, outbox: list[Effect]) -> None:
        """Before any event: a new turn of the loop has begun."""
        if now - self._turn_at > self._in_sync.silence_s / 3:
            # This process stood still. That nobody was heard says nothing about the others.
            self._backups.listening_since = now
        self._turn_at = now
        if self._growing.has_own_news:
            self._growing.count_own()
            self._advance(now, outbox)

    def seal(self, now: float, outbox: list[Effect]) -> None:
        """The turn ends: what was appended in it becomes immutable and is sent."""
        if self._growing.failed:
            return
        segments = self._growing.seal(now)
        if segments:
            self._backups.send_segments(segments, outbox)
            self._backups.ticks.news(now)
            self._look_for_room()
        self._release.emit(outbox)

    def _look_for_room(self) -> None:
        self._free = self._seat.free_bytes()
        self._free_at_bytes = self.copy.log.bytes_total

    def wake(self, now: float, outbox: list[Effect]) -> None:
        if now >= self._backups.ticks.due_at():
            # Pages that went to files made some, and no op says so: publishers wait for it.
            self._look_for_room()
            self._backups.send_tick(now, outbox, memory_s=self._answers_count_s)
            self._review(now, outbox)
            self._backups.trim(self._in_sync.waited_for)

    def next_deadline(self) -> float:
        if self._growing.has_own_news:
            return self._growing.sealed_at
        return self._backups.ticks.due_at()

    def end(self) -> None:
        """Another owner is there."""
        self._growing.finish()
        self.copy.commit = max(self.copy.commit, self._release.commit)

    # The map

    def map_changed(self, value: ClusterMap, now: float, outbox: list[Effect]) -> None:
        """A later map, in which this ownership goes on."""
        self._in_sync.map_changed(value, now)
        self._advance(now, outbox)
        self._review(now, outbox)

    def outcome(self, token: int, result: str, now: float, outbox: list[Effect]) -> None:
        if self._in_sync.outcome(token, result, now):
            self._advance(now, outbox)
            self._review(now, outbox)

    def dead(self, who: Incarnation, now: float, outbox: list[Effect]) -> None:
        backup = self._backups.get(who)
        if backup is not None and not backup.dead:
            backup.dead = True
            self._review(now, outbox)

    # Messages of the other copies

    def joined(self, who: Incarnation, message: Join, now: float, outbox: list[Effect]) -> None:
        """Somebody offers its copy, or says why it cannot go on."""
        if who in self._backups or who in self._in_sync.targets():
            self._backups.joined(self._backups.meet(who, now), message, now, outbox)

    def aligned(self, who: Incarnation, message: Aligned, now: float, outbox: list[Effect]) -> None:
        backup = self._backups.get(who)
        if backup is not None:
            self._backups.aligned(backup, message, now)

    def received(
        self, who: Incarnation, message: Receipt, now: float, outbox: list[Effect]
    ) -> None:
        backups, in_sync = self._backups, self._in_sync
        backup = backups.get(who)
        if backup is None or backup.void:
            return
        if backups.confirms_too_much(message):
            next_seq = self._growing.sealed_end
            sentence = f"{who} confirms op {message.contig}, but the next one is {next_seq}"
            self._seat.counts["impossible receipt"] += 1
            outbox.append(Distrust(self._seat.sid, who, sentence))
            return
        grew = backups.confirmed(backup, message, now)
        if backup in in_sync.waited_for:
            if grew:
                self._advance(now, outbox)
            if backup is in_sync.candidate:
                self._expand(now, outbox)
        elif in_sync.candidate is None:
            self._expand(now, outbox)

    def asked(self, who: Incarnation, message: Nak, now: float, outbox: list[Effect]) -> None:
        backup = self._backups.get(who)
        if backup is not None:
            self._backups.asked(backup, message, now, outbox)

    def is_void(self, who: Incarnation, now: float, outbox: list[Effect]) -> None:
        """Its copy is wrong: it is waited for only until the register lets it go."""
        backup = self._backups.get(who)
        if backup is not None and not backup.void:
            backup.void = True
            backup.aligned = False
            self._review(now, outbox)

    # What follows from news

    @property
    def _answers_count_s(self) -> float:
        """A delivery leaves while all of need answered a tick that was sent since."""
        return self._in_sync.value.settings.grace_ms / 2000

    def _advance(self, now: float, outbox: list[Effect]) -> None:
        release = self._release
        release.advance_commit(self._in_sync.waited_for)
        if release.commit > release.released and self._in_sync.enough():
            self._backups.ticks.news(now)
            release.release_commit(self._in_sync.copies, outbox)

    def _expand(self, now: float, outbox: list[Effect]) -> None:
        if self._in_sync.expand(now, outbox):
            self._advance(now, outbox)

    def _review(self, now: float, outbox: list[Effect]) -> None:
        """Look at all other copies: whom to take in, to let go, to invite."""
        self._expand(now, outbox)
        in_sync = self._in_sync
        in_sync.review(now, outbox)
        self._backups.invite(
            in_sync.targets(), in_sync.waited_for, now, outbox, silence_s=in_sync.silence_s
        )

    def check(self) -> None:
        """Verify every invariant. For tests and simulation."""
        if self._growing.failed:
            return
        self._growing.check()
        self._release.check()
        self._in_sync.check()
