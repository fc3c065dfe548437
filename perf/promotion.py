"""How long a takeover takes, with a backlog and without one.

Question: does the time from SIGKILL to the first confirm and the first delivery of the new
epoch depend on how many messages the shadow holds?

Method: three nodes, fresh for each kill; one queue, filled with the given number of messages
of 100 B; a producer that sends one message after the other and a consumer that takes them as
they come; the owner is killed, and the times of the first confirm and of the first frame of
the new epoch are taken from the clients. Long and short backlogs in turns; medians.

Not shown: a backlog larger than memory; several owners at once; a stopped node.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import Final

import uvloop

import tanist
from perf.cluster import Cluster
from perf.load import Gap

BODY: Final = b"x" * 100
RATIO_MAX: Final = 1.2
MORE_MS_MAX: Final = 20.0
LIMIT_S: Final = 60.0


async def kill_once(backlog: int) -> tuple[float, float]:
    """Milliseconds from the kill to the first confirm and to the first delivery."""
    async with (
        Cluster(3) as cluster,
        tanist.connect(cluster.url) as filling,
        tanist.connect(cluster.url) as taking,
    ):
        await filling.declare("q")
        async with filling.producer("q") as producer, asyncio.timeout(LIMIT_S):
            for _ in range(backlog):
                await producer.post(BODY)
            await producer.flush()
            victim = filling.topology[producer.sid]
            consumer = await taking.consumer("q", prefetch=100)
            gap = Gap()
            confirmed: list[tuple[int, float]] = []

            async def take() -> None:
                async for message in consumer:
                    if message.sid == producer.sid:
                        gap.saw(message.epoch, message.received_at)
                    consumer.ack(message)
                    await asyncio.sleep(0.001)

            async def send() -> None:
                while True:
                    done = await producer.send(BODY)
                    confirmed.append((done.epoch, time.monotonic()))
                    await asyncio.sleep(0.001)

            tasks = [asyncio.create_task(take()), asyncio.create_task(send())]
            await asyncio.sleep(0.5)
            killed_at = time.monotonic()
            cluster.kill(victim)
            while not gap.gaps or confirmed[-1][0] < 2:
                await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        first_confirm = next(at for epoch, at in confirmed if epoch >= 2)
        return 1000 * (first_confirm - killed_at), 1000 * (gap.gaps[0][1] - killed_at)


async def bench(rounds: int, backlog: int) -> None:
    figures: dict[int, list[tuple[float, float]]] = {1: [], backlog: []}
    for number in range(rounds):
        for messages, found in figures.items():
            found.append(await kill_once(messages))
            confirm_ms, deliver_ms = found[-1]
            print(
                f"{number + 1:>3}/{rounds}  backlog {messages:>9,}:"
                f"  confirm {confirm_ms:6.1f} ms  delivery {deliver_ms:6.1f} ms",
                flush=True,
            )
    for which, name in enumerate(("confirm", "delivery")):
        short = statistics.median(figure[which] for figure in figures[1])
        long = statistics.median(figure[which] for figure in figures[backlog])
        good = long <= max(RATIO_MAX * short, short + MORE_MS_MAX)
        print(
            f"first {name}: {short:.1f} ms with one message, {long:.1f} ms with {backlog:,}:"
            f" {'as long' if good else 'LONGER'}"
        )
        result = {
            "bench": "promotion",
            "what": name,
            "rounds": rounds,
            "backlog": backlog,
            "short_ms": round(short, 1),
            "long_ms": round(long, 1),
            "good": good,
        }
        print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--backlog", type=int, default=1_000_000)
    options = parser.parse_args()
    uvloop.run(bench(options.rounds, options.backlog))


if __name__ == "__main__":
    main()
