"""A client core and a fake cluster on one simulated clock: what one writes, the other reads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeVar

from tanist.core.client import ClientCore
from tanist.core.consumer import ConsumerCore
from tanist.core.events import (
    Deliverable,
    Dial,
    DialFailed,
    Dropped,
    Effect,
    Event,
    Hangup,
    Lost,
    Opened,
    Received,
    Resolve,
    Tell,
    Wake,
    Write,
)
from tanist.core.producer import ProducerCore
from tanist.core.run import Run
from tanist.core.settings import ClientSettings
from tanist.errors import Error
from tanist.events import ClientEvent
from tanist.wire import control
from tests.unit.fake_node import FakeCluster, FakeConnection

E = TypeVar("E")


class Bench:
    """Runs a core against a cluster until nothing moves any more.

    Attributes:
        results: By token: what it was resolved with, or the error.
        told: The events for the application, in order.
        hold: Connections of which nothing is read by the client for now.
    """

    def __init__(
        self,
        cluster: FakeCluster,
        *,
        locators: list[str] | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        self.cluster = cluster
        self.now = 100.0
        self.results: dict[object, object] = {}
        self.told: list[ClientEvent] = []
        self.dials: list[tuple[float, int]] = []
        self.hold: set[int] = set()
        self.deaf: set[int] = set()
        self.wakes = 0
        self._tokens = count(1)
        self._ids = count(1)
        self._connections: dict[int, FakeConnection] = {}
        self._draws = count(1)
        first = next(iter(cluster.nodes.values()))
        self.core = ClientCore(
            locators or [first.locator],
            session=f"{1:032x}",
            settings=settings or ClientSettings(),
            wall_offset_s=1e9,
            draw=lambda: next(self._draws) * 0.37 % 1.0,
            now=self.now,
        )

    # Calls

    def ask(self, call: Callable[[object], None]) -> object:
        """Make a call that takes a token, and run; what it was resolved with."""
        token = self.begin(call)
        self.run()
        return self.results.get(token)

    def begin(self, call: Callable[[object], None]) -> object:
        token = f"token {next(self._tokens)}"
        call(token)
        return token

    def enter(self) -> object:
        return self.ask(lambda token: self.core.enter(token, self.now))

    def begin_producer(self, queue: str) -> object:
        producer = f"{next(self._ids):032x}"
        return self.begin(
            lambda token: self.core.open_producer(token, queue, producer=producer, now=self.now)
        )

    def producer(self, queue: str) -> ProducerCore:
        token = self.begin_producer(queue)
        self.run()
        producer = self.results[token]
        assert isinstance(producer, ProducerCore), producer
        return producer

    def begin_consumer(
        self,
        queue: str,
        *,
        prefetch: int = 100,
        prefetch_bytes: int = 1 << 20,
        auto_ack: bool = False,
    ) -> object:
        consumer = f"{next(self._ids):032x}"
        return self.begin(
            lambda token: self.core.open_consumer(
                token,
                queue,
                consumer=consumer,
                prefetch_messages=prefetch,
                prefetch_bytes=prefetch_bytes,
                auto_ack=auto_ack,
                now=self.now,
            )
        )

    def consumer(
        self,
        queue: str,
        *,
        prefetch: int = 100,
        prefetch_bytes: int = 1 << 20,
    ) -> ConsumerCore:
        token = self.begin_consumer(queue, prefetch=prefetch, prefetch_bytes=prefetch_bytes)
        self.run()
        consumer = self.results[token]
        assert isinstance(consumer, ConsumerCore), consumer
        return consumer

    def flush(self, core: ProducerCore) -> object:
        return self.ask(lambda token: core.flush(token, self.now))

    def take_all(self, core: ConsumerCore) -> list[tuple[Run, int]]:
        """All that is buffered, message by message."""
        taken: list[tuple[Run, int]] = []
        while (run := core.take()) is not None:
            taken += [(run, i) for first, end in run.held for i in range(first, end)]
        return taken

    def events(self, kind: type[E]) -> list[E]:
        return [event for event in self.told if isinstance(event, kind)]

    # Running

    def run(self) -> None:
        """Until nothing moves, without time going on."""
        self.feed(Wake())
        turns = 0
        while self._turn():
            turns += 1
            assert turns < 10_000, "client and nodes talk for ever"

    def advance(self, seconds: float) -> None:
        """Let time go on, from deadline to deadline."""
        end = self.now + seconds
        self.run()
        while True:
            deadline = self.core.next_deadline()
            if deadline is None or deadline > end:
                break
            assert self.wakes < 20_000, "a deadline that finds no work"
            self.now = max(self.now, deadline)
            self.wakes += 1
            self.run()
        self.now = end
        self.run()

    def _turn(self) -> bool:
        """Bring the client what nodes said. Whether there was something."""
        moved = False
        for number, connection in list(self._connections.items()):
            if number in self.hold:
                continue
            data = connection.take()
            if data:
                moved = True
                self.feed(Received(number, data))
            if connection.closed and number in self._connections:
                moved = True
                del self._connections[number]
                self.feed(Lost(number, "closed by the node"))
        return moved

    def feed(self, event: Event) -> None:
        outbox: list[Effect] = []
        self.core.handle(event, self.now, outbox)
        self.core.check()
        self.execute(outbox)

    def execute(self, outbox: list[Effect]) -> None:
        for effect in outbox:
            match effect:
                case Write():
                    connection = self._connections.get(effect.connection)
                    if connection is not None and effect.connection not in self.deaf:
                        connection.node.receive(connection, b"".join(effect.parts))
                case Dial():
                    self._dial(effect)
                case Hangup():
                    connection = self._connections.pop(effect.connection, None)
                    if connection is not None:
                        connection.node.lost(connection)
                case Resolve():
                    assert effect.token not in self.results, "resolved twice"
                    self.results[effect.token] = effect.error or effect.result
                case Tell():
                    self.told.append(effect.event)
                case Deliverable() | Dropped():
                    pass

    def _dial(self, dial: Dial) -> None:
        self.dials.append((self.now, dial.port))
        node = next(
            (n for n in self.cluster.nodes.values() if dial.port in (n.port, n.other_port)), None
        )
        if node is None or not node.alive:
            self.feed(DialFailed(dial.connection, "refused"))
            return
        self._connections[dial.connection] = node.accept(dial.connection)
        self.feed(Opened(dial.connection))

    def close_channels(self, core: ProducerCore | ConsumerCore) -> None:
        """As an application closes one of them."""
        outbox: list[Effect] = []
        self.core.close_channels(core, self.now, outbox)
        self.execute(outbox)
        self.run()

    def feed_topology(self, topology: control.Topology) -> None:
        """Have the client learn this on its first connection, as a push."""
        next(iter(self._connections.values())).say(topology)
        self.run()

    @property
    def connections(self) -> list[int]:
        """The numbers of the client's connections."""
        return list(self._connections)

    def cut(self, number: int) -> None:
        """The network drops this connection, with all that is on its way to the client."""
        connection = self._connections.pop(number)
        connection.node.lost(connection)
        self.feed(Lost(number, "cut"))

    def connection_to(self, node: str) -> int:
        """The number of the client's connection to this node."""
        return next(n for n, c in self._connections.items() if c.node.name == node)

    def error_of(self, token: object) -> Error:
        error = self.results[token]
        assert isinstance(error, Error), error
        return error
