"""How requests and channels find the owner of a stream: MOVED, WAIT, RETRY, and the limits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from tanist.core.errand import Stage
from tanist.core.settings import HOPS_MAX, ClientSettings
from tanist.errors import (
    FailoverTimeout,
    QueueExistsDifferently,
    QueueNotFound,
    RefusedError,
)
from tanist.events import Failed, FailoverStarted, Held, Resumed
from tanist.wire import control
from tanist.wire.frames import Frame, Verb
from tests.unit.client_bench import Bench
from tests.unit.fake_node import FakeCluster, FakeConnection

Answer = Callable[[FakeConnection, control.Request, int], None]


def on(verb: Verb, answer: Answer) -> Callable[[FakeConnection, Frame], bool]:
    """Have a node answer this verb so, and all others as it does."""

    def intercept(connection: FakeConnection, received: Frame) -> bool:
        if received.verb != verb:
            return False
        message = control.read_control(received)
        assert isinstance(message, control.Request)
        answer(connection, message, received.channel)
        return True

    return intercept


def declare(bench: Bench, queue: str, **more: object) -> object:
    request = control.Declare(req=0, queue=queue, **more)  # type: ignore[arg-type]  # By name.
    return bench.begin(lambda token: bench.core.declare(token, request, bench.now))


def test_declare_goes_to_the_catalogs_owner_wherever_the_client_entered() -> None:
    cluster = FakeCluster("a", "b")
    bench = Bench(cluster, locators=[cluster.nodes["b"].locator])
    bench.enter()

    token = declare(bench, "q")
    bench.run()

    info = bench.results[token]
    assert isinstance(info, control.QueueInfo)
    assert info.name == "q"
    assert not cluster.nodes["b"].frames(Verb.DECLARE), "the owner was known"


def test_a_queue_with_spread_one_is_placed_where_the_client_entered() -> None:
    cluster = FakeCluster("a", "b", post_offices=2)
    bench = Bench(cluster, locators=[cluster.nodes["b"].locator])
    bench.enter()

    token = declare(bench, "q", spread="one")
    bench.run()

    info = bench.results[token]
    assert isinstance(info, control.QueueInfo)
    assert info.sid == 2


def test_what_the_catalog_refuses_is_named_by_the_decision_to_make() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()

    differently = declare(bench, "q", spread="one")
    missing = bench.begin(lambda token: bench.core.delete(token, "nix", bench.now))
    producer = bench.begin_producer("nix")
    consumer = bench.begin_consumer("nix")
    bench.run()

    assert isinstance(bench.error_of(differently), QueueExistsDifferently)
    for token in (missing, producer, consumer):
        error = bench.error_of(token)
        assert isinstance(error, QueueNotFound)
        assert error.queue == "nix"
    assert "nix" not in cluster.queues


def test_a_delete_whose_answer_was_lost_has_worked() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    bench.hold.add(bench.connection_to("a"))
    token = bench.begin(lambda token: bench.core.delete(token, "q", bench.now))
    bench.run()

    cluster.nodes["a"].open_connections()[0].take()
    cluster.nodes["a"].open_connections()[0].closed = True
    bench.hold.clear()
    bench.advance(1)

    assert len(cluster.nodes["a"].frames(Verb.DELETE)) == 2
    assert isinstance(bench.results[token], control.Done)


def test_what_any_node_can_answer_is_asked_of_another_one_if_the_first_cannot() -> None:
    cluster = FakeCluster("a", "b")
    cluster.add_queue("q")
    bench = Bench(cluster, locators=[cluster.nodes["a"].locator])
    bench.enter()

    # It has no copy of the catalog, and cannot reach who has one.
    def retry(connection: FakeConnection, message: control.Request, channel: int) -> None:
        connection.say(control.Retry(req=message.req, after_ms=100), channel)

    cluster.nodes["a"].intercept = on(Verb.DESCRIBE, retry)
    token = bench.begin(lambda token: bench.core.describe(token, "q", bench.now))
    bench.advance(1)

    assert isinstance(bench.results[token], control.QueueInfo)
    assert cluster.nodes["b"].frames(Verb.DESCRIBE)


def test_moved_is_followed_to_a_node_that_the_topology_does_not_name() -> None:
    cluster = FakeCluster("a", "b")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    cluster.move(1, "b", push=False)

    producer = bench.producer("q")

    assert producer.owner == "b"
    assert producer.epoch == 2


def test_a_connection_that_was_cut_while_the_owner_lives_is_resumed_there() -> None:
    cluster = FakeCluster("a", "b")
    cluster.add_queue("q")
    bench = Bench(cluster, locators=[cluster.nodes["b"].locator])
    bench.enter()
    cluster.nodes["b"].here = 1
    producer = bench.producer("q")

    cluster.nodes["a"].open_connections()[0].closed = True
    producer.post(b"later")
    bench.advance(0.5)

    assert cluster.bodies("q") == [b"later"]
    resumed = bench.events(Resumed)[0]
    assert (resumed.old_owner, resumed.new_owner, resumed.epoch) == ("a", "a", 1)


def test_wait_is_no_answer_and_retry_asks_again_after_its_pause() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    asked_at: list[float] = []

    def answer(connection: FakeConnection, message: control.Request, channel: int) -> None:
        asked_at.append(bench.now)
        connection.say(control.Wait(req=message.req, sid=1, why="a takeover"), channel)
        if len(asked_at) > 2:
            cluster.nodes["a"].intercept = None
        connection.say(control.Retry(req=message.req, after_ms=500), channel)

    cluster.nodes["a"].intercept = on(Verb.OPEN_PRODUCER, answer)
    token = bench.begin_producer("q")
    bench.advance(3)

    assert [round(b - a, 6) for a, b in pairwise(asked_at)] == [0.5, 0.5]
    assert token in bench.results


def test_nodes_that_send_each_other_a_client_are_left_after_ten_hops_for_a_pause() -> None:
    cluster = FakeCluster("a", "b")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    hops: list[float] = []
    epoch = 1

    def to(other: str) -> Answer:
        def answer(connection: FakeConnection, message: control.Request, channel: int) -> None:
            nonlocal epoch
            epoch += 1
            hops.append(bench.now)
            moved = control.Moved(
                req=message.req,
                sid=1,
                locators=[cluster.nodes[other].locator],
                gen=1,
                epoch=epoch,
            )
            connection.say(moved, channel)

        return answer

    cluster.nodes["a"].intercept = on(Verb.OPEN_PRODUCER, to("b"))
    cluster.nodes["b"].intercept = on(Verb.OPEN_PRODUCER, to("a"))
    bench.begin_producer("q")
    bench.run()
    at_once = len(hops)
    bench.advance(5)

    assert at_once == HOPS_MAX + 1
    assert HOPS_MAX + 1 < len(hops) < 20 * HOPS_MAX


def test_a_client_never_goes_back_to_an_owner_of_a_lower_epoch() -> None:
    cluster = FakeCluster("a", "b", "c")
    cluster.add_queue("q")
    cluster.move(1, "c")
    bench = Bench(cluster)
    bench.enter()

    def stale(connection: FakeConnection, message: control.Request, channel: int) -> None:
        moved = control.Moved(
            req=message.req, sid=1, locators=[cluster.nodes["b"].locator], gen=1, epoch=1
        )
        connection.say(moved, channel)

    # The owner is dead, nobody has noticed, and one node still lives in the last epoch.
    cluster.nodes["c"].kill()
    cluster.nodes["a"].intercept = on(Verb.OPEN_PRODUCER, stale)
    bench.begin_producer("q")
    bench.advance(2)

    assert cluster.nodes["a"].frames(Verb.OPEN_PRODUCER)
    asked_b = cluster.nodes["b"].frames(Verb.OPEN_PRODUCER)
    assert len(asked_b) <= len(cluster.nodes["a"].frames(Verb.OPEN_PRODUCER))
    place = bench.core.topology.place(1)
    assert place is not None
    assert (place.node, place.epoch) == ("c", 2)


def test_a_deposed_owner_that_opens_a_channel_late_is_left() -> None:
    cluster = FakeCluster("a", "b")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    connection = bench.connection_to("a")
    bench.hold.add(connection)
    bench.begin_producer("q")
    bench.run()
    bench.hold.clear()

    def open_late(connection: FakeConnection, message: control.Request, channel: int) -> None:
        cluster.move(1, "b")  # Pushed before the answer, which is of the epoch before.
        opened = control.Opened(req=message.req, gen=1, epoch=1, next_n=1, credit=(10, 1000))
        connection.say(opened, channel)

    cluster.nodes["a"].intercept = on(Verb.OPEN_PRODUCER, open_late)
    bench.advance(1)

    assert cluster.nodes["b"].frames(Verb.OPEN_PRODUCER)
    # Who was deposed may not know yet. A CLOSE would return what a consumer holds, and its
    # heir might adopt that.
    assert not cluster.nodes["a"].frames(Verb.CLOSE)


def test_a_node_that_does_not_know_the_owner_is_left_for_another_one() -> None:
    cluster = FakeCluster("a", "b", "c")
    cluster.add_queue("q")
    cluster.move(1, "c")
    bench = Bench(cluster)
    bench.enter()
    cluster.nodes["c"].kill()
    cluster.move(1, "b", push=False)

    def unknown(connection: FakeConnection, message: control.Request, channel: int) -> None:
        connection.say(control.Moved(req=message.req, sid=1), channel)

    cluster.nodes["a"].intercept = on(Verb.OPEN_PRODUCER, unknown)
    producer = bench.producer("q")

    assert producer.owner == "b"


def test_calls_fail_when_no_owner_answered_for_the_failover_timeout() -> None:
    cluster = FakeCluster("a", "b")
    cluster.add_queue("q")
    bench = Bench(
        cluster,
        locators=[cluster.nodes["b"].locator],
        settings=ClientSettings(failover_timeout_s=10),
    )
    bench.enter()
    cluster.nodes["b"].here = 1
    cluster.waits.add(1)
    token = bench.begin_producer("q")

    bench.advance(9.9)
    early = token in bench.results
    bench.advance(0.2)

    assert not early
    error = bench.error_of(token)
    assert isinstance(error, FailoverTimeout)
    assert error.retryable, "nothing is in doubt"


def test_the_failover_timeout_does_not_run_while_the_owner_waits_for_copies() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster, settings=ClientSettings(failover_timeout_s=10))
    bench.enter()

    def held(connection: FakeConnection, message: control.Request, channel: int) -> None:
        connection.say(control.Wait(req=message.req, sid=1, why="held: one copy"), channel)

    cluster.nodes["a"].intercept = on(Verb.OPEN_PRODUCER, held)
    token = bench.begin_producer("q")
    bench.advance(60)

    assert token not in bench.results
    assert [(event.sid, event.why) for event in bench.events(Held)] == [(1, "held: one copy")]


def test_the_failover_timeout_runs_again_when_an_owner_that_waited_for_copies_is_gone() -> None:
    cluster = FakeCluster("a", "b")
    cluster.add_queue("q")
    bench = Bench(cluster, settings=ClientSettings(failover_timeout_s=10))
    bench.enter()

    def held(connection: FakeConnection, message: control.Request, channel: int) -> None:
        connection.say(control.Wait(req=message.req, sid=1, why="held: one copy"), channel)

    cluster.nodes["a"].intercept = on(Verb.OPEN_PRODUCER, held)
    token = bench.begin_producer("q")
    bench.advance(20)
    waiting = token not in bench.results
    cluster.nodes["a"].kill()
    cluster.waits.add(1)
    bench.advance(11)

    assert waiting
    assert isinstance(bench.error_of(token), FailoverTimeout)


def test_an_answer_that_may_pass_is_asked_for_again() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    times: list[float] = []

    def not_yet(connection: FakeConnection, message: control.Request, channel: int) -> None:
        times.append(bench.now)
        if len(times) == 3:
            cluster.nodes["a"].intercept = None
        error = control.Error(
            req=message.req, code="internal", sentence="not now", retryable=True, ends="channel"
        )
        connection.say(error, channel)

    cluster.nodes["a"].intercept = on(Verb.OPEN_PRODUCER, not_yet)
    token = bench.begin_producer("q")
    bench.advance(2)

    assert len(set(times)) == 3
    assert token in bench.results


def test_a_push_of_the_topology_moves_those_whose_epoch_rose_and_nobody_else() -> None:
    cluster = FakeCluster("a", "b", post_offices=2)
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    consumer = bench.consumer("q")
    before = consumer.legs[2].number

    cluster.offices[1].owner, cluster.offices[1].epoch = "b", 2
    cluster.ver += 1
    cluster.push()
    bench.run()

    assert (consumer.legs[1].owner, consumer.legs[1].epoch) == ("b", 2)
    assert consumer.legs[2].number == before
    assert [event.sid for event in bench.events(FailoverStarted)] == [1]
    assert [event.sid for event in bench.events(Resumed)] == [1]


def test_a_node_is_told_once_which_topology_the_client_has_by_now() -> None:
    cluster = FakeCluster("a", "b", post_offices=2)
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    bench.consumer("q")
    cluster.ver += 1
    bench.feed_topology(cluster.topology)  # By its connection to a.

    bench.consumer("q")
    bench.advance(2.5)
    opens = [
        message
        for node in cluster.nodes.values()
        for message in node.messages(Verb.OPEN_CONSUMER)[-1:]
        if isinstance(message, control.OpenConsumer)
    ]

    def told(node: str) -> list[control.Ver | None]:
        pings = cluster.nodes[node].messages(Verb.PING)
        return [ping.topology for ping in pings if isinstance(ping, control.Ping)]

    assert told("a") == [None, None]
    assert told("b") == [None, None]
    assert [message.topology for message in opens] == [None, (2, "h2")]


def test_an_older_topology_changes_nothing() -> None:
    cluster = FakeCluster("a", "b")
    bench = Bench(cluster)
    bench.enter()
    older = cluster.topology
    cluster.move(1, "b")
    bench.run()

    bench.feed_topology(older)

    assert bench.core.topology.ver == (2, "h2")
    place = bench.core.topology.place(1)
    assert place is not None
    assert place.node == "b"


def test_a_deleted_queue_ends_its_producers_and_consumers() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    producer = bench.producer("q")
    consumer = bench.consumer("q")

    deleted = control.Error(code="deleted", sentence="the queue was deleted", ends="channel")
    connection = cluster.nodes["a"].open_connections()[0]
    for channel in list(connection.channels):
        del connection.channels[channel]
        connection.say(deleted, channel)
    bench.run()

    assert isinstance(producer.error, QueueNotFound)
    assert isinstance(consumer.error, QueueNotFound)
    assert {event.role for event in bench.events(Failed)} == {"producer", "consumer"}
    with pytest.raises(QueueNotFound):
        producer.post(b"too late")


def test_a_queue_that_has_another_id_since_the_catalog_was_lost_is_gone_on_with() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    producer = bench.producer("q")
    consumer = bench.consumer("q")
    old = producer.info.id

    new = cluster.lose_the_catalog("q")
    cluster.nodes["a"].open_connections()[0].closed = True
    producer.post(b"to the new id")
    bench.advance(2)

    assert new.id != old
    assert producer.info.id == consumer.info.id == new.id
    assert cluster.bodies("q") == [b"to the new id"]
    taken = bench.take_all(consumer)
    assert [run.body(index) for run, index in taken] == [b"to the new id"]


def test_an_id_of_a_lost_catalog_is_asked_for_by_name_where_its_node_can_say_nothing() -> None:
    # Given a queue that has another id now, and a node that does not know, nor whom to ask
    cluster = FakeCluster("a", "b")
    cluster.offices[1].owner = "b"
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    producer = bench.producer("q")
    consumer = bench.consumer("q")
    old = producer.info.id
    new = cluster.lose_the_catalog("q")
    refused: list[int] = []

    def cannot_say(connection: FakeConnection, received: Frame) -> bool:
        if received.verb not in (Verb.OPEN_PRODUCER, Verb.OPEN_CONSUMER):
            return False
        message = control.read_control(received)
        assert isinstance(message, control.OpenProducer | control.OpenConsumer)
        if message.queue_id != old:
            return False
        refused.append(message.queue_id)
        connection.say(control.Retry(req=message.req, after_ms=100), received.channel)
        return True

    cluster.nodes["b"].intercept = cannot_say

    # When its clients come back
    for connection in cluster.nodes["b"].open_connections():
        connection.closed = True
    producer.post(b"to the new id")
    bench.advance(3)

    # Then they learn the new id from another node, and ask for it once each
    assert len(refused) >= 2
    assert producer.info.id == consumer.info.id == new.id
    assert cluster.bodies("q") == [b"to the new id"]
    assert [run.body(index) for run, index in bench.take_all(consumer)] == [b"to the new id"]
    assert len(cluster.nodes["a"].frames(Verb.DESCRIBE)) <= 4


def test_a_leg_that_is_refused_late_for_an_old_id_does_not_end_its_consumer() -> None:
    # Given a consumer with two legs, whose queue has another id now
    cluster = FakeCluster("a", "b", post_offices=2)
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    consumer = bench.consumer("q")
    old = consumer.info.id
    del cluster.queues["q"]
    cluster.catalog_gen = 2
    cluster.ver += 1
    new = cluster.add_queue("q")
    waiting: list[tuple[FakeConnection, int, int]] = []

    def waits(connection: FakeConnection, received: Frame) -> bool:
        message = control.read_control(received) if received.verb < Verb.PUBLISH else None
        if not isinstance(message, control.OpenConsumer):
            return False
        if (message.sid, message.queue_id) != (2, old):
            return False
        waiting.append((connection, message.req, received.channel))
        return True

    cluster.nodes["b"].intercept = waits
    cluster.push()
    for node in cluster.nodes.values():
        for connection in node.open_connections():
            connection.closed = True

    # When one leg's node says at once that it has no such queue, and the other's much later
    bench.advance(2)
    at_once = consumer.info.id
    for connection, req, channel in waiting:
        error = control.Error(req=req, code="not_found", sentence="no", ends="channel")
        connection.say(error, channel)
    bench.advance(1)

    # Then both legs go on with the new id
    assert waiting
    assert at_once == new.id
    assert consumer.error is None
    assert [leg.stage for leg in consumer.legs.values()] == [Stage.DONE] * 2


def test_a_queue_that_is_not_there_after_the_catalog_was_lost_is_not_found() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    producer = bench.producer("q")
    consumer = bench.consumer("q")

    del cluster.queues["q"]
    cluster.catalog_gen = 2
    cluster.ver += 1
    cluster.push()
    cluster.nodes["a"].open_connections()[0].closed = True
    bench.advance(2)

    assert isinstance(producer.error, QueueNotFound)
    assert isinstance(consumer.error, QueueNotFound)


def test_numbers_are_asked_for_at_each_post_office() -> None:
    cluster = FakeCluster("a", "b", post_offices=2)
    info = cluster.add_queue("q")
    cluster.put("q", b"one", b"two", sid=1)
    cluster.put("q", b"three", sid=2)
    bench = Bench(cluster)
    bench.enter()

    first = bench.ask(lambda token: bench.core.stat(token, info, 1, bench.now))
    second = bench.ask(lambda token: bench.core.stat(token, info, 2, bench.now))
    purged = bench.ask(lambda token: bench.core.purge(token, info, 2, bench.now))

    assert bench.core.offices_of(info) == [1, 2]
    stats = [done.stat for done in (first, second) if isinstance(done, control.Done)]
    assert [stat.ready for stat in stats if stat is not None] == [2, 1]
    assert isinstance(purged, control.Done)
    assert purged.purged == 1
    assert cluster.states("q", 2) == ["done"]


def test_a_queue_of_this_catalog_that_is_not_found_is_not_asked_for_again() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    producer = bench.producer("q")

    cluster.queues.clear()
    cluster.nodes["a"].open_connections()[0].closed = True
    bench.advance(1)

    assert isinstance(producer.error, QueueNotFound)
    assert len(cluster.nodes["a"].frames(Verb.DESCRIBE)) == 1


def test_an_open_that_a_newer_connection_stands_against_is_made_by_a_still_newer_one() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()

    def replaced(connection: FakeConnection, message: control.Request, channel: int) -> None:
        cluster.nodes["a"].intercept = None
        error = control.Error(
            req=message.req, code="replaced", sentence="a newer one", ends="channel"
        )
        connection.say(error, channel)

    cluster.nodes["a"].intercept = on(Verb.OPEN_PRODUCER, replaced)
    token = bench.begin_producer("q")
    bench.advance(1)

    assert token in bench.results
    hellos = cluster.nodes["a"].messages(Verb.HELLO)
    assert [hello.dial for hello in hellos if isinstance(hello, control.Hello)] == [1, 2]


def test_more_channels_than_a_connection_allows_are_refused_with_what_to_do() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    cluster.nodes["a"].channels_max = 2
    bench = Bench(cluster)
    bench.enter()
    bench.producer("q")
    bench.producer("q")

    token = bench.begin_producer("q")
    bench.run()

    error = bench.error_of(token)
    assert isinstance(error, RefusedError)
    assert error.code == "limit"
