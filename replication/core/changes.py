"""The changes of the cluster map: each a pure function with a guard of its own.

Theory of operation
-------------------
A proposer names what it wants; the function is applied to whatever value the register turns
out to hold, perhaps not the one that the proposer had seen. So each function says with which
epoch, owner and in-sync set it reckons, and changes nothing if it finds others. That is the
whole defence against late, repeated and overtaken changes: **the guards are the safety**.

While an epoch lasts only its owner changes the in-sync set, since only the owner knows whose
receipts it waits for. There are two exceptions: `NodeUp` removes lives that
are over, and `Disown` a void copy whose owner is gone: neither confirms anything any more.

Rules
-----
1. No clock, no chance, no order of a set. The same map and function give the same bytes.
2. All or nothing: a function that is refused leaves the very same map behind.
3. A refusal names the value that was in the way; it is shown to operators and logged.
4. What a guard cannot see (that a process is dead, that somebody was silent for 5 s) the
   proposer vouches for, in `why`. What it can see it checks, whatever the proposer says.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace

from replication.core.clustermap import (
    CATALOG_SID,
    ClusterMap,
    NodeEntry,
    NodeState,
    OnTooFewCopies,
    Settings,
    StreamEntry,
    copies,
    default_min_copies,
    incarnation,
    is_live,
    superseded,
)
from replication.core.identity import Incarnation

DONE: Final = "done"


class ShrinkWhy(StrEnum):
    """Why an owner no longer wants to wait for a member."""

    SURPLUS = "surplus"  # All that are wanted are in, and it is not among them.
    SLOW = "slow"  # No progress, or silent, but perhaps alive.
    SILENT = "silent"  # Not heard for 5 s: with that, min_copies members are enough.
    DEAD = "dead"  # Its process is proven dead.
    VOID = "void"  # It declared its own copy void.


class TakeoverWhy(StrEnum):
    """What a candidate knows of the owner that it replaces."""

    DEAD = "dead"
    SILENT = "silent"
    SUPERSEDED = "superseded"


class _Change(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """What all changes have in common: the guard first, then the effect, both pure."""

    def apply(self, value: ClusterMap) -> tuple[ClusterMap, str]:
        """The next map, and `DONE`; or the very same map, and "refused: …"."""
        refusal = self._refusal(value)
        if refusal is not None:
            return value, f"refused: {refusal}"
        after = self._effect(value)
        after.check()
        return after, DONE

    def _refusal(self, value: ClusterMap) -> str | None:
        raise NotImplementedError

    def _effect(self, value: ClusterMap) -> ClusterMap:
        raise NotImplementedError


class Form(_Change, frozen=True, kw_only=True):
    """The first change of all: the settings, and every expected node, none of them up yet."""

    settings: Settings
    nodes: dict[str, NodeEntry]

    def _refusal(self, value: ClusterMap) -> str | None:
        if value.nodes:
            return f"the cluster is formed already, of {', '.join(sorted(value.nodes))}"
        return None

    def _effect(self, value: ClusterMap) -> ClusterMap:
        nodes = {
            name: replace(entry, proc_inc=0, state=NodeState.DOWN)
            for name, entry in self.nodes.items()
        }
        return replace(value, settings=self.settings, nodes=nodes)


class NodeUp(_Change, frozen=True, kw_only=True):
    """A node's new process says that it is there. Its former lives are over by that."""

    me: Incarnation
    peers: str = ""
    group: str = ""
    locators: tuple[str, ...] = ()
    zone: str = ""
    broker: bool = True

    def _refusal(self, value: ClusterMap) -> str | None:
        known = value.nodes.get(self.me.node)
        if known is not None and known.proc_inc == self.me.inc:
            return f"{self.me} came up before"
        if any(self.me in (*stream.isr, *stream.shed) for stream in value.streams.values()):
            return f"{self.me} is older than {incarnation(value, self.me.node)}"
        return None

    def _effect(self, value: ClusterMap) -> ClusterMap:
        entry = NodeEntry(
            peers=self.peers,
            group=self.group,
            locators=self.locators,
            zone=self.zone,
            broker=self.broker,
            proc_inc=self.me.inc,
            state=NodeState.UP,
        )
        streams = {sid: self._without_old(stream) for sid, stream in value.streams.items()}
        return replace(value, nodes={**value.nodes, self.me.node: entry}, streams=streams)

    def _without_old(self, stream: StreamEntry) -> StreamEntry:
        # An owner stays, dead as it is: only a takeover or a declared loss replaces it. With
        # it the in-sync set never becomes empty, and still says who has the content.
        node = self.me.node
        return replace(
            stream,
            isr=_members(m for m in stream.isr if m.node != node or m == stream.owner),
            shed=_members(m for m in stream.shed if m.node != node),
        )


class SetDown(_Change, frozen=True, kw_only=True):
    """A node whose process is proven dead, or that was silent for 30 s, counts as down."""

    who: Incarnation

    def _refusal(self, value: ClusterMap) -> str | None:
        return _not_its_life(value, self.who)

    def _effect(self, value: ClusterMap) -> ClusterMap:
        return _with_state(value, self.who.node, NodeState.DOWN)


class SetUp(_Change, frozen=True, kw_only=True):
    """A node found itself down in the map, and is alive."""

    who: Incarnation

    def _refusal(self, value: ClusterMap) -> str | None:
        return _not_its_life(value, self.who)

    def _effect(self, value: ClusterMap) -> ClusterMap:
        if value.nodes[self.who.node].state is not NodeState.DOWN:
            return value  # To say so twice must not end a drain.
        return _with_state(value, self.who.node, NodeState.UP)


class Create(_Change, frozen=True, kw_only=True):
    """The post office of a node that has none yet; or, without a home, the catalog."""

    home: str | None
    me: Incarnation

    def _refusal(self, value: ClusterMap) -> str | None:
        if any(stream.home == self.home for stream in value.streams.values()):
            return f"{'the catalog' if self.home is None else self.home} has a stream already"
        if self.home not in (None, self.me.node):
            return f"only {self.home} itself creates its post office, not {self.me}"
        return _not_a_live_broker(value, self.me)

    def _effect(self, value: ClusterMap) -> ClusterMap:
        sid = CATALOG_SID if self.home is None else value.next_sid
        stream = StreamEntry(
            home=self.home,
            gen=1,
            epoch=1,
            owner=self.me,
            isr=(self.me,),
            min_copies=default_min_copies(value),
        )
        next_sid = value.next_sid if self.home is None else sid + 1
        return replace(value, streams={**value.streams, sid: stream}, next_sid=next_sid)


class Expand(_Change, frozen=True, kw_only=True):
    """The owner takes a joiner into the in-sync set."""

    sid: int
    epoch: int
    me: Incarnation
    joiner: Incarnation
    base: tuple[Incarnation, ...]
    """The in-sync set that the owner reckons with."""

    def _refusal(self, value: ClusterMap) -> str | None:
        return (
            _not_owned(value, self.sid, self.epoch, self.me)
            or _other_isr(value, self.sid, self.base)
            # A node that restarted since has nothing of what its former life had received.
            or _not_its_life(value, self.joiner)
        )

    def _effect(self, value: ClusterMap) -> ClusterMap:
        stream = value.streams[self.sid]
        return _with_stream(
            value,
            self.sid,
            replace(
                stream,
                isr=_members((*stream.isr, self.joiner)),
                shed=_members(m for m in stream.shed if m != self.joiner),
            ),
        )


class Shrink(_Change, frozen=True, kw_only=True):
    """The owner no longer waits for a member."""

    sid: int
    epoch: int
    me: Incarnation
    member: Incarnation
    base: tuple[Incarnation, ...]
    why: ShrinkWhy

    def _refusal(self, value: ClusterMap) -> str | None:
        refusal = _not_owned(value, self.sid, self.epoch, self.me) or _other_isr(
            value, self.sid, self.base
        )
        if refusal is not None:
            return refusal
        stream = value.streams[self.sid]
        if self.member == self.me:
            return f"{self.me} owns stream {self.sid} and cannot leave it"
        if self.member not in stream.isr:
            return f"{self.member} is not in sync with stream {self.sid}"
        left = len(stream.isr) - 1
        if (
            left >= max(2, stream.min_copies)
            or superseded(value, self.member)
            or self.why in (ShrinkWhy.DEAD, ShrinkWhy.VOID)
            or (self.why is ShrinkWhy.SILENT and left >= stream.min_copies)
            or value.settings.on_too_few_copies is OnTooFewCopies.SOLO
        ):
            return None
        return (
            f"without {self.member} ({self.why}) stream {self.sid} has {left} in sync,"
            f" and min_copies is {stream.min_copies}"
        )

    def _effect(self, value: ClusterMap) -> ClusterMap:
        stream = value.streams[self.sid]
        # To be shed means: alive, and perhaps the last one with the content, should all the
        # others die. The dead are nobody's hope, and a void copy is wrong.
        over = self.why in (ShrinkWhy.DEAD, ShrinkWhy.VOID) or superseded(value, self.member)
        return _with_stream(
            value,
            self.sid,
            replace(
                stream,
                isr=_members(m for m in stream.isr if m != self.member),
                shed=stream.shed if over else _members((*stream.shed, self.member)),
            ),
        )


class Takeover(_Change, frozen=True, kw_only=True):
    """A member of the in-sync set becomes the owner of all streams that another one owned.

    One change for all of them, and all or nothing: a candidate that is refused has seen an
    old map, and proposes anew what is left to do once it has the newer one.
    """

    streams: tuple[tuple[int, int], ...]
    """Pairs of stream and epoch, as the candidate knows them."""

    me: Incarnation
    old: Incarnation
    why: TakeoverWhy

    def _refusal(self, value: ClusterMap) -> str | None:
        if self.why is TakeoverWhy.SUPERSEDED and not superseded(value, self.old):
            return f"{self.old} is the latest life of its node that the map knows"
        if self.me == self.old:
            return f"{self.me} cannot take over from itself"
        if not is_live(value, self.me):
            return f"{self.me} does not count as up"
        for sid, epoch in self.streams:
            refusal = _not_owned(value, sid, epoch, self.old)
            if refusal is not None:
                return refusal
            if self.me not in value.streams[sid].isr:
                return f"{self.me} is not in sync with stream {sid}"
        return None

    def _effect(self, value: ClusterMap) -> ClusterMap:
        after = value
        for sid, _ in self.streams:
            after = _with_stream(after, sid, self._taken(value, value.streams[sid]))
        if self.why is TakeoverWhy.DEAD and not superseded(value, self.old):
            after = _with_state(after, self.old.node, NodeState.DOWN)
        return after

    def _taken(self, value: ClusterMap, stream: StreamEntry) -> StreamEntry:
        isr = [m for m in stream.isr if not superseded(value, m)]
        shed = stream.shed
        without = [m for m in isr if m != self.old]
        # An old owner that may be alive stays electable unless there are copies enough:
        # thrown out, it would be lost to us at the very next death, with all that it holds.
        if self.old in isr and (
            self.why is TakeoverWhy.DEAD
            or len(without) >= stream.min_copies
            or value.settings.on_too_few_copies is OnTooFewCopies.SOLO
        ):
            isr = without
            if self.why is not TakeoverWhy.DEAD:
                shed = _members((*shed, self.old))
        return replace(stream, epoch=stream.epoch + 1, owner=self.me, isr=_members(isr), shed=shed)


class SetCopies(_Change, frozen=True, kw_only=True):
    """The owner adapts a stream's `min_copies` to the settings, or to the number of brokers."""

    sid: int
    epoch: int
    me: Incarnation
    min_copies: int

    def _refusal(self, value: ClusterMap) -> str | None:
        refusal = _not_owned(value, self.sid, self.epoch, self.me)
        if refusal is None and not 1 <= self.min_copies <= copies(value):
            return f"min_copies {self.min_copies} is not within 1 and {copies(value)}"
        return refusal

    def _effect(self, value: ClusterMap) -> ClusterMap:
        stream = value.streams[self.sid]
        return _with_stream(value, self.sid, replace(stream, min_copies=self.min_copies))


class Disown(_Change, frozen=True, kw_only=True):
    """The holder of a void copy says so, since the owner that would let it go is gone.

    Else a copy that nobody may elect would keep the stream from being declared lost.
    """

    sid: int
    epoch: int
    me: Incarnation

    def _refusal(self, value: ClusterMap) -> str | None:
        refusal = _not_in_epoch(value, self.sid, self.epoch)
        if refusal is not None:
            return refusal
        stream = value.streams[self.sid]
        if self.me == stream.owner:
            return f"{self.me} owns stream {self.sid} and cannot leave it"
        if is_live(value, stream.owner):
            return f"{stream.owner} owns stream {self.sid} and counts as up"
        if self.me not in (*stream.isr, *stream.shed):
            return f"{self.me} does not count as a holder of stream {self.sid}"
        return None

    def _effect(self, value: ClusterMap) -> ClusterMap:
        stream = value.streams[self.sid]
        return _with_stream(
            value,
            self.sid,
            replace(
                stream,
                isr=_members(m for m in stream.isr if m != self.me),
                shed=_members(m for m in stream.shed if m != self.me),
            ),
        )


class DeclareLost(_Change, frozen=True, kw_only=True):
    """No copy of a stream is left: it goes on empty, as a new gen, and everybody is told."""

    sid: int
    gen: int
    me: Incarnation
    vouched: bool = False
    """By the operator: those that count as down will not come back with what they hold."""

    def _refusal(self, value: ClusterMap) -> str | None:
        stream = value.streams.get(self.sid)
        if stream is None:
            return f"there is no stream {self.sid}"
        if stream.gen != self.gen:
            return f"stream {self.sid} is in gen {stream.gen}, not {self.gen}"
        for holder in (*stream.isr, *stream.shed):
            if not superseded(value, holder) and not (self.vouched and not is_live(value, holder)):
                return f"{holder} may still hold stream {self.sid}"
        for member in stream.isr:
            entry = value.nodes.get(member.node)
            if not self.vouched and (entry is None or entry.state is not NodeState.UP):
                return f"{member.node} held stream {self.sid} and is not up"
        return _not_a_live_broker(value, self.me)

    def _effect(self, value: ClusterMap) -> ClusterMap:
        stream = value.streams[self.sid]
        owner = self.me
        if stream.home is not None and value.nodes[stream.home].state is NodeState.UP:
            owner = incarnation(value, stream.home)
        return _with_stream(
            value,
            self.sid,
            replace(
                stream,
                gen=stream.gen + 1,
                epoch=stream.epoch + 1,
                owner=owner,
                isr=(owner,),
                shed=(),
            ),
        )


Function = (
    Form
    | NodeUp
    | SetDown
    | SetUp
    | Create
    | Expand
    | Shrink
    | Takeover
    | SetCopies
    | Disown
    | DeclareLost
)


def _members(who: Iterable[Incarnation]) -> tuple[Incarnation, ...]:
    return tuple(sorted(set(who)))


def _with_stream(value: ClusterMap, sid: int, stream: StreamEntry) -> ClusterMap:
    return replace(value, streams={**value.streams, sid: stream})


def _with_state(value: ClusterMap, node: str, state: NodeState) -> ClusterMap:
    entry = replace(value.nodes[node], state=state)
    return replace(value, nodes={**value.nodes, node: entry})


def _not_its_life(value: ClusterMap, who: Incarnation) -> str | None:
    entry = value.nodes.get(who.node)
    if entry is None or entry.state is NodeState.GONE:
        return f"there is no node {who.node}"
    if entry.proc_inc != who.inc:
        return f"{who.node} is {incarnation(value, who.node)} now, not {who}"
    return None


def _not_a_live_broker(value: ClusterMap, who: Incarnation) -> str | None:
    if not is_live(value, who):
        return f"{who} does not count as up"
    if not value.nodes[who.node].broker:
        return f"{who.node} is a witness and holds no stream"
    return None


def _not_in_epoch(value: ClusterMap, sid: int, epoch: int) -> str | None:
    stream = value.streams.get(sid)
    if stream is None:
        return f"there is no stream {sid}"
    if stream.epoch != epoch:
        return f"stream {sid} is in epoch {stream.epoch}, not {epoch}"
    return None


def _not_owned(value: ClusterMap, sid: int, epoch: int, who: Incarnation) -> str | None:
    refusal = _not_in_epoch(value, sid, epoch)
    if refusal is not None:
        return refusal
    stream = value.streams[sid]
    if stream.owner != who:
        return f"stream {sid} belongs to {stream.owner}, not {who}"
    return None


def _other_isr(value: ClusterMap, sid: int, base: tuple[Incarnation, ...]) -> str | None:
    isr = value.streams[sid].isr
    if isr != tuple(sorted(base)):
        return f"in sync with stream {sid} are {_names(isr)}, not {_names(base)}"
    return None


def _names(who: Iterable[Incarnation]) -> str:
    return ", ".join(str(member) for member in sorted(who))
