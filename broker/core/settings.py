"""What a node is told about itself and its cluster when it starts."""

from __future__ import annotations

import msgspec

from broker.core.limits import Limits, Timing
from replication.core.clustermap import OnTooFewCopies
from tanist.wire.control import QueueInfo


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one node; made from its file by `broker.config`."""

    name: str
    cluster: str = "tanist"

    expected: tuple[str, ...]
    """All nodes that found the cluster, by name; the same on each of them."""

    peers: dict[str, str] = {}
    """Where each of them listens for the others, "host:port", by name."""

    peer_address: str
    """Where this node listens for the others."""

    group_address: str
    """Where this node publishes for the others."""

    locators: tuple[str, ...]
    """Where clients reach this node, the best one first."""

    failover_peers: int = 2
    min_copies: int | None = None
    on_too_few_copies: OnTooFewCopies = OnTooFewCopies.WAIT
    limits: Limits = Limits()
    timing: Timing = Timing()
    pages_bytes_max: int | None = None
    """Pages take up no more in memory; None: as much as the budget leaves."""

    queues: tuple[QueueInfo, ...] = ()
    """To be declared when the node starts; their `id` is not looked at."""
