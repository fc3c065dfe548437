"""Throughput and latency of the whole way, against the floor in the same run.

Question: how many messages a second go from `post` to `async for` and `ack`, each confirmed by
all copies and each ack answered; and how long does one confirmed message take by itself?

Method: three nodes on loopback with two failover peers, one producer process, one consumer
process, all on uvloop. Rate = messages / (first post → last confirm *and* last ack answered).
The floor (`perf.floor`) moves frames of the size of a full batch over the same hops, with no
broker in it, in the same run; the ratio is what holds when the machine's speed drifts. Each
figure is the median of several rounds, floor and broker in turns. Latency: `await send`, one
at a time, 100 B.

Not shown: several producers, queues or post offices at once; messages that are not small.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Final

import uvloop

import tanist
from perf import floor
from perf.cluster import Cluster

HEADER_BYTES: Final = 32
BODIES_BYTES_MAX: Final = 64 << 10
LATENCY_SENDS: Final = 2000
ROUND_S_MAX: Final = 120


async def produce(url: str, queue: str, messages: int, body_bytes: int) -> None:
    async with tanist.connect(url) as client, client.producer(queue) as producer:
        body = b"x" * body_bytes
        began = time.monotonic()
        post = producer.post
        for _ in range(messages):
            await post(body)
        await producer.flush()
        _say(began=began, ended=time.monotonic())


async def consume(url: str, queue: str, messages: int) -> None:
    async with (
        tanist.connect(url) as client,
        client.consumer(queue, prefetch=20_000, prefetch_bytes=16 << 20) as consumer,
    ):
        _say(ready=True)
        left = messages
        async for message in consumer:
            consumer.ack(message)
            left -= 1
            if not left:
                break
        stale = await consumer.flush()
        assert not stale, stale
        _say(ended=time.monotonic())


async def send_one_by_one(url: str, queue: str, count: int) -> None:
    async with tanist.connect(url) as client, client.producer(queue) as producer:
        body = b"x" * 100
        took: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            await producer.send(body)
            took.append(time.perf_counter() - began)
        took.sort()
        _say(p50_us=1e6 * took[count // 2], p99_us=1e6 * took[count * 99 // 100])


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


ROLES: Final[dict[str, Callable[..., Coroutine[None, None, None]]]] = {
    "produce": produce,
    "consume": consume,
    "latency": send_one_by_one,
}


class Role:
    """One of the programs above, or of another module's, in a process of its own."""

    def __init__(
        self,
        name: str,
        *arguments: object,
        module: str = "perf.throughput",
        launcher: Sequence[str] = (),
    ) -> None:
        command = [*launcher, sys.executable, "-m", module, "--role", name, *map(str, arguments)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self) -> dict[str, float]:
        assert self._process.stdout is not None
        async with asyncio.timeout(ROUND_S_MAX):
            text = await asyncio.to_thread(self._process.stdout.readline)
        if not text:
            raise SystemExit("a role ended without its figures")
        values: dict[str, float] = json.loads(text)
        return values

    def end(self) -> None:
        """Let it end, which it should by now."""
        with self._process:  # Closes the pipe, and waits.
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def kill(self) -> None:
        with self._process:
            self._process.kill()


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def round_trip(
    cluster: Cluster,
    queue: str,
    messages: int,
    body_bytes: int,
    *,
    at: str = "",
    launchers: Mapping[str, Sequence[str]] | None = None,
) -> float:
    """Messages per second through a cluster.

    Args:
        at: Where the clients enter; empty: at any node.
        launchers: By "produce" and "consume", a command that runs the role's command.
    """
    url, launch = at or cluster.url, launchers or {}
    async with tanist.connect(url) as client:
        await client.declare(queue)
    consumer = Role("consume", url, queue, messages, launcher=launch.get("consume", ()))
    producer: Role | None = None
    try:
        await consumer.line()
        producer = Role(
            "produce", url, queue, messages, body_bytes, launcher=launch.get("produce", ())
        )
        produced = await producer.line()
        consumed = await consumer.line()
    finally:
        consumer.end()
        if producer is not None:
            producer.end()
    ended = max(produced["ended"], consumed["ended"])
    return messages / (ended - produced["began"])


async def measure(body_bytes: int, messages: int, rounds: int) -> dict[str, object]:
    per_batch = min(600, BODIES_BYTES_MAX // body_bytes)
    floors: list[float] = []
    rates: list[float] = []
    cpu = 0.0
    async with Cluster(3) as cluster:
        pids = [cluster.pid(name) for name in cluster.names]
        for number in range(rounds):
            floors.append(
                await asyncio.to_thread(
                    floor.measure,
                    messages=messages,
                    body_bytes=body_bytes,
                    per_batch=per_batch,
                    in_flight=64,
                )
            )
            before = sum(map(cpu_s, pids))
            rates.append(await round_trip(cluster, f"q{body_bytes}-{number}", messages, body_bytes))
            cpu += sum(map(cpu_s, pids)) - before
    rate = statistics.median(rates)
    return {
        "bench": "throughput",
        "body_bytes": body_bytes,
        "messages": messages,
        "msg_per_s": round(rate),
        "rounds": [round(r) for r in rates],
        "floor_msg_per_s": round(statistics.median(floors)),
        "ratio": round(statistics.median(r / f for r, f in zip(rates, floors, strict=True)), 3),
        "nodes_cpu_us_per_msg": round(1e6 * cpu / (rounds * messages), 2),
    }


async def latency() -> dict[str, object]:
    async with Cluster(3) as cluster:
        async with tanist.connect(cluster.url) as client:
            await client.declare("one")
        role = Role("latency", cluster.url, "one", LATENCY_SENDS)
        figures = await role.line()
        role.end()
    return {"bench": "latency", **{name: round(value) for name, value in figures.items()}}


async def bench(rounds: int, messages: int) -> None:
    for body_bytes, count in ((100, messages), (1024, messages // 5)):
        result = await measure(body_bytes, count, rounds)
        print(
            f"{body_bytes:>5} B: {result['msg_per_s']:>9,} msg/s,"
            f" {result['ratio']} of the floor ({result['floor_msg_per_s']:,}),"
            f" the nodes {result['nodes_cpu_us_per_msg']} µs of CPU a message"
        )
        print(json.dumps(result), flush=True)
    result = await latency()
    print(f"one at a time: p50 {result['p50_us']} µs, p99 {result['p99_us']} µs")
    print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--role", choices=sorted(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=600_000, help="of 100 B; a fifth of 1 KiB")
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        url, queue, *numbers = options.arguments
        uvloop.run(ROLES[options.role](url, queue, *map(int, numbers)))
    else:
        asyncio.run(bench(options.rounds, options.messages))


if __name__ == "__main__":
    main()
