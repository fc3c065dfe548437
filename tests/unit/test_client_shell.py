"""The asyncio shell over real sockets on loopback, against the fake cluster."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

import tanist
from tanist.events import ClientEvent, ConnectionLost, Resumed
from tanist.wire import control
from tanist.wire.frames import Frame, Verb
from tests.unit.fake_node import FakeCluster, FakeConnection, Intercept
from tests.unit.fake_server import FakeServer

Scenario = Callable[[FakeCluster, FakeServer], Coroutine[Any, Any, None]]
# Any: what coroutines send and receive inside is asyncio's own affair.


def play(scenario: Scenario, *nodes: str, run: Callable[..., None] = asyncio.run) -> None:
    """Run a scenario against a cluster that has queue q."""

    async def main() -> None:
        cluster = FakeCluster(*(nodes or ("a",)))
        cluster.add_queue("q")
        async with FakeServer(cluster) as server, asyncio.timeout(10):
            await scenario(cluster, server)

    run(main())


def park(verb: Verb, parked: list[tuple[FakeConnection, Frame]]) -> Intercept:
    """Keep frames of this verb for later."""

    def intercept(connection: FakeConnection, received: Frame) -> bool:
        if received.verb != verb:
            return False
        parked.append((connection, received))
        return True

    return intercept


def release(server: FakeServer, parked: list[tuple[FakeConnection, Frame]]) -> None:
    for connection, received in parked:
        connection.node.handle(connection, received)
    parked.clear()
    server.spread()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until this holds."""
    while not condition():
        await asyncio.sleep(0)


def test_a_question_that_fails_at_several_post_offices_leaves_no_failure_unseen() -> None:
    # Given two post offices, whose node answers nothing about their queues
    unseen: list[dict[str, Any]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unseen.append(context))
        cluster = FakeCluster("a", post_offices=2)
        cluster.add_queue("q")
        cluster.nodes["a"].intercept = park(Verb.STAT, [])
        async with FakeServer(cluster) as server:
            client = tanist.connect(server.url, failover_timeout_s=0.2)
            async with client:
                asked = asyncio.create_task(client.stat("q"))
                await until(lambda: len(cluster.nodes["a"].frames(Verb.STAT)) == 2)
                cluster.nodes["a"].kill()
                server.spread()
                with pytest.raises(tanist.FailoverTimeout):
                    await asked

    # When somebody asks at both
    asyncio.run(asyncio.wait_for(scenario(), 10))
    gc.collect()

    # Then one error is raised, and nothing is told to nobody
    assert unseen == []


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_client_declares_sends_receives_and_acks(run: Callable[..., None]) -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client:
            info = await client.declare("orders")
            async with (
                client.producer("orders") as producer,
                client.consumer("orders", prefetch=10) as consumer,
            ):
                confirmed = await producer.send(b"one", {"k": 1})
                many = await producer.send_many([b"%d" % n for n in range(50)])
                got: list[bytes] = []
                async for message in consumer:
                    got.append(message.body)
                    consumer.ack(message)
                    if len(got) == 51:
                        break
                stale = await consumer.flush()
                stat = await client.stat("orders")

            assert (info.name, client.node) == ("orders", "a")
            assert (confirmed.copies, many.copies) == (3, 3)
            assert got == [b"one", *(b"%d" % n for n in range(50))]
            assert stale == []
            assert (stat.ready, stat.in_flight, stat.consumers) == (0, 0, 1)
            assert [queue.name for queue in await client.queues()] == ["orders", "q"]
            assert await client.status() == {"node": "a"}
            assert client.topology == {0: "a", 1: "a"}
            assert await client.purge("orders") == 0
            await client.delete("orders")
            with pytest.raises(tanist.QueueNotFound):
                await client.describe("orders")

    play(scenario, run=run)


def test_all_queues_are_listed_however_many_pages_they_fill() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        cluster.queues_a_page = 2
        async with tanist.connect(server.url) as client:
            for name in ("e", "c", "a", "d", "b"):
                await client.declare(name)

            queues = await client.queues()

        assert [queue.name for queue in queues] == ["a", "b", "c", "d", "e", "q"]

    play(scenario)


def test_an_unknown_queue_is_not_found_and_never_made() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client:
            with pytest.raises(tanist.QueueNotFound, match="nix"):
                await client.producer("nix")
            with pytest.raises(tanist.QueueNotFound, match="nix"):
                async with client.consumer("nix"):
                    raise AssertionError("it was opened")
            with pytest.raises(tanist.ConfigError):
                await client.declare("")

        assert list(cluster.queues) == ["q"]

    play(scenario)


def test_one_future_serves_all_who_send_in_one_turn_and_cancelling_one_disturbs_no_other() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client, client.producer("q") as producer:
            parked: list[tuple[FakeConnection, Frame]] = []
            cluster.nodes["a"].intercept = park(Verb.PUBLISH, parked)
            sends = [asyncio.create_task(producer.send(b"%d" % n)) for n in range(4)]
            await until(lambda: parked)

            sends[1].cancel()
            await asyncio.sleep(0)
            sends[3].cancel()
            await asyncio.sleep(0)
            cluster.nodes["a"].intercept = None
            release(server, parked)
            results = await asyncio.gather(*sends, return_exceptions=True)

            cancelled = [isinstance(result, asyncio.CancelledError) for result in results]
            assert cancelled == [False, True, False, True]
            assert isinstance(results[0], tanist.Confirmed)
            assert isinstance(results[2], tanist.Confirmed)
            # What was cancelled was in doubt, and is stored.
            assert cluster.bodies("q") == [b"0", b"1", b"2", b"3"]

    play(scenario)


def test_a_cancelled_send_and_its_confirm_in_one_turn_still_serve_the_others() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client, client.producer("q") as producer:
            parked: list[tuple[FakeConnection, Frame]] = []
            cluster.nodes["a"].intercept = park(Verb.PUBLISH, parked)
            sends = [asyncio.create_task(producer.send(b"%d" % n)) for n in range(2)]
            await until(lambda: parked)
            outcome = producer._core._sent[0].token

            sends[0].cancel()
            assert isinstance(outcome, tanist.producer.Outcome)
            outcome.decide(tanist.Confirmed(1, 1, 1, 1, 0.0), None)
            results = await asyncio.gather(*sends, return_exceptions=True)

            assert isinstance(results[0], asyncio.CancelledError)
            assert isinstance(results[1], tanist.Confirmed)
            cluster.nodes["a"].intercept = None
            release(server, parked)

    play(scenario)


def test_a_send_that_timed_out_is_in_doubt_and_flush_waits_for_it() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client, client.producer("q") as producer:
            parked: list[tuple[FakeConnection, Frame]] = []
            cluster.nodes["a"].intercept = park(Verb.PUBLISH, parked)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await producer.send(b"x")
            in_doubt = producer.unanswered

            cluster.nodes["a"].intercept = None
            release(server, parked)
            await producer.flush()

            assert in_doubt == 1
            assert cluster.bodies("q") == [b"x"]

    play(scenario)


def test_to_await_post_waits_at_the_window_only() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        connecting = tanist.connect(server.url, window_messages=100)
        async with connecting as client, client.producer("q") as producer:
            parked: list[tuple[FakeConnection, Frame]] = []
            cluster.nodes["a"].intercept = park(Verb.PUBLISH, parked)
            for _ in range(99):
                await producer.post(b"x")
            posted_at_once = not parked  # No turn of the loop went by.
            last = asyncio.ensure_future(producer.post(b"x"))
            await until(lambda: parked)
            waits = not last.done()

            cluster.nodes["a"].intercept = None
            release(server, parked)
            await last

            assert posted_at_once
            assert waits

    play(scenario)


def test_post_without_await_raises_before_memory_grows_without_bound() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        connecting = tanist.connect(server.url, window_messages=100)
        async with connecting as client, client.producer("q") as producer:
            for _ in range(200):
                producer.post(b"x")
            with pytest.raises(tanist.OverloadedError, match="await"):
                producer.post(b"x")
            posted = producer.unanswered
            await producer.flush()

            assert posted == 200
            assert len(cluster.bodies("q")) == 200

    play(scenario)


@pytest.mark.parametrize("body", ["text", 5, None])
def test_a_body_that_is_not_bytes_is_refused(body: object) -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client, client.producer("q") as producer:
            with pytest.raises(tanist.LocalProtocolError, match="body is bytes"):
                producer.post(body)  # type: ignore[arg-type]  # That is the test.
            with pytest.raises(tanist.LocalProtocolError, match="JSON"):
                producer.post(b"x", {"k": object()})
            producer.post(bytearray(b"like bytes"))
            await producer.flush()

        assert cluster.bodies("q") == [b"like bytes"]

    play(scenario)


def test_fetch_returns_when_there_are_enough_or_time_is_over() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client, client.consumer("q") as consumer:
            cluster.put("q", b"1", b"2", b"3")
            server.spread()

            first = await consumer.fetch(2)
            second = await consumer.fetch(5, timeout=0.02)
            third = await consumer.fetch(1, timeout=0)
            cluster.put("q", b"4")  # Its credit was called back: this waits at the node.
            server.spread()
            await asyncio.sleep(0.01)
            waits = cluster.states("q")[-1]
            fourth = await consumer.fetch(1, timeout=5)

            assert [m.body for m in first] == [b"1", b"2"]
            assert [m.body for m in second] == [b"3"]
            assert third == []
            assert waits == "ready"
            assert [m.body for m in fourth] == [b"4"]

    play(scenario)


def test_what_a_cancelled_fetch_had_collected_is_handed_out_by_the_next_one() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client, client.consumer("q") as consumer:
            cluster.put("q", b"1", b"2", b"3")
            server.spread()
            fetching = asyncio.create_task(consumer.fetch(10))
            await until(lambda: consumer.held == 3)
            await asyncio.sleep(0)

            fetching.cancel()
            await asyncio.wait([fetching])
            got = await consumer.fetch(3)

            assert [m.body for m in got] == [b"1", b"2", b"3"]

    play(scenario)


def test_processing_acks_on_success_and_requeues_on_an_error() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client, client.consumer("q") as consumer:
            cluster.put("q", b"good", b"bad", b"cancelled")
            server.spread()
            good, bad, cancelled = await consumer.fetch(3)

            async with consumer.processing(good) as message:
                assert message.body == b"good"
            with pytest.raises(ZeroDivisionError):
                async with consumer.processing(bad):
                    raise ZeroDivisionError
            with pytest.raises(asyncio.CancelledError):
                async with consumer.processing(cancelled):
                    raise asyncio.CancelledError
            again = await consumer.fetch(2)
            await consumer.flush()

            assert cluster.states("q")[0] == "done"
            assert [(m.body, m.attempts) for m in again] == [(b"bad", 1), (b"cancelled", 0)]

    play(scenario)


def test_automatic_acks_are_made_when_a_message_is_handed_over() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with (
            tanist.connect(server.url) as client,
            client.consumer("q", auto_ack=True) as consumer,
        ):
            cluster.put("q", b"1", b"2", b"3")
            server.spread()
            async for _ in consumer:
                break
            await consumer.flush()

            assert cluster.states("q") == ["done", "in flight", "in flight"]
            await consumer.fetch(2)
            await consumer.flush()
            assert cluster.states("q") == ["done"] * 3

    play(scenario)


def test_a_message_is_settled_by_the_consumer_that_has_it() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with (
            tanist.connect(server.url) as client,
            client.consumer("q") as consumer,
            client.consumer("q") as another,
        ):
            cluster.put("q", b"x")
            server.spread()
            got = await consumer.fetch(1)
            with pytest.raises(tanist.LocalProtocolError, match="another consumer"):
                another.ack(got[0])
            with pytest.raises(tanist.LocalProtocolError, match="another consumer"):
                another.requeue(got[0])

    play(scenario)


@pytest.mark.parametrize("value", [None, b"body", "1.1.0.0"])
def test_only_a_message_can_be_settled_and_others_are_not_disturbed(value: object) -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        # Given two messages in hand
        async with tanist.connect(server.url) as client, client.consumer("q") as consumer:
            cluster.put("q", b"1", b"2")
            server.spread()
            first, second = await consumer.fetch(2)

            # When something else is settled between them
            consumer.ack(first)
            with pytest.raises(TypeError, match=f"not {type(value).__name__}"):
                consumer.ack(value)  # type: ignore[arg-type]  # That is the test.
            with pytest.raises(TypeError, match=f"not {type(value).__name__}"):
                consumer.requeue(value)  # type: ignore[arg-type]  # That is the test.
            consumer.ack(second)
            await consumer.flush()

            # Then both are done
            assert cluster.states("q") == ["done", "done"]

    play(scenario)


def test_several_tasks_may_take_from_one_consumer() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client, client.consumer("q") as consumer:
            got: list[bytes] = []

            async def work() -> None:
                async for message in consumer:
                    got.append(message.body)
                    consumer.ack(message)
                    await asyncio.sleep(0)

            workers = [asyncio.create_task(work()) for _ in range(3)]
            cluster.put("q", *(b"%d" % n for n in range(20)))
            server.spread()
            await until(lambda: len(got) == 20)
            await consumer.close()
            await asyncio.gather(*workers)

            assert sorted(got) == sorted(b"%d" % n for n in range(20))

    play(scenario)


def test_a_failover_is_told_and_nothing_is_lost() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        told: list[ClientEvent] = []
        async with tanist.connect(server.url, listener=told.append) as client:
            producer = await client.producer("q")
            owner = cluster.nodes[cluster.offices[1].owner]
            other = next(node for node in cluster.nodes.values() if node is not owner)
            await producer.send(b"before")
            owner.kill()
            cluster.move(1, other.name)
            server.spread()
            await producer.send(b"after")
            await until(lambda: any(isinstance(event, Resumed) for event in told))

            assert cluster.bodies("q") == [b"before", b"after"]
            assert any(isinstance(event, ConnectionLost) for event in told)

    play(scenario, "a", "b")


def test_a_listener_that_hangs_over_one_event_is_told_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tanist.client.LISTENER_S_MAX", 0.01)

    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        told: list[ClientEvent] = []

        async def hangs(event: ClientEvent) -> None:
            told.append(event)
            await asyncio.Event().wait()

        async with tanist.connect(server.url, listener=hangs) as client:
            await client.producer("q")
            cluster.nodes["a"].open_connections()[0].closed = True
            server.spread()
            await until(lambda: any(isinstance(event, Resumed) for event in told))

    play(scenario)


def test_a_listener_that_raises_or_hangs_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        told: list[ClientEvent] = []

        def raises(event: ClientEvent) -> None:
            raise RuntimeError("a bad listener")

        async def hangs(event: ClientEvent) -> None:
            await asyncio.Event().wait()

        async def listens(event: ClientEvent) -> None:
            told.append(event)

        async with tanist.connect(server.url, listener=raises) as client:
            client.listen(hangs)
            stop = client.listen(listens)
            producer = await client.producer("q")
            cluster.nodes["a"].open_connections()[0].closed = True
            server.spread()
            await producer.send(b"x")
            await until(lambda: any(isinstance(event, Resumed) for event in told))
            stop()

            assert cluster.bodies("q") == [b"x"]

    play(scenario)
    assert "a bad listener" in caplog.text


def test_close_during_a_failover_completes_and_tells_those_who_wait() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        client = await tanist.connect(server.url)
        producer = await client.producer("q")
        consumer = await client.consumer("q")
        cluster.nodes["a"].kill()
        server.spread()
        sending = asyncio.create_task(producer.send(b"x"))
        taking = asyncio.create_task(consumer.fetch(1))
        asking = asyncio.create_task(client.describe("q"))
        await asyncio.sleep(0.01)

        await client.close()
        await client.close()
        waited = await asyncio.gather(sending, taking, asking, return_exceptions=True)

        assert [type(result) for result in waited] == [tanist.ClosedError] * 3
        with pytest.raises(tanist.ClosedError):
            producer.post(b"late")
        with pytest.raises(tanist.ClosedError):
            await client.queues()
        with pytest.raises(tanist.ClosedError):
            await client.__aenter__()

    play(scenario)


def test_iteration_ends_when_the_consumer_is_closed() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client:
            consumer = await client.consumer("q")

            async def take() -> list[bytes]:
                return [message.body async for message in consumer]

            taking = asyncio.create_task(take())
            await asyncio.sleep(0)
            await consumer.close()
            got = await taking

            assert got == []

    play(scenario)


def test_a_consumer_that_nobody_waits_for_any_more_is_closed_again() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        async with tanist.connect(server.url) as client:
            parked: list[tuple[FakeConnection, Frame]] = []
            cluster.nodes["a"].intercept = park(Verb.OPEN_CONSUMER, parked)
            opening = asyncio.create_task(_opened(client))
            await until(lambda: parked)

            opening.cancel()
            await asyncio.wait([opening])
            cluster.nodes["a"].intercept = None
            release(server, parked)
            await until(lambda: cluster.nodes["a"].frames(Verb.CLOSE))

            assert not cluster.nodes["a"].frames(Verb.PING), "it left at once"
            assert cluster.legs(1, cluster.queues["q"].id) == []

    play(scenario)


async def _opened(client: tanist.Client) -> tanist.Consumer:
    return await client.consumer("q")


def test_a_client_that_finds_no_node_says_so_in_time() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        url = server.url
        await server.__aexit__()

        with pytest.raises(tanist.FailoverTimeout, match="no node could be entered"):
            await tanist.connect(url, failover_timeout_s=0.05)

    play(scenario)


def test_a_node_that_speaks_another_version_is_named_in_the_error() -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        def another_version(connection: FakeConnection, received: Frame) -> bool:
            error = control.Error(code="version", sentence="speaks 7 to 9", ends="connection")
            connection.say(error)
            return True

        cluster.nodes["a"].intercept = another_version
        with pytest.raises(tanist.FailoverTimeout, match="speaks 7 to 9"):
            await tanist.connect(server.url, failover_timeout_s=0.1)

    play(scenario)


def test_a_bug_in_the_core_ends_the_client_and_everybody_who_waits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(cluster: FakeCluster, server: FakeServer) -> None:
        client = await tanist.connect(server.url)
        producer = await client.producer("q")

        def breaks(*arguments: object) -> None:
            raise AssertionError("planted")

        monkeypatch.setattr(producer._core, "frame", breaks)
        with pytest.raises(tanist.ClosedError):
            await producer.send(b"x")
        with pytest.raises(tanist.ClosedError):
            await client.queues()

    play(scenario)
    assert "planted" in caplog.text


@pytest.mark.parametrize(
    "arguments", [{"failover_timeout_s": 0}, {"window_messages": 0}, {"name": "n" * 256}]
)
def test_bad_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(tanist.ConfigError):
        tanist.connect("tanist://a", **arguments)  # type: ignore[arg-type]  # By name.
