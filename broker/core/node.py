"""A node: what its clients say, what its peers say, and which of the two it is told next.

Theory of operation
-------------------
The member (`replication.core.member`) keeps this node's copies of all streams, and has news
of them. Around it stand, each in a file of its own:

    clients ──▶ reception ──▶ lobby         who is connected
                   │    │
                   │    └───▶ requests ───▶ definitions   queues: our copy of the catalog
                   │             │  └─────▶ waiting room  what cannot be answered yet
                   └──▶ desks ◀──┘          where this node is the owner
                          ▲
    peers ────▶ member ───┘ news

Here events are brought to these, one after the other, and turns and time are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final, assert_never

from broker.core.catalog import Catalog
from broker.core.copies import MemberCopies
from broker.core.definitions import Definitions
from broker.core.desks import Desks
from broker.core.events import (
    ClientData,
    ClientLost,
    ClientOpened,
    DiskDone,
    Effect,
    Event,
    Exit,
    Level,
    ListenForClients,
    Log,
    PeerEffect,
    Stop,
    Wake,
)
from broker.core.lobby import Lobby
from broker.core.mending import Mending
from broker.core.post_office import PostOffice
from broker.core.reception import Reception
from broker.core.requests import Requests
from broker.core.settings import NodeSettings
from broker.core.status import StatusReport
from broker.core.storeroom import Storeroom
from broker.core.topology import topology_of
from broker.core.waiting import WaitingRoom
from paging.traffic import Traffic
from replication.core import stream_events as stream_says
from replication.core.caretaker import Presence
from replication.core.clustermap import CATALOG_SID, Settings, is_live
from replication.core.identity import Incarnation
from replication.core.member import (
    Forwarded,
    MapLearned,
    Member,
    MemberSettings,
    News,
    ReleasedFound,
    SaidAside,
    Vouched,
)
from replication.core.stream import StreamLimits

REPAIR_PART: Final = 16
"""Of each stream no more than this part of the budget is kept for repair."""
SWEEP_S: Final = 0.25
"""How often waiting requests, definitions and isolation are looked at, besides at events."""
WAITS_SAID_S: Final = 3.0
"""A node that serves no clients for so long says for whom it waits, and again ten times as late."""


class Node:
    """One node's core.

    Args:
        me: This process.
        acceptor_inc: The identity of its vote if there is no saved one.
        saved: The last blob that was persisted, if there is one.
        draw: Uniform in [0, 1).
        disk_traffic: What the disk with pages did until now, for the status.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        me: Incarnation,
        acceptor_inc: int,
        saved: bytes | None,
        draw: Callable[[], float],
        disk_traffic: Callable[[], Traffic] = Traffic,
    ) -> None:
        self.me = me
        self._expected = settings.expected
        limits, timing = settings.limits, settings.timing
        self.storeroom = Storeroom(limits, disk_traffic, pages_bytes_max=settings.pages_bytes_max)
        self.member = Member(
            _member_settings(settings),
            me=me,
            acceptor_inc=acceptor_inc,
            saved=saved,
            draw=draw,
            make=self._make_machine,
            free_bytes=lambda: self.desks.free_bytes(),
        )
        self.desks = Desks(
            self.member,
            limits=limits,
            timing=timing,
            disk_trouble=lambda: self.storeroom.trouble,
        )
        self.definitions = Definitions(self.member, self.desks, declared=settings.queues)
        self._mending = Mending(MemberCopies(self.member), self.storeroom.pager)
        self._lobby = Lobby(me=me, limits=limits, timing=timing)
        self._waiting = WaitingRoom(timing.park_ms / 1000)
        status = StatusReport(
            settings=settings,
            member=self.member,
            desks=self.desks,
            definitions=self.definitions,
            lobby=self._lobby,
            waiting=self._waiting,
            storeroom=self.storeroom,
            mending=self._mending,
        )
        requests = Requests(
            member=self.member,
            desks=self.desks,
            definitions=self.definitions,
            waiting=self._waiting,
            limits=limits,
            status=status,
        )
        self._reception = Reception(
            lobby=self._lobby, desks=self.desks, waiting=self._waiting, requests=requests
        )
        self._sweep_at = 0.0
        self._started = False
        self._listening = False
        self._waits_said_at = inf
        self._stopping = False

    # What happens

    def handle(self, event: Event, now: float, outbox: list[Effect]) -> None:
        match event:
            case ClientData():
                self._reception.received(event, now, outbox)
            case ClientOpened():
                self._lobby.opened(event.connection, now, outbox)
            case ClientLost():
                self._reception.lost(event.connection, now)
            case DiskDone():
                self.storeroom.handle(event, now)
            case Stop():
                self._stop(outbox)
            case Wake():
                self._wake(now, outbox)
            case _:
                self._member(lambda peers: self.member.handle(event, now, peers), now, outbox)

    def end_turn(self, now: float, outbox: list[Effect]) -> None:
        """The end of a turn of the loop in which something happened."""
        self._mending.end_turn(now, outbox)
        self.storeroom.hand_over(self.desks)
        self.desks.end_turn(now, outbox)
        for damaged in self.storeroom.end_turn(now, self.desks.used_bytes(), outbox):
            self._mending.damaged(damaged, now)
        self._member(lambda peers: self.member.end_turn(now, peers), now, outbox)

    def next_deadline(self) -> float | None:
        deadlines = (
            self._sweep_at,
            self.member.next_deadline(),
            self.desks.next_deadline(),
            self._lobby.next_deadline(),
            self._waiting.next_deadline(),
            self.storeroom.next_deadline(),
            self._mending.next_deadline(),
        )
        return min(at for at in deadlines if at is not None)

    # Peers

    def _member(
        self, step: Callable[[list[PeerEffect]], None], now: float, outbox: list[Effect]
    ) -> None:
        effects: list[PeerEffect] = []
        step(effects)
        outbox += effects
        for news in self.member.take_news():
            self._news(news, now, outbox)
        if self.definitions.advanced(now):
            self._reception.try_again(now, outbox)

    def _news(self, news: News, now: float, outbox: list[Effect]) -> None:
        match news:
            case stream_says.Released():
                self.desks.released(news, now, outbox)
            case MapLearned():
                self._map_learned(now, outbox)
            case stream_says.Promoted():
                self.desks.promoted(news, now, outbox)
                if news.sid == CATALOG_SID:
                    self.definitions.promoted(news.gen, now)
                self._reception.try_again(now, outbox)
            case stream_says.Deposed():
                self._leave(news.sid, outbox)
            case stream_says.Lost():
                self._leave(news.sid, outbox)
                lost: dict[str, object] = {"sid": news.sid, "gen": news.gen}
                outbox.append(Log(Level.ERROR, "LOST: no copy of a stream is left", lost))
            case stream_says.CopyVoid():
                void: dict[str, object] = {"sid": news.sid, "why": news.sentence}
                outbox.append(Log(Level.ERROR, "this node's copy of a stream is void", void))
            case stream_says.Joined():
                joined: dict[str, object] = {"sid": news.sid, "epoch": news.epoch}
                outbox.append(Log(Level.INFO, "follows a stream", joined))
            case ReleasedFound():
                caught_up = (news.gen, news.seq) if news.owned else None
                self._waiting.found(news.req, caught_up)
                if news.owned:
                    self._reception.try_again(now, outbox)
            case Vouched():
                self._waiting.decided(news.token, news.result)
                self._reception.try_again(now, outbox)
            case Forwarded():
                self.definitions.forwarded(news, now, outbox)
            case SaidAside():
                self._mending.heard(news, now, outbox)
            case _:
                assert_never(news)

    def _map_learned(self, now: float, outbox: list[Effect]) -> None:
        value = self.member.map
        assert value is not None
        self._lobby.changed(topology_of(value, self.member.ver), outbox)
        self.desks.map_learned(value)
        self._mending.map_changed(now)
        if not self._listening and is_live(value, self.me) and CATALOG_SID in value.streams:
            self._listening = True
            outbox.append(ListenForClients())
        self._reception.try_again(now, outbox)

    def _leave(self, sid: int, outbox: list[Effect]) -> None:
        self.desks.leave(sid, outbox)
        if sid == CATALOG_SID:
            self.definitions.left()

    # Time

    def _wake(self, now: float, outbox: list[Effect]) -> None:
        if not self._started:
            # The first of all events: now the others are looked for.
            self._started = True
            self._waits_said_at = now + WAITS_SAID_S
            self._member(lambda peers: self.member.start(now, peers), now, outbox)
        self._member(lambda peers: self.member.handle(Wake(), now, peers), now, outbox)
        self.desks.wake(now, outbox)
        self._waiting.expire(now, outbox)
        self._lobby.wake(now, outbox)
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_S
        self.desks.sweep(now, outbox)
        self.storeroom.sweep(self.member)
        self.definitions.sweep(now, outbox)
        self.desks.look_around(self._lobby, now, outbox)
        self._reception.try_again(now, outbox)
        self._say_that_it_waits(now, outbox)

    def _say_that_it_waits(self, now: float, outbox: list[Effect]) -> None:
        if self._listening or now < self._waits_said_at:
            return
        self._waits_said_at = now + 10 * WAITS_SAID_S
        linked = self.member.links.linked_as
        others = [node for node in self._expected if node != self.me.node]
        fields: dict[str, object] = {"no_link_to": [n for n in others if linked(n) is None]}
        outbox.append(Log(Level.WARNING, "serves no clients yet: waits for other nodes", fields))

    def _stop(self, outbox: list[Effect]) -> None:
        if not self._stopping:
            self._stopping = True
            self._reception.stop(outbox)
            outbox.append(Exit(0, "stopped"))

    def _make_machine(self, sid: int, gen: int) -> Catalog | PostOffice:
        return Catalog(sid, gen) if sid == CATALOG_SID else self.storeroom.new_office(sid, gen)


def _member_settings(settings: NodeSettings) -> MemberSettings:
    limits, timing = settings.limits, settings.timing
    return MemberSettings(
        cluster=settings.cluster,
        expected=settings.expected,
        addresses=settings.peers,
        presence=Presence(settings.peer_address, settings.group_address, settings.locators),
        settings=Settings(
            failover_peers=settings.failover_peers,
            min_copies=settings.min_copies,
            on_too_few_copies=settings.on_too_few_copies,
            silence_ms=timing.silence_ms,
            grace_ms=timing.grace_ms,
        ),
        heartbeat_s=timing.heartbeat_ms / 1000,
        stream_limits=StreamLimits(
            window_bytes=limits.window_bytes,
            window_ops=limits.window_ops,
            repair_bytes=min(limits.repair_bytes, limits.budget_bytes // REPAIR_PART),
        ),
    )
