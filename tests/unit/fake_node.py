"""A cluster in memory that speaks the real wire format, for tests of the client.

It keeps the rules that a client can see (numbers, credit, holders, epochs) and none of what
makes a cluster safe. A test scripts it: it moves owners, kills nodes, and may take any frame
out of a node's hands with `intercept`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from tanist.wire import control, hot
from tanist.wire.batch import IN_DOUBT, Batch, seal
from tanist.wire.frames import CREDIT_BACK, Frame, FrameReader, Verb, frame
from tanist.wire.limits import FRAME_BYTES_MAX, MESSAGE_BYTES_MAX

Span = tuple[int, int]


@dataclass
class StoredMessage:
    body: bytes
    properties: bytes
    in_doubt: bool
    state: str = "ready"
    """ready, in flight, done"""
    number: int = 0
    holder: tuple[str, str] = ("", "")
    redelivered: bool = False
    attempts: int = 0


@dataclass
class Office:
    """One post office: the parts of its queues, by queue id."""

    sid: int
    owner: str
    gen: int = 1
    epoch: int = 1
    parts: dict[int, list[StoredMessage]] = field(default_factory=dict)
    producers: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(producer epoch, next n) by producer."""
    next_number: int = 1


@dataclass
class FakeChannel:
    connection: FakeConnection
    number: int
    sid: int
    queue_id: int
    client: str
    """The producer's or consumer's id."""
    epoch: int = 0
    credit: Span = (0, 0)
    used: Span = (0, 0)
    told_ready: bool = False
    is_consumer: bool = False

    @property
    def holder(self) -> tuple[str, str]:
        return (self.connection.session, self.client)


class FakeConnection:
    """One client connection of a node, with what it says to it."""

    def __init__(self, node: FakeNode, number: int) -> None:
        self.node = node
        self.number = number
        self.reader = FrameReader(FRAME_BYTES_MAX)
        self.session = ""
        self.dial = 0
        self.known: control.Ver | None = None
        self.channels: dict[int, FakeChannel] = {}
        self.out = bytearray()
        self.closed = False

    def say(self, message: control.Message, channel: int = 0) -> None:
        self.write(control.control_frame(message, channel))

    def hot(self, verb: Verb, channel: int, *parts: bytes | memoryview, flags: int = 0) -> None:
        self.write(frame(verb, channel, *parts, flags=flags))

    def write(self, parts: tuple[bytes | memoryview, ...]) -> None:
        if not self.closed:
            self.out += b"".join(parts)

    def take(self) -> bytes:
        """What was said since the last call."""
        out, self.out = bytes(self.out), bytearray()
        return out


Intercept = Callable[["FakeConnection", Frame], bool]


class FakeCluster:
    """Nodes, streams and queues.

    Attributes:
        copies: What confirms say.
    """

    def __init__(self, *nodes: str, post_offices: int = 1) -> None:
        self.nodes = {name: FakeNode(self, name, 7001 + i) for i, name in enumerate(nodes)}
        names = list(nodes)
        self.offices = {
            sid: Office(sid, names[(sid - 1) % len(names)]) for sid in range(1, post_offices + 1)
        }
        self.catalog_owner = names[0]
        self.catalog_gen = 1
        self.queues: dict[str, control.QueueInfo] = {}
        self.queues_a_page = 1_000
        self.next_queue = 1
        self.ver = 1
        self.copies = 3
        self.producer_credit: Span = (1000, 1 << 20)
        self.waits: set[int] = set()
        """Streams whose owner nobody knows: requests get WAIT, and no final answer."""

    @property
    def topology(self) -> control.Topology:
        streams = {
            0: control.Where(home=None, gen=self.catalog_gen, epoch=1, owner=self.catalog_owner)
        }
        for sid, office in self.offices.items():
            streams[sid] = control.Where(
                home=f"home{sid}", gen=office.gen, epoch=office.epoch, owner=office.owner
            )
        nodes = {name: [node.locator] for name, node in self.nodes.items() if node.listed}
        return control.Topology(ver=self.ver, hash=f"h{self.ver}", nodes=nodes, streams=streams)

    def lose_the_catalog(self, queue: str) -> control.QueueInfo:
        """It begins anew, and the queue is declared again: with another id."""
        del self.queues[queue]
        self.catalog_gen += 1
        self.ver += 1
        info = self.add_queue(queue)
        self.push()
        return info

    def add_queue(
        self, name: str, *, spread: str = "every", sid: int = 0, gen: int | None = None
    ) -> control.QueueInfo:
        queue_id = (self.catalog_gen if gen is None else gen) << 32 | self.next_queue
        self.next_queue += 1
        info = msgspec.convert(
            {"id": queue_id, "name": name, "spread": spread, "sid": sid}, control.QueueInfo
        )
        self.queues[name] = info
        return info

    def by_id(self, queue_id: int) -> control.QueueInfo | None:
        return next((info for info in self.queues.values() if info.id == queue_id), None)

    def put(self, queue: str, *bodies: bytes, sid: int = 1) -> None:
        """Store messages without a producer, and hand them out."""
        part = self.offices[sid].parts.setdefault(self.queues[queue].id, [])
        part += [StoredMessage(body, b"", in_doubt=False) for body in bodies]
        self.hand_out(sid)

    def move(self, sid: int, to: str, *, gen: int | None = None, push: bool = True) -> None:
        """Another node owns this post office from now on; with a new `gen`, it is empty."""
        office = self.offices[sid]
        before = self.nodes[office.owner]
        office.owner = to
        office.epoch += 1
        if gen is not None:
            office.gen = gen
            office.parts.clear()
            office.producers.clear()
        self.ver += 1
        if before.alive:
            for connection in before.open_connections():
                for channel in [c for c in connection.channels.values() if c.sid == sid]:
                    del connection.channels[channel.number]
                    connection.say(before.moved(sid, 0), channel.number)
        if push:
            self.push()

    def push(self) -> None:
        """Tell all clients the topology."""
        for node in self.nodes.values():
            for connection in node.open_connections():
                if node.alive and connection.session:
                    connection.say(self.topology)

    def bodies(self, queue: str, sid: int = 1) -> list[bytes]:
        """What the post office has stored of this queue, in order, settled or not."""
        part = self.offices[sid].parts.get(self.queues[queue].id, [])
        return [message.body for message in part]

    def states(self, queue: str, sid: int = 1) -> list[str]:
        part = self.offices[sid].parts.get(self.queues[queue].id, [])
        return [message.state for message in part]

    # Handing out

    def legs(self, sid: int, queue_id: int) -> list[FakeChannel]:
        owner = self.nodes[self.offices[sid].owner]
        return [
            channel
            for connection in owner.open_connections()
            for channel in connection.channels.values()
            if (channel.is_consumer, channel.sid, channel.queue_id) == (True, sid, queue_id)
        ]

    def hand_out(self, sid: int) -> None:
        """Deliver what waits to legs with credit, a run each; tell READY to one without."""
        office = self.offices[sid]
        for queue_id, part in office.parts.items():
            legs = self.legs(sid, queue_id)
            for leg in legs:
                self._deliver_to(office, part, leg)
            if any(message.state == "ready" for message in part):
                for leg in legs:
                    if not leg.told_ready:
                        leg.told_ready = True
                        leg.connection.hot(Verb.READY, leg.number)

    def _deliver_to(self, office: Office, part: list[StoredMessage], leg: FakeChannel) -> None:
        while True:
            first = next((i for i, m in enumerate(part) if m.state == "ready"), None)
            if first is None or leg.used[0] >= leg.credit[0] or leg.used[1] >= leg.credit[1]:
                return
            flagged = part[first].redelivered
            run: list[StoredMessage] = []
            used_messages, used_bytes = leg.used
            for message in part[first:]:
                if (
                    message.state != "ready"
                    or message.redelivered != flagged
                    or used_messages >= leg.credit[0]
                    or used_bytes >= leg.credit[1]
                ):
                    break
                run.append(message)
                used_messages += 1
                used_bytes += len(message.body)
            leg.used = (used_messages, used_bytes)
            number = office.next_number
            office.next_number += 1
            for message in run:
                message.state, message.number, message.holder = "in flight", number, leg.holder
            properties = [m.properties for m in run] if run[0].properties else []
            data = seal(
                [m.body for m in run],
                properties,
                flags=0x42,
                first_n=1,
                time_ms=1234,
            )
            batch = Batch.parse(data)
            attempts = b"".join(m.attempts.to_bytes(2, "little") for m in run)
            parts = hot.deliver(
                number=number,
                first=first,
                time_ms=batch.time_ms,
                count=batch.count,
                part=1,
                flags=hot.REDELIVERED if flagged else 0,
                batch_flags=batch.flags,
                cut=batch.cut(0, batch.count),
                attempts=attempts if any(attempts) else b"",
            )
            leg.connection.hot(Verb.DELIVER, leg.number, *parts)


class FakeNode:
    """One node.

    Attributes:
        alive: A dead one refuses connections and says nothing.
        listed: Whether the topology has it.
        intercept: Sees each frame first; True: the node does nothing with it.
        other_port: At which it can be reached, too; the topology does not say so.
        seen: All frames that came, with the number of their connection.
    """

    def __init__(self, cluster: FakeCluster, name: str, port: int) -> None:
        self.cluster = cluster
        self.name = name
        self.port = port
        self.other_port = 0
        self.inc = 100 + port
        self.alive = True
        self.listed = True
        self.intercept: Intercept | None = None
        self.connections: dict[int, FakeConnection] = {}
        self.seen: list[tuple[int, Frame]] = []
        self.here = 0
        self.channels_max = 256

    @property
    def locator(self) -> str:
        return f"127.0.0.1:{self.port}"

    def open_connections(self) -> list[FakeConnection]:
        return [c for c in self.connections.values() if not c.closed]

    def accept(self, number: int) -> FakeConnection:
        connection = self.connections[number] = FakeConnection(self, number)
        return connection

    def kill(self) -> None:
        """Its process is gone."""
        self.alive = False
        for connection in self.connections.values():
            connection.closed = True

    def frames(self, verb: Verb) -> list[Frame]:
        """What came with this verb, on any connection."""
        return [received for _, received in self.seen if received.verb == verb]

    def messages(self, verb: Verb) -> list[control.Message]:
        return [control.read_control(received) for received in self.frames(verb)]

    def receive(self, connection: FakeConnection, data: bytes) -> None:
        for received in connection.reader.feed(data):
            self.seen.append((connection.number, received))
            if self.intercept is not None and self.intercept(connection, received):
                continue
            if not connection.closed:
                self.handle(connection, received)

    def moved(self, sid: int, req: int) -> control.Moved:
        office = self.cluster.offices[sid]
        owner = self.cluster.nodes[office.owner]
        return control.Moved(
            req=req, sid=sid, locators=[owner.locator], gen=office.gen, epoch=office.epoch
        )

    def lost(self, connection: FakeConnection) -> None:
        """The client is gone; what it held stays in flight for its session."""
        connection.closed = True

    # Frames

    def handle(self, connection: FakeConnection, received: Frame) -> None:
        if received.verb >= Verb.PUBLISH:
            self._hot(connection, received)
            return
        message = control.read_control(received)
        number = received.channel
        match message:
            case control.Hello():
                connection.session, connection.dial = message.session, message.dial
                self._welcome(connection, message)
            case control.Ping():
                connection.say(control.Pong(time_ms=message.time_ms))
            case control.Close():
                self._close(connection, number, message.req)
            case control.Describe():
                info = self.cluster.queues.get(message.queue)
                if info is None:
                    self._error(connection, message.req, "not_found", number)
                else:
                    done = control.Done(
                        req=message.req, queue=info, catalog=(self.cluster.catalog_gen, 7)
                    )
                    connection.say(done)
            case control.List():
                names = [name for name in sorted(self.cluster.queues) if name > message.after]
                page = names[: self.cluster.queues_a_page]
                done = control.Done(
                    req=message.req,
                    queues=[self.cluster.queues[name] for name in page],
                    go_on_after=page[-1] if len(names) > len(page) else "",
                )
                connection.say(done)
            case control.Status():
                document = msgspec.Raw(b'{"node":"%s"}' % self.name.encode())
                connection.say(control.Done(req=message.req, status=document))
            case control.Declare() | control.Delete():
                self._define(connection, message)
            case control.Stat() | control.Purge():
                if self._is_owner(connection, message.sid, message.req, 0):
                    self._count(connection, message)
            case control.OpenProducer() | control.OpenConsumer():
                self._open(connection, number, message)
            case control.Error():
                self.lost(connection)  # The last word.
            case _:
                raise AssertionError(f"a client said {message}")

    def _welcome(self, connection: FakeConnection, hello: control.Hello) -> None:
        topology = self.cluster.topology
        known = (topology.ver, topology.hash)
        limits = control.ClientLimits(
            frame_bytes_max=FRAME_BYTES_MAX,
            message_bytes_max=MESSAGE_BYTES_MAX,
            channels_max=self.channels_max,
        )
        owned = [o.sid for o in self.cluster.offices.values() if o.owner == self.name]
        here = self.here or min(owned or self.cluster.offices, default=0)
        connection.say(
            control.Welcome(
                req=hello.req,
                node=self.name,
                inc=self.inc,
                version=1,
                limits=limits,
                heartbeat_ms=1000,
                here=here,
                known=topology if hello.topology != known else None,
            )
        )

    def _error(
        self, connection: FakeConnection, req: int, code: str, channel: int = 0, text: str = ""
    ) -> None:
        connection.say(
            control.Error(
                req=req,
                code=code,
                sentence=text or f"the fake says {code}",
                ends="channel" if channel else "nothing",
            ),
            channel,
        )

    def _is_owner(self, connection: FakeConnection, sid: int, req: int, channel: int) -> bool:
        if sid in self.cluster.waits:
            connection.say(control.Wait(req=req, sid=sid, why="a takeover is under way"), channel)
            return False
        if sid not in self.cluster.offices:
            error = control.Error(
                req=req,
                code="not_found",
                sentence=f"there is no post office {sid}",
                retryable=True,
                ends="channel" if channel else "nothing",
            )
            connection.say(error, channel)
            return False
        if self.cluster.offices[sid].owner == self.name:
            return True
        connection.say(self.moved(sid, req), channel)
        return False

    def _define(
        self, connection: FakeConnection, message: control.Declare | control.Delete
    ) -> None:
        cluster = self.cluster
        if cluster.catalog_owner != self.name:
            owner = cluster.nodes[cluster.catalog_owner]
            moved = control.Moved(
                req=message.req,
                sid=0,
                locators=[owner.locator],
                gen=cluster.catalog_gen,
                epoch=1,
            )
            connection.say(moved)
            return
        info = cluster.queues.get(message.queue)
        if isinstance(message, control.Delete):
            if info is None:
                self._error(connection, message.req, "not_found")
                return
            del cluster.queues[message.queue]
        elif info is None:
            info = cluster.add_queue(message.queue, spread=message.spread, sid=message.at)
        elif info.spread != message.spread:
            self._error(connection, message.req, "exists_differently")
            return
        connection.say(control.Done(req=message.req, queue=info, catalog=(1, 8)))

    def _count(self, connection: FakeConnection, message: control.Stat | control.Purge) -> None:
        part = self.cluster.offices[message.sid].parts.get(message.queue_id, [])
        ready = [m for m in part if m.state == "ready"]
        if isinstance(message, control.Purge):
            for stored in ready:
                stored.state = "done"
            connection.say(control.Done(req=message.req, purged=len(ready)))
            return
        stat = control.PartStat(
            ready=len(ready),
            in_flight=sum(m.state == "in flight" for m in part),
            bytes=sum(len(m.body) for m in part),
            consumers=len(self.cluster.legs(message.sid, message.queue_id)),
        )
        connection.say(control.Done(req=message.req, stat=stat))

    def _open(
        self,
        connection: FakeConnection,
        number: int,
        message: control.OpenProducer | control.OpenConsumer,
    ) -> None:
        assert number
        assert number not in connection.channels
        if not self._is_owner(connection, message.sid, message.req, number):
            return
        office = self.cluster.offices[message.sid]
        if message.gen not in (0, office.gen):
            lost = control.Opened(req=message.req, gen=office.gen, epoch=office.epoch, lost=True)
            connection.say(lost, number)
            return
        if self.cluster.by_id(message.queue_id) is None:
            self._error(connection, message.req, "not_found", number)
            return
        client = message.producer if isinstance(message, control.OpenProducer) else message.consumer
        channel = FakeChannel(connection, number, message.sid, message.queue_id, client)
        if isinstance(message, control.OpenProducer):
            self._open_producer(channel, message, office)
        else:
            self._open_consumer(channel, message, office)

    def _open_producer(
        self, channel: FakeChannel, message: control.OpenProducer, office: Office
    ) -> None:
        epoch, next_n = office.producers.get(message.producer, (0, 1))
        if message.producer_epoch != epoch:
            epoch, next_n = message.producer_epoch, 1
        unknown = message.lowest_n > next_n
        opened = control.Opened(
            req=message.req,
            gen=office.gen,
            epoch=office.epoch,
            next_n=0 if unknown else next_n,
            credit=(0, 0) if unknown else self.cluster.producer_credit,
            unknown=unknown,
        )
        channel.connection.say(opened, channel.number)
        if not unknown:
            office.producers[message.producer] = (epoch, next_n)
            channel.epoch = epoch
            channel.credit = self.cluster.producer_credit
            channel.connection.channels[channel.number] = channel

    def _open_consumer(
        self, channel: FakeChannel, message: control.OpenConsumer, office: Office
    ) -> None:
        channel.is_consumer = True
        part = office.parts.setdefault(message.queue_id, [])
        already: list[Span] = []
        not_yours: list[Span] = []
        for run in message.acked:
            self._settle(part, run, None, already, not_yours)
        for number, first, count, cause in message.requeued:
            self._settle(part, (number, first, count), cause, already, not_yours)
        held: set[int] = set()
        for number, first, count in message.held:
            for offset in range(first, first + count):
                stored = part[offset]
                if (stored.state, stored.number) == ("in flight", number):
                    held.add(offset)
                else:
                    spans = already if stored.state == "done" else not_yours
                    spans.append((offset, 1))
        for offset, stored in enumerate(part):
            if (
                stored.state == "in flight"
                and stored.holder == channel.holder
                and offset not in held
            ):
                stored.state, stored.redelivered = "ready", True
        opened = control.Opened(
            req=message.req,
            gen=office.gen,
            epoch=office.epoch,
            already_done=already,
            not_yours=not_yours,
        )
        channel.connection.say(opened, channel.number)
        channel.connection.channels[channel.number] = channel
        self.cluster.hand_out(channel.sid)

    def _settle(
        self,
        part: list[StoredMessage],
        run: hot.Run,
        cause: int | None,
        already: list[Span],
        not_yours: list[Span],
    ) -> None:
        number, first, count = run
        for offset in range(first, first + count):
            stored = part[offset]
            if (stored.state, stored.number) != ("in flight", number):
                (already if stored.state == "done" else not_yours).append((offset, 1))
            elif cause is None:
                stored.state = "done"
            else:
                stored.state, stored.redelivered = "ready", True
                stored.attempts += cause == hot.Cause.FAILED

    def _close(self, connection: FakeConnection, number: int, req: int) -> None:
        if number == 0:
            for channel in list(connection.channels.values()):
                self._return_all(channel)
            connection.say(control.Closed(req=req))
            return
        closing = connection.channels.pop(number, None)
        if closing is not None:
            self._return_all(closing)
        connection.say(control.Closed(req=req), number)

    def _return_all(self, channel: FakeChannel) -> None:
        office = self.cluster.offices.get(channel.sid)
        for part in office.parts.values() if office is not None else ():
            for stored in part:
                if stored.state == "in flight" and stored.holder == channel.holder:
                    stored.state, stored.redelivered = "ready", True

    def _hot(self, connection: FakeConnection, received: Frame) -> None:
        channel = connection.channels.get(received.channel)
        if channel is None:
            return
        office = self.cluster.offices[channel.sid]
        match received.verb:
            case Verb.PUBLISH:
                self._publish(channel, office, Batch.parse(received.payload))
            case Verb.ACK | Verb.REQUEUE:
                settlement = hot.read_settlement(received.payload)
                part = office.parts[channel.queue_id]
                already: list[Span] = []
                not_yours: list[Span] = []
                cause = None if received.verb == Verb.ACK else settlement.cause
                for run in settlement.ranges:
                    self._settle(part, run, cause, already, not_yours)
                payload = hot.settled(settlement.a, already, not_yours)
                connection.hot(Verb.SETTLED, channel.number, payload)
                self.cluster.hand_out(channel.sid)
            case Verb.CREDIT:
                if received.flags & CREDIT_BACK:
                    channel.credit = channel.used
                    payload = hot.credit(*channel.used)
                    connection.hot(Verb.CREDIT, channel.number, payload, flags=CREDIT_BACK)
                else:
                    channel.credit = hot.read_credit(received.payload)
                    channel.told_ready = False
                    self.cluster.hand_out(channel.sid)
            case _:
                raise AssertionError(f"a client said {received}")

    def _publish(self, channel: FakeChannel, office: Office, batch: Batch) -> None:
        assert channel.used[0] < channel.credit[0], "a batch came without credit"
        assert channel.used[1] < channel.credit[1], "a batch came without credit"
        channel.used = (channel.used[0] + batch.count, channel.used[1] + batch.size)
        epoch, next_n = office.producers[channel.client]
        if batch.first_n > next_n:
            self._error(channel.connection, 0, "bad_state", channel.number, "a gap")
            del channel.connection.channels[channel.number]
            return
        if batch.first_n == next_n:
            office.producers[channel.client] = (epoch, batch.end_n)
            part = office.parts.setdefault(channel.queue_id, [])
            part += stored_of(batch)
        payload = hot.confirm(batch.end_n - 1, self.cluster.copies)
        channel.connection.hot(Verb.CONFIRM, channel.number, payload)
        messages, bytes_ = self.cluster.producer_credit
        channel.credit = (channel.used[0] + messages, channel.used[1] + bytes_)
        channel.connection.hot(Verb.CREDIT, channel.number, hot.credit(*channel.credit))
        self.cluster.hand_out(channel.sid)


def stored_of(batch: Batch) -> list[StoredMessage]:
    """The messages of a batch, one by one."""
    from tanist.wire.columns import read_properties

    columns_at = batch.table_at + 4 * batch.count
    columns = batch.data[columns_at : columns_at + batch.columns_len]
    properties = read_properties(columns, batch.count) or [b""] * batch.count
    in_doubt = bool(batch.flags & IN_DOUBT)
    stored: list[StoredMessage] = []
    for index in range(batch.count):
        begin, end = batch.end_of(index - 1), batch.end_of(index)
        body = batch.data[batch.bodies_at + begin : batch.bodies_at + end]
        stored.append(StoredMessage(body, properties[index], in_doubt, redelivered=in_doubt))
    return stored
