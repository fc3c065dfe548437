"""What a client is told of the cluster map, and its hash.

Made once for each committed map; a request costs one comparison of (ver, hash).
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from replication.core.clustermap import CATALOG_SID, ClusterMap, NodeState
from tanist.wire.control import Topology, Ver, Where

NOTHING_KNOWN = Topology(ver=0, hash="", nodes={}, streams={})


def topology_of(value: ClusterMap, ver: int) -> Topology:
    """The topology of a committed map. Equal for equal maps, on every node."""
    nodes = {
        name: list(entry.locators)
        for name, entry in sorted(value.nodes.items())
        if entry.state is not NodeState.GONE and entry.locators
    }
    streams = {
        sid: Where(home=s.home, gen=s.gen, epoch=s.epoch, owner=s.owner.node)
        for sid, s in sorted(value.streams.items())
    }
    digest = blake2b(msgspec.msgpack.encode((nodes, list(streams.items()))), digest_size=8)
    return Topology(ver=ver, hash=digest.hexdigest(), nodes=nodes, streams=streams)


def is_older(known: Ver | None, topology: Topology) -> bool:
    """Whether a client with `known` must be told of `topology`."""
    if known is None:
        return True
    ver, digest = known
    return ver < topology.ver or (ver == topology.ver and digest != topology.hash)


def here(topology: Topology, node: str) -> int:
    """The post office that producers who enter at `node` publish to; 0 if there is none.

    The node's own, if it owns it; else the lowest that it owns; else the lowest of all.
    """
    offices = {sid: where for sid, where in topology.streams.items() if sid != CATALOG_SID}
    owned = [sid for sid, where in offices.items() if where.owner == node]
    own = [sid for sid in owned if offices[sid].home == node]
    return min(own or owned or offices, default=0)
