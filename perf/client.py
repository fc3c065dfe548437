"""What the client costs a message, without a network.

Question: do `post`, and `async for` with `ack`, stay under 0.3 and 0.5 µs for messages of 100
bytes, so that a producer and a consumer at 400,000 messages a second use a third of a core?

Method: the real client on a real event loop. In the place of a socket stands a node that
answers in the same thread: confirms what is published, delivers runs of 600 messages as far as
credit goes, answers acks. The time that it takes itself is measured and taken off. Best of 7
rounds; collection is off.

Not shown: the kernel's share (sockets, wake-ups), and waiting. What one message at a time costs
is two turns of the loop, one to send and one to read the confirm.

Each result is a line for people, and with `--json` one JSON object for `perf/history/`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import cast

import uvloop

from tanist.client import Client
from tanist.core.events import Dial
from tanist.core.settings import ClientSettings
from tanist.wire import control, hot
from tanist.wire.batch import HEADER, Batch, flags_of, seal
from tanist.wire.control import control_frame
from tanist.wire.frames import Frame, FrameReader, Verb, frame
from tanist.wire.limits import FRAME_BYTES_MAX, MESSAGE_BYTES_MAX

ROUNDS = 7
MESSAGES = 60_000
BODY = b"x" * 100
RUN_MESSAGES = 600
SENDERS = 256
QUEUE = control.QueueInfo(id=1 << 32 | 1, name="q")
TOPOLOGY = control.Topology(
    ver=1,
    hash="h",
    nodes={"a": ["127.0.0.1:7472"]},
    streams={
        0: control.Where(home=None, gen=1, epoch=1, owner="a"),
        1: control.Where(home="a", gen=1, epoch=1, owner="a"),
    },
)
WELCOME = control.Welcome(
    node="a",
    inc=1,
    version=1,
    limits=control.ClientLimits(
        frame_bytes_max=FRAME_BYTES_MAX, message_bytes_max=MESSAGE_BYTES_MAX, channels_max=256
    ),
    heartbeat_ms=1000,
    here=1,
    known=TOPOLOGY,
)


class Node:
    """Stands in for a transport and the node behind it."""

    def __init__(self, client: Client, connection: int) -> None:
        self._client = client
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(FRAME_BYTES_MAX)
        self._out: list[bytes | memoryview] = []
        self.spent_s = 0.0
        self._batch = Batch.parse(
            seal([BODY] * RUN_MESSAGES, [], flags=flags_of(persistent=True), first_n=1, time_ms=1)
        )
        self._number = self._first = 0
        self._delivered = 0

    def write(self, data: bytes) -> None:
        begin = perf_counter()
        for received in self._reader.feed(data):
            if received.verb >= Verb.PUBLISH:
                self._hot(received)
            else:
                self._control(received)
        if self._out:
            out, self._out = b"".join(self._out), []
            self._loop.call_soon(self._client.received, self._connection, out)
        self.spent_s += perf_counter() - begin

    def close(self) -> None:
        pass

    def _say(self, message: control.Message, channel: int = 0) -> None:
        self._out += control_frame(message, channel)

    def _control(self, received: Frame) -> None:
        message = control.read_control(received)
        match message:
            case control.Hello():
                self._say(WELCOME)
            case control.Describe():
                self._say(control.Done(req=message.req, queue=QUEUE, catalog=(1, 1)))
            case control.OpenProducer():
                credit = (1 << 40, 1 << 50)
                opened = control.Opened(req=message.req, gen=1, epoch=1, next_n=1, credit=credit)
                self._say(opened, received.channel)
            case control.OpenConsumer():
                self._say(control.Opened(req=message.req, gen=1, epoch=1), received.channel)
            case control.Close():
                self._say(control.Closed(req=message.req), received.channel)
            case _:
                pass

    def _hot(self, received: Frame) -> None:
        match received.verb:
            case Verb.PUBLISH:
                fields = HEADER.unpack_from(received.payload)
                through_n = fields[4] + fields[3] - 1
                parts = frame(Verb.CONFIRM, received.channel, hot.confirm(through_n, 3))
                self._out += parts
            case Verb.CREDIT:
                messages, _ = hot.read_credit(received.payload)
                while self._delivered < messages:
                    self._deliver(received.channel)
                self._out += frame(Verb.READY, received.channel)
            case Verb.ACK:
                a = int.from_bytes(received.payload[:4], "little")
                self._out += frame(Verb.SETTLED, received.channel, hot.settled(a, [], []))
            case _:
                pass

    def _deliver(self, channel: int) -> None:
        self._number += 1
        parts = hot.deliver(
            number=self._number,
            first=self._first,
            time_ms=1,
            count=RUN_MESSAGES,
            part=1,
            flags=0,
            batch_flags=self._batch.flags,
            cut=self._batch.cut(0, RUN_MESSAGES),
        )
        self._first += RUN_MESSAGES
        self._delivered += RUN_MESSAGES
        self._out += frame(Verb.DELIVER, channel, *parts)


class NearClient(Client):
    """A client whose connections lead to `Node`."""

    near: Node

    def _dial(self, dial: Dial) -> None:
        self.near = Node(self, dial.connection)
        self.connected(dial.connection, cast(asyncio.Transport, self.near))


Work = Callable[[NearClient], Awaitable[int]]


async def post(client: NearClient) -> int:
    producer = await client.producer("q")
    for _ in range(MESSAGES // RUN_MESSAGES):
        for _ in range(RUN_MESSAGES):
            producer.post(BODY)
        await asyncio.sleep(0)
    await producer.flush()
    return MESSAGES


async def post_awaited(client: NearClient) -> int:
    producer = await client.producer("q")
    for _ in range(MESSAGES):
        await producer.post(BODY)
    await producer.flush()
    return MESSAGES


async def post_with_properties(client: NearClient) -> int:
    producer = await client.producer("q")
    properties = {"type": "order"}
    for _ in range(MESSAGES):
        await producer.post(BODY, properties)
    await producer.flush()
    return MESSAGES


async def send(client: NearClient) -> int:
    producer = await client.producer("q")
    each = MESSAGES // SENDERS // 4

    async def work() -> None:
        for _ in range(each):
            await producer.send(BODY)

    await asyncio.gather(*(work() for _ in range(SENDERS)))
    return each * SENDERS


async def send_alone(client: NearClient) -> int:
    producer = await client.producer("q")
    each = MESSAGES // 20
    for _ in range(each):
        await producer.send(BODY)
    return each


async def consume(client: NearClient) -> int:
    consumer = await client.consumer("q")
    left = MESSAGES
    async for message in consumer:
        consumer.ack(message)
        left -= 1
        if not left:
            break
    return MESSAGES


async def consume_bodies(client: NearClient) -> int:
    consumer = await client.consumer("q")
    left = MESSAGES
    async for message in consumer:
        assert message.body
        consumer.ack(message)
        left -= 1
        if not left:
            break
    return MESSAGES


async def consume_processing(client: NearClient) -> int:
    consumer = await client.consumer("q")
    left = MESSAGES
    async for message in consumer:
        async with consumer.processing(message):
            left -= 1
        if not left:
            break
    return MESSAGES


WORK: dict[str, Work] = {
    "post, 600 a turn": post,
    "await post": post_awaited,
    "await post, with properties": post_with_properties,
    f"await send, {SENDERS} at a time": send,
    "await send, one at a time": send_alone,
    "async for, ack": consume,
    "async for, body, ack": consume_bodies,
    "async for, processing": consume_processing,
}


async def once_us(work: Work) -> float:
    """Microseconds a message, the node's own time taken off."""
    settings = ClientSettings()
    client = NearClient(["127.0.0.1:7472"], settings)
    async with client:
        before_s, begin = client.near.spent_s, perf_counter()
        messages = await work(client)
        elapsed_s = perf_counter() - begin - (client.near.spent_s - before_s)
    return elapsed_s / messages * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="What the client costs a message.")
    parser.add_argument("--json", action="store_true", help="one JSON object a result")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    arguments = parser.parse_args()
    run = uvloop.run if arguments.loop == "uvloop" else asyncio.run
    for name, work in WORK.items():
        best = float("inf")
        for _ in range(ROUNDS):
            gc.collect()
            gc.disable()
            best = min(best, run(once_us(work)))
            gc.enable()
        if arguments.json:
            result = {"benchmark": "client", "loop": arguments.loop, "what": name}
            print(json.dumps({**result, "us_per_message": round(best, 3)}))
        else:
            print(f"{name:32} {best:6.3f} µs a message")


if __name__ == "__main__":
    main()
