"""The desks of one node: for which streams it serves clients now, and with what memory.

Theory of operation
-------------------
Where this node owns a stream there is a desk: one for each post office, one for the catalog.
They come with a promotion and go with a deposition. All copies on the node, owned or
followed, share one budget of memory, and what publishers are given is taken from it, too.

Rule: a node that hears neither its in-sync sets nor a majority of the register is *cut off*.
It serves nobody, since its clients would miss what others do, and sends them away.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from broker.core.catalog import Catalog
from broker.core.catalog_desk import CatalogDesk
from broker.core.desk import Desk
from broker.core.events import Effect, Level, Log
from broker.core.handout import Released
from broker.core.limits import Limits, Timing
from broker.core.lobby import Lobby
from broker.core.post_office import PostOffice
from replication.core import stream_events as stream_says
from replication.core.clustermap import CATALOG_SID, ClusterMap, wanted
from replication.core.member import Member
from replication.core.stream import ApplyFailed
from tanist.wire.control import Moved

GRANT_BELOW: Final = 0.9
"""Publishers get credit while less than this share of the node's budget is used."""


class Desks:
    """Where clients of this node are served.

    Args:
        member: Has this node's copies of all streams.
        disk_trouble: Why pages cannot be written, if they cannot.
    """

    def __init__(
        self,
        member: Member,
        *,
        limits: Limits,
        timing: Timing,
        disk_trouble: Callable[[], str | None],
    ) -> None:
        self._member = member
        self._limits = limits
        self._timing = timing
        self._disk_trouble = disk_trouble
        self.offices: dict[int, Desk] = {}
        """By sid."""
        self.catalog: CatalogDesk | None = None
        self.cut_off = False
        self._unheard: list[Desk] = []
        """Made since a client was heard last."""
        self._copies_here = 0
        """Of how many streams the map wants a copy on this node; they share the budget."""

    # Who is served

    def serving(self, sid: int) -> Desk | None:
        """The desk of a post office, if clients are served there now."""
        desk = self.offices.get(sid)
        if desk is not None and self._member.owns(sid) and not self.cut_off:
            return desk
        return None

    @property
    def owns_catalog(self) -> bool:
        return self.catalog is not None and self._member.owns(CATALOG_SID)

    def moved(self, sid: int, req: int) -> Moved:
        """Where this stream is served, as the map says, if that is another node."""
        value, me = self._member.map, self._member.me
        assert value is not None
        entry = value.streams[sid]
        node = value.nodes.get(entry.owner.node)
        known = node is not None and entry.owner != me and not self.cut_off
        return Moved(
            req=req,
            sid=sid,
            locators=list(node.locators) if node is not None and known else [],
            gen=entry.gen,
            epoch=entry.epoch,
        )

    # Memory

    def used_bytes(self) -> int:
        """What the budget is spent on: pages in memory, kept segments, what is parked.

        A large batch that is kept for repair is the same object in its page. While all of a
        post office is in memory, its newest batches are taken to be those: they count once.
        What has gone to files may be just these, so by so much less is taken as shared.
        """
        used = sum(
            desk.producers.parked_bytes + desk.holdings.parked_bytes
            for desk in self.offices.values()
        )
        for stream in self._member.streams.values():
            used += stream.kept_bytes
            office = stream.machine
            if isinstance(office, PostOffice):
                resident = office.resident_bytes
                shared = min(stream.lent_bytes, resident) - office.shelf.tally.disk_bytes
                used += resident - max(0, shared)
        return used

    def free_bytes(self) -> int:
        """What is left of it for the backlog of one more stream."""
        left = self._limits.budget_bytes - self.used_bytes()
        return max(0, left) // max(1, self._copies_here)

    def grantable_bytes(self) -> int:
        """What publishers may still be given: credit that is out counts as used."""
        out = sum(desk.producers.credit_out_bytes for desk in self.offices.values())
        budget = int(GRANT_BELOW * self._limits.budget_bytes)
        return max(0, budget - self.used_bytes() - out)

    # What the member says

    def map_learned(self, value: ClusterMap) -> None:
        me = self._member.me
        self._copies_here = sum(
            me in entry.isr or me.node in wanted(value, sid) for sid, entry in value.streams.items()
        )

    def promoted(self, news: stream_says.Promoted, now: float, outbox: list[Effect]) -> None:
        """This node owns a stream from now on."""
        fields: dict[str, object] = {
            "sid": news.sid,
            "epoch": news.epoch,
            "adopted_ops": news.adopted,
        }
        outbox.append(Log(Level.INFO, "serves a stream", fields))
        stream = self._member.streams[news.sid]
        machine = stream.machine
        if isinstance(machine, Catalog):
            self.catalog = CatalogDesk(stream=stream, catalog=machine, limits=self._limits)
            return
        assert isinstance(machine, PostOffice)
        desk = self.offices[news.sid] = Desk(
            stream=stream,
            office=machine,
            limits=self._limits,
            timing=self._timing,
            grantable_bytes=self.grantable_bytes,
            disk_trouble=self._disk_trouble,
            now=now,
        )
        self._unheard.append(desk)

    def heard(self, now: float) -> None:
        """A client said something. What it says is read again after a promotion: that is over."""
        while self._unheard:
            self._unheard.pop().first_frame_at = now

    def released(self, news: stream_says.Released, now: float, outbox: list[Effect]) -> None:
        # To a stream effects are opaque; ours are all put in by our desks.
        effects = cast("list[Released]", news.effects)
        if news.sid == CATALOG_SID:
            if self.catalog is not None:
                self.catalog.released(effects, outbox)
        elif news.sid in self.offices:
            self.offices[news.sid].released(effects, now, outbox)

    def leave(self, sid: int, outbox: list[Effect]) -> None:
        """This node does not own a stream, or not any more."""
        if sid == CATALOG_SID:
            if self.catalog is not None:
                self.catalog.leave(outbox)
            self.catalog = None
            return
        desk = self.offices.pop(sid, None)
        if desk is not None:
            desk.leave(self.moved(sid, 0), outbox)

    # Turns and time

    def end_turn(self, now: float, outbox: list[Effect]) -> None:
        for desk in self.offices.values():
            # Should it meet a bug, the stream says so when it is sealed, and the node ends.
            with suppress(ApplyFailed):
                desk.end_turn(now, outbox)

    def wake(self, now: float, outbox: list[Effect]) -> None:
        """Wake those whose time has come."""
        for desk in self.offices.values():
            at = desk.next_deadline()
            if at is not None and now >= at:
                desk.wake(now, outbox)

    def sweep(self, now: float, outbox: list[Effect]) -> None:
        """Wake all, for what has no deadline."""
        for desk in self.offices.values():
            desk.wake(now, outbox)

    def next_deadline(self) -> float | None:
        deadlines = [desk.next_deadline() for desk in self.offices.values()]
        return min((at for at in deadlines if at is not None), default=None)

    def look_around(self, lobby: Lobby, now: float, outbox: list[Effect]) -> None:
        """Send everybody away who is connected, if this node is cut off from the others."""
        cut_off = any(self._member.cut_off(sid, now) for sid in self.offices)
        if cut_off and not self.cut_off:
            self.cut_off = True
            outbox.append(Log(Level.WARNING, "cut off from the others: clients are sent away", {}))
            for connection in lobby:
                for channel in list(connection.channels.values()):
                    self.offices[channel.sid].lost(channel, now, sent_away=True)
                for sid in self.offices:
                    connection.say(self.moved(sid, 0), outbox)
                connection.close(outbox)
        elif self.cut_off and not cut_off:
            self.cut_off = False
            outbox.append(Log(Level.INFO, "hears the others again", {}))
