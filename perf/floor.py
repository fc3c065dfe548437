"""The floor: the same bytes over the same hops, with no broker in it.

Question: how fast could a replicated, confirmed and acknowledged message stream be on this
machine if a broker cost nothing?

Method: five processes on loopback, on uvloop. A publisher sends frames to an owner; the owner
publishes each to two peers (pyzmq PUB/SUB over TCP), which answer with receipts over TCP; when
both have, the owner confirms the frame to the publisher and passes it to a consumer, whose ack
it sends to both peers before it counts. Frames have the size of a full batch. The publisher
keeps as many frames in flight as a producer's credit allows.

Not shown: what parsing, checking, storing and planning cost; several streams at once.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine

import uvloop
import zmq

HEAD = struct.Struct("<IB3x")
"""Length of what follows, and what it is."""
DATA, RECEIPT, CONFIRM, ACK = range(4)
HWM = 1024
LIMIT_S = 120


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readexactly(HEAD.size)
    length, kind = HEAD.unpack(head)
    return kind, await reader.readexactly(length)


def write_frame(writer: asyncio.StreamWriter, kind: int, body: bytes) -> None:
    writer.writelines((HEAD.pack(len(body), kind), body))


async def publisher(port: int, frames: int, frame_bytes: int, in_flight: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    write_frame(writer, DATA, b"publisher")
    body = bytes(frame_bytes)
    sent = confirmed = 0
    began = time.perf_counter()
    while confirmed < frames:
        while sent < frames and sent - confirmed < in_flight:
            write_frame(writer, DATA, body)
            sent += 1
        await writer.drain()
        await read_frame(reader)
        confirmed += 1
    print(time.perf_counter() - began, flush=True)
    writer.close()


async def consumer(port: int, frames: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    write_frame(writer, ACK, b"consumer")
    began: float | None = None
    for number in range(frames):
        await read_frame(reader)
        began = began or time.perf_counter()
        write_frame(writer, ACK, number.to_bytes(8, "little"))
    await read_frame(reader)
    assert began is not None
    print(time.perf_counter() - began, flush=True)
    writer.close()


async def peer(port: int, group_port: int) -> None:
    """Receives from the group, answers by TCP; an ack of the consumer needs a receipt too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    write_frame(writer, RECEIPT, b"peer")
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, HWM)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(f"tcp://127.0.0.1:{group_port}")
    kept: deque[bytes] = deque(maxlen=HWM)
    loop = asyncio.get_running_loop()
    received = 0

    def drain() -> None:
        nonlocal received
        before = received
        while True:
            try:
                kept.append(socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    break
            else:
                received += 1
        if received != before:
            write_frame(writer, RECEIPT, received.to_bytes(8, "little"))

    loop.add_reader(int(socket.getsockopt(zmq.FD)), drain)
    loop.call_soon(drain)
    await reader.read()
    context.destroy(linger=0)


class Owner:
    """Passes frames on when both peers have them."""

    def __init__(self, group: zmq.Socket[bytes], frames: int) -> None:
        self.group = group
        self.frames = frames
        self.writers: dict[str, asyncio.StreamWriter] = {}
        self.receipts: dict[int, int] = {}
        self.waiting: deque[bytes] = deque()
        self.sent = self.done = self.acked = 0
        self.ready = asyncio.Event()
        self.over = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, name = await read_frame(reader)
        if name == b"peer":
            number = len(self.receipts)
            self.receipts[number] = 0
            self._arrived()
            await self._peer(reader, number)
            return
        self.writers[name.decode()] = writer
        self._arrived()
        try:
            if name == b"publisher":
                await self._publisher(reader)
            else:
                await self._consumer(reader)
        except asyncio.IncompleteReadError:
            return

    def _arrived(self) -> None:
        if len(self.receipts) == 2 and len(self.writers) == 2:
            self.ready.set()

    async def _publisher(self, reader: asyncio.StreamReader) -> None:
        await self.ready.wait()
        while True:
            _, body = await read_frame(reader)
            self.group.send(body, zmq.NOBLOCK)
            self.sent += 1
            self.waiting.append(body)

    async def _consumer(self, reader: asyncio.StreamReader) -> None:
        while True:
            _, body = await read_frame(reader)
            self.group.send(body, zmq.NOBLOCK)
            self.sent += 1
            self.waiting.append(b"")

    async def _peer(self, reader: asyncio.StreamReader, number: int) -> None:
        try:
            while True:
                _, body = await read_frame(reader)
                self.receipts[number] = int.from_bytes(body, "little")
                self._release()
        except asyncio.IncompleteReadError:
            return

    def _release(self) -> None:
        safe = min(self.receipts.values())
        while self.done < safe:
            self.done += 1
            body = self.waiting.popleft()
            if body:
                write_frame(self.writers["publisher"], CONFIRM, b"")
                write_frame(self.writers["consumer"], DATA, body)
            else:
                self.acked += 1
                if self.acked == self.frames:
                    write_frame(self.writers["consumer"], CONFIRM, b"")
                    self.over.set()


async def owner(frames: int) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.SNDHWM, HWM)
    socket.setsockopt(zmq.XPUB_VERBOSE, 1)
    group_port = socket.bind_to_random_port("tcp://127.0.0.1")
    serving = Owner(socket, frames)
    server = await asyncio.start_server(serving.serve, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], group_port, flush=True)
    for _ in range(2):
        while not await asyncio.to_thread(socket.poll, 10_000):
            raise SystemExit("a peer did not subscribe within 10 s")
        socket.recv()
    print("subscribed", flush=True)
    async with asyncio.timeout(LIMIT_S):
        await serving.over.wait()
    await asyncio.sleep(0.1)
    context.destroy(linger=0)


def measure(*, messages: int, body_bytes: int, per_batch: int, in_flight: int) -> float:
    """Messages per second, of the slower of publisher and consumer."""
    frames = messages // per_batch
    frame_bytes = 32 + per_batch * (4 + body_bytes)

    def start(role: str, *arguments: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "perf.floor", "--role", role, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    started = [start("owner", frames)]
    try:
        port, group_port = map(int, line(started[0]).split())
        started += [start("peer", port, group_port) for _ in range(2)]
        assert line(started[0]) == "subscribed\n"
        started.append(start("consumer", port, frames))
        started.append(start("publisher", port, frames, frame_bytes, in_flight))
        seconds = max(float(line(started[4])), float(line(started[3])))
    finally:
        for process in started:
            process.kill()
            process.wait()
    return frames * per_batch / seconds


ROLES: dict[str, Callable[..., Coroutine[None, None, None]]] = {
    "publisher": publisher,
    "consumer": consumer,
    "peer": peer,
    "owner": owner,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--role", choices=sorted(ROLES))
    parser.add_argument("arguments", nargs="*", type=int)
    options = parser.parse_args()
    if options.role:
        uvloop.run(ROLES[options.role](*options.arguments))
        return
    for body_bytes, per_batch in ((100, 600), (1024, 63)):
        rate = measure(
            messages=1_200_000 if body_bytes == 100 else 240_000,
            body_bytes=body_bytes,
            per_batch=per_batch,
            in_flight=64,
        )
        print(f"{body_bytes} B × {per_batch} in a batch: {rate:,.0f} messages/s")


if __name__ == "__main__":
    main()
