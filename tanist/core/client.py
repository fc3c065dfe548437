"""The client's core: everything a client does, but for moving bytes and reading clocks.

Theory of operation
-------------------
A client enters the cluster at any node, learns the topology there, and keeps a connection
to each node that it needs. What it has to ask of the owner of a stream is an errand; the
router takes it there, however often the owner changes. Producers and legs are errands that
stay: they hold a channel, and look for another when it ends.

    event ─▶ link ─▶ errand or channel ─▶ marked as changed ─▶ settled at the end of `handle`

Whatever happened, each call of `handle` ends the same way: who changed is settled (batches
and settlements leave, credit is given), errands are sent on their way, connections are kept.

Rules
-----
1. Nothing is done on a guess: only a node's answer says who owns what, and per stream the
   highest (gen, epoch) counts.
2. What was sent and not answered is kept, and repeated to whoever is the owner then.
3. A turn of ours that was late by `SILENCE_S` ends all connections, unread.

Reference: docs/wire-format.md, section on client frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from tanist.core.ask import Answered, Ask, error_of
from tanist.core.channel import Channel
from tanist.core.consumer import ConsumerCore
from tanist.core.errand import Errand, Stage
from tanist.core.events import (
    DialFailed,
    Effect,
    Event,
    Hangup,
    Lost,
    Opened,
    Received,
    Resolve,
    Tell,
    Wake,
)
from tanist.core.leg import Leg
from tanist.core.link import Link, State
from tanist.core.links import Links
from tanist.core.prefetch import Prefetch
from tanist.core.producer import ProducerCore, channel_error
from tanist.core.router import Router
from tanist.core.settings import CLOSING_S, SILENCE_S, ClientSettings
from tanist.core.topology import CATALOG_SID, KnownTopology
from tanist.errors import (
    BrokenError,
    ClosedError,
    Error,
    FailoverTimeout,
    RemoteProtocolError,
)
from tanist.events import ConnectionLost
from tanist.wire import control
from tanist.wire.frames import Frame, Verb


class ClientCore:
    """One client of a cluster.

    Args:
        locators: Where to enter, "host:port" each.
        session: 128 bits as hexadecimal digits, never used before.
        wall_offset_s: What to add to `now` for the time of day, which messages carry.
        draw: Uniform in [0, 1).
        now: Of the same clock as that of all events.
    """

    def __init__(
        self,
        locators: list[str],
        *,
        session: str,
        settings: ClientSettings,
        wall_offset_s: float,
        draw: Callable[[], float],
        now: float,
    ) -> None:
        self.settings = settings
        self.topology = KnownTopology()
        self.links = Links(
            locators, session=session, settings=settings, topology=self.topology, draw=draw
        )
        self._router = Router(
            self.links, self.topology, failover_timeout_s=settings.failover_timeout_s
        )
        self._wall_offset_s = wall_offset_s
        self._draw = draw
        self._turn_at = now
        self._producers: dict[ProducerCore, None] = {}
        self._consumers: dict[ConsumerCore, None] = {}
        self._disturbed = False
        """Something happened to links or errands."""
        self._changed: dict[ProducerCore | ConsumerCore, None] = {}
        self._catalog: control.Known = (0, 0)
        self._looked_for: set[ProducerCore | ConsumerCore] = set()
        """Whose queues are asked for by name, as their ids may have gone."""
        self._entered = False
        self._entering: list[tuple[object, float]] = []
        self._entry: Link | None = None
        self._here = 0
        self._closing: list[object] = []
        self._closed_by: float | None = None
        self._next_dial_at: float | None = None
        self._look_at: float | None = None
        """When links and errands are to be looked at, if nothing happens to them before."""

    # The application's side: what is asked for takes effect with the next event

    @property
    def closed(self) -> bool:
        return self._closed_by is not None

    @property
    def here(self) -> int:
        """The post office that new producers publish to; 0 before the client has entered."""
        offices = self.topology.offices
        return self._here if self._here in offices else min(offices, default=0)

    @property
    def entry(self) -> str:
        """The node by which the client is in the cluster; empty if it is not."""
        link = self.links.entry
        return link.node if link is not None else ""

    @property
    def has_work(self) -> bool:
        """Calls were made that wait for an event to take effect."""
        return self._disturbed or bool(self._changed)

    def enter(self, token: object, now: float) -> None:
        """Resolve `token` once a node has said welcome."""
        self._disturbed = True
        self._entering.append((token, now + self.settings.failover_timeout_s))

    def declare(self, token: object, request: control.Declare, now: float) -> None:
        """Resolved with the `QueueInfo`. With spread one and no place given, the queue is
        placed where this client entered."""
        self._check_open()
        if request.spread == "one" and not request.at:
            request = control.Declare(
                req=0,
                queue=request.queue,
                spread="one",
                at=self.here,
                settings=request.settings,
            )
        self._ask(request, CATALOG_SID, _queue_to(token), now, queue=request.queue)

    def delete(self, token: object, queue: str, now: float) -> None:
        self._check_open()
        request = control.Delete(req=0, queue=queue)
        then = _done_to(token)
        self._ask(request, CATALOG_SID, then, now, queue=queue, missing_is_done=True)

    def describe(self, token: object, queue: str, now: float) -> None:
        """Resolved with the `QueueInfo`."""
        self._check_open()
        self._ask(control.Describe(req=0, queue=queue), None, _queue_to(token), now, queue=queue)

    def list_queues(self, token: object, now: float, *, after: str = "") -> None:
        """Resolved with the `Done` that has a page of queues: those whose names follow."""
        self._check_open()
        self._ask(control.List(req=0, after=after), None, _done_to(token), now)

    def stat(self, token: object, info: control.QueueInfo, sid: int, now: float) -> None:
        """Resolved with the `Done` that has the `PartStat` of one post office."""
        self._check_open()
        request = control.Stat(req=0, sid=sid, queue_id=info.id)
        self._ask(request, sid, _done_to(token), now, queue=info.name)

    def purge(
        self, token: object, info: control.QueueInfo, sid: int, now: float, *, lost: bool = False
    ) -> None:
        """Resolved with the `Done` that has the number of messages.

        With `lost` only those go that no copy can read any more.
        """
        self._check_open()
        request = control.Purge(req=0, sid=sid, queue_id=info.id, lost=lost)
        self._ask(request, sid, _done_to(token), now, queue=info.name)

    def status(self, token: object, now: float) -> None:
        """Resolved with the `Done` that has one node's status."""
        self._check_open()
        self._ask(control.Status(req=0), None, _done_to(token), now)

    def queue_status(self, token: object, now: float, *, after: str) -> None:
        """Resolved with the `Done` that has a page of what one node has of each queue."""
        self._check_open()
        self._ask(control.Status(req=0, queues=True, after=after), None, _done_to(token), now)

    def declare_lost(self, token: object, sid: int, gen: int, now: float) -> None:
        """Resolved with a `Done` when that life of the stream is over."""
        self._check_open()
        request = control.DeclareLost(req=0, sid=sid, gen=gen)
        self._ask(request, None, _done_to(token), now)

    def offices_of(self, info: control.QueueInfo) -> list[int]:
        """The post offices that may hold a part of this queue."""
        return [info.sid] if info.spread == "one" else self.topology.offices

    def open_producer(self, token: object, queue: str, *, producer: str, now: float) -> None:
        """Resolved with the `ProducerCore` when it is open."""
        self._check_open()

        def described(answer: control.Done | Error, now: float, outbox: list[Effect]) -> None:
            info = _info_or_refuse(answer, token, outbox)
            if info is None:
                return
            core = ProducerCore(
                sid=info.sid if info.spread == "one" else self.here,
                info=info,
                producer=producer,
                settings=self.settings,
                wall_offset_s=self._wall_offset_s,
                known=lambda: self._catalog,
                changed=self._has_changed,
                missing=self._missing,
                opened_token=token,
                draw=self._draw,
                now=now,
            )
            self._producers[core] = None
            self._router.add(core)

        self._ask(control.Describe(req=0, queue=queue), None, described, now, queue=queue)

    def open_consumer(
        self,
        token: object,
        queue: str,
        *,
        consumer: str,
        prefetch_messages: int,
        prefetch_bytes: int,
        auto_ack: bool,
        now: float,
    ) -> None:
        """Resolved with the `ConsumerCore` when each of its legs has had a first answer."""
        self._check_open()

        def described(answer: control.Done | Error, now: float, outbox: list[Effect]) -> None:
            info = _info_or_refuse(answer, token, outbox)
            if info is None:
                return
            core = ConsumerCore(
                info=info,
                consumer=consumer,
                prefetch=Prefetch(messages_max=prefetch_messages, bytes_max=prefetch_bytes),
                auto_ack=auto_ack,
                known=lambda: self._catalog,
                changed=self._has_changed,
                missing=self._missing,
                opened_token=token,
                draw=self._draw,
            )
            self._consumers[core] = None
            self._place_legs(core, now, outbox)

        self._ask(control.Describe(req=0, queue=queue), None, described, now, queue=queue)

    def close_channels(
        self, core: ProducerCore | ConsumerCore, now: float, outbox: list[Effect]
    ) -> None:
        """Close a producer or a consumer. What it has unanswered gets `ClosedError`."""
        if isinstance(core, ProducerCore):
            core.close(outbox)
            core.fail(ClosedError(f"the producer for {core.queue!r} was closed"), now, outbox)
            self._router.remove(core)
            self._producers.pop(core, None)
        else:
            core.fail(ClosedError(f"the consumer of {core.queue!r} was closed"), now, outbox)
            self._consumers.pop(core, None)
        core.settle(now, outbox)
        self._changed.pop(core, None)

    def close(self, token: object, now: float, outbox: list[Effect]) -> None:
        """End everything. `token` is resolved soon, whatever the nodes do."""
        self._disturbed = True
        self._closing.append(token)
        if self._closed_by is not None:
            return
        self._closed_by = now + CLOSING_S
        cores: list[ProducerCore | ConsumerCore] = [*self._producers, *self._consumers]
        for core in cores:
            self.close_channels(core, now, outbox)
        error = ClosedError("the client was closed")
        self._router.end(error, now, outbox)
        for entering, _ in self._entering:
            outbox.append(Resolve(entering, None, error))
        self._entering.clear()
        for link in self.links:
            if link.state is State.OPEN:
                link.ask(control.Close(req=0), link.told, outbox)
            else:
                self.links.hang_up(link, outbox)

    def _check_open(self) -> None:
        if self._closed_by is not None:
            raise ClosedError("the client is closed")

    def _ask(
        self,
        request: control.Request,
        sid: int | None,
        then: Answered,
        now: float,
        *,
        queue: str = "",
        missing_is_done: bool = False,
    ) -> None:
        ask = Ask(
            request,
            sid=sid,
            then=then,
            draw=self._draw,
            now=now,
            queue=queue,
            missing_is_done=missing_is_done,
        )
        self._router.add(ask)
        self._disturbed = True

    # Events

    def handle(self, event: Event, now: float, outbox: list[Effect]) -> None:
        late = now - self._turn_at >= SILENCE_S
        self._turn_at = now
        if late:
            self._was_late(now, outbox)
        match event:
            case Received():
                link = self.links.get(event.connection)
                if link is not None:
                    self._received(link, event.data, now, outbox)
            case Opened():
                self._disturbed = True
                link = self.links.get(event.connection)
                if link is not None:
                    self.links.opened(link, now, outbox)
                else:
                    outbox.append(Hangup(event.connection))
            case DialFailed() | Lost():
                link = self.links.get(event.connection)
                if link is not None:
                    self._lost(link, event.why, now, outbox)
            case Wake():
                pass
            case _:
                assert_never(event)
        self._end(now, outbox)

    def next_deadline(self) -> float | None:
        """When to say `Wake`, if nothing happens before."""
        if self._closed_by is not None:
            return self._closed_by if self._closing else None
        deadline = self._look_at
        for consumer in self._consumers:
            at = consumer.next_deadline()
            if at is not None and (deadline is None or at < deadline):
                deadline = at
        return deadline

    def _was_late(self, now: float, outbox: list[Effect]) -> None:
        for link in self.links:
            self.links.hang_up(link, outbox)
            self._abandon(link, f"our own turn was {SILENCE_S:g} s late", now, outbox)

    def _end(self, now: float, outbox: list[Effect]) -> None:
        """What every call of `handle` ends with."""
        if self._closed_by is not None:
            self._disturbed = False
            self._end_closing(now, outbox)
            return
        for consumer in self._consumers:
            deadline = consumer.next_deadline()
            if deadline is not None and now >= deadline:
                self._has_changed(consumer)
        self._settle(now, outbox)
        # Links and errands are looked at if something happened to them or their time has come:
        # a turn in which batches, confirms and acks went by costs half as much without.
        due = self._look_at is None or now >= self._look_at
        if due or self._disturbed or self._router.busy:
            self._disturbed = False
            self._look(now, outbox)

    def _look(self, now: float, outbox: list[Effect]) -> None:
        """Keep links and errands going."""
        for link, why in self.links.silent(now):
            outbox.append(Hangup(link.connection))
            self._lost(link, why, now, outbox)
        self._router.pump(now, outbox)
        # Errands that failed or opened change those they are for.
        self._settle(now, outbox)
        self.links.heartbeats(now, outbox)
        self._keep_entry(now, outbox)
        deadlines = [
            self.links.next_deadline(now),
            self._router.next_deadline(),
            self._next_dial_at,
            *(until for _, until in self._entering),
        ]
        self._look_at = min((at for at in deadlines if at is not None), default=None)

    def _settle(self, now: float, outbox: list[Effect]) -> None:
        while self._changed:
            changed, self._changed = self._changed, {}
            for core in changed:
                core.settle(now, outbox)

    def _keep_entry(self, now: float, outbox: list[Effect]) -> None:
        for token, until in list(self._entering):
            if self._entered:
                self._entering.remove((token, until))
                outbox.append(Resolve(token))
            elif now >= until:
                self._entering.remove((token, until))
                sentence = f"no node could be entered (last: {self.links.last_error})"
                outbox.append(Resolve(token, None, FailoverTimeout(sentence)))
        self._next_dial_at = None
        if self.links.in_doubt(now):
            everywhere = self.links.everywhere()
            if not self.links.dial_one(everywhere, now, outbox):
                self._next_dial_at = self.links.earliest_dial(everywhere)

    def _end_closing(self, now: float, outbox: list[Effect]) -> None:
        assert self._closed_by is not None
        if not self._closing or (len(self.links) and now < self._closed_by):
            return
        for link in self.links:
            self.links.hang_up(link, outbox)
        tokens, self._closing = self._closing, []
        outbox.extend(Resolve(token) for token in tokens)

    # Links

    def _received(self, link: Link, data: bytes, now: float, outbox: list[Effect]) -> None:
        link.heard_at = now
        try:
            for frame in link.reader.feed(data):
                if link.state is State.GONE:
                    return
                if frame.verb >= Verb.PUBLISH:
                    channel = link.channels.get(frame.channel)
                    # Of a channel that has ended here: what comes late is nobody's.
                    if channel is not None:
                        channel.frame(frame, now, outbox)
                else:
                    self._control(link, frame, now, outbox)
        except RemoteProtocolError as error:
            says = control.Error(
                code=error.code, sentence=str(error), value=error.value, ends="connection"
            )
            link.say(says, outbox)
            outbox.append(Hangup(link.connection))
            self._lost(link, str(error), now, outbox)

    def _lost(self, link: Link, why: str, now: float, outbox: list[Effect]) -> None:
        self._disturbed = True
        was_open = link.state is State.OPEN
        self.links.gone(link, why, now)
        if was_open and self._closed_by is None:
            outbox.append(Tell(ConnectionLost(link.node, why, now)))
        self._leave(link, now, outbox)

    def _abandon(self, link: Link, why: str, now: float, outbox: list[Effect]) -> None:
        """We closed it; the node did nothing wrong, and may be dialed at once."""
        self._disturbed = True
        if link.node:
            outbox.append(Tell(ConnectionLost(link.node, why, now)))
        self._leave(link, now, outbox)

    def _leave(self, link: Link, now: float, outbox: list[Effect]) -> None:
        errands: list[Errand] = [*link.errands.values(), *link.channels.values()]
        link.errands.clear()
        link.channels.clear()
        for errand in dict.fromkeys(errands):
            if isinstance(errand, Channel):
                errand.interrupted(now, outbox)
            else:
                errand.hops = 0
                errand.wait(now)
        if self._entry is link:
            self._enter_by(self.links.entry)

    def _enter_by(self, link: Link | None) -> None:
        self._entry = link
        if link is not None:
            self._here = link.here

    # Control messages

    def _control(self, link: Link, frame: Frame, now: float, outbox: list[Effect]) -> None:
        self._disturbed = True
        message = control.read_control(frame)
        if link.state is not State.OPEN and not isinstance(
            message, control.Welcome | control.Error
        ):
            raise RemoteProtocolError(
                f"{Verb(frame.verb).name} came before WELCOME", code="bad_state"
            )
        match message:
            case control.Welcome():
                self._welcome(link, message, now, outbox)
            case control.Topology():
                self._learn(link, message, now, outbox)
            case control.Ping():
                link.say(control.Pong(time_ms=message.time_ms), outbox)
            case control.Pong():
                pass
            case control.Error():
                self._error(link, frame.channel, message, now, outbox)
            case control.Moved():
                self._moved(link, frame.channel, message, now, outbox)
            case control.Wait():
                errand = link.errands.get(message.req) or link.channels.get(frame.channel)
                if errand is not None:
                    held = message.why.startswith("held")
                    errand.waits(message.why, held=held, now=now, outbox=outbox)
            case control.Retry():
                errand = link.errands.get(message.req)
                if errand is not None:
                    errand.avoid.clear()
                    if errand.sid is None:
                        # Any node may answer this, and another one may know more.
                        errand.avoid.add(link.node)
                    errand.hops = 0
                    errand.wait(now, message.after_ms / 1000)
                    self._look_for_its_queue(errand, now)
            case control.Close():
                self._closed_by_node(link, frame.channel, message.reason, now, outbox)
            case control.Closed():
                if frame.channel == 0:
                    self.links.hang_up(link, outbox)
            case control.Done() | control.Opened():
                self._answer(link, message, now, outbox)
            case _:
                raise RemoteProtocolError(
                    f"{Verb(frame.verb).name} is not for a node to say", code="bad_state"
                )

    def _welcome(
        self, link: Link, welcome: control.Welcome, now: float, outbox: list[Effect]
    ) -> None:
        if link.state is not State.GREETING:
            raise RemoteProtocolError("WELCOME came twice", code="bad_state")
        for other in self.links.open_links():
            if other.node == welcome.node and other.inc != welcome.inc:
                # That process is dead, and its connection has not noticed yet.
                outbox.append(Hangup(other.connection))
                self._lost(other, "the node was started anew", now, outbox)
        if not self.links.welcome(link, welcome, now, outbox):
            return
        self._entered = True
        if self._entry is None:
            self._enter_by(link)
        if welcome.known is not None:
            self._learn(link, welcome.known, now, outbox)

    def _learn(self, link: Link, told: control.Topology, now: float, outbox: list[Effect]) -> None:
        link.told = (told.ver, told.hash)
        if not self.topology.learn(told):
            return
        self._router.topology_changed()
        for consumer in self._consumers:
            self._place_legs(consumer, now, outbox)
        for producer in self._producers:
            gone = producer.office not in told.streams
            if gone and self.here and producer.info.spread == "every":
                producer.rebind(self.here, now)
        for channel in self._channels():
            place = self.topology.place(channel.office)
            if (
                channel.stage is Stage.DONE
                and place is not None
                and place.life > (channel.gen, channel.epoch)
            ):
                channel.interrupted(now, outbox)

    def _channels(self) -> list[Channel]:
        legs = [leg for consumer in self._consumers for leg in consumer.legs.values()]
        return [*self._producers, *legs]

    def _place_legs(self, consumer: ConsumerCore, now: float, outbox: list[Effect]) -> None:
        for leg in consumer.place_legs(self.topology.offices, now, outbox):
            self._router.add(leg)

    def _answer(
        self,
        link: Link,
        answer: control.Done | control.Opened,
        now: float,
        outbox: list[Effect],
    ) -> None:
        errand = link.errands.get(answer.req)
        if errand is None:
            return  # Whoever asked has given up.
        if isinstance(answer, control.Done) and answer.catalog is not None:
            self._catalog = max(self._catalog, answer.catalog)
        if isinstance(answer, control.Opened):
            if not isinstance(errand, Channel):
                raise RemoteProtocolError("OPENED answers no OPEN", code="bad_state")
            opened = self.topology.opened(
                errand.office, answer.gen, answer.epoch, link.locator, link.node
            )
            if not opened:
                # A deposed owner, late: what it gave is worth nothing. It is not told CLOSE: it
                # may not know yet, and would return what we hold, with effect for its heir.
                errand.hop(now, away_from=link.node)
                return
        elif isinstance(errand, Channel):
            raise RemoteProtocolError("DONE answers an OPEN", code="bad_state")
        errand.answered(answer, now, outbox)

    def _moved(
        self, link: Link, number: int, moved: control.Moved, now: float, outbox: list[Effect]
    ) -> None:
        if moved.known is not None:
            self._learn(link, moved.known, now, outbox)
        errand = link.errands.get(moved.req)
        if errand is not None:
            if errand.sid is None:
                raise RemoteProtocolError("MOVED answers what any node can", code="bad_state")
            self._router.moved(errand, moved, now)
            return
        self.topology.moved(moved)
        channel = link.channels.get(number)
        if channel is not None:
            channel.interrupted(now, outbox)
            channel.avoid.add(link.node)

    def _error(
        self, link: Link, number: int, error: control.Error, now: float, outbox: list[Effect]
    ) -> None:
        if error.ends == "connection":
            outbox.append(Hangup(link.connection))
            self._lost(link, f"{error.code}: {error.sentence}", now, outbox)
            return
        errand = link.errands.get(error.req) if error.req else None
        if errand is not None:
            if error.code == "replaced":
                # An older connection asked than the one that still holds the channel.
                outbox.append(Hangup(link.connection))
                self._lost(link, error.sentence, now, outbox)
            elif error.retryable:
                errand.pause(now)
            else:
                queue = errand.queue if isinstance(errand, Ask | Channel) else ""
                errand.refused(error_of(error, queue), now, outbox)
            return
        channel = link.channels.get(number)
        if channel is None:
            return
        fatal = channel_error(error, channel.queue)
        if fatal is None:
            channel.interrupted(now, outbox)
            channel.wait(now, channel.backoff.next_s())
        else:
            channel.refused(fatal, now, outbox)

    def _closed_by_node(
        self, link: Link, number: int, reason: str, now: float, outbox: list[Effect]
    ) -> None:
        if number == 0:
            outbox.append(Hangup(link.connection))
            self._lost(link, reason or "closed by the node", now, outbox)
            return
        channel = link.channels.get(number)
        if channel is not None:
            channel.interrupted(now, outbox)
            channel.wait(now, channel.backoff.next_s())

    # Queues whose id is not known

    def _missing(self, core: ProducerCore | ConsumerCore, now: float) -> bool:
        """The queue's id is of a catalog that was lost: ask, once, for the one it has now."""
        if not self._is_of_a_lost_catalog(core):
            return False
        old = core.info

        def described(answer: control.Done | Error, now: float, outbox: list[Effect]) -> None:
            if isinstance(answer, control.Done) and answer.queue is not None:
                if core.info is old and answer.queue.id != old.id:
                    core.renamed(answer.queue, now)
                    return
                answer = error_of(control.Error(code="not_found", sentence=""), core.info.name)
            if core.info is old:
                assert isinstance(answer, Error)
                core.fail(answer, now, outbox)

        if isinstance(core, ProducerCore):
            core.park()
        request = control.Describe(req=0, queue=core.info.name)
        self._ask(request, None, described, now, queue=core.info.name)
        return True

    def _look_for_its_queue(self, errand: Errand, now: float) -> None:
        """A node could not answer an open in time. It may be that it does not know the id, which
        is of a catalog that was lost, and that it cannot reach the node that would know: others
        can. What they say helps only if it is another id."""
        core = errand.consumer if isinstance(errand, Leg) else errand
        if not isinstance(core, ProducerCore | ConsumerCore) or core in self._looked_for:
            return
        if not self._is_of_a_lost_catalog(core):
            return
        old = core.info

        def described(answer: control.Done | Error, now: float, outbox: list[Effect]) -> None:
            self._looked_for.discard(core)
            if isinstance(answer, Error) or answer.queue is None or answer.queue.id == old.id:
                return
            if core.info is old and core.error is None:
                core.renamed(answer.queue, now)

        self._looked_for.add(core)
        request = control.Describe(req=0, queue=old.name)
        self._ask(request, None, described, now, queue=old.name)

    def _is_of_a_lost_catalog(self, core: ProducerCore | ConsumerCore) -> bool:
        return core.info.id >> 32 < max(self.topology.catalog_gen, self._catalog[0])

    def _has_changed(self, core: ProducerCore | ConsumerCore) -> None:
        self._changed[core] = None

    def check(self) -> None:
        """Verify every invariant. For tests and simulation."""
        for consumer in self._consumers:
            consumer.check()
        for link in self.links:
            assert link.state is not State.GONE
            for number, channel in link.channels.items():
                assert channel.number == number
                assert channel.link is link


def _queue_to(token: object) -> Answered:
    def then(answer: control.Done | Error, now: float, outbox: list[Effect]) -> None:
        info = _info_or_refuse(answer, token, outbox)
        if info is not None:
            outbox.append(Resolve(token, info))

    return then


def _done_to(token: object) -> Answered:
    def then(answer: control.Done | Error, now: float, outbox: list[Effect]) -> None:
        if isinstance(answer, Error):
            outbox.append(Resolve(token, None, answer))
        else:
            outbox.append(Resolve(token, answer))

    return then


def _info_or_refuse(
    answer: control.Done | Error, token: object, outbox: list[Effect]
) -> control.QueueInfo | None:
    if isinstance(answer, Error):
        outbox.append(Resolve(token, None, answer))
        return None
    if answer.queue is None:
        error = BrokenError("the node's answer names no queue")
        outbox.append(Resolve(token, None, error))
        return None
    return answer.queue
