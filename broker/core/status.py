"""What a node tells people and programs that watch it: one JSON object.

Everything is derived when it is asked for; nothing is counted twice. What grows with the
number of queues comes in pages, so that each answer fits into a frame.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from broker.core.definitions import Definitions
from broker.core.desk import HELD_SAID_S
from broker.core.desks import Desks
from broker.core.lobby import Lobby
from broker.core.mending import Mending
from broker.core.settings import NodeSettings
from broker.core.storeroom import Storeroom
from broker.core.waiting import WaitingRoom
from replication.core.clustermap import CATALOG_SID, StreamEntry, superseded, wanted
from replication.core.member import Member
from replication.core.stream import Role

Document = dict[str, object]

DAMAGED_SHOWN_MAX: Final = 50
"""Pages of one post office; the first ones are told one by one, all of them are counted."""


class StatusReport:
    """The cluster as this node sees it, and what this node does in it."""

    def __init__(
        self,
        *,
        settings: NodeSettings,
        member: Member,
        desks: Desks,
        definitions: Definitions,
        lobby: Lobby,
        waiting: WaitingRoom,
        storeroom: Storeroom,
        mending: Mending,
    ) -> None:
        self._settings = settings
        self._member = member
        self._desks = desks
        self._definitions = definitions
        self._lobby = lobby
        self._waiting = waiting
        self._storeroom = storeroom
        self._mending = mending

    def document(self, now: float) -> Document:
        member, value = self._member, self._member.map
        nodes = sorted(value.nodes.items()) if value is not None else ()
        streams = sorted(value.streams.items()) if value is not None else ()
        return {
            "node": member.me.node,
            "incarnation": f"{member.me.inc:x}",
            "cluster": self._settings.cluster,
            "ver": member.ver,
            "topology_hash": self._lobby.topology.hash,
            "acceptors": [name for name, _ in member.register.acceptors],
            "lost_vote": member.register.lost_vote,
            "nodes": {
                name: {
                    "state": str(entry.state),
                    "incarnation": f"{entry.proc_inc:x}",
                    "locators": list(entry.locators),
                    "peers": entry.peers,
                    "linked": name == member.me.node or member.links.linked_as(name) is not None,
                }
                for name, entry in nodes
            },
            "streams": {str(sid): self._stream(sid, entry, now) for sid, entry in streams},
            "queues": self._totals(),
            "clients": len(self._lobby),
            "waiting_requests": len(self._waiting),
            "memory": {
                "used_bytes": self._desks.used_bytes(),
                "budget_bytes": self._settings.limits.budget_bytes,
            },
            "paging": self._storeroom.document(),
        }

    def _stream(self, sid: int, entry: StreamEntry, now: float) -> Document:
        value = self._member.map
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
            "warnings": self._warnings(sid, entry, now),
        }
        stream = self._member.streams.get(sid)
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
                "damaged": self._mending.document(sid)[:DAMAGED_SHOWN_MAX],
            }
            if stream.role is Role.OWNER:
                document["followers"] = {
                    str(who): {
                        "in_sync": who in entry.isr,
                        "lag_ops": lag,
                    }
                    for who, lag in stream.lags()
                }
        desk = self._desks.offices.get(sid)
        if desk is not None:
            first = desk.first_frame_at
            pause_ms = None if first is None else round(1000 * (first - desk.promoted_at), 3)
            document["desk"] = {
                "first_frame_ms": pause_ms,
                "producers": len(desk.producers),
                "consumers": len(desk.consumers),
                "graces": len(desk.consumers.graces),
                "parked_bytes": desk.producers.parked_bytes,
                "duplicates": desk.producers.duplicates,
            }
        return document

    def _warnings(self, sid: int, entry: StreamEntry, now: float) -> list[str]:
        value = self._member.map
        assert value is not None
        warnings: list[str] = []
        if all(superseded(value, member) for member in entry.isr):
            warnings.append("LOST: every copy was in a process that is over")
        elif len(entry.isr) == 1:
            warnings.append("UNPROTECTED: there is one copy")
        stream = self._member.streams.get(sid)
        held = stream.held if stream is not None else None
        if held is not None:
            warnings.append(f"HELD for {now - held.since:.1f} s: {held.why}")
        if stream is not None and stream.role is Role.WAITING_FOR_TRANSFER:
            warnings.append(f"waiting for transfer: {stream.why}")
        desk = self._desks.offices.get(sid)
        if desk is not None and held is None:
            for why, producers in desk.producers.dry(now - HELD_SAID_S).items():
                warnings.append(f"producers without credit ({producers:,}): {why}")
        owned = stream is not None and stream.role is Role.OWNER
        for queue, lost in self._mending.lost(sid).items():
            if owned:
                warnings.append(
                    f"LOST MESSAGES: {lost:,} of queue {queue!r} cannot be read on any node. If"
                    f" none comes back that can, give them up: tanist queue skip-lost {queue!r}"
                )
            else:
                warnings.append(f"cannot read {lost:,} messages of queue {queue!r} in its copy")
        return warnings

    def queues(self, after: str, most: int) -> Document:
        """A page of the catalog's queues, with what the post offices owned here have of them."""
        catalog = self._definitions.catalog
        page, go_on_after = catalog.page(after, most) if catalog is not None else ([], "")
        return {
            "node": self._member.me.node,
            "incarnation": f"{self._member.me.inc:x}",
            "queues": [
                {
                    "name": queue.name,
                    "id": queue.id,
                    "spread": queue.spread,
                    "sid": queue.sid,
                    **self._sum([queue.id]),
                }
                for queue in page
            ],
            "go_on_after": go_on_after,
        }

    def _totals(self) -> Document:
        """How many queues there are, and what the post offices owned here have of them all."""
        catalog = self._definitions.catalog
        ids = {
            queue_id
            for desk in self._desks.offices.values()
            for queue_id in desk.office.queue_ids()
        }
        return {"count": 0 if catalog is None else len(catalog), **self._sum(ids)}

    def _sum(self, queue_ids: Collection[int]) -> dict[str, int]:
        stats = [
            desk.office.stat(queue_id)
            for desk in self._desks.offices.values()
            for queue_id in queue_ids
        ]
        return {
            "ready": sum(stat.ready for stat in stats),
            "in_flight": sum(stat.in_flight for stat in stats),
            "bytes": sum(stat.bytes for stat in stats),
        }
