"""What one node knows of queues: its copy of the catalog, and what it tells the catalog's owner.

Theory of operation
-------------------
Every broker follows the catalog, looks definitions up in its copy, and drops the parts of
queues that were deleted. It tells the catalog's owner what should be there and is not: queues
that are declared in its file, and queues of which it has parts.

The latter matter when all copies of the catalog were lost and it began anew, empty, in a
higher gen. Until the owner has heard of each post office which queues have parts there, or
some seconds have passed, the catalog is *recovering*: nobody is told that a queue does not
exist, and none is declared, since it may exist under an id of its own.

Rule: a part is dropped only when nothing can undo what deleted its queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from broker.core.catalog import Catalog
from broker.core.desks import Desks
from broker.core.events import Effect, Level, Log, PeerEffect
from replication.core.clustermap import CATALOG_SID
from replication.core.member import Forwarded, Member
from tanist.wire.control import Declare, QueueInfo

RECOVERY_S_MAX: Final = 10.0
"""After the catalog was lost, nobody is told `not_found` for so long, or until of each post
office the owner has said which queues have parts there."""

PARTS_TOLD_MAX: Final = 5_000
"""In one frame to the catalog's owner. It holds as many, however long their names are."""


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells the owner of the catalog."""

    gen: int
    """Of the catalog that it knows."""
    served: list[int]
    """The post offices that it owns."""
    declared: list[QueueInfo]
    """In its file."""
    parts: list[QueueInfo]
    """Those of which it has a part, or somebody who would use one, and which the catalog does not
    know. Without the latter a consumer that waits would wait for ever, on an id that is gone."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Told).decode


class Definitions:
    """The queues, as far as this node knows.

    Args:
        declared: In the node's file.
    """

    def __init__(self, member: Member, desks: Desks, *, declared: Sequence[QueueInfo]) -> None:
        self._member = member
        self._desks = desks
        self._declared = declared
        self._seen = (0, 0)
        """How far the copy was when it was looked at last."""
        self._gen_since = 0.0
        self._recovering_until: float | None = None
        self._reported: set[int] = set()
        """Post offices of which the queues are known since the catalog began anew."""

    @property
    def catalog(self) -> Catalog | None:
        """This node's copy of the catalog, if it has one by now."""
        stream = self._member.streams.get(CATALOG_SID)
        machine = stream.machine if stream is not None else None
        return machine if isinstance(machine, Catalog) else None

    @property
    def released(self) -> bool:
        """Whether nothing that our copy says can be undone. Of the owner's own copy that is
        said by its desk."""
        stream = self._member.streams[CATALOG_SID]
        return stream.heard_release >= stream.applied

    @property
    def seen(self) -> tuple[int, int]:
        """How far this node's copy is: (gen, seq). At the catalog's owner that may be more than
        is released."""
        stream = self._member.streams.get(CATALOG_SID)
        return (0, 0) if stream is None else (stream.gen, stream.applied)

    def advanced(self, now: float) -> bool:
        """Whether the copy has more than when this was asked last."""
        seen = self.seen
        if seen in (self._seen, (0, 0)):
            return False
        if seen[0] != self._seen[0]:
            self._gen_since = now
        self._seen = seen
        return True

    # A catalog that was lost

    def promoted(self, gen: int, now: float) -> None:
        """This node owns the catalog. If that is a new one, nodes have parts of queues that it
        does not know. Whether it is, is not told to a node whose own copy begins with it."""
        if gen > 1 and (gen != self._seen[0] or now < self._gen_since + RECOVERY_S_MAX):
            self._recovering_until = now + RECOVERY_S_MAX
            self._reported.clear()
            self._member.reticent.add(CATALOG_SID)

    def left(self) -> None:
        """This node does not own the catalog, or not any more."""
        self._recovering_until = None
        self._member.reticent.discard(CATALOG_SID)

    def recovering(self, now: float) -> bool:
        """Whether the catalog was lost, and may still learn of queues that exist."""
        if self._recovering_until is None:
            return False
        value = self._member.map
        offices = set(value.streams) - {CATALOG_SID} if value is not None else {CATALOG_SID}
        if now >= self._recovering_until or offices <= self._reported:
            self._recovering_until = None
            return False
        return True

    # Between this node and the catalog's owner

    def sweep(self, now: float, outbox: list[Effect]) -> None:
        if self.recovering(now):
            self._member.reticent.add(CATALOG_SID)
        else:
            self._member.reticent.discard(CATALOG_SID)
        self._drop_deleted(outbox)
        self._tell(now, outbox)

    def forwarded(self, news: Forwarded, now: float, outbox: list[Effect]) -> None:
        """A node tells us, as the catalog's owner."""
        if news.sid != CATALOG_SID or not self._desks.owns_catalog:
            return
        try:
            told = _decode(news.payload)
        except msgspec.MsgspecError as error:
            fields: dict[str, object] = {"peer": str(news.who), "why": str(error)}
            outbox.append(Log(Level.WARNING, "dropped what a peer said of queues", fields))
            return
        self._take(told, now)

    def _drop_deleted(self, outbox: list[Effect]) -> None:
        stream, catalog = self._member.streams.get(CATALOG_SID), self.catalog
        if stream is None or catalog is None:
            return
        released = stream.release if self._desks.catalog is not None else stream.heard_release
        if released < stream.applied:
            return
        for desk in self._desks.offices.values():
            for queue in desk.queues():
                if catalog.was_deleted(queue.id):
                    desk.drop_queue(queue.id, outbox)

    def _tell(self, now: float, outbox: list[Effect]) -> None:
        catalog = self.catalog
        if catalog is None:
            return
        gen = self.seen[0]
        declared = [queue for queue in self._declared if catalog.by_name(queue.name) is None]
        parts = [
            queue
            for desk in self._desks.offices.values()
            for queue in desk.queues()
            if catalog.by_id(queue.id) is None and not catalog.was_deleted(queue.id)
        ]
        after_a_loss = gen > 1 and now < self._gen_since + RECOVERY_S_MAX
        if not declared and not parts and not after_a_loss:
            return
        served = sorted(self._desks.offices)
        if self._desks.catalog is not None:
            self._take(Told(gen, served, declared, parts), now)
            return
        peers: list[PeerEffect] = []
        while len(parts) > PARTS_TOLD_MAX:
            # Without the post offices: these are known when the last part is.
            some, parts = parts[:PARTS_TOLD_MAX], parts[PARTS_TOLD_MAX:]
            self._member.forward(CATALOG_SID, _encode(Told(gen, [], [], some)), peers)
        self._member.forward(CATALOG_SID, _encode(Told(gen, served, declared, parts)), peers)
        outbox += peers

    def _take(self, told: Told, now: float) -> None:
        desk = self._desks.catalog
        assert desk is not None
        desk.adopt(told.parts)
        if told.gen == desk.stream.gen:
            self._reported.update(told.served)
        if self.recovering(now):
            return  # They may exist. Who has them in its file says so again.
        for queue in told.declared:
            desk.add(
                Declare(
                    req=0,
                    queue=queue.name,
                    spread=queue.spread,
                    at=queue.sid,
                    settings=queue.settings,
                )
            )
