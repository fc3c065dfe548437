"""The client in bad weather: random failures, and an application that notices everything.

The fake cluster loses nothing: whatever goes wrong here is the client's doing. Each seed draws
its own mixture of cuts, kills, moved owners, unread sockets, late turns, acks and requeues;
then all heals, and every message must have been stored once, and handed out once for each time
that it was given back.
"""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from tanist.core.consumer import ConsumerCore
from tanist.core.producer import ProducerCore
from tanist.core.run import Run
from tanist.core.settings import ClientSettings
from tanist.events import Resumed
from tanist.wire import control
from tanist.wire.hot import Cause
from tests.unit.client_bench import Bench
from tests.unit.fake_node import FakeCluster

Place = tuple[int, int, int]
"""(queue id, sid, offset): a message, whatever its delivery."""
STEPS = 150


class Application:
    """Takes messages, keeps some, gives some back, and knows what it did."""

    def __init__(self, consumer: ConsumerCore, draw: random.Random) -> None:
        self.consumer = consumer
        self._draw = draw
        self._ready: deque[tuple[Run, int]] = deque()
        self.kept: list[tuple[Run, int]] = []

    def take(self, handed: Counter[Place], may_have: Counter[Place]) -> None:
        """Take what is there; each message at most once, and once more for each requeue."""
        while (run := self.consumer.take()) is not None:
            self._ready += [(run, i) for first, end in run.held for i in range(first, end)]
        for _ in range(self._draw.randint(0, 5)):
            if not self._ready:
                break
            run, index = self._ready.popleft()
            if index not in run.held:
                continue  # Dropped while it was ready, as the shell does.
            place = (self.consumer.info.id, run.sid, run.first + index)
            handed[place] += 1
            assert handed[place] <= 1 + may_have[place], f"{place} was handed out twice"
            self.kept.append((run, index))

    def settle(self, acked: set[Place], may_have: Counter[Place]) -> None:
        self._draw.shuffle(self.kept)
        for _ in range(self._draw.randint(0, len(self.kept))):
            run, index = self.kept.pop()
            place = (self.consumer.info.id, run.sid, run.first + index)
            assert place not in acked, f"{place} came back after its ack"
            if self._draw.random() < 0.2:
                may_have[place] += 1
                cause = Cause.FAILED if self._draw.random() < 0.5 else Cause.RETURNED
                self.consumer.requeue(run, index, cause)
            else:
                acked.add(place)
                self.consumer.ack(run, index)


class Weather:
    """One seed's cluster, client and applications."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.cluster = FakeCluster("a", "b", "c", post_offices=draw.choice((1, 2, 3, 5)))
        self.cluster.producer_credit = (draw.choice((1, 5, 1000)), 1 << 20)
        self.every = self.cluster.add_queue("every")
        self.one = self.cluster.add_queue("one", spread="one", sid=1)
        locators = [node.locator for node in self.cluster.nodes.values()]
        # A pause of a minute may pass before anybody gives up: nobody does here.
        settings = ClientSettings(failover_timeout_s=10_000)
        self.bench = Bench(self.cluster, locators=locators, settings=settings)
        self.bench.enter()
        self.producers = [self.bench.producer(name) for name in ("every", "one", "every")]
        prefetch = draw.choice((1, 3, 10, 100))
        self.applications = [
            Application(self.bench.consumer(name, prefetch=prefetch), draw)
            for name in ("every", "one", "every")
        ]
        self.posted: dict[ProducerCore, list[bytes]] = {p: [] for p in self.producers}
        self.handed: Counter[Place] = Counter()
        self.may_have: Counter[Place] = Counter()
        self.acked: set[Place] = set()
        # Fixed rates never visit some weather.
        self.weights = [draw.choice((0, 1, 3)) for _ in range(7)] + [6, 8, 8]

    def step(self) -> None:
        (action,) = self.draw.choices(
            (
                self._cut,
                self._kill,
                self._move,
                self._do_not_read,
                self._do_not_hear,
                self._be_late,
                self._revive,
                self._post,
                self._take,
                self._settle,
            ),
            self.weights,
        )
        action()
        if self.draw.random() < 0.7:
            self.bench.advance(self.draw.choice((0.0, 0.001, 0.05, 0.5)))

    def _cut(self) -> None:
        for number in self._connections(self.draw.randint(1, 2)):
            self.bench.cut(number)

    def _kill(self) -> None:
        alive = [node for node in self.cluster.nodes.values() if node.alive]
        if len(alive) < 2:
            return
        node = self.draw.choice(alive)
        node.kill()
        for connection in node.connections.values():
            if self.draw.random() < 0.5:
                connection.take()  # Said, and never sent.
        others = [other.name for other in alive if other is not node]
        for office in list(self.cluster.offices.values()):
            if office.owner == node.name:
                self.cluster.move(office.sid, self.draw.choice(others), push=False)
        if self.cluster.catalog_owner == node.name:
            self.cluster.catalog_owner = self.draw.choice(others)
        if self.draw.random() < 0.5:
            self.cluster.push()

    def _revive(self) -> None:
        for node in self.cluster.nodes.values():
            if not node.alive:
                node.alive = True
                node.inc += 1

    def _move(self) -> None:
        alive = [node.name for node in self.cluster.nodes.values() if node.alive]
        sid = self.draw.choice(list(self.cluster.offices))
        self.cluster.move(sid, self.draw.choice(alive), push=self.draw.random() < 0.5)

    def _do_not_read(self) -> None:
        self.bench.hold ^= set(self._connections(1))

    def _do_not_hear(self) -> None:
        """What the client writes is lost, so the connection is, too, in a while."""
        for number in self._connections(1):
            self.bench.deaf.add(number)

    def _be_late(self) -> None:
        self.bench.now += self.draw.choice((2.0, 3.5))
        self.bench.run()

    def _post(self) -> None:
        producer = self.draw.choice(self.producers)
        for _ in range(self.draw.randint(1, 20)):
            body = b"%d of %s" % (len(self.posted[producer]), producer.id.encode())
            self.posted[producer].append(body)
            producer.post(body)

    def _take(self) -> None:
        for application in self.applications:
            application.take(self.handed, self.may_have)

    def _settle(self) -> None:
        for application in self.applications:
            application.settle(self.acked, self.may_have)

    def _connections(self, count: int) -> list[int]:
        numbers = self.bench.connections
        return self.draw.sample(numbers, min(count, len(numbers)))

    # The end

    def heal(self) -> None:
        self._revive()
        for number in self.bench.deaf & set(self.bench.connections):
            self.bench.cut(number)
        self.bench.hold.clear()
        self.cluster.push()
        for _ in range(4000):  # With a prefetch of one, a message each.
            self.bench.advance(0.05)
            self._take()
            self._settle()
            if self._is_drained():
                return
        states = {
            (office.sid, queue): Counter(message.state for message in part)
            for office in self.cluster.offices.values()
            for queue, part in office.parts.items()
        }
        raise AssertionError(f"not drained after all healed: {states}")

    def _is_drained(self) -> bool:
        return all(producer.unanswered == 0 for producer in self.producers) and all(
            message.state == "done"
            for office in self.cluster.offices.values()
            for part in office.parts.values()
            for message in part
        )

    def check(self) -> None:
        stored = [
            [message.body for message in part]
            for office in self.cluster.offices.values()
            for part in office.parts.values()
        ]
        for posted in self.posted.values():
            mine = set(posted)
            found = [body for part in stored for body in part if body in mine]
            assert found == posted, "lost, stored twice, or out of order"
        places = sum(len(part) for part in stored)
        assert len(self.acked) == places
        assert sum(self.handed.values()) == places + sum(self.may_have.values())


@pytest.mark.parametrize("seed", range(120))
def test_whatever_fails_each_message_is_stored_once_and_handed_out_once(seed: int) -> None:
    weather = Weather(seed)

    for _ in range(STEPS):
        weather.step()
    weather.heal()

    weather.check()


def test_the_weather_is_bad_enough_to_find_something() -> None:
    resumed: list[Resumed] = []
    repeated = 0
    for seed in range(10):
        weather = Weather(seed)
        for _ in range(STEPS):
            weather.step()
        weather.heal()
        resumed += weather.bench.events(Resumed)
        opens = [
            message
            for node in weather.cluster.nodes.values()
            for _, received in node.seen
            if received.verb == 33
            and isinstance(message := control.read_control(received), control.OpenConsumer)
        ]
        repeated += sum(bool(message.acked or message.requeued) for message in opens)

    assert sum(event.in_doubt > 0 for event in resumed if event.role == "producer") > 20
    assert sum(event.held > 0 for event in resumed if event.role == "consumer") > 20
    assert repeated > 10
