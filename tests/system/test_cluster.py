"""What a cluster of real processes does when copies are missing or all die, and with bad input."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import tanist
from perf.cluster import Cluster, Status
from tanist.events import ClientEvent, Held
from tanist.wire.control import Hello, control_frame
from tanist.wire.frames import FRAME, Verb

pytestmark = pytest.mark.system

LIMIT_S = 20.0


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await scenario()

    asyncio.run(bounded())


def owner_of(status: Status, sid: int) -> str:
    owner: str = status["streams"][str(sid)]["owner"]
    return owner.split(".")[0]


def test_too_few_copies_hold_a_stream_until_one_comes_back() -> None:
    async def scenario() -> None:
        # Given three nodes that must have three copies, and a client
        events: list[ClientEvent] = []
        async with (
            Cluster(3, extra="[cluster]\nmin_copies = 3\n") as cluster,
            tanist.connect(cluster.url, listener=events.append) as client,
        ):
            await client.declare("q")
            async with client.producer("q") as producer:
                await producer.send(b"before")
                owner = client.topology[producer.sid]
                backup = next(name for name in cluster.names if name != owner)

                # When a backup dies, and something is sent
                cluster.kill(backup)
                sending = asyncio.create_task(producer.send(b"meanwhile"))
                await cluster.wait_for(
                    owner,
                    lambda s: any("HELD" in w for w in _warnings(s, producer.sid)),
                    "held",
                    LIMIT_S,
                )
                async with asyncio.timeout(LIMIT_S):
                    while not any(isinstance(event, Held) for event in events):
                        await asyncio.sleep(0.02)
                confirmed_while_held = sending.done()
                cluster.start(backup)
                async with asyncio.timeout(LIMIT_S):
                    confirmed = await sending
                status = await cluster.wait_for(
                    backup, lambda s: _role(s, producer.sid) == "shadow", "a shadow again", LIMIT_S
                )

            # Then it waits, says so to operator and client, and goes on by ops
            assert not confirmed_while_held
            assert confirmed.copies == 3
            assert status["streams"][str(producer.sid)]["here"]["first_kept"] == 1

    run(scenario)


def _warnings(status: Status, sid: int) -> list[str]:
    warnings: list[str] = status["streams"][str(sid)]["warnings"]
    return warnings


def _role(status: Status, sid: int) -> str:
    role: str = status["streams"][str(sid)].get("here", {}).get("role", "none")
    return role


def test_when_all_copies_die_the_loss_is_said_and_the_cluster_works() -> None:
    async def scenario() -> None:
        # Given a cluster whose files declare a queue, with a message in it
        async with Cluster(3, extra='[[queue]]\nname = "q"\n') as cluster:
            async with tanist.connect(cluster.url) as client, client.producer("q") as producer:
                await producer.send(b"gone")

            # When all nodes die at once and come up again
            for name in cluster.names:
                cluster.kill(name)
            for name in cluster.names:
                cluster.start(name)
            await cluster.ready()
            async with tanist.connect(cluster.url) as client:
                async with client.producer("q") as producer:
                    confirmed = await producer.send(b"new")
                async with client.consumer("q") as consumer:
                    [message] = await consumer.fetch(1, LIMIT_S)
                    await client.queues()

            # Then each node says LOST, the queue is there again, and only the new message
            assert message.body == b"new"
            assert confirmed.gen == 2
            assert any("LOST" in cluster.log_of(name) for name in cluster.names)

    run(scenario)


def test_a_queue_that_was_created_anywhere_is_found_everywhere_at_once() -> None:
    async def scenario() -> None:
        # Given two clients that entered at different nodes
        async with Cluster(3) as cluster:
            first, second = cluster.names[:2]
            async with (
                tanist.connect(cluster.url_of(first)) as here,
                tanist.connect(cluster.url_of(second)) as there,
            ):
                # When one creates a queue and the other uses it at once, a hundred times
                copies = []
                for number in range(100):
                    await here.declare(f"q{number}")
                    async with there.producer(f"q{number}") as producer:
                        copies.append((await producer.send(b"x")).copies)

                # Then it was found each time
                assert len(copies) == 100
                assert min(copies) >= 2

    run(scenario)


def test_one_consumer_with_a_prefetch_of_one_reaches_all_post_offices() -> None:
    async def scenario() -> None:
        # Given five post offices, and a consumer that may hold one message at a time
        async with Cluster(5) as cluster, tanist.connect(cluster.url) as client:
            await client.declare("q")
            async with client.consumer("q", prefetch=1) as consumer:
                # When one message is published at each
                for name in cluster.names:
                    async with (
                        tanist.connect(cluster.url_of(name)) as at,
                        at.producer("q") as producer,
                    ):
                        await producer.send(name.encode())
                began = time.monotonic()
                got: list[str] = []
                while len(got) < 5:
                    [message] = await consumer.fetch(1, LIMIT_S)
                    consumer.ack(message)
                    got.append(message.body.decode())
                took_s = time.monotonic() - began

            # Then it gets all five, soon
            assert sorted(got) == sorted(cluster.names)
            assert took_s < 5.0  # The figure itself is measured in `perf`; this is a limit.

    run(scenario)


HELLO = b"".join(control_frame(Hello(req=1, versions=(1, 1), client="t", session="0" * 32, dial=1)))
BAD = {
    "before HELLO": FRAME.pack(0, Verb.LIST, 0, 0),
    "an unknown type": HELLO + FRAME.pack(0, 200, 0, 0),
    "an oversized frame": HELLO + FRAME.pack(1 << 31, Verb.PUBLISH, 0, 1),
    "an oversized first frame": FRAME.pack(1 << 20, Verb.HELLO, 0, 0),
    "JSON that is none": HELLO + FRAME.pack(3, Verb.LIST, 0, 0) + b"{{{",
    "an unknown key": HELLO + FRAME.pack(17, Verb.LIST, 0, 0) + b'{"req":1,"no":10}',
    "garbage": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def test_bad_input_ends_its_connection_with_an_error_and_the_node_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        # Given a node
        async with Cluster(1) as cluster:
            host, port = cluster.url.removeprefix("tanist://").split(":")

            # When clients say what no client may say
            answers = {
                name: await asyncio.to_thread(_say, host, int(port), data)
                for name, data in BAD.items()
            }
            async with tanist.connect(cluster.url) as client:
                await client.declare("q")
                async with client.producer("q") as producer:
                    confirmed = await producer.send(b"x")

            # Then each is told so and closed, and others are served
            assert {name for name, answer in answers.items() if b'"code"' not in answer} == set()
            assert confirmed.copies == 1

    run(scenario)


def _say(host: str, port: int, data: bytes) -> bytes:
    """All that the node says to this before it closes the connection."""
    with socket.create_connection((host, port), timeout=LIMIT_S) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
        return answer
