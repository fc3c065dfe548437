"""A whole node, alone, fed with bytes: what no client may do to it."""

from __future__ import annotations

import msgspec

from broker.core.events import (
    ClientClose,
    ClientData,
    ClientOpened,
    ClientWrite,
    Effect,
    Exit,
    ListenForClients,
    Log,
    Persist,
    Persisted,
    Wake,
)
from broker.core.limits import Limits
from broker.core.node import Node
from broker.core.settings import NodeSettings
from replication.core.identity import Incarnation
from tanist.wire import hot
from tanist.wire.batch import Part, flags_of, seal
from tanist.wire.control import (
    SCHEMAS,
    Declare,
    DeclareLost,
    Delete,
    Describe,
    Done,
    Error,
    Hello,
    List,
    Message,
    OpenConsumer,
    Opened,
    OpenProducer,
    Status,
    Wait,
    control_frame,
    read_control,
)
from tanist.wire.frames import FRAME_BYTES_MAX, FrameReader, Verb, frame
from tanist.wire.limits import QUEUE_NAME_BYTES_MAX, QUEUES_PAGE_MAX

ENDLESS = 50


class Alone:
    """A node that is a cluster of its own, and the clients that are connected to it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = 0.0
        self.node = Node(
            NodeSettings(
                name="n",
                expected=("n",),
                peers={"n": "127.0.0.1:1"},
                peer_address="127.0.0.1:1",
                group_address="127.0.0.1:2",
                locators=("127.0.0.1:3",),
                limits=limits or Limits(),
            ),
            me=Incarnation("n", 1),
            acceptor_inc=1,
            saved=None,
            draw=lambda: 0.5,
        )
        self.outbox: list[Effect] = []
        self.listens = False
        self.node.handle(Wake(), self.now, self.outbox)
        for _ in range(ENDLESS):
            self.turn()
        assert self.listens

    def turn(self) -> None:
        """End the turn, carry out what concerns the disk, and let a little time pass."""
        self.node.end_turn(self.now, self.outbox)
        effects, self.outbox = self.outbox, []
        for effect in effects:
            if isinstance(effect, Persist):
                self.node.handle(Persisted(effect.token), self.now, self.outbox)
            elif isinstance(effect, ListenForClients):
                self.listens = True
            elif self.keeps(effect):
                self.outbox.append(effect)
        self.now += 0.05
        self.node.handle(Wake(), self.now, self.outbox)

    def keeps(self, effect: Effect) -> bool:
        """Whether the test wants to see it."""
        return isinstance(effect, ClientWrite | ClientClose | Exit)

    def connect(self, number: int) -> None:
        self.node.handle(ClientOpened(number), self.now, self.outbox)
        self.say(number, Hello(req=1, versions=(1, 1), client="t", session="0" * 32, dial=number))
        self.hear(number)

    def send(self, number: int, *frames: tuple[Part, ...]) -> None:
        data = b"".join(part for parts in frames for part in parts)
        self.node.handle(ClientData(number, data), self.now, self.outbox)

    def say(self, number: int, message: Message, channel: int = 0) -> None:
        self.send(number, control_frame(message, channel))

    def hear(self, number: int) -> list[Message]:
        """What this client was told, after everything is released."""
        for _ in range(3):
            self.turn()
        reader = FrameReader(FRAME_BYTES_MAX)
        mine = [e for e in self.outbox if isinstance(e, ClientWrite) and e.connection == number]
        self.outbox = [effect for effect in self.outbox if effect not in mine]
        return [
            read_control(received)
            for effect in mine
            for received in reader.feed(b"".join(effect.parts))
            if received.verb in SCHEMAS
        ]

    @property
    def ended(self) -> bool:
        return any(isinstance(effect, Exit) for effect in self.outbox)

    def declare(self, number: int, queue: str = "q") -> int:
        self.say(number, Declare(req=2, queue=queue))
        [done] = self.hear(number)
        assert isinstance(done, Done)
        assert done.queue is not None
        return done.queue.id


def open_consumer(queue_id: int) -> OpenConsumer:
    return OpenConsumer(req=3, sid=1, queue_id=queue_id, consumer="b" * 32)


def open_producer(queue_id: int) -> OpenProducer:
    return OpenProducer(
        req=4, sid=1, queue_id=queue_id, producer="a" * 32, producer_epoch=1, lowest_n=1
    )


def test_credit_before_opened_ends_the_connection_and_not_the_node() -> None:
    # Given a client that does not wait for answers
    alone = Alone()
    alone.connect(1)
    queue_id = alone.declare(1)

    # When it sends OPEN_CONSUMER and CREDIT in one breath
    alone.send(
        1,
        control_frame(open_consumer(queue_id), 5),
        frame(Verb.CREDIT, 5, hot.credit(10, 1000)),
    )

    # Then it is told so and closed, and others are served
    errors = [m for m in alone.hear(1) if isinstance(m, Error)]
    assert [error.code for error in errors] == ["bad_state"]
    assert ClientClose(1) in alone.outbox
    alone.connect(2)
    assert alone.declare(2, "another") != queue_id


def test_the_same_channel_opened_twice_ends_the_connection_and_not_the_node() -> None:
    # Given a client
    alone = Alone()
    alone.connect(1)
    queue_id = alone.declare(1)

    # When it opens channel 5 twice
    alone.send(
        1, control_frame(open_consumer(queue_id), 5), control_frame(open_producer(queue_id), 5)
    )

    # Then it is closed with an error, and the node goes on
    assert any(isinstance(m, Error) and m.code == "bad_state" for m in alone.hear(1))
    assert not alone.ended


def test_a_producer_of_a_deleted_queue_is_told_even_if_it_never_published() -> None:
    # Given a producer that is open and has published nothing
    alone = Alone()
    alone.connect(1)
    queue_id = alone.declare(1)
    alone.say(1, open_producer(queue_id), 5)
    assert any(isinstance(m, Opened) for m in alone.hear(1))
    alone.connect(2)

    # When another client deletes the queue
    alone.say(2, Delete(req=9, queue="q"))
    alone.hear(2)
    for _ in range(10):
        alone.turn()
    told = alone.hear(1)

    # Then its channel ends, and what it publishes now is stored nowhere
    assert [m.code for m in told if isinstance(m, Error)] == ["deleted"]
    batch = seal([b"x"], [], flags=flags_of(persistent=True), first_n=1, time_ms=0)
    alone.send(1, frame(Verb.PUBLISH, 5, batch))
    alone.hear(1)
    assert alone.node.desks.offices[1].office.queue_ids() == []


def test_a_stream_of_which_a_copy_lives_is_not_lost_whoever_says_so() -> None:
    # Given a node that owns its post office
    alone = Alone()
    alone.connect(1)

    # When an operator declares that lost, then a stream that is not there, then an older life
    answers: list[Message] = []
    for sid, gen in ((1, 1), (7, 1), (1, 0)):
        alone.say(1, DeclareLost(req=5, sid=sid, gen=gen))
        for _ in range(3):
            answers += alone.hear(1)

    # Then the voters refuse the first two, and the third is over already
    final = [answer for answer in answers if not isinstance(answer, Wait)]
    assert [a.sentence for a in final if isinstance(a, Error)] == [
        "n.1 may still hold stream 1",
        "there is no stream 7",
    ]
    assert isinstance(final[-1], Done)
    assert alone.declare(1)


MANY = 25_000


def with_many_queues() -> Alone:
    """A node with many queues, of which the names take up as many bytes as they can."""
    alone = Alone(Limits(queues_max=MANY))
    alone.connect(1)
    desk = alone.node.desks.catalog
    assert desk is not None
    for number in range(MANY):
        desk.add(Declare(req=0, queue=f"{number:05}".ljust(QUEUE_NAME_BYTES_MAX, '"')))
        if not number % 1_000:
            alone.turn()
    return alone


def done(alone: Alone) -> Done:
    [answer] = alone.hear(1)
    assert isinstance(answer, Done)
    return answer


def test_who_finds_a_queue_in_the_turn_of_its_declaration_is_told_of_what_it_is_part() -> None:
    node = Alone()
    node.connect(1)
    node.connect(2)

    node.say(1, Declare(req=2, queue="q"))
    node.say(2, Describe(req=3, queue="q"))
    [declared], [described] = node.hear(1), node.hear(2)

    assert isinstance(declared, Done)
    assert isinstance(described, Done)
    assert described.queue == declared.queue
    assert described.catalog == declared.catalog


def test_a_node_that_waits_for_others_says_for_whom() -> None:
    # Given a node of three, of which the others are not there
    node = Node(
        NodeSettings(
            name="a",
            expected=("a", "b", "c"),
            peers={name: f"127.0.0.1:{port}" for port, name in enumerate("abc", start=1)},
            peer_address="127.0.0.1:1",
            group_address="127.0.0.1:4",
            locators=("127.0.0.1:5",),
            limits=Limits(),
        ),
        me=Incarnation("a", 1),
        acceptor_inc=1,
        saved=None,
        draw=lambda: 0.5,
    )
    outbox: list[Effect] = []

    # When it has been alone for 40 s
    said: list[float] = []
    for tenth in range(400):
        node.handle(Wake(), tenth / 10, outbox)
        node.end_turn(tenth / 10, outbox)
        logs = [effect for effect in outbox if isinstance(effect, Log)]
        said += [tenth / 10 for log in logs if log.fields == {"no_link_to": ["b", "c"]}]
        outbox.clear()

    # Then it has said so after 3 s, and once more
    assert len(said) == 2
    assert 3.0 <= said[0] < 3.5


def test_any_number_of_queues_can_be_listed() -> None:
    # Given more queues than a frame could hold
    alone = with_many_queues()

    # When they are asked for page by page; what is longer than a frame could not be read
    names: list[str] = []
    after = ""
    for _ in range(MANY // QUEUES_PAGE_MAX):
        alone.say(1, List(req=5, after=after))
        page = done(alone)
        names += [queue.name for queue in page.queues or []]
        after = page.go_on_after

    # Then all are there, once and by name, and the last page says so
    assert len(names) == MANY
    assert names == sorted(set(names))
    assert after == ""


def test_the_status_does_not_grow_with_the_queues() -> None:
    # Given more queues than a frame could hold, and a message in one of them
    alone = with_many_queues()
    desk = alone.node.desks.catalog
    assert desk is not None
    [queue], _ = desk.catalog.page("", 1)
    alone.say(1, open_producer(queue.id), 5)
    alone.hear(1)
    batch = seal([b"x"], [], flags=flags_of(persistent=True), first_n=1, time_ms=0)
    alone.send(1, frame(Verb.PUBLISH, 5, batch))
    alone.hear(1)

    # When the status is asked for, and then a page of what is in the queues
    alone.say(1, Status(req=6))
    whole = msgspec.json.decode(done(alone).status)
    alone.say(1, Status(req=7, queues=True))
    page = msgspec.json.decode(done(alone).status)

    # Then the first has totals, and the second what is in each
    assert (whole["queues"]["count"], whole["queues"]["ready"]) == (MANY, 1)
    assert len(page["queues"]) == QUEUES_PAGE_MAX
    assert [each["ready"] for each in page["queues"][:2]] == [1, 0]
    assert page["go_on_after"] == page["queues"][-1]["name"]


def test_the_status_says_how_long_after_its_promotion_a_node_read_its_clients_again() -> None:
    # Given a post office that was promoted seven seconds ago, and no client since
    alone = Alone()
    desk = alone.node.desks.offices[1]
    alone.now = desk.promoted_at + 7.0

    # When a client comes
    alone.connect(1)

    # Then the time of its first frame is known, whatever it says later
    alone.say(1, Status(req=2))
    document = msgspec.json.decode(done(alone).status)
    assert document["streams"]["1"]["desk"]["first_frame_ms"] == 7000.0
