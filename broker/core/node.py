"""A node: what its clients say, what its peers say, and which of the two it is told next.

Theory of operation
-------------------
The member (`replication.core.member`) keeps this node's copies of all streams. Where it is
the owner, a desk serves clients: one for each post office, one for the catalog. Everything
else here finds the right desk for a request, or says where it is:

    serves it ─▶ the desk · another node does ─▶ MOVED · nobody does yet ─▶ WAIT, then RETRY

A definition is looked up in this node's own copy of the catalog. What that does not have may
exist all the same: before `not_found` is said, the catalog's owner is asked how far it is,
and the copy must be there.

Rules
-----
1. Nothing is served from a shadow, nor before the adopted tail of a takeover is applied.
2. Every frame is checked against the connection's state first; an error in form ends the
   connection, after one ERROR.
3. A node that hears neither its in-sync set nor a majority sends its clients away.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Final, assert_never, cast

import msgspec

from broker.core.catalog import Catalog
from broker.core.catalog_desk import CatalogDesk
from broker.core.channels import ConsumerChannel, ProducerChannel
from broker.core.connection import Connection, State
from broker.core.desk import Desk
from broker.core.events import (
    ClientData,
    ClientLost,
    ClientOpened,
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
from broker.core.handout import Released
from broker.core.lobby import Lobby
from broker.core.post_office import PostOffice
from broker.core.settings import NodeSettings
from broker.core.status import status_of
from broker.core.topology import topology_of
from broker.core.waiting import Waiting, WaitingRoom
from replication.core import stream_events as stream_says
from replication.core.caretaker import Presence
from replication.core.clustermap import CATALOG_SID, Settings, is_live, wanted
from replication.core.identity import Incarnation
from replication.core.member import (
    Forwarded,
    MapLearned,
    Member,
    MemberSettings,
    News,
    ReleasedFound,
)
from replication.core.stream import ApplyFailed, StreamLimits
from tanist.errors import RemoteProtocolError
from tanist.wire.control import (
    Close,
    Closed,
    Declare,
    Delete,
    Describe,
    Done,
    Error,
    Hello,
    List,
    Message,
    Moved,
    OpenConsumer,
    OpenProducer,
    Ping,
    Pong,
    Purge,
    QueueInfo,
    Request,
    Stat,
    Status,
    read_control,
)
from tanist.wire.frames import CREDIT_BACK, Frame, Verb

SWEEP_S: Final = 0.25
"""How often waiting requests, definitions and isolation are looked at, besides at events."""
RECOVERY_S_MAX: Final = 10.0
"""After the catalog was lost, nobody is told `not_found` for so long, or until of each post
office the owner has said which queues have parts there."""
GRANT_BELOW: Final = 0.9
"""Publishers get credit while less than this share of the node's budget is used."""


class Definitions(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells the owner of the catalog."""

    gen: int
    """Of the catalog that it knows."""
    served: list[int]
    """The post offices that it owns."""
    declared: list[QueueInfo]
    """In its file."""
    parts: list[QueueInfo]
    """Those of which it has a part, and which the catalog does not know."""


_encode_definitions: Final = msgspec.msgpack.Encoder().encode
_decode_definitions: Final = msgspec.msgpack.Decoder(Definitions).decode


class Node:
    """One node's core.

    Args:
        me: This process.
        acceptor_inc: The identity of its vote if there is no saved one.
        saved: The last blob that was persisted, if there is one.
        draw: Uniform in [0, 1).
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        me: Incarnation,
        acceptor_inc: int,
        saved: bytes | None,
        draw: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.me = me
        limits, timing = settings.limits, settings.timing
        self.member = Member(
            MemberSettings(
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
                    repair_bytes=limits.repair_bytes,
                ),
            ),
            me=me,
            acceptor_inc=acceptor_inc,
            saved=saved,
            draw=draw,
            make=_make_machine,
            free_bytes=self._free_bytes,
        )
        self.lobby = Lobby(me=me, limits=limits, timing=timing)
        self.desks: dict[int, Desk] = {}
        self.catalog_desk: CatalogDesk | None = None
        self.waiting = WaitingRoom(timing.park_ms / 1000)
        self._questions = count(1)
        self._copies_here = 0
        """Of how many streams the map wants a copy on this node; they share the budget."""
        self._sweep_at = 0.0
        self._started = False
        self._listening = False
        self._stopping = False
        self._catalog_seen = (0, 0)
        self._catalog_gen_since = 0.0
        self._recovering_until: float | None = None
        self._reported: set[int] = set()
        """Post offices of which the queues are known since the catalog began anew."""
        self._cut_off = False

    # What happens

    def handle(self, event: Event, now: float, outbox: list[Effect]) -> None:
        match event:
            case ClientData():
                self._received(event, now, outbox)
            case ClientOpened():
                self.lobby.opened(event.connection, now, outbox)
            case ClientLost():
                self._client_lost(event.connection, now)
            case Stop():
                self._stop(outbox)
            case Wake():
                self._wake(now, outbox)
            case _:
                self._member(lambda peers: self.member.handle(event, now, peers), now, outbox)

    def end_turn(self, now: float, outbox: list[Effect]) -> None:
        """The end of a turn of the loop in which something happened."""
        for desk in self.desks.values():
            # Should it meet a bug, the stream says so when it is sealed, and the node ends.
            with suppress(ApplyFailed):
                desk.end_turn(now, outbox)
        self._member(lambda peers: self.member.end_turn(now, peers), now, outbox)

    def next_deadline(self) -> float | None:
        deadlines = [
            self._sweep_at,
            self.member.next_deadline(),
            self.lobby.next_deadline(),
            self.waiting.next_deadline(),
            *(desk.next_deadline() for desk in self.desks.values()),
        ]
        return min(at for at in deadlines if at is not None)

    def used_bytes(self) -> int:
        """What the budget is spent on: queues, kept segments, tails, parked publishes."""
        held = sum(stream.kept_bytes for stream in self.member.streams.values())
        queues = sum(
            stream.machine.bytes
            for stream in self.member.streams.values()
            if isinstance(stream.machine, PostOffice)
        )
        return held + queues + sum(desk.parked_bytes for desk in self.desks.values())

    def _free_bytes(self) -> int:
        left = self.settings.limits.budget_bytes - self.used_bytes()
        return max(0, left) // max(1, self._copies_here)

    def _grantable_bytes(self) -> int:
        """What publishers may still be given: credit that is out counts as used."""
        out = sum(desk.credit_out_bytes for desk in self.desks.values())
        budget = int(GRANT_BELOW * self.settings.limits.budget_bytes)
        return max(0, budget - self.used_bytes() - out)

    # Peers

    def _member(
        self, step: Callable[[list[PeerEffect]], None], now: float, outbox: list[Effect]
    ) -> None:
        effects: list[PeerEffect] = []
        step(effects)
        outbox += effects
        for news in self.member.take_news():
            self._news(news, now, outbox)
        self._catalog_advanced(now, outbox)

    def _news(self, news: News, now: float, outbox: list[Effect]) -> None:
        match news:
            case stream_says.Released():
                self._released(news, now, outbox)
            case MapLearned():
                self._map_learned(now, outbox)
            case stream_says.Promoted():
                self._promoted(news, now, outbox)
            case stream_says.Deposed():
                self._leave_desk(news.sid, outbox)
            case stream_says.Lost():
                self._lost(news, now, outbox)
            case stream_says.CopyVoid():
                fields = {"sid": news.sid, "why": news.sentence}
                outbox.append(Log(Level.ERROR, "this node's copy of a stream is void", fields))
            case stream_says.Joined():
                fields = {"sid": news.sid, "epoch": news.epoch}
                outbox.append(Log(Level.INFO, "follows a stream", fields))
            case ReleasedFound():
                caught_up = (news.gen, news.seq) if news.owned else None
                self.waiting.found(news.req, caught_up)
                if news.owned:
                    self._try_again(now, outbox)
            case Forwarded():
                self._forwarded(news, now, outbox)
            case _:
                assert_never(news)

    def _released(self, news: stream_says.Released, now: float, outbox: list[Effect]) -> None:
        # To a stream effects are opaque; ours are all put in by our desks.
        effects = cast("list[Released]", news.effects)
        if news.sid == CATALOG_SID:
            if self.catalog_desk is not None:
                self.catalog_desk.released(effects, outbox)
        elif news.sid in self.desks:
            self.desks[news.sid].released(effects, now, outbox)

    def _map_learned(self, now: float, outbox: list[Effect]) -> None:
        value = self.member.map
        assert value is not None
        self.lobby.changed(topology_of(value, self.member.ver), outbox)
        self._copies_here = sum(
            self.me in entry.isr or self.me.node in wanted(value, sid)
            for sid, entry in value.streams.items()
        )
        if not self._listening and is_live(value, self.me) and CATALOG_SID in value.streams:
            self._listening = True
            outbox.append(ListenForClients())
        self._try_again(now, outbox)

    def _promoted(self, news: stream_says.Promoted, now: float, outbox: list[Effect]) -> None:
        stream = self.member.streams[news.sid]
        outbox.append(
            Log(
                Level.INFO,
                "serves a stream",
                {"sid": news.sid, "epoch": news.epoch, "adopted_ops": news.adopted},
            )
        )
        machine = stream.machine
        if isinstance(machine, Catalog):
            self.catalog_desk = CatalogDesk(
                stream=stream, catalog=machine, limits=self.settings.limits
            )
            self._find_queues(news.gen, now)
        else:
            assert isinstance(machine, PostOffice)
            self.desks[news.sid] = Desk(
                stream=stream,
                office=machine,
                limits=self.settings.limits,
                timing=self.settings.timing,
                grantable_bytes=self._grantable_bytes,
                now=now,
            )
        self._try_again(now, outbox)

    def _leave_desk(self, sid: int, outbox: list[Effect]) -> None:
        if sid == CATALOG_SID:
            if self.catalog_desk is not None:
                self.catalog_desk.leave(outbox)
            self.catalog_desk = None
            self._recovering_until = None
            self.member.reticent.discard(CATALOG_SID)
            return
        desk = self.desks.pop(sid, None)
        if desk is not None:
            desk.leave(self._moved(sid, 0), outbox)

    def _lost(self, news: stream_says.Lost, now: float, outbox: list[Effect]) -> None:
        self._leave_desk(news.sid, outbox)
        outbox.append(
            Log(
                Level.ERROR, "LOST: no copy of a stream is left", {"sid": news.sid, "gen": news.gen}
            )
        )

    def _find_queues(self, gen: int, now: float) -> None:
        """This node owns the catalog. If that is a new one, nodes have parts of queues that it
        does not know. Whether it is, is not told to a node whose own copy begins with it."""
        known_gen, known_since = self._catalog_seen[0], self._catalog_gen_since
        if gen > 1 and (gen != known_gen or now < known_since + RECOVERY_S_MAX):
            self._recovering_until = now + RECOVERY_S_MAX
            self._reported.clear()
            self.member.reticent.add(CATALOG_SID)

    # Definitions

    @property
    def catalog(self) -> Catalog | None:
        """This node's copy of the catalog, if it has one by now."""
        stream = self.member.streams.get(CATALOG_SID)
        machine = stream.machine if stream is not None else None
        return machine if isinstance(machine, Catalog) else None

    def _catalog_advanced(self, now: float, outbox: list[Effect]) -> None:
        stream = self.member.streams.get(CATALOG_SID)
        if stream is None or self._catalog_seen == (stream.gen, stream.applied):
            return
        if stream.gen != self._catalog_seen[0]:
            self._catalog_gen_since = now
        self._catalog_seen = (stream.gen, stream.applied)
        self._try_again(now, outbox)

    def _drop_deleted(self, outbox: list[Effect]) -> None:
        """Drop the parts of deleted queues, once nothing can undo what deleted them."""
        stream, catalog = self.member.streams.get(CATALOG_SID), self.catalog
        if stream is None or catalog is None:
            return
        released = stream.release if self.catalog_desk is not None else stream.heard_release
        if released < stream.applied:
            return
        for desk in self.desks.values():
            for queue_id in desk.queue_ids():
                if catalog.was_deleted(queue_id):
                    desk.drop_queue(queue_id, outbox)

    def _tell_definitions(self, now: float, outbox: list[Effect]) -> None:
        catalog = self.catalog
        if catalog is None:
            return
        gen = self._catalog_seen[0]
        declared = [q for q in self.settings.queues if catalog.by_name(q.name) is None]
        parts = [
            queue
            for desk in self.desks.values()
            for queue in desk.office.queues()
            if catalog.by_id(queue.id) is None and not catalog.was_deleted(queue.id)
        ]
        after_a_loss = gen > 1 and now < self._catalog_gen_since + RECOVERY_S_MAX
        if not declared and not parts and not after_a_loss:
            return
        definitions = Definitions(gen, sorted(self.desks), declared, parts)
        if self.catalog_desk is not None:
            self._take_definitions(definitions, now)
        else:
            payload = _encode_definitions(definitions)
            peers: list[PeerEffect] = []
            self.member.forward(CATALOG_SID, payload, peers)
            outbox += peers

    def _forwarded(self, news: Forwarded, now: float, outbox: list[Effect]) -> None:
        if news.sid == CATALOG_SID and self.catalog_desk is not None:
            try:
                definitions = _decode_definitions(news.payload)
            except msgspec.MsgspecError as error:
                outbox.append(
                    Log(
                        Level.WARNING,
                        "dropped what a peer said of queues",
                        {"peer": str(news.who), "why": str(error)},
                    )
                )
                return
            self._take_definitions(definitions, now)

    def _take_definitions(self, told: Definitions, now: float) -> None:
        assert self.catalog_desk is not None
        self.catalog_desk.adopt(told.parts)
        if told.gen == self.catalog_desk.stream.gen:
            self._reported.update(told.served)
        if self._recovering(now):
            return  # They may exist. Who has them in its file says so again.
        for queue in told.declared:
            self.catalog_desk.add(
                Declare(
                    req=0,
                    queue=queue.name,
                    spread=queue.spread,
                    at=queue.sid,
                    settings=queue.settings,
                )
            )

    def _recovering(self, now: float) -> bool:
        """Whether the catalog was lost, and may still learn of queues that exist."""
        if self._recovering_until is None:
            return False
        value = self.member.map
        offices = set(value.streams) - {CATALOG_SID} if value is not None else {CATALOG_SID}
        if now >= self._recovering_until or offices <= self._reported:
            self._recovering_until = None
            return False
        return True

    # Clients

    def _received(self, event: ClientData, now: float, outbox: list[Effect]) -> None:
        connection = self.lobby.get(event.connection)
        if connection is None or connection.state is State.CLOSING:
            return
        connection.heard_at = now
        self._guarded(
            connection,
            lambda: self._frames(connection, event.data, now, outbox),
            outbox,
        )

    def _frames(
        self, connection: Connection, data: bytes, now: float, outbox: list[Effect]
    ) -> None:
        for frame in connection.reader.feed(data):
            connection.check_allowed(frame.verb)
            self._frame(connection, frame, now, outbox)

    def _guarded(
        self, connection: Connection, step: Callable[[], None], outbox: list[Effect]
    ) -> None:
        """What a client says may end its connection, and nothing else."""
        try:
            step()
        except ApplyFailed:
            # The stream says the rest when it is sealed: this node ends, and a peer takes over.
            sentence = "this node has a bug that your request met: another node takes over"
            connection.end(Error(code="internal", sentence=sentence, ends="connection"), outbox)
        except RemoteProtocolError as error:
            outbox.append(
                Log(
                    Level.WARNING,
                    "a client broke the protocol: its connection is closed",
                    {"client": connection.client, "why": str(error)},
                )
            )
            message = Error(
                code=error.code, sentence=str(error), value=error.value, ends="connection"
            )
            connection.end(message, outbox)

    def _frame(
        self, connection: Connection, frame: Frame, now: float, outbox: list[Effect]
    ) -> None:
        verb = frame.verb
        if verb >= Verb.PUBLISH:
            self._hot(connection, frame, outbox)
            return
        message = read_control(frame)
        match message:
            case Hello():
                self.lobby.hello(connection, message, outbox)
            case Ping():
                self.lobby.shown(connection, message.topology, outbox)
                pong = Pong(
                    time_ms=message.time_ms,
                    topology=(self.lobby.topology.ver, self.lobby.topology.hash),
                )
                connection.say(pong, outbox)
            case Pong():
                self.lobby.shown(connection, message.topology, outbox)
            case Close():
                self._close(connection, frame.channel, message, now, outbox)
            case Request():
                self.lobby.shown(connection, message.topology, outbox)
                waiting = self.waiting.new(connection, frame.channel, message, now)
                self._answer(waiting, now, outbox)
            case _:
                raise RemoteProtocolError(
                    f"{Verb(verb).name} is not for a client to say", code="bad_state"
                )

    def _hot(self, connection: Connection, frame: Frame, outbox: list[Effect]) -> None:
        channel = connection.channels.get(frame.channel)
        if channel is None:
            return  # Closed by us while this was on its way.
        if not channel.answered:
            raise RemoteProtocolError(
                f"{Verb(frame.verb).name} came on channel {frame.channel} before OPENED",
                code="bad_state",
            )
        desk = self.desks[channel.sid]
        match frame.verb:
            case Verb.PUBLISH if isinstance(channel, ProducerChannel):
                desk.publish(channel, frame.payload, outbox)
            case Verb.ACK | Verb.REQUEUE if isinstance(channel, ConsumerChannel):
                desk.settle(channel, frame.verb, frame.payload)
            case Verb.CREDIT if isinstance(channel, ConsumerChannel):
                back = bool(frame.flags & CREDIT_BACK)
                desk.consumer_credit(channel, frame.payload, back=back)
            case _:
                name = Verb(frame.verb).name
                raise RemoteProtocolError(
                    f"{name} does not belong on channel {frame.channel}", code="bad_state"
                )

    def _close(
        self,
        connection: Connection,
        number: int,
        message: Close,
        now: float,
        outbox: list[Effect],
    ) -> None:
        if number == 0:
            for each in list(connection.channels.values()):
                self.desks[each.sid].close(each, 0)
            connection.say(Closed(req=message.req), outbox)
            connection.close(outbox)
            return
        self.waiting.drop(connection, number)
        channel = connection.channels.get(number)
        if channel is None:
            connection.say(Closed(req=message.req), outbox, number)
        else:
            self.desks[channel.sid].close(channel, message.req)

    def _client_lost(self, number: int, now: float) -> None:
        connection = self.lobby.lost(number)
        if connection is not None:
            for channel in list(connection.channels.values()):
                self.desks[channel.sid].lost(channel, now)

    def _try_again(self, now: float, outbox: list[Effect]) -> None:
        if len(self.waiting):
            self.waiting.try_again(
                lambda waiting: self._guarded(
                    waiting.connection, lambda: self._answer(waiting, now, outbox), outbox
                )
            )

    def _answer(self, waiting: Waiting, now: float, outbox: list[Effect]) -> None:
        """Answer a request, or have it wait."""
        request, connection = waiting.request, waiting.connection
        match request:
            case OpenProducer() | OpenConsumer():
                self._open(waiting, request, now, outbox)
            case Stat() | Purge():
                desk = self._desk(waiting, request.sid, now, outbox)
                if desk is None:
                    return
                if isinstance(request, Stat):
                    desk.stat(connection, request.req, request.queue_id)
                else:
                    desk.purge(connection, request.req, request.queue_id)
            case Describe():
                self._describe(waiting, request, now, outbox)
            case List():
                self._list(waiting, request, now, outbox)
            case Declare() | Delete():
                if self._catalog_is_here(waiting, now, outbox):
                    assert self.catalog_desk is not None
                    known = self.catalog_desk.catalog.by_name(request.queue)
                    if known is None and self._recovering(now):
                        # It may exist. Declared now, it would be another one of that name.
                        self._recovers(waiting, outbox)
                    elif isinstance(request, Declare):
                        self.catalog_desk.declare(connection, request)
                    else:
                        self.catalog_desk.delete(connection, request)
            case Status():
                document = msgspec.Raw(msgspec.json.encode(status_of(self, now)))
                connection.say(Done(req=request.req, status=document), outbox)
            case _:
                raise RemoteProtocolError(
                    f"{type(request).__name__} is not for a client to say", code="bad_state"
                )

    def _open(
        self,
        waiting: Waiting,
        request: OpenProducer | OpenConsumer,
        now: float,
        outbox: list[Effect],
    ) -> None:
        connection, number = waiting.connection, waiting.channel
        if number == 0 or number in connection.channels:
            raise RemoteProtocolError(
                f"channel {number} cannot be opened: it is in use", code="bad_state"
            )
        if len(connection.channels) >= self.settings.limits.channels_max:
            most = self.settings.limits.channels_max
            error = Error(
                req=request.req,
                code="limit",
                sentence=f"a connection has at most {most} channels: open another connection",
                value=str(number),
                ends="channel",
            )
            connection.say(error, outbox, number)
            return
        desk = self._desk(waiting, request.sid, now, outbox)
        if desk is None:
            return
        catalog = self.catalog
        queue = catalog.by_id(request.queue_id) if catalog is not None else None
        if queue is None:
            self._unknown(waiting, f"of id {request.queue_id}", now, outbox)
        elif isinstance(request, OpenProducer):
            desk.open_producer(connection, number, request, queue, outbox)
        else:
            desk.open_consumer(connection, number, request, queue, outbox)

    def _desk(self, waiting: Waiting, sid: int, now: float, outbox: list[Effect]) -> Desk | None:
        """The desk that serves this; None: the client was told where it is, or waits."""
        desk = self.desks.get(sid)
        if desk is not None and self.member.owns(sid) and not self._cut_off:
            held = desk.stream.held
            if held is None:
                return desk
            # Its answer could not leave. Asked again and again, such would pile up.
            self.waiting.put(waiting, sid=sid, why=f"held: {held.why}", outbox=outbox)
            return None
        self._redirect(waiting, sid, now, outbox)
        return None

    def _catalog_is_here(self, waiting: Waiting, now: float, outbox: list[Effect]) -> bool:
        if self.catalog_desk is not None and self.member.owns(CATALOG_SID) and not self._cut_off:
            return True
        self._redirect(waiting, CATALOG_SID, now, outbox)
        return False

    def _redirect(self, waiting: Waiting, sid: int, now: float, outbox: list[Effect]) -> None:
        value = self.member.map
        if value is not None and value.streams and sid not in value.streams:
            sentence = f"there is no post office {sid}"
            error = Error(
                req=waiting.request.req,
                code="not_found",
                sentence=sentence,
                value=str(sid),
                retryable=True,
                ends="channel" if waiting.channel else "nothing",
            )
            waiting.connection.say(error, outbox, waiting.channel)
        elif self._cut_off or not self.member.owner_is_suspect(sid, now):
            moved = self._moved(sid, waiting.request.req)
            waiting.connection.say(moved, outbox, waiting.channel)
        else:
            self.waiting.put(waiting, sid=sid, why="a takeover is under way", outbox=outbox)

    def _moved(self, sid: int, req: int) -> Moved:
        value = self.member.map
        assert value is not None
        entry = value.streams[sid]
        node = value.nodes.get(entry.owner.node)
        known = node is not None and entry.owner != self.me and not self._cut_off
        return Moved(
            req=req,
            sid=sid,
            locators=list(node.locators) if node is not None and known else [],
            gen=entry.gen,
            epoch=entry.epoch,
        )

    # Asking for definitions

    def _describe(
        self, waiting: Waiting, request: Describe, now: float, outbox: list[Effect]
    ) -> None:
        catalog = self.catalog
        queue = catalog.by_name(request.queue) if catalog is not None else None
        if queue is None:
            self._unknown(waiting, repr(request.queue), now, outbox)
        else:
            known = self._catalog_seen
            self._from_catalog(waiting, Done(req=request.req, queue=queue, catalog=known), outbox)

    def _list(self, waiting: Waiting, request: List, now: float, outbox: list[Effect]) -> None:
        catalog = self.catalog
        if catalog is None or (self.catalog_desk is not None and self._recovering(now)):
            self._recovers(waiting, outbox)
            return
        done = Done(req=request.req, queues=catalog.queues(), catalog=self._catalog_seen)
        self._from_catalog(waiting, done, outbox)

    def _from_catalog(self, waiting: Waiting, message: Message, outbox: list[Effect]) -> None:
        """Say what our copy says, as soon as everything that it rests on is released."""
        stream = self.member.streams[CATALOG_SID]
        if self.catalog_desk is not None:
            self.catalog_desk.say(waiting.connection, message, waiting.channel)
        elif stream.heard_release >= stream.applied:
            waiting.connection.say(message, outbox, waiting.channel)
        else:
            self.waiting.put(
                waiting, sid=CATALOG_SID, why="the catalog is not released", outbox=outbox
            )

    def _unknown(self, waiting: Waiting, what: str, now: float, outbox: list[Effect]) -> None:
        """Our copy does not have it. Whether it exists is for the catalog's owner to say."""
        error = Error(
            req=waiting.request.req,
            code="not_found",
            sentence=f"there is no queue {what}",
            value=what.strip("'"),
            ends="channel" if waiting.channel else "nothing",
        )
        if self.catalog_desk is not None and self.member.owns(CATALOG_SID):
            if self._recovering(now):
                self._recovers(waiting, outbox)
            else:
                self.catalog_desk.say(waiting.connection, error, waiting.channel)
            return
        if waiting.caught_up is not None and self._catalog_seen >= waiting.caught_up:
            self._from_catalog(waiting, error, outbox)
            return
        if waiting.asked is None and waiting.caught_up is None:
            question = next(self._questions)
            peers: list[PeerEffect] = []
            if self.member.ask_released(question, CATALOG_SID, peers):
                waiting.asked = question
            outbox += peers
        self.waiting.put(waiting, sid=CATALOG_SID, why="asking the catalog's owner", outbox=outbox)

    def _recovers(self, waiting: Waiting, outbox: list[Effect]) -> None:
        why = "the catalog was lost and is put together again"
        self.waiting.put(waiting, sid=CATALOG_SID, why=why, outbox=outbox)

    # Time

    def _wake(self, now: float, outbox: list[Effect]) -> None:
        if not self._started:
            # The first of all events: now the others are looked for.
            self._started = True
            self._member(lambda peers: self.member.start(now, peers), now, outbox)
        self._member(lambda peers: self.member.handle(Wake(), now, peers), now, outbox)
        for desk in self.desks.values():
            at = desk.next_deadline()
            if at is not None and now >= at:
                desk.wake(now, outbox)
        self.waiting.expire(now, outbox)
        self.lobby.wake(now, outbox)
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_S
        for desk in self.desks.values():
            desk.wake(now, outbox)
        if self._recovering(now):
            self.member.reticent.add(CATALOG_SID)
        else:
            self.member.reticent.discard(CATALOG_SID)
        self._drop_deleted(outbox)
        self._tell_definitions(now, outbox)
        self._look_around(now, outbox)
        self._try_again(now, outbox)

    def _look_around(self, now: float, outbox: list[Effect]) -> None:
        cut_off = any(self.member.cut_off(sid, now) for sid in self.desks)
        if cut_off and not self._cut_off:
            self._cut_off = True
            outbox.append(Log(Level.WARNING, "cut off from the others: clients are sent away", {}))
            for connection in self.lobby:
                for channel in list(connection.channels.values()):
                    self.desks[channel.sid].lost(channel, now, sent_away=True)
                for sid in self.desks:
                    connection.say(self._moved(sid, 0), outbox)
                connection.close(outbox)
        elif self._cut_off and not cut_off:
            self._cut_off = False
            outbox.append(Log(Level.INFO, "hears the others again", {}))

    def _stop(self, outbox: list[Effect]) -> None:
        if self._stopping:
            return
        self._stopping = True
        sentence = "this node is being stopped: go to another one"
        for connection in self.lobby:
            connection.end(
                Error(code="shutting_down", sentence=sentence, retryable=True, ends="connection"),
                outbox,
            )
        outbox.append(Exit(0, "stopped"))


def _make_machine(sid: int, gen: int) -> Catalog | PostOffice:
    return Catalog(sid, gen) if sid == CATALOG_SID else PostOffice(sid, gen)
