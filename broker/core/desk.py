"""Where clients are served at one post office: the owner's volatile side of it.

Theory of operation
-------------------
A desk exists while this node owns the post office, and is built from nothing when it is
promoted. It has two sides, the producers and the consumers. They admit what clients say: look
at the state, which includes everything that was appended; append ops; and put what there is
to say to a client behind the last op of the log (`stream.answer`), so that nothing leaves
before what it rests on is safe.

    PUBLISH ── credit? next number? room? ──▶ publish op ──▶ Confirm
    end of the turn ── who has credit? ─────▶ deliver ops ─▶ Hand
    ACK, REQUEUE ───────────────────────────▶ ack op ──────▶ Settle

Acks go on whatever becomes of publishes, since they make the room that publishes wait for.
Here is what concerns both sides: turns, channels that end, and what is asked of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from broker.core.channels import ConsumerChannel, ProducerChannel, channel_error
from broker.core.connection import Channel, Connection
from broker.core.consumers import Consumers
from broker.core.dispatcher import Dispatcher
from broker.core.events import Effect
from broker.core.handout import Handout, Released
from broker.core.holdings import Holdings
from broker.core.limits import Limits, Timing
from broker.core.ops import DropPart, PostOfficeOp, Purge, Skip
from broker.core.post_office import PostOffice
from broker.core.producers import Producers
from replication.core.stream import Stream
from tanist.wire.control import (
    Closed,
    Done,
    Moved,
    OpenConsumer,
    Opened,
    OpenProducer,
    QueueInfo,
    Wait,
)

SKIP_RUNS_MAX: Final = 1_000
"""Of one op."""
HELD_SAID_S: Final = 1.0
"""A stream that is held for so long says so to its clients, and so does one that has no room to a
producer that waits for it."""


class Desk:
    """The clients of one post office.

    Args:
        stream: Owned by this node.
        office: What it carries.
        grantable_bytes: What the node's memory allows to give publishers still.
        disk_trouble: Why pages cannot be written, if they cannot.
    """

    def __init__(
        self,
        *,
        stream: Stream[PostOfficeOp, object],
        office: PostOffice,
        limits: Limits,
        timing: Timing,
        grantable_bytes: Callable[[], int],
        disk_trouble: Callable[[], str | None],
        now: float,
    ) -> None:
        self.sid = stream.sid
        self.stream = stream
        self.office = office
        self.promoted_at = now
        self.first_frame_at: float | None = None
        """When the node read a client's frame for the first time after that, for whomever."""
        dispatcher = self._dispatcher = Dispatcher(
            office, unacked_max=limits.consumer_credit_messages_max
        )
        self._handout = Handout(office, stream.answer)
        self.producers = Producers(
            stream=stream,
            office=office,
            handout=self._handout,
            limits=limits,
            grantable_bytes=grantable_bytes,
            disk_trouble=disk_trouble,
            stored=dispatcher.touched,
        )
        self.holdings = Holdings(stream=stream, office=office, dispatcher=dispatcher)
        self.consumers = Consumers(
            stream=stream,
            office=office,
            dispatcher=dispatcher,
            holdings=self.holdings,
            timing=timing,
            now=now,
        )
        for queue_id in office.queue_ids():
            dispatcher.touched(queue_id)

    def queues(self) -> list[QueueInfo]:
        """The queues that have a part here, or somebody who would use one."""
        queues = {queue.id: queue for queue in self.office.queues()}
        for channel in self._channels():
            queues.setdefault(channel.queue.id, channel.queue)
        return list(queues.values())

    def _channels(self) -> Iterator[ProducerChannel | ConsumerChannel]:
        yield from self.producers
        yield from self.consumers

    # Channels

    def open(
        self,
        connection: Connection,
        number: int,
        asked: OpenProducer | OpenConsumer,
        queue: QueueInfo,
        outbox: list[Effect],
    ) -> None:
        """OPEN_PRODUCER, OPEN_CONSUMER. Answered when all that the answer rests on is released."""
        if asked.gen not in (0, self.stream.gen):
            # None of its numbers means anything here.
            lost = Opened(req=asked.req, gen=self.stream.gen, epoch=self.stream.epoch, lost=True)
            self._handout.answer(connection, lost, number)
        elif isinstance(asked, OpenProducer):
            self.producers.open(connection, number, asked, queue, outbox)
        else:
            self.consumers.open(connection, number, asked, queue, outbox)

    def close(self, channel: Channel, req: int) -> None:
        """CLOSE of a channel: what a consumer holds returns at once."""
        self._closed(channel)
        self._handout.answer(channel.connection, Closed(req=req), channel.number)

    def lost(self, channel: Channel, now: float, *, sent_away: bool = False) -> None:
        """Its connection is gone; the client may come back by another one.

        With `sent_away` that was this node's doing: nobody failed.
        """
        if isinstance(channel, ConsumerChannel):
            self.consumers.lost(channel, now, sent_away=sent_away)
        else:
            self._closed(channel)

    def leave(self, message: Moved, outbox: list[Effect]) -> None:
        """This node owns the post office no more: every channel ends, nothing is appended."""
        for channel in self._channels():
            channel.say(message, outbox)
            channel.close()
        self._handout.take_back(outbox)

    def drop_queue(self, queue_id: int, outbox: list[Effect]) -> None:
        """The queue was deleted."""
        sentence = "the queue was deleted"
        for channel in self._channels():
            if channel.queue.id == queue_id:
                channel.say(channel_error(0, "deleted", sentence, channel.queue.name), outbox)
                self._closed(channel)
        part = self.office.part_of(queue_id)
        if part is not None:
            self.stream.append(DropPart(part))

    def _closed(self, channel: Channel) -> None:
        match channel:
            case ProducerChannel():
                self.producers.forget(channel)
            case ConsumerChannel():
                self.consumers.closed(channel)
            case _:
                raise AssertionError(f"a channel of no kind: {channel}")

    def pages_arrived(self, part: int) -> None:
        """More of a part is in memory, so that a consumer may be handed what it waited for."""
        self._dispatcher.touched(self.office.queue_of(part))

    # Requests about a queue's part

    def stat(self, connection: Connection, req: int, queue_id: int) -> None:
        stat = self.office.stat(queue_id)
        consumers = sum(1 for channel in self.consumers if channel.queue.id == queue_id)
        paging = self.office.paging(queue_id)
        answer = msgspec.structs.replace(stat, consumers=consumers, paging=paging)
        self._handout.answer(connection, Done(req=req, stat=answer))

    def purge(self, connection: Connection, req: int, queue_id: int) -> None:
        part = self.office.part_of(queue_id)
        purged = 0
        if part is not None and self.office.end_of(part):
            purged = self.office.purged(
                self.stream.append(Purge(part, self.office.end_of(part) - 1))
            )
        self._handout.answer(connection, Done(req=req, purged=purged))

    def skip_lost(self, connection: Connection, req: int, queue_id: int) -> None:
        """The operator gives up what no copy can read any more."""
        number = self.office.part_of(queue_id)
        lost = [] if number is None else self.office.part(number).lost
        skipped = 0
        for at in range(0, len(lost), SKIP_RUNS_MAX):
            assert number is not None
            op = Skip(number, lost[at : at + SKIP_RUNS_MAX])
            skipped += self.office.purged(self.stream.append(op))
        self._handout.answer(connection, Done(req=req, purged=skipped))

    # Turns and time

    def released(self, effects: list[Released], now: float, outbox: list[Effect]) -> None:
        """The stream released these."""
        answered = self._handout.release(
            effects, self.stream.copies, lambda: self.stream.may_deliver(now), outbox
        )
        for channel in answered:
            if isinstance(channel, ConsumerChannel):
                self.consumers.opened(channel)
            elif isinstance(channel, ProducerChannel):
                self.producers.opened(channel)

    def end_turn(self, now: float, outbox: list[Effect]) -> None:
        """Admit what waited for room, plan deliveries, give credit. Before the stream is sealed."""
        self.holdings.unpark()
        self.producers.unpark()
        self.consumers.plan(now, outbox)
        self.producers.feed_hungry(now, outbox)
        if self._handout.withheld:
            self._handout.hand_out(lambda: self.stream.may_deliver(now), outbox)

    def wake(self, now: float, outbox: list[Effect]) -> None:
        self.consumers.wake(now)
        self.producers.wake(now)
        self._say_why_they_wait(now, outbox)

    def next_deadline(self) -> float | None:
        return self.consumers.next_deadline()

    def _say_why_they_wait(self, now: float, outbox: list[Effect]) -> None:
        """For copies, all of them; or for room, a producer without credit."""
        held = self.stream.held
        for channel in self._channels():
            since = held.since if held is not None else None
            if held is None and isinstance(channel, ProducerChannel):
                since = channel.dry_since
            if since is None:
                channel.waits = False
            elif channel.answered and not channel.waits and now >= since + HELD_SAID_S:
                channel.waits = True
                why = self.producers.why_dry(channel.queue) if held is None else held.why
                since_ms = int(1000 * (now - since))
                channel.say(Wait(sid=self.sid, why=f"held: {why}", since_ms=since_ms), outbox)
