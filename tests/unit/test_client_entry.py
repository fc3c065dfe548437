"""How a client enters a cluster, keeps its connections, and gives them up."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tanist.core.events import Effect, Received
from tanist.core.settings import BACKOFF_S_MAX, ClientSettings
from tanist.errors import ClosedError, FailoverTimeout
from tanist.events import ConnectionLost
from tanist.wire import control
from tanist.wire.frames import Frame, Verb
from tests.unit.client_bench import Bench
from tests.unit.fake_node import FakeCluster, FakeConnection


def test_a_client_learns_the_topology_from_the_node_by_which_it_enters() -> None:
    cluster = FakeCluster("a", "b", post_offices=2)
    bench = Bench(cluster, locators=[cluster.nodes["b"].locator])

    entered = bench.enter()

    assert entered is None
    assert bench.core.entry == "b"
    assert bench.core.here == 2
    assert bench.core.topology.offices == [1, 2]


def test_the_session_stays_and_the_dial_grows_over_connections() -> None:
    cluster = FakeCluster("a")
    bench = Bench(cluster)
    bench.enter()

    cluster.nodes["a"].open_connections()[0].closed = True
    bench.advance(1)

    hellos = cluster.nodes["a"].messages(Verb.HELLO)
    first, second = hellos
    assert isinstance(first, control.Hello)
    assert isinstance(second, control.Hello)
    assert first.session == second.session
    assert first.dial < second.dial
    # What it knows by now is told, so that it is not sent again.
    assert first.topology is None
    assert second.topology == (1, "h1")


def test_a_dead_node_is_dialed_with_pauses_that_double_up_to_a_limit() -> None:
    cluster = FakeCluster("a")
    cluster.nodes["a"].alive = False
    bench = Bench(cluster)
    bench.begin(lambda token: bench.core.enter(token, bench.now))

    bench.advance(25)

    times = [at for at, _ in bench.dials]
    pauses = [b - a for a, b in pairwise(times)]
    assert 10 < len(pauses) < 40
    assert pauses[0] < 0.1
    assert max(pauses) <= BACKOFF_S_MAX
    assert min(pauses[-5:]) >= BACKOFF_S_MAX / 2
    assert len({round(pause, 6) for pause in pauses[-5:]}) > 1, "no jitter"


def test_a_node_that_hangs_up_at_once_is_dialed_more_and_more_seldom() -> None:
    cluster = FakeCluster("a")
    bench = Bench(cluster)
    bench.enter()

    def hang_up_until(end: float) -> int:
        before = len(bench.dials)
        while bench.now < end:
            for connection in cluster.nodes["a"].open_connections():
                connection.closed = True
            bench.advance(0.02)
        return len(bench.dials) - before

    bench.advance(10)
    first_second = hang_up_until(bench.now + 1)
    later_second = hang_up_until(bench.now + 1)
    bench.advance(10)
    after_a_calm = hang_up_until(bench.now + 1)

    assert first_second > 2 * later_second
    assert after_a_calm == first_second


def test_all_given_nodes_are_tried_before_one_is_tried_again() -> None:
    cluster = FakeCluster("a", "b", "c")
    cluster.nodes["a"].alive = cluster.nodes["b"].alive = False
    bench = Bench(cluster, locators=[node.locator for node in cluster.nodes.values()])

    bench.enter()

    assert bench.core.entry == "c"
    assert len(bench.dials) == len({port for _, port in bench.dials})


def freeze(cluster: FakeCluster, *names: str) -> None:
    """These nodes accept connections, and say nothing."""
    for name in names:
        cluster.nodes[name].intercept = lambda connection, frame: True


@pytest.mark.parametrize("frozen", ["a", "b", "c", "ab", "bc", "ca"])
def test_each_node_that_accepts_and_says_nothing_costs_an_entering_client_a_second(
    frozen: str,
) -> None:
    # Given a cluster in which nodes are frozen
    cluster = FakeCluster("a", "b", "c")
    freeze(cluster, *frozen)
    bench = Bench(cluster, locators=[node.locator for node in cluster.nodes.values()])

    # When a client enters by any of them
    token = bench.begin(lambda token: bench.core.enter(token, bench.now))
    bench.advance(len(frozen) * 1.0)

    # Then it is in by another one after a second for each, and gets its answers there
    assert bench.results.get(token, "waits") is None
    assert bench.core.entry not in ("", *frozen)
    done = bench.ask(lambda token: bench.core.status(token, bench.now))
    assert isinstance(done, control.Done)


def test_a_client_that_is_in_keeps_its_answers_while_a_frozen_node_is_dialed() -> None:
    # Given a client that has entered beside a frozen node
    cluster = FakeCluster("a", "b", "c")
    freeze(cluster, "b")
    bench = Bench(cluster, locators=[node.locator for node in cluster.nodes.values()])
    bench.begin(lambda token: bench.core.enter(token, bench.now))
    bench.advance(1)
    entry = bench.core.entry

    # When the frozen one is given up
    bench.advance(5)

    # Then the client is where it was, and has no reason to dial again
    assert bench.core.entry == entry
    assert len(bench.dials) == 2
    assert bench.told == []


def test_a_single_frozen_node_is_waited_for_without_turning_in_circles() -> None:
    # Given a client that knows one node, which is frozen
    cluster = FakeCluster("a")
    freeze(cluster, "a")
    bench = Bench(cluster)
    bench.begin(lambda token: bench.core.enter(token, bench.now))
    status = bench.begin(lambda token: bench.core.status(token, bench.now))

    # When it waits, and the node goes on after four seconds
    bench.advance(4)
    wakes = bench.wakes
    cluster.nodes["a"].intercept = None
    bench.advance(5)

    # Then it woke a few times only, and has its answer
    assert wakes < 10
    assert isinstance(bench.results[status], control.Done)


def test_entering_fails_after_the_failover_timeout() -> None:
    cluster = FakeCluster("a")
    cluster.nodes["a"].alive = False
    bench = Bench(cluster, settings=ClientSettings(failover_timeout_s=5))
    token = bench.begin(lambda token: bench.core.enter(token, bench.now))

    bench.advance(4.9)
    early = token in bench.results
    bench.advance(0.2)

    assert not early
    error = bench.error_of(token)
    assert isinstance(error, FailoverTimeout)
    assert error.retryable
    assert "refused" in str(error)


def test_heartbeats_run_each_second() -> None:
    cluster = FakeCluster("a")
    bench = Bench(cluster)
    bench.enter()

    bench.advance(10.5)

    assert len(cluster.nodes["a"].frames(Verb.PING)) == 10
    assert len(bench.dials) == 1


def test_a_silent_connection_is_closed_after_three_seconds() -> None:
    cluster = FakeCluster("a", "b")
    bench = Bench(cluster)
    bench.enter()
    bench.hold.add(bench.connection_to("a"))

    bench.advance(2.9)
    early = list(bench.told)
    bench.advance(0.2)

    assert early == []
    assert bench.events(ConnectionLost)[0].why == "silent for 3 s"
    assert bench.core.entry == "b"


def test_a_client_of_a_node_that_stopped_learns_of_the_takeover_from_another_one() -> None:
    cluster = FakeCluster("a", "b")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    producer = bench.producer("q")
    bench.advance(1)
    bench.hold.add(bench.connection_to("a"))
    bench.deaf.add(bench.connection_to("a"))
    cluster.move(1, "b")

    producer.post(b"x")
    bench.advance(1.4)
    early = producer.owner
    bench.advance(0.2)

    assert early == "a"
    assert producer.owner == "b"
    assert cluster.bodies("q") == [b"x"]
    assert bench.events(ConnectionLost) == []


def test_deadlines_find_work_while_there_is_no_other_node_to_ask() -> None:
    cluster = FakeCluster("a")
    bench = Bench(cluster)
    bench.enter()
    bench.hold.add(bench.connection_to("a"))

    bench.advance(2.9)

    assert bench.wakes < 10


def test_a_client_whose_own_turn_was_late_drops_what_it_has_not_read() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    consumer = bench.consumer("q")
    connection = bench.connection_to("a")
    bench.hold.add(connection)
    cluster.put("q", b"stale")
    unread = cluster.nodes["a"].connections[connection].take()

    bench.now += 3.0  # Stopped: no deadline was kept, and now the socket is readable.
    bench.feed(Received(connection, unread))
    buffered = consumer.take()
    bench.hold.clear()
    bench.advance(1)

    assert buffered is None
    assert "late" in bench.events(ConnectionLost)[0].why
    # It comes back under a new channel, flagged, since it was on its way to us.
    run = consumer.take()
    assert run is not None
    assert run.redelivered


def test_a_turn_just_short_of_late_changes_nothing() -> None:
    cluster = FakeCluster("a")
    bench = Bench(cluster)
    bench.enter()
    bench.advance(0.5)

    bench.now += 2.4
    bench.run()

    assert bench.told == []


def test_a_frame_that_cannot_be_read_closes_the_connection_after_one_error() -> None:
    cluster = FakeCluster("a")
    bench = Bench(cluster)
    bench.enter()
    connection = bench.connection_to("a")

    bench.feed(Received(connection, b"\xff" * 8))

    errors = cluster.nodes["a"].messages(Verb.ERROR)
    assert [error.code for error in errors if isinstance(error, control.Error)] == ["limit"]
    assert bench.events(ConnectionLost)[0].node == "a"


def test_nothing_but_welcome_is_accepted_before_welcome() -> None:
    cluster = FakeCluster("a")

    def pong_first(connection: FakeConnection, frame: Frame) -> bool:
        if frame.verb == Verb.HELLO:
            connection.say(control.Pong(time_ms=1))
        return False

    cluster.nodes["a"].intercept = pong_first
    bench = Bench(cluster, settings=ClientSettings(failover_timeout_s=1))
    token = bench.begin(lambda token: bench.core.enter(token, bench.now))

    bench.advance(2)

    assert "before WELCOME" in str(bench.error_of(token))


def test_a_second_connection_to_a_node_that_has_two_addresses_is_given_up() -> None:
    cluster = FakeCluster("a", "b", post_offices=2)
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    bench.consumer("q")
    cluster.offices[1].owner, cluster.offices[1].epoch = "b", 2
    cluster.nodes["b"].other_port = 8002

    def moved_to_the_other_address(connection: FakeConnection, received: Frame) -> bool:
        message = control.read_control(received) if received.verb < Verb.PUBLISH else None
        if not isinstance(message, control.OpenProducer):
            return False
        moved = control.Moved(req=message.req, sid=1, locators=["127.0.0.1:8002"], gen=1, epoch=2)
        connection.say(moved, received.channel)
        return True

    cluster.nodes["a"].intercept = moved_to_the_other_address
    producer = bench.producer("q")
    producer.post(b"arrives")
    bench.flush(producer)

    assert (bench.now, 8002) in bench.dials
    assert cluster.bodies("q") == [b"arrives"]
    assert len(cluster.nodes["b"].open_connections()) == 1


def test_a_node_that_was_started_anew_ends_the_connection_to_its_old_life() -> None:
    cluster = FakeCluster("a", "b")
    cluster.nodes["a"].other_port = 8001
    bench = Bench(cluster)
    bench.enter()
    cluster.nodes["a"].inc += 1  # The old process is dead, and nobody has closed its socket.
    cluster.offices[1].epoch = 2

    moved = control.Moved(sid=1, locators=["127.0.0.1:8001"], gen=1, epoch=2)
    cluster.add_queue("q")
    cluster.nodes["a"].open_connections()[0].say(moved)
    bench.producer("q")

    assert bench.events(ConnectionLost)[0].why == "the node was started anew"
    assert len(cluster.nodes["a"].open_connections()) == 1


def test_close_says_so_and_completes_with_the_answer() -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    bench.consumer("q")
    cluster.put("q", b"one")
    bench.run()

    token = bench.begin(lambda token: _close(bench, token))
    bench.run()

    assert token in bench.results
    assert len(cluster.nodes["a"].frames(Verb.CLOSE)) == 2
    assert cluster.states("q") == ["ready"]


@pytest.mark.parametrize("how", ["silent", "dead", "never there"])
def test_close_always_completes(how: str) -> None:
    cluster = FakeCluster("a")
    cluster.add_queue("q")
    bench = Bench(cluster)
    if how == "never there":
        cluster.nodes["a"].alive = False
        waiting = bench.begin(lambda token: bench.core.enter(token, bench.now))
    else:
        bench.enter()
        producer = bench.producer("q")
        if how == "silent":
            bench.hold.add(bench.connection_to("a"))
        else:
            cluster.nodes["a"].kill()
        producer.post(b"in doubt")
        waiting = bench.begin(lambda token: producer.flush(token, bench.now))
    bench.run()

    token = bench.begin(lambda token: _close(bench, token))
    bench.advance(1.5)

    assert token in bench.results
    assert isinstance(bench.error_of(waiting), ClosedError)
    with pytest.raises(ClosedError):
        bench.core.status("late", bench.now)


def _close(bench: Bench, token: object) -> None:
    outbox: list[Effect] = []
    bench.core.close(token, bench.now, outbox)
    bench.execute(outbox)
