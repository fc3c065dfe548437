"""What is served at a desk, against a stream that releases when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

from broker.core.channels import ConsumerChannel, ProducerChannel
from broker.core.connection import Connection, State
from broker.core.desk import Desk
from broker.core.events import ClientWrite, Effect
from broker.core.handout import Released, Settle
from broker.core.limits import Limits, Timing
from broker.core.ops import PostOfficeOp
from broker.core.post_office import PostOffice
from replication.core.owner import Held
from replication.core.stream import Stream
from tanist.wire import hot
from tanist.wire.batch import flags_of, seal
from tanist.wire.control import (
    SCHEMAS,
    Error,
    Message,
    Moved,
    OpenConsumer,
    Opened,
    OpenProducer,
    QueueInfo,
    QueueSettings,
    Refused,
    Retry,
    read_control,
)
from tanist.wire.frames import FRAME_BYTES_MAX, Frame, FrameReader, Verb

QUEUE = QueueInfo(id=7, name="q")
SESSION = b"s" * 16


@dataclass
class FakeStream:
    """An owned stream with one state. Effects wait until `release` is called."""

    machine: PostOffice
    sid: int = 1
    gen: int = 1
    epoch: int = 1
    log_end: int = 1
    release: int = 0
    copies: int = 3
    held: Held | None = None
    room_bytes: int = 1 << 30
    is_full: bool = False
    delivers: bool = True
    effects: list[object] = field(default_factory=list)

    def append(self, op: PostOfficeOp) -> object:
        self.log_end += 1
        return self.machine.apply(op)

    def answer(self, effect: object) -> None:
        self.effects.append(effect)

    def room(self) -> int:
        return self.room_bytes

    def full(self) -> bool:
        return self.is_full

    def may_deliver(self, now: float) -> bool:
        return self.delivers


def batch_of(first_n: int, *bodies: bytes) -> bytes:
    flags = flags_of(persistent=True)
    return seal(list(bodies), [], flags=flags, first_n=first_n, time_ms=0)


class Bench:
    """A desk, one client at it, and what that client was told."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.office = PostOffice(1, 1)
        self.stream = FakeStream(self.office)
        self.limits = limits or Limits()
        self.grantable_bytes = 1 << 30
        self.disk_trouble: str | None = None
        self.desk = self.new_desk()
        self.connection = client(1)
        self.outbox: list[Effect] = []

    def new_desk(self, now: float = 0.0, grantable_bytes: Callable[[], int] | None = None) -> Desk:
        return Desk(
            # The desk uses of a stream what the fake has, and nothing else.
            stream=cast("Stream[PostOfficeOp, object]", self.stream),
            office=self.office,
            limits=self.limits,
            timing=Timing(),
            grantable_bytes=grantable_bytes or (lambda: self.grantable_bytes),
            disk_trouble=lambda: self.disk_trouble,
            now=now,
        )

    def produce(self, *, lowest_n: int = 1, epoch: int = 1, queue: QueueInfo = QUEUE) -> None:
        asked = OpenProducer(
            req=1,
            sid=1,
            queue_id=queue.id,
            producer="a" * 32,
            producer_epoch=epoch,
            lowest_n=lowest_n,
        )
        self.desk.open(self.connection, 1, asked, queue, self.outbox)

    def consume(
        self,
        number: int = 2,
        *,
        connection: Connection | None = None,
        queue: QueueInfo = QUEUE,
        held: Iterable[tuple[int, int, int]] = (),
        acked: Iterable[tuple[int, int, int]] = (),
    ) -> None:
        asked = OpenConsumer(
            req=2, sid=1, queue_id=queue.id, consumer="b" * 32, held=[*held], acked=[*acked]
        )
        self.desk.open(connection or self.connection, number, asked, queue, self.outbox)

    @property
    def producer(self) -> ProducerChannel:
        channel = self.connection.channels[1]
        assert isinstance(channel, ProducerChannel)
        return channel

    def consumer(self, connection: Connection | None = None) -> ConsumerChannel:
        channel = (connection or self.connection).channels[2]
        assert isinstance(channel, ConsumerChannel)
        return channel

    def publish(self, first_n: int, *bodies: bytes) -> None:
        self.desk.producers.publish(self.producer, batch_of(first_n, *bodies))

    def allow(self, messages: int, connection: Connection | None = None) -> None:
        channel = self.consumer(connection)
        self.desk.consumers.credit(channel, hot.credit(messages, 1 << 20), back=False)

    def settle(self, verb: Verb, number: int, first: int, count: int, cause: int = 0) -> None:
        payload = hot.settlement(1, cause, [(number, first, count)])
        self.desk.holdings.settle(self.consumer(), verb, payload)

    def turn(self, now: float = 0.0) -> None:
        """The end of a turn, after which everything appended is released."""
        self.desk.end_turn(now, self.outbox)
        self.let_go(now)

    def let_go(self, now: float = 0.0) -> None:
        effects, self.stream.effects = self.stream.effects, []
        self.stream.release = self.stream.log_end - 1
        self.desk.released(cast("list[Released]", effects), now, self.outbox)

    def heard(self, connection: int = 1) -> list[Frame]:
        """The frames that a client was written, which are forgotten then."""
        reader = FrameReader(FRAME_BYTES_MAX)
        frames = [
            frame
            for effect in self.outbox
            if isinstance(effect, ClientWrite) and effect.connection == connection
            for frame in reader.feed(b"".join(effect.parts))
        ]
        self.outbox = [
            effect
            for effect in self.outbox
            if not (isinstance(effect, ClientWrite) and effect.connection == connection)
        ]
        return frames

    def verbs(self, connection: int = 1) -> list[Verb]:
        return [Verb(frame.verb) for frame in self.heard(connection)]

    def messages(self, connection: int = 1) -> list[Message]:
        return [read_control(f) for f in self.heard(connection) if f.verb in SCHEMAS]

    def deliveries(self, connection: int = 1) -> list[hot.Delivery]:
        frames = self.heard(connection)
        return [hot.read_deliver(f.payload) for f in frames if f.verb == Verb.DELIVER]


def client(number: int, *, session: bytes = SESSION, dial: int = 1) -> Connection:
    return Connection(
        number, 0.0, 0.0, state=State.WELCOME, session=session, dial=dial, client="test"
    )


def served() -> Bench:
    """Three messages, of which a consumer was sent two: offsets 0 and 1, as delivery 1."""
    bench = Bench()
    bench.produce()
    bench.consume()
    bench.turn()
    bench.publish(1, b"a", b"b", b"c")
    bench.allow(2)
    bench.turn()
    bench.heard()
    return bench


def test_nothing_is_said_before_it_is_released() -> None:
    # Given a producer and a consumer with credit
    bench = Bench()
    bench.produce()
    bench.consume()
    bench.turn()
    bench.allow(10)
    bench.heard()

    # When a batch is published, and then released
    bench.publish(1, b"a")
    bench.desk.end_turn(0.0, bench.outbox)
    before = bench.verbs()
    bench.let_go()
    after = bench.verbs()

    # Then confirm and delivery leave only after that
    assert before == []
    assert sorted(after) == [Verb.CONFIRM, Verb.DELIVER]


def test_no_credit_comes_before_the_channel_is_open_for_its_client() -> None:
    # Given a stream without room, as right after a takeover, and a producer that opens
    bench = Bench()
    bench.stream.room_bytes = 0
    bench.produce()

    # When there is room before OPENED may leave
    bench.stream.room_bytes = 1 << 30
    bench.desk.end_turn(0.0, bench.outbox)
    before = bench.verbs()
    bench.let_go()
    bench.desk.end_turn(0.0, bench.outbox)

    # Then the credit comes after OPENED, where the client knows what it is for
    assert before == []
    assert bench.verbs() == [Verb.OPENED, Verb.CREDIT]


def test_ready_does_not_come_before_the_leg_is_open_for_its_client() -> None:
    # Given messages that wait, and a consumer that opens a leg
    bench = Bench()
    bench.produce()
    bench.turn()
    bench.publish(1, b"a")
    bench.turn()
    bench.heard()
    bench.consume()

    # When turns end before and after OPENED leaves
    bench.desk.end_turn(0.0, bench.outbox)
    before = bench.verbs()
    bench.let_go()
    bench.desk.end_turn(0.0, bench.outbox)

    # Then it is told READY after OPENED
    assert before == []
    assert bench.verbs() == [Verb.OPENED, Verb.READY]


def test_a_repeated_batch_is_confirmed_again_and_stored_once() -> None:
    # Given a batch that is stored and not released yet
    bench = Bench()
    bench.produce()
    bench.turn()
    bench.publish(1, b"a", b"b")
    bench.heard()

    # When the client repeats it
    bench.publish(1, b"a", b"b")
    bench.desk.end_turn(0.0, bench.outbox)
    before = bench.verbs()
    bench.turn()

    # Then both are confirmed, once the first copy is released; it is there once
    assert before == []
    [confirm] = [f for f in bench.heard() if f.verb == Verb.CONFIRM]
    assert hot.read_confirm(confirm.payload) == (2, 3)
    assert bench.office.stat(QUEUE.id).ready == 2


def test_an_answer_to_acks_that_does_not_fit_a_frame_comes_in_several() -> None:
    # Given a consumer
    bench = served()

    # When two acks are answered with more spans than a frame holds
    spans = [(2 * n, 1) for n in range(hot.SPANS_MAX)]
    bench.stream.answer(Settle(bench.consumer(), 1, list(spans), []))
    bench.stream.answer(Settle(bench.consumer(), 2, [(1, 1)], []))
    bench.let_go()

    # Then it is told all, in frames that it can read
    frames = bench.heard()
    assert [(Verb(f.verb), f.flags) for f in frames] == [(Verb.SETTLED, 1), (Verb.SETTLED, 0)]
    told = [hot.read_settled(f.payload) for f in frames]
    assert [settled.a for settled in told] == [2, 2]
    assert [span for settled in told for span in settled.already_done] == [*spans, (1, 1)]


def test_a_gap_in_the_numbers_ends_the_channel_only() -> None:
    # Given a producer of which message 1 is expected
    bench = Bench()
    bench.produce()
    bench.turn()
    bench.heard()

    # When a batch from 5 comes
    bench.publish(5, b"e")
    bench.let_go()

    # Then the channel is closed with an error, and the connection is not
    [error] = bench.messages()
    assert isinstance(error, Error)
    assert error.ends == "channel"
    assert 1 not in bench.connection.channels
    assert bench.connection.state is State.WELCOME


def test_publishes_without_room_are_parked_and_acks_are_not() -> None:
    # Given a consumer that holds two messages, and a stream without room
    bench = served()
    bench.stream.room_bytes = 0

    # When a message is published and an ack comes
    bench.publish(4, b"d")
    bench.settle(Verb.ACK, 1, 0, 2)
    bench.turn()
    without_room = bench.verbs()
    bench.stream.room_bytes = 1 << 30
    bench.turn()

    # Then the ack is answered at once, and the publish confirmed when there is room
    assert without_room == [Verb.SETTLED]
    assert Verb.CONFIRM in bench.verbs()


def test_a_full_queue_that_refuses_says_so_and_ends_the_channel() -> None:
    # Given a queue that refuses above ten bytes, and has more
    bench = Bench()
    queue = QueueInfo(id=8, name="r", settings=QueueSettings(when_full="refuse", bytes_max=10))
    bench.produce(queue=queue)
    bench.turn()
    bench.publish(1, b"a" * 20)
    bench.turn()
    bench.heard()

    # When one more comes
    bench.publish(2, b"b")
    bench.turn()

    # Then it is refused by its number, which is not used up, and the channel is closed
    [refused] = bench.messages()
    assert isinstance(refused, Refused)
    assert (refused.n, refused.code) == (2, "full")
    assert 1 not in bench.connection.channels


def test_a_queue_that_refuses_does_so_while_the_disk_takes_no_pages_and_memory_is_full() -> None:
    # Given a queue that refuses, and a node whose disk fails, with memory left
    bench = Bench()
    queue = QueueInfo(id=8, name="r", settings=QueueSettings(when_full="refuse"))
    bench.disk_trouble = "p1.page cannot be written: No space left on device"
    bench.produce(queue=queue)
    bench.turn()
    bench.publish(1, b"a")
    bench.turn()
    bench.heard()

    # When memory is full, too
    bench.grantable_bytes = 0
    bench.publish(2, b"b")
    bench.turn()

    # Then what comes is refused, and the sentence says why
    [refused] = bench.messages()
    assert isinstance(refused, Refused)
    assert "No space left" in refused.sentence
    assert bench.office.stat(queue.id).ready == 1


def test_what_a_returning_client_presents_stays_with_it() -> None:
    # Given a consumer that was sent offsets 0 and 1, and whose connection is lost
    bench = served()
    bench.desk.lost(bench.consumer(), 0.0)
    again = client(2, dial=2)

    # When it comes back holding the first and not knowing of the second
    bench.consume(connection=again, held=[(1, 0, 1)])
    bench.turn()
    [opened] = bench.messages(2)
    bench.allow(10, again)
    bench.turn()

    # Then it keeps the first; the second and the third are delivered, the second flagged
    assert isinstance(opened, Opened)
    assert (opened.already_done, opened.not_yours) == ([], [])
    assert [(d.first, d.count, d.flags) for d in bench.deliveries(2)] == [
        (1, 1, hot.REDELIVERED),
        (2, 1, 0),
    ]


def test_an_ack_that_was_not_answered_is_answered_at_the_resume() -> None:
    # Given a consumer whose ack of offset 0 arrived, and whose connection is lost
    bench = served()
    bench.settle(Verb.ACK, 1, 0, 1)
    bench.desk.lost(bench.consumer(), 0.0)
    again = client(2, dial=2)

    # When it comes back with that ack, and one more
    bench.consume(connection=again, acked=[(1, 0, 2)])
    bench.turn()

    # Then the first was done before, and nothing is in flight any more
    [opened] = bench.messages(2)
    assert isinstance(opened, Opened)
    assert opened.already_done == [(0, 1)]
    assert bench.office.stat(QUEUE.id).in_flight == 0


def test_a_consumer_that_comes_back_to_another_queue_keeps_nothing_of_the_first() -> None:
    # Given a consumer with two messages, whose connection was lost; and a part of another queue
    # of that name, as there is one when the catalog was lost and the name given anew
    bench = served()
    bench.desk.lost(bench.consumer(), 1.0)
    bench.connection = client(2, dial=2)
    renamed = QueueInfo(id=8, name="q")

    # When it presents them to that queue
    bench.consume(queue=renamed, held=[(1, 0, 2)])
    bench.turn(1.0)

    # Then they are not its own, and wait for others
    [opened] = (m for m in bench.messages(2) if isinstance(m, Opened))
    assert opened.not_yours == [(0, 2)]
    assert bench.office.stat(QUEUE.id).in_flight == 0
    assert bench.office.stat(QUEUE.id).ready == 3


def test_what_nobody_claims_returns_when_the_grace_ends_counted_as_an_attempt() -> None:
    # Given a consumer that holds two messages, and whose connection is lost at 5 s
    bench = served()
    bench.desk.lost(bench.consumer(), 5.0)

    # When the grace has nearly ended, and has ended
    bench.desk.wake(6.9, bench.outbox)
    during = bench.office.stat(QUEUE.id).ready
    bench.desk.wake(7.0, bench.outbox)
    after = bench.office.stat(QUEUE.id).ready
    another = client(2, session=b"t" * 16)
    bench.consume(connection=another)
    bench.turn(7.0)
    bench.allow(1, another)
    bench.turn(7.0)

    # Then they are back in their places
    assert (during, after) == (1, 3)
    [delivery] = bench.deliveries(2)
    assert (delivery.first, delivery.flags & hot.REDELIVERED) == (0, 1)
    assert delivery.attempts is not None
    assert delivery.attempts.tolist() == [1]


def test_after_a_takeover_the_grace_is_longer_and_nothing_counts() -> None:
    # Given deliveries in flight, and a new owner's desk at 100 s
    bench = served()
    bench.desk = bench.new_desk(100.0)

    # When a lost connection's grace would have ended, and when this one does
    bench.desk.wake(103.0, bench.outbox)
    early = bench.office.stat(QUEUE.id).in_flight
    bench.desk.wake(110.0, bench.outbox)
    late = bench.office.stat(QUEUE.id).in_flight

    # Then they waited for their session, and nobody failed at them
    assert (early, late) == (2, 0)
    part = bench.office.part_of(QUEUE.id)
    assert part is not None
    head = bench.office.part(part).head(count_max=10, bytes_max=1000)
    assert head is not None
    assert bench.office.part(part).attempts(head.run) == []


def test_a_clean_close_returns_everything_at_once() -> None:
    # Given a consumer that holds two messages
    bench = served()

    # When it closes its leg
    bench.desk.close(bench.consumer(), 9)
    bench.turn()

    # Then they wait again, and CLOSED is the last word
    assert bench.office.stat(QUEUE.id).ready == 3
    assert bench.verbs() == [Verb.CLOSED]


def test_a_delivery_that_never_left_returns_without_a_flag() -> None:
    # Given a delivery that was planned while the in-sync set did not answer
    bench = Bench()
    bench.produce()
    bench.consume()
    bench.turn()
    bench.publish(1, b"a")
    bench.allow(1)
    bench.stream.delivers = False
    bench.turn()
    unsent = bench.deliveries()

    # When its channel ends, and another consumer comes
    bench.desk.close(bench.consumer(), 1)
    bench.stream.delivers = True
    another = client(2, session=b"t" * 16)
    bench.consume(connection=another)
    bench.turn()
    bench.allow(1, another)
    bench.turn()

    # Then that one gets it as new
    assert unsent == []
    assert [d.flags for d in bench.deliveries(2)] == [0]


def test_withheld_deliveries_leave_when_the_in_sync_set_answers() -> None:
    # Given a delivery that is released, and an in-sync set that does not answer
    bench = Bench()
    bench.produce()
    bench.consume()
    bench.turn()
    bench.publish(1, b"a")
    bench.allow(1)
    bench.stream.delivers = False
    bench.turn()
    before = bench.verbs()

    # When it answers
    bench.stream.delivers = True
    bench.turn()

    # Then the confirm did not wait for that, and the delivery did
    assert Verb.CONFIRM in before
    assert Verb.DELIVER not in before
    assert bench.verbs() == [Verb.DELIVER]


def test_an_effect_for_a_closed_channel_is_dropped() -> None:
    # Given a consumer's delivery that waits for release
    bench = Bench()
    bench.produce()
    bench.consume()
    bench.turn()
    bench.publish(1, b"a")
    bench.allow(1)
    bench.desk.end_turn(0.0, bench.outbox)
    bench.heard()

    # When the same consumer comes by another connection before it leaves
    again = client(2, dial=2)
    bench.consume(connection=again)
    bench.let_go()

    nothing = (bench.deliveries(1), bench.deliveries(2))
    bench.allow(1, again)
    bench.turn()

    # Then nothing of it leaves by either channel: it returned unseen, and is new later
    assert nothing == ([], [])
    assert [d.flags for d in bench.deliveries(2)] == [0]


def test_an_older_connection_cannot_replace_a_newer_one() -> None:
    # Given a consumer that is open by dial 2
    bench = Bench()
    bench.connection = client(1, dial=2)
    bench.consume()
    bench.turn()
    bench.heard()
    older = client(2, dial=1)

    # When an OPEN of dial 1 arrives late
    bench.consume(connection=older)

    # Then it is refused, and the newer one stays
    [error] = bench.messages(2)
    assert isinstance(error, Error)
    assert error.code == "replaced"
    assert bench.consumer().open


def test_a_producer_of_an_earlier_epoch_is_fenced() -> None:
    # Given a producer that was opened in epoch 2
    bench = Bench()
    bench.produce(epoch=2)
    bench.turn()
    bench.heard()

    # When an older client of the same id opens it in epoch 1
    bench.produce(epoch=1)
    bench.turn()

    # Then it is told that it is fenced
    [error] = bench.messages()
    assert isinstance(error, Error)
    assert error.code == "fenced"


def test_a_producer_that_was_forgotten_is_unknown() -> None:
    # Given a producer of which nothing is known here
    bench = Bench()

    # When it opens, and its message 9 is the first without an answer
    bench.produce(lowest_n=9)
    bench.turn()

    # Then it is told so, and no channel is open
    [opened] = bench.messages()
    assert isinstance(opened, Opened)
    assert opened.unknown
    assert 1 not in bench.connection.channels


def test_no_grace_ends_while_the_stream_is_held() -> None:
    # Given a consumer that was cut off, and a stream that then waits for copies
    bench = served()
    bench.desk.lost(bench.consumer(), 0.0)
    bench.stream.held = Held("one copy", 0.0)

    # When its grace would have ended
    bench.desk.wake(5.0, bench.outbox)

    # Then it is still kept: no client could have come back
    assert bench.office.stat(QUEUE.id).in_flight == 2


def test_who_waits_for_an_answer_asks_again_when_the_stream_has_another_owner() -> None:
    # Given a question without a channel, whose answer is not released
    bench = Bench()
    bench.desk.stat(bench.connection, 9, QUEUE.id)

    # When another node becomes the owner, so that nothing is released here any more
    bench.desk.leave(Moved(sid=1), bench.outbox)

    # Then the client is told to ask again
    assert bench.messages() == [Retry(req=9, after_ms=0)]


def test_an_answer_that_left_is_not_taken_back() -> None:
    # Given a question that was answered
    bench = Bench()
    bench.desk.stat(bench.connection, 9, QUEUE.id)
    bench.turn()
    bench.heard()

    # When another node becomes the owner
    bench.desk.leave(Moved(sid=1), bench.outbox)

    # Then there is nothing more to say
    assert bench.messages() == []


def test_who_acknowledges_late_is_told_that_the_message_is_another_ones() -> None:
    # Given a consumer that lost what it held, since its grace ended, to one who holds it now
    bench = served()
    bench.desk.lost(bench.consumer(), 5.0)
    bench.desk.wake(7.0, bench.outbox)
    another = client(2, session=b"t" * 16)
    bench.consume(connection=another)
    bench.turn(7.0)
    bench.allow(2, another)
    bench.turn(7.0)

    # When it comes back and acknowledges it, at the resume and again later
    bench.connection = client(3)
    bench.consume(acked=[(1, 0, 2)])
    bench.turn(8.0)
    [opened] = bench.messages(3)
    bench.settle(Verb.ACK, 1, 0, 2)
    bench.turn(8.0)
    [settled] = bench.heard(3)

    # Then it is told so, and the message stays where it is
    assert isinstance(opened, Opened)
    assert opened.not_yours == [(0, 2)]
    assert hot.read_settled(settled.payload).not_yours == [(0, 2)]
    assert bench.office.stat(QUEUE.id).in_flight == 2


def test_the_grace_of_a_consumer_that_came_back_is_over() -> None:
    # Given a consumer that holds two messages, and comes back with them after 1 s
    bench = served()
    bench.desk.lost(bench.consumer(), 5.0)
    bench.connection = client(2)
    bench.consume(held=[(1, 0, 2)])
    bench.turn(6.0)

    # When its grace would have ended
    bench.desk.wake(60.0, bench.outbox)

    # Then it has them still
    assert bench.office.stat(QUEUE.id).in_flight == 2
    assert bench.desk.next_deadline() is None


def test_every_channel_is_told_that_the_owner_is_another_one() -> None:
    # Given a producer and a consumer
    bench = served()

    # When another node becomes the owner
    moved = Moved(sid=1, epoch=2)
    bench.desk.leave(moved, bench.outbox)

    # Then both are told, and are open here no more
    assert [(f.channel, read_control(f)) for f in bench.heard()] == [(1, moved), (2, moved)]
    assert not bench.connection.channels


def test_a_queue_that_somebody_waits_for_is_known_without_a_part() -> None:
    # Given a consumer of a queue in which nothing was ever published
    bench = Bench()
    bench.consume()

    # When it is asked which queues are of interest here
    queues = bench.desk.queues()

    # Then that queue is: should the catalog be lost, it must not be forgotten
    assert bench.office.queues() == []
    assert queues == [QUEUE]
