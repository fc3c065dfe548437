"""Whether memory stays within its budget, whatever clients and peers do.

Question: how large does each node's process get while a publisher is faster than its consumer,
while a backup stands still, and while a consumer does?

Method: three nodes with a budget of 256 MiB each, and in each case a publisher of 1 KiB
messages that never waits for anything but its window. The resident size of each process is
read four times a second; the largest is printed, against the budget and 128 MiB for the
interpreter, its libraries and the sockets.

Not shown: other budgets; what the page files took on the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Final

import uvloop

import tanist
from perf.cluster import Cluster

BUDGET_MIB: Final = 256
BESIDES_MIB: Final = 128
BODY: Final = b"x" * 1024
CASES: Final = ("slow consumer", "stopped backup", "stopped consumer")


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


async def watch(cluster: Cluster, peaks: dict[str, float]) -> None:
    while True:
        for name in cluster.running():
            peaks[name] = max(peaks.get(name, 0.0), rss_mib(cluster.pid(name)))
        await asyncio.sleep(0.25)


async def publish(producer: tanist.Producer, counted: list[int]) -> None:
    while True:
        await producer.post(BODY)
        counted[0] += 1


async def consume(consumer: tanist.Consumer, pause_s: float) -> None:
    async for message in consumer:
        consumer.ack(message)
        await asyncio.sleep(pause_s)


@contextlib.asynccontextmanager
async def background(jobs: list[Coroutine[None, None, None]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(case: str, seconds: float) -> dict[str, object]:
    extra = f"[limits]\nbudget_bytes = {BUDGET_MIB << 20}\n"
    peaks: dict[str, float] = {}
    published = [0]
    async with (
        Cluster(3, extra=extra) as cluster,
        tanist.connect(cluster.url) as publishing,
        tanist.connect(cluster.url) as consuming,
    ):
        await publishing.declare("q")
        producer = await publishing.producer("q")
        consumer = await consuming.consumer("q", prefetch=1000)
        owner = publishing.topology[producer.sid]
        stopped = next(name for name in cluster.names if name != owner)
        jobs = [watch(cluster, peaks), publish(producer, published)]
        if case != "stopped consumer":
            jobs.append(consume(consumer, 0.001 if case == "slow consumer" else 0.0))
        async with background(jobs):
            if case == "stopped backup":
                await asyncio.sleep(1.0)
                cluster.stop(stopped)
            await asyncio.sleep(seconds)
            if case == "stopped backup":
                cluster.go_on(stopped)
        before = time.monotonic()
        stat = await consuming.stat("q")
        answered_ms = 1000 * (time.monotonic() - before)
    peak = max(peaks.values())
    return {
        "bench": "memory",
        "case": case,
        "seconds": seconds,
        "budget_mib": BUDGET_MIB,
        "peak_rss_mib": round(peak),
        "published": published[0],
        "left": stat.ready + stat.in_flight,
        "stat_ms": round(answered_ms),
        "good": peak <= BUDGET_MIB + BESIDES_MIB,
    }


async def bench(seconds: float) -> None:
    for case in CASES:
        result = await measure(case, seconds)
        print(
            f"{case:18} peak {result['peak_rss_mib']} MiB of {BUDGET_MIB} + {BESIDES_MIB} MiB,"
            f" {result['published']:,} published in {seconds:.0f} s, {result['left']:,} left:"
            f" {'good' if result['good'] else 'TOO MUCH'}"
        )
        print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    uvloop.run(bench(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
