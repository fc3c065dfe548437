"""One node's copy of one stream, in whatever role.

Theory of operation
-------------------
A stream is a log of ops and the state that they make, held by several nodes. One of them owns
it and appends; the others follow. The cluster map says who owns it in which epoch, and who is
in sync; it changes by agreement, and a node learns of it late, or from another node first.

                     map: I am the owner            map, or anybody: a higher epoch
    (follows, or not) ────────────────────▶ OWNER ─────────────────────────────────┐
        ▲                                                                          │
        │  NEWEPOCH, and the log fits: tail cut at the common point                ▼
        └────────────────────────────────────────────────── (an epoch was seen, nobody followed)
                                                                                   │
                       NEWEPOCH, and it does not fit                               ▼
                       ──────────────────────────▶ filled anew, or WAITING_FOR_TRANSFER

This class decides which role that is, and gives each message to the part that plays it:
`owner.py`, or `following.py` with all that comes before and beside following.

Rules
-----
1. Every epoch is compared with the highest one *seen*, in the map or from an owner, never with
   the one that is being followed. A lower one is nobody's any more, whoever says it: also the
   map, when it says that this node is the owner.
2. First stop giving receipts, then touch the log.
3. What comes by the group is vouched for by nobody, so it raises no epoch; it is a reason to
   look at the map.
4. Whoever claims an epoch that the map shows as another one's is not believed. A claim that the
   map does not show yet is: else nobody could be followed before the register answers.
5. What is not of this cluster, gen and epoch is dropped without an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from itertools import count
from typing import Generic, assert_never

from replication.core.clustermap import ClusterMap, StreamEntry
from replication.core.copy import Copy
from replication.core.following import Following
from replication.core.growing_log import ApplyFailed as ApplyFailed
from replication.core.history import begun
from replication.core.identity import Incarnation
from replication.core.machine import Machine, OpT, ResultT
from replication.core.messages import (
    Aligned,
    Invite,
    Join,
    Nak,
    NewEpoch,
    Receipt,
    Segments,
    StreamMessage,
    Tick,
    Void,
)
from replication.core.owner import Held as Held, Owner
from replication.core.seat import Seat
from replication.core.stream_events import (
    Behind,
    Dead,
    Deposed,
    Distrust,
    Effect,
    Event,
    Fatal,
    FromGroup,
    FromPeer,
    GroupDrained,
    Lost,
    MapChanged,
    Outcome,
    Promoted,
    Wake,
)
from replication.core.stream_limits import StreamLimits as StreamLimits


class Role(Enum):
    """What this copy is in the epoch that it knows of."""

    OWNER = "owner"
    SHADOW = "shadow"  # In sync by the map, though perhaps not yet aligned with the epoch.
    JOINER = "joiner"  # Follows, and is not in sync.
    WAITING_FOR_TRANSFER = "waiting for transfer"  # Cannot follow by ops, or is filled anew.
    VOID = "void"  # Its content is wrong: it is no candidate for anything.
    NONE = "none"


class Stream(Generic[OpT, ResultT]):
    """See the module docstring. The layer above calls the methods of the owner's side only
    while `role` is OWNER.

    Args:
        make: An empty machine for a gen.
        free_bytes: What this node can still take for this stream.

    Attributes:
        gen: Of the content; 0 until the map, or an owner, says one.
        epoch_seen: The highest epoch heard of.
        counts: How often what is rare happened.
    """

    def __init__(
        self,
        *,
        sid: int,
        me: Incarnation,
        cluster8: bytes,
        limits: StreamLimits,
        make: Callable[[int], Machine[OpT, ResultT]],
        free_bytes: Callable[[], int],
    ) -> None:
        assert len(cluster8) == 8
        self.sid = sid
        self.epoch_seen = 0
        self._seat = Seat(sid, me, cluster8, limits, free_bytes)
        self.counts = self._seat.counts
        self._me = me
        self._map: ClusterMap | None = None
        self._ver = 0
        self._owner: Owner[OpT, ResultT] | None = None
        self._following: Following[OpT, ResultT] = Following(self._seat, make)
        self._tokens = count(1)
        self._said_fatal = False

    # Facts

    @property
    def copy(self) -> Copy[OpT, ResultT]:
        """The copy that counts."""
        return self._following.copy

    @property
    def gen(self) -> int:
        return self.copy.gen

    @property
    def machine(self) -> Machine[OpT, ResultT]:
        return self.copy.machine

    @property
    def machines(self) -> list[Machine[OpT, ResultT]]:
        """All that are in use here: see `Following`."""
        return self._following.machines

    @property
    def role(self) -> Role:
        if self._owner is not None:
            return Role.OWNER
        if self.copy.void:
            return Role.VOID
        if self._following.why:
            return Role.WAITING_FOR_TRANSFER
        if self._is_in_sync:
            return Role.SHADOW
        return Role.NONE if self._following.shadow is None else Role.JOINER

    @property
    def why(self) -> str:
        """Why this copy cannot follow; empty if it does, or need not."""
        return self._following.why or self.copy.void

    @property
    def epoch(self) -> int:
        """The ownership that this copy serves or follows; 0: none."""
        if self._owner is not None:
            return self._owner.epoch
        shadow = self._following.shadow
        return 0 if shadow is None else shadow.epoch

    @property
    def log_end(self) -> int:
        """Number of the next op."""
        return self.copy.log.end if self._owner is None else self._owner.log_end

    @property
    def applied(self) -> int:
        return self.copy.applied if self._owner is None else self._owner.log_end - 1

    @property
    def commit(self) -> int:
        return self.copy.commit if self._owner is None else self._owner.commit

    @property
    def release(self) -> int:
        """At the owner: the last op whose effects may leave, in its epoch."""
        return self.heard_release if self._owner is None else self._owner.release

    @property
    def perhaps_released(self) -> int:
        """At the owner: the last op that it, or an owner before it, may have released."""
        if self._owner is None:
            return 0
        return max(self._owner.release, self.copy.history[-1].start - 1)

    @property
    def heard_release(self) -> int:
        """At a follower: the highest release that an owner said in a tick."""
        return self._following.heard_release

    @property
    def held(self) -> Held | None:
        return None if self._owner is None else self._owner.held

    @property
    def copies(self) -> int:
        """On how many copies at least what was released last is."""
        return 0 if self._owner is None else self._owner.copies_released

    @property
    def need(self) -> tuple[Incarnation, ...]:
        """At the owner: whose receipts it waits for, this node among them."""
        return () if self._owner is None else self._owner.need

    @property
    def joiners(self) -> tuple[Incarnation, ...]:
        return () if self._owner is None else self._owner.joiners

    @property
    def first_kept(self) -> int:
        return self.copy.log.first_kept

    @property
    def kept_bytes(self) -> int:
        return self._following.kept_bytes

    @property
    def lent_bytes(self) -> int:
        """What of the kept bytes the machine may keep as the same objects: large payloads of
        ops that it has applied."""
        log = self.copy.log
        tail = 0 if self._owner is not None else log.bytes_from(self.copy.applied + 1)
        return max(0, log.bytes_lent - tail)

    def lags(self) -> list[tuple[Incarnation, int]]:
        """At the owner: how many ops each other copy is behind."""
        return [] if self._owner is None else self._owner.lags()

    # The owner's side

    def append(self, op: OpT) -> ResultT:
        """Apply an op, number it, and let it leave with this turn's segment.

        Raises `ApplyFailed` if the machine raised. That is a bug: what this turn appended is
        not sent, and the next `seal` or `handle` says `Fatal`.
        """
        assert self._owner is not None
        return self._owner.append(op)

    def answer(self, effect: object) -> None:
        """An effect of the op just appended or, after none was, of the last one of the log.

        It comes back in a `Released` once that op is released, or with this turn if it is.
        """
        assert self._owner is not None
        self._owner.answer(effect)

    def room(self) -> int:
        """Bytes of publishes that may be appended now. What frees memory need not ask."""
        return 0 if self._owner is None else self._owner.room()

    def full(self) -> bool:
        """Whether what frees memory should wait, too: the whole window is used up."""
        return self._owner is not None and self._owner.full()

    def may_deliver(self, now: float) -> bool:
        """Whether a delivery may be written now; released is not enough. See `Owner`."""
        return self._owner is not None and self._owner.may_deliver(now)

    def unanswered_since(self) -> float | None:
        """At the owner: since when somebody that it waits for was not heard; None: nobody."""
        return None if self._owner is None else self._owner.unanswered_since()

    def seal(self, now: float, outbox: list[Effect]) -> None:
        """The end of a turn of the loop: what was appended in it is sent."""
        if self._owner is not None:
            self._owner.seal(now, outbox)
            self._say_fatal(self._owner.failed, outbox)

    # Events

    def handle(self, event: Event, now: float, outbox: list[Effect]) -> None:
        if self._owner is not None:
            if self._owner.failed:
                self._say_fatal(self._owner.failed, outbox)
                return
            self._owner.turn(now, outbox)
        match event:
            case FromGroup():
                self._from_group(event.message, now, outbox)
            case FromPeer():
                self._from_peer(event.member, event.message, now, outbox)
            case GroupDrained():
                if self._following.shadow is not None:
                    self._following.shadow.group_drained(now)
            case Wake():
                if self._owner is not None:
                    self._owner.wake(now, outbox)
                elif self._following.shadow is not None:
                    self._following.shadow.wake(now, outbox)
            case MapChanged():
                self._map_changed(event.value, event.ver, now, outbox)
            case Outcome():
                assert event.ver <= self._ver, "the map that it led to comes first"
                if self._owner is not None:
                    self._owner.outcome(event.token, event.result, now, outbox)
            case Dead():
                if self._owner is not None:
                    self._owner.dead(event.member, now, outbox)
            case _:
                assert_never(event)

    def next_deadline(self) -> float | None:
        if self._owner is not None:
            return None if self._owner.failed else self._owner.next_deadline()
        shadow = self._following.shadow
        return None if shadow is None else shadow.next_deadline()

    # The map

    @property
    def _is_in_sync(self) -> bool:
        entry = self._entry
        return entry is not None and entry.gen == self.gen and self._me in entry.isr

    @property
    def _entry(self) -> StreamEntry | None:
        return None if self._map is None else self._map.streams.get(self.sid)

    def _map_changed(self, value: ClusterMap, ver: int, now: float, outbox: list[Effect]) -> None:
        if ver < self._ver:
            return
        former = self._entry
        self._map, self._ver = value, ver
        entry = self._entry
        if entry is None or entry.epoch < self.epoch_seen:
            return
        if entry.epoch > self.epoch_seen:
            self._see(entry.gen, entry.epoch, outbox)
        self._doubt(entry, outbox)
        if self._owner is not None:
            self._owner.map_changed(value, now, outbox)
        elif entry.owner == self._me:
            before = None if former is None or former.owner == self._me else former.owner
            self._promote(entry, value, before, now, outbox)

    def _see(self, gen: int, epoch: int, outbox: list[Effect]) -> None:
        """There is a higher epoch. From now on nobody is served, followed or confirmed to."""
        assert epoch > self.epoch_seen
        self.epoch_seen = epoch
        self._following.stop()
        if self._owner is not None:
            self._owner.end()
            outbox.append(Deposed(self.sid, self._owner.epoch))
            self._owner = None
        if gen > self.gen:
            if self.gen:
                outbox.append(Lost(self.sid, gen))
            self._following.begin_anew(gen)

    def _doubt(self, entry: StreamEntry, outbox: list[Effect]) -> None:
        """Whoever was followed before the map showed the epoch must be the owner in it."""
        shadow = self._following.shadow
        if shadow is not None and shadow.owner != entry.owner:
            self._distrust(shadow.owner, entry, outbox)
            self._following.stop()

    def _distrust(self, member: Incarnation, entry: StreamEntry, outbox: list[Effect]) -> None:
        sentence = (
            f"{member} says that it owns stream {self.sid} in epoch {entry.epoch},"
            f" which is {entry.owner}'s"
        )
        outbox.append(Distrust(self.sid, member, sentence))

    # Promotion

    def _promote(
        self,
        entry: StreamEntry,
        value: ClusterMap,
        before: Incarnation | None,
        now: float,
        outbox: list[Effect],
    ) -> None:
        assert self.gen == entry.gen
        # First no receipts for the epoch before, then the end of the log is what it is.
        self._following.stop()
        copy = self.copy
        adopted = copy.log.end - 1 - copy.applied
        if not copy.void:
            self._following.apply(copy, copy.log.end - 1, outbox)
        if copy.void:
            self._say_fatal(f"stream {self.sid} was taken over by a void copy", outbox)
            return
        copy.history = begun(
            copy.history, epoch=entry.epoch, log_end=copy.log.end, chain=copy.log.chain
        )
        self._owner = Owner(
            self._seat, copy, epoch=entry.epoch, value=value, tokens=self._tokens, now=now
        )
        self.counts["promoted"] += 1
        self.counts["adopted"] += adopted
        outbox.append(Promoted(self.sid, self.gen, entry.epoch, adopted))
        self._owner.begin(before, now, outbox)

    # Messages

    def _from_group(self, message: StreamMessage, now: float, outbox: list[Effect]) -> None:
        if message.cluster8 != self._seat.cluster8:
            self.counts["of another cluster"] += 1
            return
        if message.epoch > self.epoch_seen:
            outbox.append(Behind(self.sid, message.epoch))
            return
        shadow = self._following.shadow
        if (
            shadow is None
            or message.epoch != shadow.epoch
            or message.epoch < self.epoch_seen
            or message.inc != shadow.owner.inc
            or message.gen != self.gen
        ):
            self.counts["of another epoch"] += 1
            return
        if isinstance(message, Segments | Tick):
            self._following.receive(message, now, outbox, by_link=False)

    def _from_peer(
        self, member: Incarnation, message: StreamMessage, now: float, outbox: list[Effect]
    ) -> None:
        if message.cluster8 != self._seat.cluster8 or message.inc != member.inc:
            self.counts["of another cluster"] += 1
            return
        if message.epoch < self.epoch_seen:
            self.counts["of another epoch"] += 1
            return
        if message.epoch > self.epoch_seen:
            outbox.append(Behind(self.sid, message.epoch))
            if not isinstance(message, NewEpoch | Invite | Segments | Tick):
                return  # It cannot be true, and nothing rests on it: see docs/decisions/0010.
            self._see(message.gen, message.epoch, outbox)
        if message.gen != self.gen:
            self.counts["of another epoch"] += 1
            return
        match message:
            case Segments() | Tick():
                self._from_owner(member, message, now, outbox)
            case NewEpoch() | Invite():
                entry = self._entry
                if entry is not None and entry.epoch == message.epoch and entry.owner != member:
                    self._distrust(member, entry, outbox)
                elif isinstance(message, Invite):
                    self._following.offer(member, self.epoch_seen, "", outbox)
                else:
                    self._following.follow(member, message, now, outbox, in_sync=self._is_in_sync)
            case Receipt() | Nak() | Join() | Aligned() | Void():
                if self._owner is not None:
                    self._to_owner(self._owner, member, message, now, outbox)
            case _:
                assert_never(message)

    def _from_owner(
        self, member: Incarnation, message: Segments | Tick, now: float, outbox: list[Effect]
    ) -> None:
        shadow = self._following.shadow
        if shadow is None or member != shadow.owner:
            return
        assert shadow.epoch == message.epoch
        self._following.receive(message, now, outbox, by_link=True)

    def _to_owner(
        self,
        owner: Owner[OpT, ResultT],
        member: Incarnation,
        message: Receipt | Nak | Join | Aligned | Void,
        now: float,
        outbox: list[Effect],
    ) -> None:
        match message:
            case Receipt():
                owner.received(member, message, now, outbox)
            case Nak():
                owner.asked(member, message, now, outbox)
            case Join():
                owner.joined(member, message, now, outbox)
            case Aligned():
                owner.aligned(member, message, now, outbox)
            case Void():
                owner.is_void(member, now, outbox)
            case _:
                assert_never(message)

    def _say_fatal(self, sentence: str, outbox: list[Effect]) -> None:
        if sentence and not self._said_fatal:
            self._said_fatal = True
            outbox.append(Fatal(self.sid, sentence))

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(segments)`."""
        self._following.check()
        shadow = self._following.shadow
        assert self._owner is None or shadow is None, "one role at a time"
        if self._owner is not None:
            assert self._owner.copy is self.copy
            assert self._owner.epoch == self.epoch_seen
            self._owner.check()
        assert shadow is None or shadow.epoch == self.epoch_seen
