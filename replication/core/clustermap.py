"""The cluster map: who there is, who owns which stream, and who must hold a copy of it.

Theory of operation
-------------------
The map is a value. It is never edited: `changes.py` makes the next one out of this one, and
the register (`register.py`) agrees on which of them comes next. Every node computes the
same answers from the same map, since the questions below look at nothing else.

Rules
-----
1. Equal maps have equal bytes. They are compared, hashed and stored as bytes, so members of
   sets are kept in sorted tuples, and `encode_map` sorts the keys.
2. An identity is (node, incarnation) everywhere. A node that came up again is somebody else,
   and is in no in-sync set until the owner takes it in.
3. Nothing here knows of votes, ballots or versions: these belong to the envelope around it.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from typing import Final

import msgspec

from replication.core.identity import Incarnation


class NodeState(StrEnum):
    """What the cluster thinks of a node. Down is an opinion; a newer incarnation is a fact."""

    UP = "up"
    DOWN = "down"
    DRAIN = "drain"
    GONE = "gone"


class OnTooFewCopies(StrEnum):
    """What an owner does while fewer copies than `min_copies` are in sync."""

    WAIT = "wait"
    SOLO = "solo"


class Settings(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """What must be the same on every node. Compared when the cluster is formed."""

    failover_peers: int = 2
    """How many nodes shall hold a shadow of each post office."""

    min_copies: int | None = None
    """A release waits for that many copies; None: the rule of `default_min_copies`."""

    on_too_few_copies: OnTooFewCopies = OnTooFewCopies.WAIT

    silence_ms: int = 900
    """A peer that was quiet for so long is suspected."""

    grace_ms: int = 10_000
    """For so long deliveries are kept for their session after a promotion."""


class NodeEntry(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """One node name, with what is known of its latest process."""

    peers: str = ""
    """Where the other nodes reach it, as host:port."""

    group: str = ""
    """Its endpoint in the group, if the transport needs one."""

    locators: tuple[str, ...] = ()
    """Where clients reach it, the best one first."""

    zone: str = ""
    broker: bool = True
    """False: a witness, which votes and holds nothing."""

    proc_inc: int = 0
    """The incarnation that came up last; 0: none ever did."""

    state: NodeState = NodeState.DOWN


class StreamEntry(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """One stream: a post office, or the catalog, which has no home."""

    home: str | None
    gen: int
    """Number of a life of the content. Grows only when the content was lost."""

    epoch: int
    """Number of an ownership. Never goes back, not even with a new gen."""

    owner: Incarnation
    isr: tuple[Incarnation, ...]
    """The in-sync set, sorted: whose receipts the owner waits for. It contains the owner."""

    shed: tuple[Incarnation, ...] = ()
    """Those that left the in-sync set alive, sorted: content may still be found there."""

    min_copies: int = 1


class ClusterMap(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """The whole of it. `next_sid` never goes back: a stream's number is not given twice."""

    settings: Settings = Settings()
    nodes: dict[str, NodeEntry] = {}
    streams: dict[int, StreamEntry] = {}
    next_sid: int = 1

    def check(self) -> None:
        """Verify every invariant of a map. For the register, tests and simulation."""
        for sid, stream in self.streams.items():
            assert sid < self.next_sid
            assert (stream.home is None) == (sid == CATALOG_SID)
            assert stream.owner in stream.isr, "the owner is in sync with itself"
            assert stream.isr == tuple(sorted(set(stream.isr)))
            assert stream.shed == tuple(sorted(set(stream.shed)))
            assert not set(stream.isr) & set(stream.shed)
            assert stream.gen >= 1
            assert stream.epoch >= stream.gen
            assert stream.min_copies >= 1
        homes = [stream.home for stream in self.streams.values()]
        assert len(homes) == len(set(homes)), "one post office per node name"


CATALOG_SID: Final = 0
EMPTY_MAP: Final = ClusterMap()

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ClusterMap)


def encode_map(value: ClusterMap) -> bytes:
    """The canonical bytes: equal maps, and only these, have equal ones."""
    # The encoder can sort keys only if they are strings; the streams' are numbers.
    return _encoder.encode(
        msgspec.structs.replace(
            value,
            nodes=dict(sorted(value.nodes.items())),
            streams=dict(sorted(value.streams.items())),
        )
    )


def decode_map(data: bytes) -> ClusterMap:
    """Raises `msgspec.DecodeError` (or its `ValidationError`) for anything but a map."""
    return _decoder.decode(data)


def incarnation(value: ClusterMap, node: str) -> Incarnation:
    """The latest life of a node that the map knows."""
    return Incarnation(node, value.nodes[node].proc_inc)


def is_live(value: ClusterMap, who: Incarnation) -> bool:
    """Whether this is the latest life of its node, and the node counts as running."""
    entry = value.nodes.get(who.node)
    return (
        entry is not None
        and entry.proc_inc == who.inc
        and entry.state in (NodeState.UP, NodeState.DRAIN)
    )


def superseded(value: ClusterMap, who: Incarnation) -> bool:
    """Whether a later life of its node came up: proof that this one is over."""
    entry = value.nodes.get(who.node)
    return entry is None or entry.proc_inc != who.inc


def brokers(value: ClusterMap) -> list[str]:
    """The nodes that may hold copies, whether they are up or not, by name."""
    return sorted(
        name
        for name, entry in value.nodes.items()
        if entry.broker and entry.state is not NodeState.GONE
    )


def order(value: ClusterMap, home: str | None) -> list[str]:
    """The order of succession: names after the home's, wrapped round, the home itself last.

    The catalog has no home; there it is the order of the names.
    """
    names = sorted(value.nodes)
    if home is None:
        return names
    return [name for name in names if name > home] + [name for name in names if name <= home]


def wanted(value: ClusterMap, sid: int) -> list[str]:
    """The nodes that shall hold a copy beside the owner, in order of succession."""
    stream = value.streams[sid]
    candidates = (
        name
        for name in order(value, stream.home)
        if name != stream.owner.node
        and value.nodes[name].broker
        and value.nodes[name].state is NodeState.UP
    )
    return list(islice(candidates, value.settings.failover_peers))


def copies(value: ClusterMap) -> int:
    """K: how many copies of a stream there are when all is well, the owner's included."""
    return 1 + min(value.settings.failover_peers, max(0, len(brokers(value)) - 1))


def default_min_copies(value: ClusterMap) -> int:
    """What a stream's `min_copies` shall be by the settings.

    By default one copy fewer than K, at most 2: then the loss of one node holds no stream.
    A configured number is taken as it is, but more copies than K never come.
    """
    configured = value.settings.min_copies
    if configured is not None:
        return max(1, min(configured, copies(value)))
    return max(1, min(2, copies(value) - 1))
