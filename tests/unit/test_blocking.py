"""The blocking API: the same client, used from threads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import tanist
from tanist import blocking
from tanist.events import ClientEvent
from tanist.wire.frames import Verb
from tests.unit.fake_node import FakeCluster
from tests.unit.fake_server import FakeServer


class ServerThread:
    """A fake cluster that is served by a thread of its own."""

    def __init__(self) -> None:
        self.cluster = FakeCluster("a")
        self.cluster.add_queue("q")
        self.url = ""
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self.loop.run_until_complete(self._run()))
        self._thread.start()
        self._ready.wait()

    async def _run(self) -> None:
        async with FakeServer(self.cluster) as self.server:
            self.url = self.server.url
            self._ready.set()
            await self._stop.wait()

    def put(self, *bodies: bytes) -> None:
        def put() -> None:
            self.cluster.put("q", *bodies)
            self.server.spread()

        self.loop.call_soon_threadsafe(put)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def server() -> Iterator[ServerThread]:
    server = ServerThread()
    yield server
    server.stop()


def test_everything_works_without_asyncio(server: ServerThread) -> None:
    with blocking.connect(server.url) as client:
        client.declare("orders")
        with client.producer("orders") as producer, client.consumer("orders") as consumer:
            confirmed = producer.send(b"one", {"k": 1})
            producer.send_many([b"two", b"three"])
            producer.post(b"four")
            producer.post(b"five", {"k": 2}, persistent=False)
            producer.flush()
            got: list[bytes] = []
            for message in consumer:
                with consumer.processing(message):
                    got.append(message.body)
                if len(got) == 5:
                    break
            stale = consumer.flush()
            stat = client.stat("orders")
        queues = [queue.name for queue in client.queues()]

        assert confirmed.copies == 3
        assert got == [b"one", b"two", b"three", b"four", b"five"]
        assert stale == []
        assert (stat.ready, stat.in_flight) == (0, 0)
        assert queues == ["orders", "q"]
        assert client.describe("orders").name == "orders"
        assert client.status() == {"node": "a"}
        assert client.node == "a"
        assert client.topology == {0: "a", 1: "a"}
        assert client.purge("orders") == 0
        client.delete("orders")
        with pytest.raises(tanist.QueueNotFound):
            client.producer("orders")


def test_posts_of_one_thread_keep_their_order(server: ServerThread) -> None:
    with blocking.connect(server.url) as client, client.producer("q") as producer:
        for n in range(10_000):
            producer.post(b"%d" % n)
        producer.flush()

    assert server.cluster.bodies("q") == [b"%d" % n for n in range(10_000)]


def test_a_full_window_makes_post_wait_and_keeps_memory_bounded(server: ServerThread) -> None:
    connecting = blocking.connect(server.url, window_messages=500)
    with connecting as client, client.producer("q") as producer:
        for n in range(20_000):
            producer.post(b"%d" % n)
        producer.flush()

    assert len(server.cluster.bodies("q")) == 20_000


def test_threads_may_share_one_client_and_one_consumer(server: ServerThread) -> None:
    server.put(*(b"%d" % n for n in range(500)))
    with blocking.connect(server.url) as client, client.consumer("q") as consumer:

        def work(_: int) -> list[bytes]:
            got: list[bytes] = []
            while messages := consumer.fetch(10, timeout=0.3):
                got += [message.body for message in messages]
                consumer.ack_many(messages)
            return got

        with ThreadPoolExecutor(4) as threads:
            got = [body for bodies in threads.map(work, range(4)) for body in bodies]
        consumer.flush()

    assert sorted(got) == sorted(b"%d" % n for n in range(500))
    assert set(server.cluster.states("q")) == {"done"}


def test_an_error_requeues_and_automatic_acks_are_made_at_hand_over(server: ServerThread) -> None:
    server.put(b"x", b"y")
    with blocking.connect(server.url) as client:
        with client.consumer("q") as consumer:
            message = next(consumer)
            with pytest.raises(ZeroDivisionError), consumer.processing(message):
                raise ZeroDivisionError
            consumer.flush()
        with client.consumer("q", auto_ack=True) as consumer:
            first = next(consumer)
            consumer.flush()
            states = list(server.cluster.states("q"))
            rest = consumer.fetch(1)
            consumer.flush()

    assert (first.body, first.attempts) == (b"x", 1)
    assert states[0] == "done"
    assert states[1] != "done"
    assert rest[0].body == b"y"
    assert server.cluster.states("q") == ["done", "done"]


def test_what_cannot_be_settled_raises_at_the_call_and_takes_no_other_with_it(
    server: ServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    # Given messages of one consumer, and a message of another one
    server.put(b"another one's")
    with blocking.connect(server.url) as client, client.consumer("q", prefetch=1) as another:
        strange = another.fetch(1, timeout=5)[0]
        server.put(*(b"%d" % n for n in range(4)))
        with client.consumer("q") as consumer:
            messages = consumer.fetch(4, timeout=5)

            # When wrong ones are settled between right ones
            consumer.ack(messages[0])
            with pytest.raises(TypeError, match="not NoneType"):
                consumer.ack(None)  # type: ignore[arg-type]  # That is the test.
            consumer.ack(messages[1])
            with pytest.raises(TypeError, match="not bytes"):
                consumer.requeue(b"body")  # type: ignore[arg-type]  # That is the test.
            consumer.ack(messages[2])
            with pytest.raises(tanist.LocalProtocolError, match="another consumer"):
                consumer.ack(strange)
            consumer.ack(messages[3])
            consumer.flush()

            # Then all the right ones are settled, and nothing else was lost on the way
            assert server.cluster.states("q") == ["in flight"] + ["done"] * 4
    assert "never retrieved" not in caplog.text


def test_iteration_ends_when_another_thread_closes(server: ServerThread) -> None:
    with blocking.connect(server.url) as client:
        consumer = client.consumer("q")
        with ThreadPoolExecutor(1) as threads:
            taking = threads.submit(lambda: [message.body for message in consumer])
            consumer.close()
            got = taking.result(timeout=5)

    assert got == []


def test_a_closed_client_says_so_and_closing_twice_does_no_harm(server: ServerThread) -> None:
    client = blocking.connect(server.url)
    producer = client.producer("q")
    client.close()

    client.close()
    with pytest.raises(tanist.ClosedError):
        client.queues()
    with pytest.raises(tanist.ClosedError):
        producer.post(b"x")
    with pytest.raises(tanist.ClosedError):
        producer.send(b"x")


def test_close_ends_calls_of_other_threads(server: ServerThread) -> None:
    client = blocking.connect(server.url)
    producer = client.producer("q")
    server.cluster.nodes["a"].intercept = lambda connection, frame: frame.verb == Verb.PUBLISH
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(producer.send, b"x")
        while not server.cluster.nodes["a"].frames(Verb.PUBLISH):
            pass
        client.close()

        with pytest.raises(tanist.ClosedError):
            sending.result(timeout=5)


def test_no_node_is_an_error_and_leaves_no_thread(server: ServerThread) -> None:
    before = threading.active_count()

    with pytest.raises(tanist.FailoverTimeout):
        blocking.connect("tanist://127.0.0.1:1", failover_timeout_s=0.05)

    assert threading.active_count() == before


def test_a_listener_that_calls_the_client_is_told_that_it_cannot(server: ServerThread) -> None:
    errors: list[BaseException] = []
    heard = threading.Event()

    def listener(event: ClientEvent) -> None:
        try:
            client.queues()
        except tanist.LocalProtocolError as error:
            errors.append(error)
        heard.set()

    with blocking.connect(server.url) as client:
        stop = client.listen(listener)

        def hang_up() -> None:
            server.cluster.nodes["a"].open_connections()[0].closed = True
            server.server.spread()

        server.loop.call_soon_threadsafe(hang_up)
        assert heard.wait(5)
        stop()

    assert "cannot wait" in str(errors[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_after_a_fork_every_call_raises(server: ServerThread) -> None:
    with blocking.connect(server.url) as client:
        producer = client.producer("q")
        consumer = client.consumer("q")
        calls = [
            client.queues,
            client.status,
            client.queue_status,
            lambda: client.declare_lost(1, 1),
            client.close,
            lambda: client.declare("x"),
            lambda: client.producer("q"),
            lambda: producer.post(b"x"),
            lambda: producer.send(b"x"),
            producer.flush,
            lambda: next(consumer),
            lambda: consumer.fetch(1, 0),
            consumer.flush,
            consumer.close,
        ]
        child = os.fork()
        if child == 0:
            raised = 0
            for call in calls:
                try:
                    call()
                except tanist.ClosedError as error:
                    raised += "parent process" in str(error)
                except BaseException:
                    break
            os._exit(0 if raised == len(calls) else 1)
        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert client.queues()
