"""What a node tells people and programs that watch it: one JSON object.

Everything is derived when it is asked for; nothing is counted twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication.core.clustermap import CATALOG_SID, StreamEntry, superseded, wanted
from replication.core.stream import Role

if TYPE_CHECKING:
    from broker.core.node import Node

Document = dict[str, object]


def status_of(node: Node, now: float) -> Document:
    """The cluster as this node sees it, and what this node does in it."""
    value = node.member.map
    return {
        "node": node.me.node,
        "incarnation": f"{node.me.inc:x}",
        "cluster": node.settings.cluster,
        "ver": node.member.ver,
        "topology_hash": node.lobby.topology.hash,
        "acceptors": [name for name, _ in node.member.register.acceptors],
        "nodes": {
            name: {
                "state": str(entry.state),
                "incarnation": f"{entry.proc_inc:x}",
                "locators": list(entry.locators),
                "peers": entry.peers,
                "linked": name == node.me.node or node.member.links.linked_as(name) is not None,
            }
            for name, entry in sorted(value.nodes.items())
        }
        if value is not None
        else {},
        "streams": {
            str(sid): _stream(node, sid, entry, now) for sid, entry in sorted(value.streams.items())
        }
        if value is not None
        else {},
        "queues": _queues(node),
        "clients": len(node.lobby),
        "waiting_requests": len(node.waiting),
        "memory": {
            "used_bytes": node.used_bytes(),
            "budget_bytes": node.settings.limits.budget_bytes,
        },
    }


def _stream(node: Node, sid: int, entry: StreamEntry, now: float) -> Document:
    value = node.member.map
    assert value is not None
    document: Document = {
        "home": entry.home,
        "kind": "catalog" if sid == CATALOG_SID else "post office",
        "gen": entry.gen,
        "epoch": entry.epoch,
        "owner": str(entry.owner),
        "in_sync": [str(member) for member in entry.isr],
        "shed": [str(member) for member in entry.shed],
        "wanted": wanted(value, sid),
        "min_copies": entry.min_copies,
        "warnings": _warnings(node, sid, entry, now),
    }
    stream = node.member.streams.get(sid)
    if stream is not None:
        document["here"] = {
            "role": stream.role.value,
            "epoch": stream.epoch,
            "log_end": stream.log_end,
            "applied": stream.applied,
            "commit": stream.commit,
            "release": stream.release,
            "first_kept": stream.first_kept,
            "kept_bytes": stream.kept_bytes,
            "why": stream.why,
            "counts": dict(sorted(stream.counts.items())),
        }
        if stream.role is Role.OWNER:
            document["followers"] = {
                str(who): {
                    "in_sync": who in entry.isr,
                    "lag_ops": lag,
                }
                for who, lag in stream.lags()
            }
    desk = node.desks.get(sid)
    if desk is not None:
        document["desk"] = {
            "producers": desk.producers,
            "consumers": desk.consumers,
            "graces": desk.graces,
            "parked_bytes": desk.parked_bytes,
            "duplicates": desk.duplicates,
        }
    return document


def _warnings(node: Node, sid: int, entry: StreamEntry, now: float) -> list[str]:
    value = node.member.map
    assert value is not None
    warnings: list[str] = []
    if all(superseded(value, member) for member in entry.isr):
        warnings.append("LOST: every copy was in a process that is over")
    elif len(entry.isr) == 1:
        warnings.append("UNPROTECTED: there is one copy")
    stream = node.member.streams.get(sid)
    held = stream.held if stream is not None else None
    if held is not None:
        warnings.append(f"HELD for {now - held.since:.1f} s: {held.why}")
    if stream is not None and stream.role is Role.WAITING_FOR_TRANSFER:
        warnings.append(f"waiting for transfer: {stream.why}")
    return warnings


def _queues(node: Node) -> list[Document]:
    """The queues of the catalog, with what the post offices owned here have of them."""
    catalog = node.catalog
    if catalog is None:
        return []
    return [
        {
            "name": queue.name,
            "id": queue.id,
            "spread": queue.spread,
            "sid": queue.sid,
            "parts_here": {
                str(sid): {
                    "ready": stat.ready,
                    "in_flight": stat.in_flight,
                    "bytes": stat.bytes,
                }
                for sid, desk in sorted(node.desks.items())
                for stat in (desk.office.stat(queue.id),)
                if stat.ready or stat.in_flight or stat.bytes
            },
        }
        for queue in catalog.queues()
    ]
