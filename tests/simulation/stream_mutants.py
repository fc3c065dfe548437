"""Mistakes planted in the streams, to prove that their simulation would find them.

Each is the omission of one rule that the code states, or is known from a real implementation.
They replace methods from outside: the cores know nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from msgspec.structs import replace

from replication.core import following as following_module, stream as stream_module
from replication.core.backup import Backup
from replication.core.backups import Backups
from replication.core.changes import Function, NodeUp, Shrink, ShrinkWhy, Takeover
from replication.core.clustermap import ClusterMap, StreamEntry, superseded
from replication.core.copy import Copy
from replication.core.history import Entry, History
from replication.core.identity import Incarnation
from replication.core.in_sync_set import InSyncSet
from replication.core.joining import GoOn, Plan, plan
from replication.core.messages import NewEpoch, Receipt, Segments, StreamMessage
from replication.core.owner import Owner
from replication.core.release import Release
from replication.core.shadow import Shadow
from replication.core.stream import Role, Stream
from replication.core.stream_events import Effect, Send
from tests.simulation.stream_world import StreamWorld, _Life

# What the machine is does not matter to any of them.
AnyOwner = Owner[Any, Any]
AnyShadow = Shadow[Any, Any]
AnyStream = Stream[Any, Any]
AnyCopy = Copy[Any, Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """Replacements: an object, the name of one of its attributes, and what stands there then."""

    replacements: tuple[tuple[object, str, object], ...]

    @contextmanager
    def planted(self) -> Iterator[None]:
        with ExitStack() as stack:
            for target, name, stand_in in self.replacements:
                stack.enter_context(patch.object(target, name, stand_in))
            yield


_renew = InSyncSet.renew
_advance = Owner._advance
_align = Backups._align
_answer = Release.answer
_seal = Owner.seal
_wake = Owner.wake
_send_receipt = Shadow.send_receipt
_see = Stream._see
_promote = Stream._promote
_from_group = Stream._from_group
_from_peer = Stream._from_peer
_apply_through = Copy.apply_through
_shrink_refusal = Shrink._refusal
_wish = StreamWorld._wish


# Whom the owner waits for


def _waits_for_the_smaller_set(self: InSyncSet, now: float) -> None:
    _renew(self, now)
    for pending in self._pending.values():
        if isinstance(pending.function, Shrink):
            left = pending.function.member
            self.waited_for = [b for b in self.waited_for if b.who != left]


def _does_not_wait_for_the_joiner(self: InSyncSet, now: float) -> None:
    _renew(self, now)
    self.waited_for = [b for b in self.waited_for if b.who in self.entry.isr]


def _release_asks_need(self: InSyncSet, now: float) -> None:
    _renew(self, now)
    self.copies = 1 + len(self.waited_for)


def _majority_is_enough(self: AnyOwner, now: float, outbox: list[Effect]) -> None:
    waited_for = self._in_sync.waited_for
    receipts = sorted((b.receipt for b in waited_for), reverse=True)
    enough = (len(receipts) + 1) // 2
    self._in_sync.waited_for = [b for b in waited_for if b.receipt in receipts[:enough]]
    _advance(self, now, outbox)
    self._in_sync.waited_for = waited_for


def _always(*_: object) -> bool:
    return True


def _near_from_the_beginning(self: Backups, backup: Backup) -> None:
    _align(self, backup)
    backup.first_end = 1


def _counts_lagging_commit(self: InSyncSet, candidate: Any) -> bool:
    return bool(candidate.receipt >= self._release.commit)


def _unknown_is_no(self: AnyOwner, now: float, outbox: list[Effect]) -> None:
    in_sync = self._in_sync
    for token, pending in list(in_sync._pending.items()):
        if now >= pending.proposed_at + 0.2:
            del in_sync._pending[token]
            in_sync.renew(now)
            self._advance(now, outbox)
    _wake(self, now, outbox)


# What leaves, and when


def _everything_leaves_at_once(self: AnyOwner, now: float, outbox: list[Effect]) -> None:
    release = self._release
    release._ready.extend(effect for _, effect in release._effects)
    release._effects.clear()
    _seal(self, now, outbox)


def _an_answer_without_an_op_leaves_at_once(self: Release, effect: object) -> None:
    if self._effects and self._effects[-1][0] == self._growing.end - 1:
        self._ready.append(effect)
    else:
        _answer(self, effect)


# The register's guards


def _shrinks_on_silence(self: Shrink, value: ClusterMap) -> str | None:
    claim = replace(self, why=ShrinkWhy.DEAD) if self.why is ShrinkWhy.SLOW else self
    return _shrink_refusal(claim, value)


def _another_node_shrinks(self: StreamWorld, life: _Life, value: ClusterMap) -> Function | None:
    entry = value.streams.get(self.sid)
    if entry is not None and entry.owner != life.who and life.who in entry.isr:
        for who in entry.isr:
            if who not in (entry.owner, life.who) or self.net.is_cut(who.node, entry.owner.node):
                if who == entry.owner or not self.net.is_cut(entry.owner.node, who.node):
                    continue
                return Shrink(
                    sid=self.sid,
                    epoch=entry.epoch,
                    me=entry.owner,
                    member=who,
                    base=entry.isr,
                    why=ShrinkWhy.DEAD,
                )
    return _wish(self, life, value)


def _stays_in_sync_by_name(self: NodeUp, stream: StreamEntry) -> StreamEntry:
    node = self.me.node
    if stream.owner.node == node:
        return stream
    isr = tuple(sorted(self.me if who.node == node else who for who in stream.isr))
    return replace(stream, isr=isr)


def _anybody_stands(self: StreamWorld, life: _Life, entry: StreamEntry) -> bool:
    return life.stream.role is not Role.VOID


def _anybody_takes_over(self: Takeover, value: ClusterMap) -> str | None:
    for sid, epoch in self.streams:
        entry = value.streams[sid]
        if (entry.epoch, entry.owner) != (epoch, self.old):
            return "refused"
    return None


def _the_old_owner_is_thrown_out(
    self: Takeover, value: ClusterMap, stream: StreamEntry
) -> StreamEntry:
    isr = {who for who in stream.isr if not superseded(value, who)} | {self.me}
    isr.discard(self.old)
    shed = set(stream.shed) if self.old not in stream.isr else {*stream.shed, self.old}
    return replace(
        stream,
        epoch=stream.epoch + 1,
        owner=self.me,
        isr=tuple(sorted(isr)),
        shed=tuple(sorted(shed - isr)),
    )


# Epochs


def _old_ops_are_accepted(
    self: AnyStream, message: StreamMessage, now: float, outbox: list[Effect]
) -> None:
    following = self._following
    if following.shadow is not None and isinstance(message, Segments) and message.gen == self.gen:
        following.receive(message, now, outbox, by_link=False)
    else:
        _from_group(self, message, now, outbox)


def _goes_on_giving_receipts(self: AnyStream, gen: int, epoch: int, outbox: list[Effect]) -> None:
    shadow = self._following.shadow
    _see(self, gen, epoch, outbox)
    if shadow is not None and gen == shadow.copy.gen and not shadow.fill_end:
        shadow.epoch = epoch
        shadow.owner = Incarnation(shadow.owner.node, shadow.owner.inc)
        self._following.shadow = shadow


def _old_receipts_count(
    self: AnyStream,
    member: Incarnation,
    message: StreamMessage,
    now: float,
    outbox: list[Effect],
) -> None:
    if isinstance(message, Receipt) and self._owner is not None and message.gen == self.gen:
        message = replace(message, epoch=self._owner.epoch, tick=0)
    _from_peer(self, member, message, now, outbox)


def _keeps_all_entries(history: History, *, epoch: int, log_end: int, chain: int) -> History:
    return (*history, Entry(epoch, log_end, chain))


# The log


def _the_tail_stays(copy: AnyCopy, offer: NewEpoch) -> Plan:
    return GoOn(copy.log.end) if not copy.void else plan(copy, offer)


def _cuts_below_applied(copy: AnyCopy, offer: NewEpoch) -> Plan:
    applied, copy.applied = copy.applied, 0
    found = plan(copy, offer)
    copy.applied = applied
    return found


def _cut_leaves_the_state(self: AnyCopy, at: int) -> int:
    self.applied = min(self.applied, at - 1)
    return self.log.cut(at)


def _drops_the_tail(
    self: AnyStream,
    entry: StreamEntry,
    value: ClusterMap,
    before: Incarnation | None,
    now: float,
    outbox: list[Effect],
) -> None:
    self.copy.log.cut(self.copy.applied + 1)
    _promote(self, entry, value, before, now, outbox)


def _serves_before_the_tail_is_applied(self: AnyCopy, seq: int) -> None:
    if seq <= self.commit:
        _apply_through(self, seq)


def _skips_an_op(self: AnyCopy, seq: int) -> None:
    """Of every tenth segment the copy forgets the first op."""
    for segment in self.log.between(self.applied + 1, seq + 1):
        if segment.first_seq % 10 == 0 and segment.records:
            segment.records = (*segment.records[1:], segment.records[-1])
    _apply_through(self, seq)


def _confirms_the_highest(self: AnyShadow, now: float, outbox: list[Effect]) -> None:
    _send_receipt(self, now, outbox)
    ahead = max((segment.end_seq for segment, _ in self._ahead.values()), default=0)
    for effect in outbox[-1:]:
        if isinstance(effect, Send) and isinstance(effect.message, Receipt):
            contig = max(effect.message.contig, ahead - 1)
            effect.message = replace(effect.message, contig=contig)


def _nothing(*_: object) -> None:
    pass


# What an owner asserts of itself would find these at once. The simulation must find them by
# what they lead to.
_UNCHECKED: Final = (Owner, "check", _nothing)

MUTANTS: Final[dict[str, Mutant]] = {
    "waits for the smaller set only": Mutant(
        ((InSyncSet, "renew", _waits_for_the_smaller_set), _UNCHECKED)
    ),
    "a joiner is not waited for": Mutant(
        ((InSyncSet, "renew", _does_not_wait_for_the_joiner), _UNCHECKED)
    ),
    "release asks need": Mutant(((InSyncSet, "renew", _release_asks_need),)),
    "a majority is enough": Mutant(((Owner, "_advance", _majority_is_enough), _UNCHECKED)),
    "a joiner is proposed before it caught up": Mutant(((InSyncSet, "_has_all", _always),)),
    "a joiner is measured by a commit that lags": Mutant(
        (
            (InSyncSet, "_has_all", _counts_lagging_commit),
            (Backups, "_align", _near_from_the_beginning),
        )
    ),
    "an unknown outcome is a no": Mutant(((Owner, "wake", _unknown_is_no),)),
    "effects leave before release": Mutant(((Owner, "seal", _everything_leaves_at_once),)),
    "an answer without an op leaves at once": Mutant(
        ((Release, "answer", _an_answer_without_an_op_leaves_at_once),)
    ),
    "deliveries leave whoever follows": Mutant(((Owner, "may_deliver", _always),)),
    "shrinks below min_copies on silence": Mutant(((Shrink, "_refusal", _shrinks_on_silence),)),
    "another node shrinks": Mutant(((StreamWorld, "_wish", _another_node_shrinks),)),
    "a restarted node counts as in sync": Mutant(
        ((NodeUp, "_without_old", _stays_in_sync_by_name),)
    ),
    "takeover by a copy that is not in sync": Mutant(
        (
            (StreamWorld, "_stands", _anybody_stands),
            (Takeover, "_refusal", _anybody_takes_over),
            (Takeover, "_taken", _the_old_owner_is_thrown_out),
        )
    ),
    "takeover throws out a live owner": Mutant(
        ((Takeover, "_taken", _the_old_owner_is_thrown_out),)
    ),
    "ops of an old epoch are accepted": Mutant(((Stream, "_from_group", _old_ops_are_accepted),)),
    "receipts go on in an epoch that is not followed": Mutant(
        ((Stream, "_see", _goes_on_giving_receipts), (Stream, "_doubt", _nothing))
    ),
    "receipts of an old epoch count": Mutant(((Stream, "_from_peer", _old_receipts_count),)),
    "a history keeps entries beyond its log": Mutant(
        ((stream_module, "begun", _keeps_all_entries),)
    ),
    "a deposed owner keeps its tail": Mutant(((following_module, "plan", _the_tail_stays),)),
    "a log is cut below applied": Mutant(
        ((following_module, "plan", _cuts_below_applied), (Copy, "cut", _cut_leaves_the_state))
    ),
    "the tail is dropped at promotion": Mutant(((Stream, "_promote", _drops_the_tail),)),
    "serves before the tail is applied": Mutant(
        ((Copy, "apply_through", _serves_before_the_tail_is_applied),)
    ),
    "a shadow skips an op": Mutant(((Copy, "apply_through", _skips_an_op),)),
    "a receipt is not cumulative": Mutant(((Shadow, "send_receipt", _confirms_the_highest),)),
}
