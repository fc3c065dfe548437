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

    expand   a joiner that caught up ─▶ put into need ─▶ has all that was ever released? ─▶
             propose ─▶ in the map
    shrink   propose ─▶ go on waiting for it until the map shows that it is gone

At most one change of the in-sync set is under way. A change of unknown outcome stays under
way; the register's guards make a late commit of it harmless.

*Held*: release waits for copies. Then any live broker is taken as a joiner, and publishes are
not admitted.

Rules
-----
1. Commit and release never fall.
2. The own copy counts only from the next turn on, so that no caller of `append` can rely on an
   effect at once, not even where there is one copy only.
3. Nothing is sent of a turn in which applying failed.
4. What is not aligned has receipt 0: it holds up commit by that alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple

from replication.core.backup import Backup
from replication.core.changes import DONE, Expand, SetCopies, Shrink, ShrinkWhy
from replication.core.clustermap import (
    CATALOG_SID,
    ClusterMap,
    NodeState,
    OnTooFewCopies,
    StreamEntry,
    brokers,
    default_min_copies,
    incarnation,
    superseded,
    wanted,
)
from replication.core.copy import Copy
from replication.core.events import Level
from replication.core.identity import Incarnation
from replication.core.machine import OpT, ResultT
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
from replication.core.seat import Seat
from replication.core.segment import (
    RECORD_HEADER_BYTES,
    SEGMENT_OPS_MAX,
    OpenSegment,
    Segment,
)
from replication.core.stream_events import (
    Distrust,
    Effect,
    Note,
    Propose,
    Publish,
    Released,
    Send,
)


class ApplyFailed(Exception):
    """Applying an op raised: a bug. The op is gone, and this ownership is over."""


class Held(NamedTuple):
    """Release waits for copies."""

    why: str
    since: float


@dataclass(frozen=True, slots=True)
class _Pending:
    """A change that was proposed, and whose outcome is not known."""

    function: Expand | Shrink | SetCopies
    proposed_at: float
    isr: tuple[Incarnation, ...] | None
    """What the in-sync set may be by it; None: it leaves it as it is."""


class Owner(Generic[OpT, ResultT]):
    """See the module docstring.

    Attributes:
        commit, release: Indexes of this epoch; 0 until all of need have followed it.
        copies: The smallest in-sync set that the register may hold.
        copies_released: The same, when `release` last grew.
        held: Set while release waits for copies.
        failed: Applying raised: nothing more is done here.
    """

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
        assert copy.applied == copy.log.end - 1, "the tail is applied before anything is appended"
        self.copy = copy
        self.epoch = epoch
        self.commit = 0
        self.release = 0
        self.copies = 0
        self.copies_released = 0
        self.held: Held | None = None
        self.failed = ""
        self._seat = seat
        self._sid = seat.sid
        self._limits = seat.limits
        self._head = seat.head(copy.gen, epoch)
        self._machine = copy.machine
        self._tokens = tokens
        # The log
        self._log = copy.log
        self._promoted_end = self._log.end
        self._open = OpenSegment(self._log.end)
        self._unsent: list[Segment] = []
        self._sealed_end = self._log.end
        self._sealed_at = now
        self._own_receipt = 0
        self._commit_bytes = 0
        self._free = seat.free_bytes()
        self._free_at_bytes = self._log.bytes_total
        # Effects
        self._effects: deque[tuple[int, object]] = deque()
        self._ready: list[object] = []
        # The other copies
        self._value = value
        self._backups: dict[Incarnation, Backup] = {}
        self._waited_for: list[Backup] = []  # need, without this node
        self._invited: dict[Incarnation, float] = {}
        self._complained: set[Incarnation] = set()
        self._quarantine: dict[Incarnation, float] = {}
        self._pending: dict[int, _Pending] = {}
        self._candidate: Backup | None = None
        self._candidate_since = now
        self._min_copies = 1
        # Ticks
        self._tick = 0
        self._tick_sent: deque[tuple[int, float]] = deque()
        self._ticked_at = now
        self._quiet_since: float | None = None  # The last op or release that no tick told of.
        self._turn_at = now
        self._listening_since = now
        self._before: Incarnation | None = None
        self._began_at = now

    def begin(self, before: Incarnation | None, now: float, outbox: list[Effect]) -> None:
        """The tail is applied and the history written: tell the others.

        `before` owned the stream until now. It was replaced for its silence, so it is missed
        from the beginning if it is still in sync, and there are too few copies without it:
        before it were silent for as long again, it might have taken over in turn.
        """
        self._before, self._began_at = before, now
        for who in self._entry.isr:
            if who != self._seat.me:
                self._backups[who] = Backup(who, now)
        self._renew(now)
        for backup in self._waited_for:
            self._greet(backup, now, outbox)
        self._review(now, outbox)

    # What the layer above calls

    @property
    def log_end(self) -> int:
        """Number of the next op."""
        return self._open.first_seq + self._open.count

    def append(self, op: OpT) -> ResultT:
        """Apply an op and put it into the open segment. Raises `ApplyFailed`: see there."""
        if self.failed:
            raise ApplyFailed(self.failed)
        try:
            result = self._machine.apply(op)
        except Exception as error:
            self.failed = f"applying op {self.log_end} of stream {self._sid} failed: {error!r}"
            self._unsent.clear()
            raise ApplyFailed(self.failed) from error
        parts = op.parts()
        size = sum(map(len, parts))
        opened = self._open
        if opened.count and (
            opened.size + RECORD_HEADER_BYTES + size > self._limits.segment_bytes
            or opened.count == SEGMENT_OPS_MAX
        ):
            opened = self._close()
        opened.add(op.kind, parts, size)
        return result

    def answer(self, effect: object) -> None:
        """An effect of the log's last op: it leaves when that is released."""
        last = self.log_end - 1
        if last <= self.release:
            self._ready.append(effect)
        else:
            self._effects.append((last, effect))

    def room(self) -> int:
        """Bytes of publishes that may be appended now."""
        if self.failed or self.held is not None:
            return 0
        limits = self._limits
        if limits.window_ops * 9 // 10 <= self.log_end - 1 - self.commit:
            return 0
        total = self._log.bytes_total + self._open.size
        room = limits.window_bytes * 9 // 10 - (total - self._commit_bytes)
        room = min(room, self._free * 9 // 10 - (total - self._free_at_bytes))
        for backup in self._waited_for:
            if not backup.aligned:
                return 0
            room = min(room, backup.free * 9 // 10 - (total - backup.receipt_bytes))
        return max(0, room)

    def may_deliver(self, now: float) -> bool:
        """Whether all others of need followed this epoch recently, by our own clock.

        What releases a delivery may have lain in a socket for long. Who has taken over since,
        or follows who has, answered no newer tick.
        """
        oldest = now - self._value.settings.grace_ms / 2000
        return all(backup.answered_at > oldest for backup in self._waited_for)

    def unanswered_since(self) -> float | None:
        """Since when one of need that is not proven dead was not heard; None: all are dead."""
        heard = [backup.heard_at for backup in self._waited_for if not backup.dead]
        return min(heard, default=None)

    def seal(self, now: float, outbox: list[Effect]) -> None:
        """The turn ends: what was appended in it becomes immutable and is sent."""
        if self.failed:
            return
        if self._open.count:
            self._close()
        if self._unsent:
            self._send_segments(now, outbox)
            self._sealed_end = self._log.end
            self._sealed_at = self._quiet_since = now
            self._free = self._seat.free_bytes()
            self._free_at_bytes = self._log.bytes_total
        self._emit_ready(outbox)

    def end(self) -> None:
        """Another owner is there. What was applied here belongs to this copy's log, sent or not."""
        if self._open.count:
            self._close()
        self.copy.applied = self._log.end - 1
        self.copy.commit = max(self.copy.commit, self.commit)

    # Events

    def turn(self, now: float, outbox: list[Effect]) -> None:
        """Before any event: a new turn of the loop has begun."""
        if now - self._turn_at > self._silence_s / 3:
            # This process stood still. That nobody was heard says nothing about the others.
            self._listening_since = now
        self._turn_at = now
        if self._own_receipt < self._sealed_end - 1:
            self._own_receipt = self._sealed_end - 1
            self._advance(now, outbox)

    def wake(self, now: float, outbox: list[Effect]) -> None:
        if now >= self._tick_at():
            self._send_tick(now, outbox)
            self._review(now, outbox)
            self._trim()

    def next_deadline(self) -> float:
        if self._own_receipt < self._sealed_end - 1:
            return self._sealed_at
        return self._tick_at()

    def map_changed(self, value: ClusterMap, now: float, outbox: list[Effect]) -> None:
        """A later map, in which this ownership goes on."""
        self._value = value
        for who in self._entry.isr:
            if who != self._seat.me and who not in self._backups:
                self._backups[who] = Backup(who, now)
        self._renew(now)
        self._advance(now, outbox)
        self._review(now, outbox)

    def outcome(self, token: int, result: str, now: float, outbox: list[Effect]) -> None:
        pending = self._pending.pop(token, None)
        if pending is None:
            return  # Of an earlier ownership.
        function = pending.function
        if result == DONE:
            if isinstance(function, Shrink) and function.why in (ShrinkWhy.SLOW, ShrinkWhy.SILENT):
                self._quarantine[function.member] = now + self._limits.quarantine_s
                self._seat.counts["expelled"] += 1
            elif isinstance(function, Expand):
                self._seat.counts["expanded"] += 1
        else:
            self._seat.counts["change refused"] += 1
            if isinstance(function, Expand) and function.joiner in self._backups:
                self._backups[function.joiner].later_at = now + self._limits.expand_s
        self._renew(now)
        self._advance(now, outbox)
        self._review(now, outbox)

    def dead(self, who: Incarnation, now: float, outbox: list[Effect]) -> None:
        backup = self._backups.get(who)
        if backup is not None and not backup.dead:
            backup.dead = True
            self._review(now, outbox)

    def joined(self, who: Incarnation, message: Join, now: float, outbox: list[Effect]) -> None:
        """Somebody offers its copy, or says why it cannot go on."""
        backup = self._backups.get(who)
        if backup is None:
            if who not in self._targets():
                return
            backup = self._backups[who] = Backup(who, now)
        backup.heard_at = now
        self._invited.pop(who, None)
        if message.why:
            if who not in self._complained:
                self._complained.add(who)  # Its reason may change with each op.
                outbox.append(
                    Note(
                        Level.WARNING,
                        "a copy does not follow",
                        {"sid": self._sid, "peer": str(who), "why": message.why},
                    )
                )
            backup.why = message.why
            backup.aligned = False
            # A copy that gives up takes back what it said it holds, also if it counts.
            backup.receipt = 0
        elif not backup.aligned:
            self._greet(backup, now, outbox)

    def aligned(self, who: Incarnation, message: Aligned, now: float, outbox: list[Effect]) -> None:
        backup = self._backups.get(who)
        if backup is not None:
            backup.heard_at = now
            self._align(backup)

    def received(
        self, who: Incarnation, message: Receipt, now: float, outbox: list[Effect]
    ) -> None:
        backup = self._backups.get(who)
        if backup is None or backup.void:
            return
        if message.contig >= self._sealed_end or message.tick > self._tick:
            sentence = f"{who} confirms op {message.contig}, but the next one is {self._sealed_end}"
            self._seat.counts["impossible receipt"] += 1
            outbox.append(Distrust(self._sid, who, sentence))
            return
        backup.heard_at = now
        backup.dead = False  # A dial that was refused is a proof that can be false.
        self._align(backup)
        grew = message.contig > backup.receipt
        if grew:
            backup.receipt = message.contig
            backup.receipt_bytes = self._log.bytes_total - self._log.bytes_from(message.contig + 1)
            backup.progress_at = now
        if message.number > backup.number:
            backup.number = message.number
            backup.free = message.free
            backup.applied = message.applied
        if message.tick and self._tick_sent and message.tick >= self._tick_sent[0][0]:
            # Ticks are numbered without a gap.
            _, sent_at = self._tick_sent[message.tick - self._tick_sent[0][0]]
            backup.answered_at = max(backup.answered_at, sent_at)
        if backup in self._waited_for:
            if grew:
                self._advance(now, outbox)
            if backup is self._candidate:
                self._expand(now, outbox)
        elif self._candidate is None:
            self._expand(now, outbox)

    def asked(self, who: Incarnation, message: Nak, now: float, outbox: list[Effect]) -> None:
        backup = self._backups.get(who)
        if backup is None or message.first >= self._sealed_end:
            return
        backup.heard_at = now
        if message.first < self._log.first_kept:
            # It is too far behind. It learns that from what it is told of the log.
            self._greet(backup, now, outbox)
            return
        first, asked_at = backup.repaired
        if first == message.first and now < asked_at + self._limits.gap_s:
            return
        backup.repaired = (message.first, now)
        group: list[Segment] = []
        size = 0
        for segment in self._log.from_(message.first, self._limits.repair_answer_bytes):
            if segment.first_seq > message.last or segment.first_seq >= self._sealed_end:
                break
            if group and size + segment.wire_bytes > self._limits.segment_bytes:
                self._send_repair(who, group, outbox)
                group, size = [], 0
            group.append(segment)
            size += segment.wire_bytes
        if group:
            self._send_repair(who, group, outbox)

    def is_void(self, who: Incarnation, now: float, outbox: list[Effect]) -> None:
        """Its copy is wrong: it is waited for only until the register lets it go."""
        backup = self._backups.get(who)
        if backup is not None and not backup.void:
            backup.void = True
            backup.aligned = False
            self._review(now, outbox)

    # Facts for status

    def lags(self) -> list[tuple[Incarnation, int]]:
        """How many ops each other copy is behind."""
        return [
            (who, self.log_end - 1 - backup.receipt)
            for who, backup in sorted(self._backups.items())
        ]

    @property
    def need(self) -> tuple[Incarnation, ...]:
        return tuple(sorted((self._seat.me, *(backup.who for backup in self._waited_for))))

    @property
    def joiners(self) -> tuple[Incarnation, ...]:
        need = self.need
        return tuple(who for who in sorted(self._backups) if who not in need)

    # Sending

    def _close(self) -> OpenSegment:
        segment = self._open.close(self.epoch, self._log.chain)
        self._log.append(segment)
        self._unsent.append(segment)
        self._open = OpenSegment(self._log.end)
        return self._open

    def _send_segments(self, now: float, outbox: list[Effect]) -> None:
        unsent, self._unsent = self._unsent, []
        if not self._backups:
            return
        idle = self.commit == unsent[0].first_seq - 1
        by_link = idle and sum(s.wire_bytes for s in unsent) < self._limits.link_bytes_max
        for segment in unsent:
            message = Segments(*self._head, self.commit, False, (segment,))
            if by_link:
                for who, backup in self._backups.items():
                    if backup.aligned:
                        outbox.append(Send(who, message))
            else:
                outbox.append(Publish(encode(message)))

    def _send_repair(self, who: Incarnation, segments: list[Segment], outbox: list[Effect]) -> None:
        self._seat.counts["repair"] += 1
        message = Segments(*self._head, self.commit, True, tuple(segments))
        outbox.append(Send(who, message))

    def _greet(self, backup: Backup, now: float, outbox: list[Effect]) -> None:
        if now < backup.greeted_at + self._limits.greet_s:
            return
        backup.greeted_at = now
        if backup.greeted_first_at is None:
            backup.greeted_first_at = now
        log = self._log
        # What is not sealed is nobody's business yet.
        message = NewEpoch(
            *self._head,
            self.copy.history,
            self._sealed_end,
            log.chain_at(self._sealed_end) or 0,
            min(log.first_kept, self._sealed_end),
        )
        outbox.append(Send(backup.who, message))

    def _tick_at(self) -> float:
        regular = self._ticked_at + self._limits.tick_s
        if self._quiet_since is None:
            return regular
        return min(regular, self._quiet_since + self._limits.tick_soon_s)

    def _send_tick(self, now: float, outbox: list[Effect]) -> None:
        self._ticked_at = now
        is_news = self._quiet_since is not None
        self._quiet_since = None
        if not self._backups:
            return
        self._tick += 1
        self._tick_sent.append((self._tick, now))
        oldest = now - self._value.settings.grace_ms / 2000
        while self._tick_sent[0][1] < oldest:
            self._tick_sent.popleft()
        facts = (self.commit, self._sealed_end, self.release, self._tick)
        for who, backup in self._backups.items():
            outbox.append(Send(who, Tick(*self._head, *facts, backup.number)))
        if is_news or self._tick % self._limits.group_tick_every == 0:
            outbox.append(Publish(encode(Tick(*self._head, *facts, 0))))

    def _trim(self) -> None:
        log = self._log
        held_back = [backup.receipt for backup in self._waited_for]
        if log.bytes_kept <= 2 * self._limits.repair_bytes:
            # A joiner is waited for, but not for ever.
            held_back += [backup.receipt for backup in self._backups.values()]
        log.trim(
            bytes_max=self._limits.repair_bytes,
            below=min([self._own_receipt, *held_back]) + 1,
        )

    # Commit and release

    def _advance(self, now: float, outbox: list[Effect]) -> None:
        commit = self._own_receipt
        for backup in self._waited_for:
            if backup.receipt < commit:
                commit = backup.receipt
        if commit > self.commit:
            self.commit = commit
            self._commit_bytes = self._log.bytes_total - self._log.bytes_from(commit + 1)
        if self.commit > self.release and self._may_release():
            self.release = self.commit
            self.copies_released = self.copies
            self._quiet_since = now
            effects = self._effects
            while effects and effects[0][0] <= self.release:
                self._ready.append(effects.popleft()[1])
            self._emit_ready(outbox)

    def _may_release(self) -> bool:
        return self.copies >= self._min_copies or self._solo

    def _emit_ready(self, outbox: list[Effect]) -> None:
        if self._ready:
            outbox.append(Released(self._sid, self._ready))
            self._ready = []

    # The in-sync set

    @property
    def _entry(self) -> StreamEntry:
        return self._value.streams[self._sid]

    @property
    def _solo(self) -> bool:
        return self._value.settings.on_too_few_copies is OnTooFewCopies.SOLO

    @property
    def _silence_s(self) -> float:
        return self._value.settings.silence_ms / 1000

    def _renew(self, now: float) -> None:
        """Whom to wait for, and how many copies there are at the least."""
        entry = self._entry
        sets = [entry.isr, *(p.isr for p in self._pending.values() if p.isr is not None)]
        members = {who for isr in sets for who in isr if who != self._seat.me}
        if self._candidate is not None:
            members.add(self._candidate.who)
        self._waited_for = [self._backups[who] for who in sorted(members)]
        self.copies = min(map(len, sets))
        self._min_copies = max(
            entry.min_copies,
            *(
                p.function.min_copies
                for p in self._pending.values()
                if isinstance(p.function, SetCopies)
            ),
            1,
        )
        for backup in self._waited_for:
            if backup.receipt >= self._sealed_end - 1:
                backup.progress_at = now

    def _targets(self) -> tuple[Incarnation, ...]:
        """Who shall hold a copy and is not in sync, in order of succession."""
        value, entry = self._value, self._entry
        nodes = wanted(value, self._sid)
        if self.held is not None or self._sid == CATALOG_SID:
            nodes += [
                node
                for node in brokers(value)
                if node not in nodes and value.nodes[node].state is NodeState.UP
            ]
        lives = [incarnation(value, node) for node in nodes]
        return tuple(who for who in lives if who != self._seat.me and who not in entry.isr)

    def _review(self, now: float, outbox: list[Effect]) -> None:
        """Look at all other copies: whom to invite, to take in, to let go."""
        for backup in self._waited_for:
            if backup.receipt >= self._sealed_end - 1:
                backup.progress_at = now
        self._expand(now, outbox)
        stuck = self._shrink(now, outbox)
        self._set_held(stuck, now, outbox)
        self._adapt_copies(now, outbox)
        self._invite(now, outbox)

    def _set_held(self, stuck: str, now: float, outbox: list[Effect]) -> None:
        why = stuck
        if not self._may_release():
            why = f"{self.copies} of at least {self._min_copies} copies in sync"
        if not why:
            if self.held is not None:
                outbox.append(
                    Note(
                        Level.INFO,
                        "a stream is not held any more",
                        {"sid": self._sid, "seconds": round(now - self.held.since, 3)},
                    )
                )
            self.held = None
        elif self.held is None:
            self._seat.counts["held"] += 1
            self.held = Held(why, now)
            outbox.append(Note(Level.WARNING, "a stream is held", {"sid": self._sid, "why": why}))
        elif self.held.why != why:
            self.held = Held(why, self.held.since)

    def _invite(self, now: float, outbox: list[Effect]) -> None:
        targets = self._targets()
        need = self._waited_for
        for who, backup in list(self._backups.items()):
            if backup in need:
                continue
            if who not in targets or backup.dead or self._silent_s(backup, now) >= self._silence_s:
                del self._backups[who]
        for who in targets:
            if (
                who not in self._backups
                and now >= self._invited.get(who, float("-inf")) + self._limits.invite_s
            ):
                self._invited[who] = now
                outbox.append(Send(who, Invite(*self._head)))
        for backup in self._backups.values():
            # One that said why it cannot follow is asked again as rarely as a stranger.
            patience_s = self._limits.invite_s if backup.why else self._limits.greet_s
            if not backup.aligned and not backup.void and now >= backup.greeted_at + patience_s:
                self._greet(backup, now, outbox)

    def _align(self, backup: Backup) -> None:
        if backup.aligned or backup.void:
            return
        backup.aligned = True
        backup.why = ""
        self._complained.discard(backup.who)
        backup.first_end = self._sealed_end
        if backup.greeted_first_at is not None:
            # The greeting counts as tick 0. Which of several it answers is not known.
            backup.answered_at = max(backup.answered_at, backup.greeted_first_at)

    def _silent_s(self, backup: Backup, now: float) -> float:
        return now - max(backup.heard_at, self._listening_since)

    def _isr_change_pending(self) -> bool:
        return any(pending.isr is not None for pending in self._pending.values())

    def _expand(self, now: float, outbox: list[Effect]) -> None:
        candidate = self._candidate
        if self._isr_change_pending():
            if candidate is not None and now >= self._candidate_since + self._limits.expand_s:
                # Nobody knows when that change is decided: it must not hold up commit for long.
                self._give_up(candidate, now, outbox)
            return
        if candidate is None:
            candidate = self._choose(now)
            if candidate is None:
                return
            # From here on commit waits for it, so that it cannot fall behind what is
            # released between the proposal and its outcome.
            self._candidate, self._candidate_since = candidate, now
            self._renew(now)
        if candidate.aligned and self._has_all(candidate):
            self._candidate = None
            isr = self._entry.isr
            function = Expand(
                sid=self._sid,
                epoch=self.epoch,
                me=self._seat.me,
                joiner=candidate.who,
                base=isr,
            )
            self._propose(function, tuple(sorted((*isr, candidate.who))), now, outbox)
        elif (
            candidate.dead
            or not candidate.aligned
            or now >= self._candidate_since + self._limits.expand_s
        ):
            self._give_up(candidate, now, outbox)

    def _give_up(self, candidate: Backup, now: float, outbox: list[Effect]) -> None:
        self._seat.counts["expand given up"] += 1
        candidate.later_at = now + self._limits.expand_s
        self._candidate = None
        self._renew(now)
        self._advance(now, outbox)

    def _has_all(self, candidate: Backup) -> bool:
        """Whether it has every op that was ever released, in whatever epoch."""
        # After a takeover commit lags behind what the former owner released, but all of that
        # is below the log's end as of the promotion.
        return candidate.receipt >= max(self.commit, self._promoted_end - 1)

    def _choose(self, now: float) -> Backup | None:
        """A joiner that may be taken in: near to the log's end, wanted or needed."""
        log = self._log
        names = wanted(self._value, self._sid)
        for who in self._targets():
            backup = self._backups.get(who)
            if (
                backup is not None
                and backup.aligned
                and backup.first_end is not None
                and backup.receipt >= backup.first_end - 1
                and log.bytes_from(backup.receipt + 1) <= self._limits.expand_bytes_max
                and (who.node in names or self.held is not None)
                and not backup.dead
                and now >= backup.later_at
                and self._silent_s(backup, now) < self._silence_s
                and not self._quarantined(who, now)
            ):
                return backup
        return None

    def _quarantined(self, who: Incarnation, now: float) -> bool:
        if len(self._entry.isr) < self._min_copies:
            return False
        return now < self._quarantine.get(who, float("-inf"))

    def _shrink(self, now: float, outbox: list[Effect]) -> str:
        """Let go whom the guard lets go. Says whom commit has to wait for all the same."""
        outstanding = self.commit < self._sealed_end - 1
        stuck = ""
        leavers = self._leavers(outstanding, now)
        for who, why in leavers:
            function = self._without(who, why)
            if function.apply(self._value)[1] != DONE:
                if outstanding and why is not ShrinkWhy.SURPLUS:
                    stuck = f"{who} is {why}, and too few copies would stay without it"
            elif not self._isr_change_pending() and (self.held is None or self._candidate is None):
                # One change at a time; and with too few copies a joiner comes first.
                isr = tuple(member for member in self._entry.isr if member != who)
                self._propose(function, isr, now, outbox)
        missed = self._missed()
        if (
            missed is not None
            and outstanding
            and not stuck
            and self._without(missed, ShrinkWhy.SLOW).apply(self._value)[1] != DONE
        ):
            stuck = f"{missed} was replaced, and too few copies would stay without it"
        for pending in self._pending.values():
            if (
                outstanding
                and isinstance(pending.function, Shrink)
                and now >= pending.proposed_at + self._limits.expand_s
            ):
                stuck = f"the register does not answer; {pending.function.member} shall leave"
        return stuck

    def _without(self, who: Incarnation, why: ShrinkWhy) -> Shrink:
        return Shrink(
            sid=self._sid,
            epoch=self.epoch,
            me=self._seat.me,
            member=who,
            base=self._entry.isr,
            why=why,
        )

    def _missed(self) -> Incarnation | None:
        """The owner before this one, until it is heard, if it is in sync."""
        before = self._before
        if before is None or before not in self._entry.isr:
            return None
        return before if self._backups[before].heard_at <= self._began_at else None

    def _leavers(self, outstanding: bool, now: float) -> list[tuple[Incarnation, ShrinkWhy]]:
        """The members that should leave the in-sync set, and why."""
        value, in_sync = self._value, self._entry.isr
        members = [backup for backup in self._waited_for if backup.who in in_sync]
        found = [
            (backup.who, why)
            for backup in members
            if (why := self._fault(backup, outstanding, now)) is not None
        ]
        names = wanted(value, self._sid)
        # Nobody is too many while another member fails: it may be needed in its place.
        if found or self.held is not None:
            return found
        if not all(incarnation(value, node) in in_sync for node in names):
            return found
        return [
            (backup.who, ShrinkWhy.SURPLUS) for backup in members if backup.who.node not in names
        ]

    def _fault(self, backup: Backup, outstanding: bool, now: float) -> ShrinkWhy | None:
        if backup.dead or superseded(self._value, backup.who):
            return ShrinkWhy.DEAD
        if backup.void:
            return ShrinkWhy.VOID
        silent_s = self._silent_s(backup, now)
        if silent_s >= self._limits.long_silent_s:
            return ShrinkWhy.SILENT
        stalled_s = now - max(backup.progress_at, self._listening_since)
        if silent_s >= self._silence_s or (outstanding and stalled_s >= self._limits.stalled_s):
            return ShrinkWhy.SLOW
        return None

    def _adapt_copies(self, now: float, outbox: list[Effect]) -> None:
        right = default_min_copies(self._value)
        if right == self._entry.min_copies or any(
            isinstance(pending.function, SetCopies) for pending in self._pending.values()
        ):
            return
        function = SetCopies(sid=self._sid, epoch=self.epoch, me=self._seat.me, min_copies=right)
        self._propose(function, None, now, outbox)

    def _propose(
        self,
        function: Expand | Shrink | SetCopies,
        isr: tuple[Incarnation, ...] | None,
        now: float,
        outbox: list[Effect],
    ) -> None:
        token = next(self._tokens)
        self._pending[token] = _Pending(function, now, isr)
        outbox.append(Propose(function, token))
        self._renew(now)

    def check(self) -> None:
        """Verify every invariant. For tests and simulation."""
        if self.failed:
            return
        self.copy.check()
        assert self.release <= self.commit <= self._own_receipt < self._sealed_end
        assert self._sealed_end <= self._log.end <= self.log_end
        assert self.copy.history[-1].epoch == self.epoch
        assert self.copy.history[-1].start == self._promoted_end
        assert all(seq > self.release for seq, _ in self._effects)
        for backup in self._waited_for:
            assert backup is self._backups[backup.who]
            assert backup.receipt < self._sealed_end
            assert backup is self._candidate or backup.receipt >= self.commit or not backup.aligned
        for who in self._entry.isr:
            assert who == self._seat.me or self._backups[who] in self._waited_for
        assert sum(p.isr is not None for p in self._pending.values()) <= 1
