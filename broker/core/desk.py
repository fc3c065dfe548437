"""Where clients are served at one post office: the owner's volatile side of it.

Theory of operation
-------------------
A desk exists while this node owns the post office, and is built from nothing when it is
promoted. It admits what clients say: looks at the state, which includes everything that was
appended; appends ops; and puts what there is to say to a client behind the last op of the
log (`stream.answer`), so that nothing leaves before what it rests on is safe.

    PUBLISH ── credit? next number? room? ──▶ publish op ──▶ Confirm
    end of the turn ── who has credit? ─────▶ deliver ops ─▶ Hand
    ACK, REQUEUE ───────────────────────────▶ ack op ──────▶ Settle

Publishes for which the in-sync set has no room are parked in order; everything else goes on,
acks first of all, since they make the room.

A consumer whose connection is lost keeps what it holds for a grace, and its messages are
returned when that ends: 2 s, counted as an attempt, if this node served it; 10 s, not counted,
if the post office was taken over from another node.

Rules
-----
1. Every message in flight belongs to an open leg or to a running grace.
2. A delivery that never left returns without a flag; one that did, with it.
3. A channel that was refused is closed: what was pipelined behind the refusal is not read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Final

from broker.core.channels import Channel, ConsumerChannel, ProducerChannel
from broker.core.connection import Connection
from broker.core.dispatcher import Dispatcher
from broker.core.events import Effect
from broker.core.handout import Confirm, CreditBack, Hand, Handout, Released, Say, Settle
from broker.core.limits import Limits, Timing
from broker.core.ops import (
    Ack,
    Detach,
    DropPart,
    ExpireProducer,
    OpenPart,
    PostOfficeOp,
    Producer,
    Publish,
    Purge,
    Requeue,
)
from broker.core.post_office import Holder, PostOffice, Standing
from paging.part import Answer
from paging.ranges import Range
from replication.core.stream import Stream
from tanist.errors import RemoteProtocolError
from tanist.wire import hot
from tanist.wire.batch import Batch
from tanist.wire.control import (
    Closed,
    Done,
    Error,
    Message,
    Moved,
    OpenConsumer,
    Opened,
    OpenProducer,
    PartStat,
    QueueInfo,
    Refused,
    Run,
    Wait,
)
from tanist.wire.frames import Verb

HELD_SAID_S: Final = 1.0
"""A stream that is held for so long says so to its clients."""
GRANT_BELOW: Final = 0.5
"""A producer that has less than this share of its credit left is given more."""
GRANT_SHARE: Final = 8
"""A producer is given this part of what is left at most, so that many share it."""
GRANT_BYTES_MIN: Final = 4 << 10
"""Less is not given: the producer waits for more."""
REFUSED_RETRY_MS: Final = 1000
RUNS_MAX: Final = 1_000
"""Of one ack or requeue op; a client's frame with more becomes several ops."""


@dataclass(slots=True)
class _Grace:
    """What a consumer holds that is not there now."""

    ends_at: float
    counts: bool
    """Whether its end counts as an attempt: only if this node lost the connection."""
    after_seq: int
    """It does not end before this op is released."""


class Desk:
    """The clients of one post office.

    Args:
        stream: Owned by this node.
        office: What it carries.
        grantable_bytes: What the node's memory allows to give publishers still.
    """

    def __init__(
        self,
        *,
        stream: Stream[PostOfficeOp, object],
        office: PostOffice,
        limits: Limits,
        timing: Timing,
        grantable_bytes: Callable[[], int],
        now: float,
    ) -> None:
        self.sid = stream.sid
        self.stream = stream
        self.office = office
        self._limits = limits
        self._timing = timing
        self._grantable_bytes = grantable_bytes
        self._dispatcher = Dispatcher(self.office, unacked_max=limits.consumer_credit_messages_max)
        self._handout = Handout(self.office)
        self._producers: dict[bytes, ProducerChannel] = {}
        self._consumers: dict[Holder, ConsumerChannel] = {}
        self._legs: dict[int, ConsumerChannel] = {}
        self._leg_numbers = count(1)
        self._hungry: dict[ProducerChannel, None] = {}
        self._parked: deque[tuple[ProducerChannel, Batch]] = deque()
        self._graces: dict[Holder, _Grace] = {}
        self._promoted_end = stream.log_end
        self.duplicates = 0
        """Messages that were repeated and known already, since this node owns the stream."""
        for holder in self.office.holders():
            self._graces[holder] = _Grace(
                now + timing.grace_ms / 1000, counts=False, after_seq=stream.log_end - 1
            )
        for queue_id in self.office.queue_ids():
            self._dispatcher.touched(queue_id)

    # Facts, for status

    @property
    def consumers(self) -> int:
        return len(self._consumers)

    @property
    def producers(self) -> int:
        return len(self._producers)

    @property
    def parked_bytes(self) -> int:
        return sum(batch.size for _, batch in self._parked)

    @property
    def graces(self) -> int:
        return len(self._graces)

    # Producers

    def open_producer(
        self,
        connection: Connection,
        number: int,
        asked: OpenProducer,
        queue: QueueInfo,
        outbox: list[Effect],
    ) -> None:
        """OPEN_PRODUCER. Answered when all that the answer rests on is released."""
        if asked.gen not in (0, self.stream.gen):
            self._opened(connection, number, self._life(asked.req, lost=True))
            return
        producer = bytes.fromhex(asked.producer)
        standing, next_n = self.office.expected(producer, asked.producer_epoch)
        if standing is Standing.FENCED:
            sentence = f"producer epoch {asked.producer_epoch} is over: a newer one was opened"
            error = _channel_error(asked.req, "fenced", sentence, str(asked.producer_epoch))
            self._say(connection, error, number)
            return
        before = self._producers.get(producer)
        if before is not None and not self._replace(before, connection, asked.req, number, outbox):
            return
        if asked.lowest_n > next_n:
            unknown = self._life(asked.req, unknown=True)
            self._opened(connection, number, unknown)
            return
        if standing is Standing.UNKNOWN:
            self.stream.append(Producer(producer, asked.producer_epoch))
        channel = ProducerChannel(
            connection,
            number,
            self.sid,
            queue,
            producer=producer,
            epoch=asked.producer_epoch,
        )
        connection.channels[number] = channel
        self._producers[producer] = channel
        self._grant(channel)
        opened = Opened(
            req=asked.req,
            gen=self.stream.gen,
            epoch=self.stream.epoch,
            next_n=next_n,
            credit=(channel.granted_messages, channel.granted_bytes),
        )
        self.stream.answer(Say(channel, opened))

    def publish(self, channel: ProducerChannel, payload: bytes, outbox: list[Effect]) -> None:
        """PUBLISH. Raises `RemoteProtocolError` for what must end the connection."""
        batch = Batch.parse(payload)
        if not channel.has_credit:
            raise RemoteProtocolError(
                f"a batch of {batch.count} messages came without credit", code="credit"
            )
        channel.used_messages += batch.count
        channel.used_bytes += batch.size
        if self._parked or self.stream.room() < batch.size:
            channel.parked += 1
            self._parked.append((channel, batch))
            return
        self._admit(channel, batch, outbox)

    def _admit(self, channel: ProducerChannel, batch: Batch, outbox: list[Effect]) -> None:
        _, next_n = self.office.expected(channel.producer, channel.epoch)
        if batch.end_n <= next_n:
            # Stored before. Its first copy may not be released yet, so this confirm waits
            # behind everything appended, as any answer does.
            self.duplicates += batch.count
            self.stream.answer(Confirm(channel, batch.end_n - 1))
        elif batch.first_n != next_n:
            sentence = f"message {next_n} is expected, and a batch from {batch.first_n} came"
            self._fail(channel, "bad_state", sentence, str(batch.first_n))
            return
        elif self._is_full(channel.queue) and channel.queue.settings.when_full == "refuse":
            refused = Refused(
                n=batch.first_n,
                code="full",
                sentence=f"queue {channel.queue.name!r} is full in post office {self.sid}",
                retry_after_ms=REFUSED_RETRY_MS,
            )
            self._say(channel.connection, refused, channel.number)
            self._forget_producer(channel)
            return
        else:
            part = self.office.part_of(channel.queue.id)
            if part is None:
                part = self.office.next_part
                self.stream.append(OpenPart(part, channel.queue))
            self.stream.append(
                Publish(
                    part,
                    channel.producer,
                    channel.epoch,
                    self.office.end_of(part),
                    batch,
                )
            )
            self.stream.answer(Confirm(channel, batch.end_n - 1))
            self._dispatcher.touched(channel.queue.id)
        if (
            channel.granted_messages - channel.used_messages
            < GRANT_BELOW * self._limits.producer_credit_messages
            or channel.granted_bytes - channel.used_bytes
            < GRANT_BELOW * self._limits.producer_credit_bytes
        ):
            self._hungry[channel] = None

    def _is_full(self, queue: QueueInfo) -> bool:
        limit = self._limits.queue_bytes_max
        if queue.settings.bytes_max:
            limit = min(limit, queue.settings.bytes_max)
        part = self.office.part_of(queue.id)
        return part is not None and self.office.bytes_of(part) >= limit

    @property
    def credit_out_bytes(self) -> int:
        """Given to producers and not used yet."""
        return sum(
            max(0, channel.granted_bytes - channel.used_bytes)
            for channel in self._producers.values()
        )

    def _grant(self, channel: ProducerChannel) -> bool:
        """Give a producer credit, the less the less is left. False: there is none to give."""
        if self.stream.held is not None:
            return False
        limits, queue = self._limits, channel.queue
        left = min(self._grantable_bytes() // GRANT_SHARE, self.stream.room() // 2)
        if self._is_full(queue):
            if queue.settings.when_full != "refuse":
                return False
            # It must be able to come and be refused.
            left = max(left, GRANT_BYTES_MIN)
        if left < GRANT_BYTES_MIN:
            return False
        channel.granted_messages = channel.used_messages + limits.producer_credit_messages
        channel.granted_bytes = channel.used_bytes + min(limits.producer_credit_bytes, left)
        return True

    def _feed_hungry(self, outbox: list[Effect]) -> None:
        for channel in list(self._hungry):
            if not channel.open:
                del self._hungry[channel]
                continue
            if channel.parked or not self._grant(channel):
                continue
            del self._hungry[channel]
            payload = hot.credit(channel.granted_messages, channel.granted_bytes)
            channel.write(Verb.CREDIT, (payload,), outbox)

    def _unpark(self, outbox: list[Effect]) -> None:
        while self._parked and self.stream.room() >= self._parked[0][1].size:
            channel, batch = self._parked.popleft()
            channel.parked -= 1
            if channel.open:
                self._admit(channel, batch, outbox)

    # Consumers

    def open_consumer(
        self,
        connection: Connection,
        number: int,
        asked: OpenConsumer,
        queue: QueueInfo,
        outbox: list[Effect],
    ) -> None:
        """OPEN_CONSUMER, with what the client holds if it comes back."""
        if asked.gen not in (0, self.stream.gen):
            self._opened(connection, number, self._life(asked.req, lost=True))
            return
        consumer = bytes.fromhex(asked.consumer)
        holder = (connection.session, consumer)
        before = self._consumers.get(holder)
        if before is not None and not self._replace(before, connection, asked.req, number, outbox):
            return
        channel = ConsumerChannel(
            connection,
            number,
            self.sid,
            queue,
            leg=next(self._leg_numbers),
            consumer=consumer,
            automatic=asked.mode == "auto",
        )
        already, not_yours = self._resume(channel, asked)
        self._graces.pop(holder, None)
        for part in self.office.parts_of(holder):
            if self.office.queue_of(part) != queue.id:
                # It takes from one queue, and does not know what it had of another.
                self._return_from(part, holder, failed=False)
        connection.channels[number] = channel
        self._consumers[holder] = channel
        opened = Opened(
            req=asked.req,
            gen=self.stream.gen,
            epoch=self.stream.epoch,
            already_done=already,
            not_yours=not_yours,
        )
        self.stream.answer(Say(channel, opened))

    def _resume(
        self, channel: ConsumerChannel, asked: OpenConsumer
    ) -> tuple[list[hot.Span], list[hot.Span]]:
        """What was settled and not answered first; then what the client does not know of."""
        already: list[hot.Span] = []
        not_yours: list[hot.Span] = []
        part = self.office.part_of(channel.queue.id)
        end = 0 if part is None else self.office.end_of(part)

        def here(run: Run) -> bool:
            # A queue that has another id since the catalog was lost has another part, too.
            _, first, count_ = run
            if first + count_ > end:
                not_yours.append((first, count_))
            return first + count_ <= end

        holds = [run for run in asked.held if here(run)]
        acked = [run for run in asked.acked if here(run)]
        requeued = [((n, f, c), cause) for n, f, c, cause in asked.requeued if here((n, f, c))]
        if part is None:
            return already, not_yours
        if acked:
            self._collect(self._ack(part, acked), already, not_yours)
        for run, cause in requeued:
            failed = cause == hot.Cause.FAILED
            answers = self._requeue(part, [run], flagged=True, failed=failed)
            self._collect(answers, already, not_yours)
        self._collect(
            [self.office.claim(part, n, Range(f, f + c)) for n, f, c in holds],
            already,
            not_yours,
        )
        held: dict[int, list[Range]] = {}
        for number, first, count_ in holds:
            held.setdefault(number, []).append(Range(first, first + count_))
        unknown = [
            (number, piece.first, piece.end - piece.first)
            for number, run in self.office.in_flight_of(part, channel.holder)
            for piece in _without(run, held.get(number, []))
        ]
        if unknown:
            self._requeue(part, unknown, flagged=True, failed=False)
        return already, not_yours

    def settle(self, channel: ConsumerChannel, verb: int, payload: bytes) -> None:
        """ACK or REQUEUE. Raises `RemoteProtocolError` for what must end the connection."""
        settlement = hot.read_settlement(payload)
        already: list[hot.Span] = []
        not_yours: list[hot.Span] = []
        part = self.office.part_of(channel.queue.id)
        if part is None:
            not_yours = [(first, count_) for _, first, count_ in settlement.ranges]
        else:
            self._check_runs(part, settlement.ranges)
            for at in range(0, len(settlement.ranges), RUNS_MAX):
                runs = settlement.ranges[at : at + RUNS_MAX]
                if verb == Verb.ACK:
                    answers = self._ack(part, runs)
                else:
                    failed = settlement.cause == hot.Cause.FAILED
                    answers = self._requeue(part, runs, flagged=True, failed=failed)
                self._collect(answers, already, not_yours)
        settled = sum(count_ for _, _, count_ in settlement.ranges)
        self._dispatcher.settled(channel.leg, settled)
        self.stream.answer(Settle(channel, settlement.a, already, not_yours))

    def consumer_credit(self, channel: ConsumerChannel, payload: bytes, *, back: bool) -> None:
        """CREDIT of a consumer. With `back`, the answer says what was planned until now."""
        messages, bytes_ = hot.read_credit(payload)
        if back:
            planned = self._dispatcher.credit_back(channel.leg)
            self.stream.answer(CreditBack(channel, *planned))
        else:
            self._dispatcher.credit(channel.leg, messages, bytes_)

    def _ack(self, part: int, runs: Iterable[Run]) -> list[Answer]:
        return self.office.answers(self.stream.append(Ack(part, tuple(runs))))

    def _requeue(
        self, part: int, runs: Iterable[Run], *, flagged: bool, failed: bool
    ) -> list[Answer]:
        op = Requeue(part, tuple(runs), flagged=flagged, count_attempt=failed)
        answers = self.office.answers(self.stream.append(op))
        self._dispatcher.touched(self.office.queue_of(part))
        return answers

    def _check_runs(self, part: int, runs: Iterable[Run]) -> None:
        end = self.office.end_of(part)
        for number, first, count_ in runs:
            if first + count_ > end:
                raise RemoteProtocolError(
                    f"delivery {number} cannot hold offset {first + count_ - 1}: the part ends"
                    f" at {end}",
                    code="bad_state",
                    value=str(first + count_ - 1),
                )

    def _collect(
        self, answers: Iterable[Answer], already: list[hot.Span], not_yours: list[hot.Span]
    ) -> None:
        for answer in answers:
            already += [(run.first, run.end - run.first) for run in answer.already_done]
            not_yours += [(run.first, run.end - run.first) for run in answer.not_yours]

    # Channels that end

    def close(self, channel: Channel, req: int) -> None:
        """CLOSE of a channel: what a consumer holds returns at once."""
        self._drop(channel, clean=True, now=0.0)
        self._say(channel.connection, Closed(req=req), channel.number)

    def lost(self, channel: Channel, now: float, *, sent_away: bool = False) -> None:
        """Its connection is gone; the client may come back by another one.

        With `sent_away` that was this node's doing: nobody failed.
        """
        self._drop(channel, clean=False, now=now)
        if sent_away and isinstance(channel, ConsumerChannel):
            grace = self._graces.get(channel.holder)
            if grace is not None:
                grace.ends_at, grace.counts = now + self._timing.grace_ms / 1000, False

    def queue_ids(self) -> list[int]:
        """The queues that have a part here, or somebody who would use one."""
        ids = dict.fromkeys(self.office.queue_ids())
        for channel in (*self._producers.values(), *self._consumers.values()):
            ids[channel.queue.id] = None
        return list(ids)

    def leave(self, message: Moved, outbox: list[Effect]) -> None:
        """This node owns the post office no more: every channel ends, nothing is appended."""
        for channel in (*self._producers.values(), *self._consumers.values()):
            channel.say(message, outbox)
            channel.close()
        self._handout.take_back(outbox)

    def drop_queue(self, queue_id: int, outbox: list[Effect]) -> None:
        """The queue was deleted."""
        sentence = "the queue was deleted"
        for channel in (*self._producers.values(), *self._consumers.values()):
            if channel.queue.id == queue_id:
                channel.say(_channel_error(0, "deleted", sentence, channel.queue.name), outbox)
                self._drop(channel, clean=True, now=0.0)
        part = self.office.part_of(queue_id)
        if part is not None:
            self.stream.append(DropPart(part))

    def _replace(
        self,
        before: Channel,
        connection: Connection,
        req: int,
        number: int,
        outbox: list[Effect],
    ) -> bool:
        """Whether the older channel of the same producer or consumer made way."""
        newer = before.connection.session == connection.session and (
            before.connection.dial > connection.dial
        )
        sentence = "the same producer or consumer was opened by a newer connection"
        error = _channel_error(req if newer else 0, "replaced", sentence, str(number))
        if newer:
            connection.say(error, outbox, number)
            return False
        before.say(error, outbox)
        if isinstance(before, ProducerChannel):
            self._forget_producer(before)
        else:
            assert isinstance(before, ConsumerChannel)
            self._forget_consumer(before)
            self._return_unsent(before)
        return True

    def _drop(self, channel: Channel, *, clean: bool, now: float) -> None:
        if isinstance(channel, ProducerChannel):
            self._forget_producer(channel)
            return
        assert isinstance(channel, ConsumerChannel)
        self._forget_consumer(channel)
        part = self.office.part_of(channel.queue.id)
        if part is None:
            return
        self._return_unsent(channel)
        if clean:
            self._return_all(channel.holder, failed=False)
        elif self.office.in_flight_of(part, channel.holder):
            self._graces[channel.holder] = _Grace(
                now + self._timing.lost_connection_grace_ms / 1000,
                counts=True,
                after_seq=self._promoted_end - 1,
            )
        else:
            self._return_all(channel.holder, failed=False)

    def _return_unsent(self, channel: ConsumerChannel) -> None:
        """What was planned and never left returns as if it had never been delivered."""
        part = self.office.part_of(channel.queue.id)
        if part is None or not channel.unsent:
            return
        never_left = [
            (number, run.first, run.end - run.first)
            for number, run in self.office.in_flight_of(part, channel.holder)
            if number in channel.unsent
        ]
        channel.unsent.clear()
        if never_left:
            self._requeue(part, never_left, flagged=False, failed=False)

    def _return_all(self, holder: Holder, *, failed: bool) -> None:
        """Whatever this consumer holds returns, and it is attached no more."""
        for part in self.office.parts_of(holder):
            self._return_from(part, holder, failed=failed)
        if self.office.is_attached(holder):
            self.stream.append(Detach(*holder))

    def _return_from(self, part: int, holder: Holder, *, failed: bool) -> None:
        runs = [
            (number, run.first, run.end - run.first)
            for number, run in self.office.in_flight_of(part, holder)
        ]
        if runs:
            self._requeue(part, runs, flagged=True, failed=failed)

    def _forget_producer(self, channel: ProducerChannel) -> None:
        channel.close()
        self._hungry.pop(channel, None)
        if self._producers.get(channel.producer) is channel:
            del self._producers[channel.producer]

    def _forget_consumer(self, channel: ConsumerChannel) -> None:
        channel.close()
        if self._legs.pop(channel.leg, None) is not None:
            self._dispatcher.remove_leg(channel.leg)
        if self._consumers.get(channel.holder) is channel:
            del self._consumers[channel.holder]

    def _fail(self, channel: ProducerChannel, code: str, sentence: str, value: str) -> None:
        self._say(channel.connection, _channel_error(0, code, sentence, value), channel.number)
        self._forget_producer(channel)

    # Requests about a queue's part

    def stat(self, connection: Connection, req: int, queue_id: int) -> None:
        stat = self.office.stat(queue_id)
        consumers = sum(1 for c in self._consumers.values() if c.queue.id == queue_id)
        answer = PartStat(
            ready=stat.ready, in_flight=stat.in_flight, bytes=stat.bytes, consumers=consumers
        )
        self._say(connection, Done(req=req, stat=answer))

    def purge(self, connection: Connection, req: int, queue_id: int) -> None:
        part = self.office.part_of(queue_id)
        purged = 0
        if part is not None and self.office.end_of(part):
            purged = self.office.purged(
                self.stream.append(Purge(part, self.office.end_of(part) - 1))
            )
        self._say(connection, Done(req=req, purged=purged))

    def _say(self, connection: Connection, message: Message, channel: int = 0) -> None:
        """An answer that leaves when everything appended so far is released."""
        self.stream.answer(self._handout.owe(Say(connection, message, channel)))

    # Turns and time

    def released(self, effects: list[Released], now: float, outbox: list[Effect]) -> None:
        """The stream released these."""
        answered = self._handout.release(
            effects, self.stream.copies, lambda: self.stream.may_deliver(now), outbox
        )
        for channel in answered:
            # Only now: CREDIT or READY before OPENED would be for a channel unknown there.
            if isinstance(channel, ConsumerChannel):
                self._legs[channel.leg] = channel
                self._dispatcher.add_leg(
                    channel.leg,
                    queue_id=channel.queue.id,
                    session=channel.connection.session,
                    consumer=channel.consumer,
                    automatic=channel.automatic,
                )
            elif isinstance(channel, ProducerChannel) and not channel.has_credit:
                self._hungry[channel] = None

    def end_turn(self, now: float, outbox: list[Effect]) -> None:
        """Admit what waited for room, plan deliveries, give credit. Before the stream is sealed."""
        if self._parked:
            self._unpark(outbox)
        for planned in self._dispatcher.plan(self.stream.append):
            channel = self._legs[planned.leg]
            channel.unsent[planned.number] = (planned.first, planned.first + planned.count)
            self.stream.answer(Hand(channel, planned))
        for leg in self._dispatcher.ready_legs(now):
            self._legs[leg].write(Verb.READY, (b"",), outbox)
        if self._hungry:
            self._feed_hungry(outbox)
        if self._handout.withheld:
            self._handout.hand_out(lambda: self.stream.may_deliver(now), outbox)

    def wake(self, now: float, outbox: list[Effect]) -> None:
        for holder, grace in list(self._graces.items()):
            if now < grace.ends_at:
                continue
            if self.stream.release < grace.after_seq or self.stream.held is not None:
                # Nothing leaves here: the clients had no chance to come.
                grace.ends_at = now + self._timing.grace_ms / 1000
                continue
            del self._graces[holder]
            self._return_all(holder, failed=grace.counts)
        most = self._limits.producers_max
        for producer in self.office.producers_to_expire(most, in_use=self._producers):
            self.stream.append(ExpireProducer(producer))
        self._say_held(now, outbox)

    def next_deadline(self) -> float | None:
        deadlines = [grace.ends_at for grace in self._graces.values()]
        ready_at = self._dispatcher.next_deadline()
        if ready_at is not None:
            deadlines.append(ready_at)
        return min(deadlines, default=None)

    def _say_held(self, now: float, outbox: list[Effect]) -> None:
        held = self.stream.held
        channels: Iterable[Channel] = (*self._producers.values(), *self._consumers.values())
        if held is None:
            for channel in channels:
                channel.waits = False
            return
        if now < held.since + HELD_SAID_S:
            return
        for channel in channels:
            if channel.answered and not channel.waits:
                channel.waits = True
                since_ms = int(1000 * (now - held.since))
                channel.say(Wait(sid=self.sid, why=f"held: {held.why}", since_ms=since_ms), outbox)

    def _life(self, req: int, *, lost: bool = False, unknown: bool = False) -> Opened:
        """The answer to who must begin anew: the channel is not open."""
        return Opened(
            req=req, gen=self.stream.gen, epoch=self.stream.epoch, lost=lost, unknown=unknown
        )

    def _opened(self, connection: Connection, number: int, opened: Opened) -> None:
        self._say(connection, opened, number)


def _channel_error(req: int, code: str, sentence: str, value: str) -> Error:
    return Error(req=req, code=code, sentence=sentence, value=value, ends="channel")


def _without(run: Range, taken: list[Range]) -> list[Range]:
    """The pieces of `run` that are in none of `taken`."""
    pieces = [run]
    for cut in taken:
        pieces = [
            piece
            for whole in pieces
            for piece in (
                Range(whole.first, min(whole.end, cut.first)),
                Range(max(whole.first, cut.end), whole.end),
            )
            if piece.first < piece.end
        ]
    return pieces
