"""How long a takeover takes, with a backlog and without one.

Question: does the time from SIGKILL to the first confirm and the first delivery of the new
epoch depend on how many messages the shadow holds, in memory and in files?

Method: three nodes, fresh for each kill; one queue, filled with the given number of messages
of 100 B; a producer that sends one message after the other and a consumer that takes them as
they come; the owner is killed, and the times of the first confirm and of the first frame of
the new epoch are taken from the clients. Long and short backlogs in turns; medians.

The promotion itself is what the new owner says in its status: from the event that brought it
the committed takeover to the first frame that it read from a client after that. A client asks
each node something all the time, so that there is one to read. With `--once`, one more kill
with a backlog of its own.

Not shown: several owners at once; a stopped node.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import tanist
from perf.backlog import Marks, check_room, fill, until_stopped
from perf.cluster import Cluster
from perf.load import Gap
from perf.memory import background

BODY: Final = b"x" * 100
RATIO_MAX: Final = 1.2
MORE_MS_MAX: Final = 20.0
PROMOTION_MS_MAX: Final = 10.0
LIMIT_S: Final = 60.0
SETTLE_S: Final = 0.5
ASK_EVERY_S: Final = 0.0005


@dataclass(frozen=True, slots=True)
class Kill:
    """Milliseconds from the kill to the first confirm and to the first delivery, and of the
    promotion on the new owner."""

    confirm_ms: float
    delivery_ms: float
    promotion_ms: float
    pages_on_disk: int
    """On the new owner."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all kills of a run have in common."""

    budget_mib: int
    directory: Path

    @property
    def extra(self) -> str:
        return f"[limits]\nbudget_bytes = {self.budget_mib << 20}\n"


async def kill_once(backlog: int, setting: Setting) -> Kill:
    async with (
        Cluster(3, extra=setting.extra, under=setting.directory) as cluster,
        tanist.connect(cluster.url) as sending,
        tanist.connect(cluster.url) as taking,
    ):
        await sending.declare("q", spread="one")
        await fill(cluster.url, "q", backlog, Marks())
        async with sending.producer("q") as producer, asyncio.timeout(LIMIT_S):
            victim = sending.topology[producer.sid]
            consumer = await taking.consumer("q", prefetch=100)
            gap = Gap()
            confirmed: list[tuple[int, float]] = []

            async def take() -> None:
                async for message in consumer:
                    gap.saw(message.epoch, message.received_at)
                    consumer.ack(message)
                    await asyncio.sleep(0.001)

            async def send() -> None:
                while True:
                    done = await producer.send(BODY)
                    confirmed.append((done.epoch, time.monotonic()))
                    await asyncio.sleep(0.001)

            survivors = [name for name in cluster.names if name != victim]
            asking = [_ask_all_the_time(cluster.url_of(name)) for name in survivors]
            jobs: list[Coroutine[None, None, None]] = [take(), send(), *asking]
            async with background(jobs):
                await asyncio.sleep(SETTLE_S)
                killed_at = time.monotonic()
                cluster.kill(victim)
                while not gap.gaps or confirmed[-1][0] < 2:
                    await asyncio.sleep(0.005)
            owner = sending.topology[producer.sid]
            said = await cluster.status(owner)
        first_confirm = next(at for epoch, at in confirmed if epoch >= 2)
        return Kill(
            confirm_ms=1000 * (first_confirm - killed_at),
            delivery_ms=1000 * (gap.gaps[0][1] - killed_at),
            promotion_ms=said["streams"][str(producer.sid)]["desk"]["first_frame_ms"],
            pages_on_disk=said["paging"]["pages_on_disk"],
        )


async def _ask_all_the_time(url: str) -> None:
    """Have a node read a client's frame as soon as it reads any."""
    async with tanist.connect(url) as client:
        while True:
            await client.describe("q")
            await asyncio.sleep(ASK_EVERY_S)


async def bench(rounds: int, backlog: int, once: int, setting: Setting) -> bool:
    """Returns whether all is as long as it may be."""
    figures: dict[int, list[Kill]] = {1: [], backlog: []}
    for number in range(rounds):
        for messages, found in figures.items():
            found.append(await kill_once(messages, setting))
            _say(f"{number + 1:>3}/{rounds}", messages, found[-1])
    good = _compare(figures[1], figures[backlog], rounds, backlog)
    good &= _judge_promotion([kill for kills in figures.values() for kill in kills], backlog)
    if once:
        kill = await kill_once(once, setting)
        _say("once", once, kill)
        _print_result("once", backlog=once, **asdict(kill))
    return good


def _say(which: str, messages: int, kill: Kill) -> None:
    print(
        f"{which}  backlog {messages:>10,}:"
        f"  confirm {kill.confirm_ms:6.1f} ms  delivery {kill.delivery_ms:6.1f} ms"
        f"  promotion {kill.promotion_ms:5.2f} ms  {kill.pages_on_disk:,} pages in files",
        flush=True,
    )


def _compare(short: list[Kill], long: list[Kill], rounds: int, backlog: int) -> bool:
    all_good = True
    for name in ("confirm", "delivery"):
        short_ms, long_ms = (
            statistics.median(getattr(kill, f"{name}_ms") for kill in kills)
            for kills in (short, long)
        )
        good = long_ms <= max(RATIO_MAX * short_ms, short_ms + MORE_MS_MAX)
        print(
            f"first {name}: {short_ms:.1f} ms with one message, {long_ms:.1f} ms with {backlog:,}:"
            f" {'as long' if good else 'LONGER'}"
        )
        _print_result(
            name,
            rounds=rounds,
            backlog=backlog,
            short_ms=round(short_ms, 1),
            long_ms=round(long_ms, 1),
            good=good,
        )
        all_good &= good
    return all_good


def _judge_promotion(kills: list[Kill], backlog: int) -> bool:
    worst = max(kill.promotion_ms for kill in kills)
    good = worst < PROMOTION_MS_MAX
    print(
        f"promotion itself: {worst:.2f} ms at most:"
        f" {'good' if good else f'MORE than {PROMOTION_MS_MAX:.0f}'}"
    )
    median = statistics.median(kill.promotion_ms for kill in kills)
    _print_result(
        "promotion",
        backlog=backlog,
        most_ms=round(worst, 2),
        median_ms=round(median, 2),
        good=good,
    )
    return good


def _print_result(what: str, **values: Any) -> None:
    # Any: figures, for programs that collect them.
    print(json.dumps({"bench": "promotion", "what": what, **values}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--backlog", type=int, default=1_000_000)
    parser.add_argument("--once", type=int, default=0, help="one more kill, with so many messages")
    parser.add_argument("--budget-mib", type=int, default=1024, help="of each node")
    parser.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="where nodes have their files"
    )
    options = parser.parse_args()
    check_room(options.dir, max(options.backlog, options.once))
    setting = Setting(options.budget_mib, options.dir)
    good = until_stopped(bench(options.rounds, options.backlog, options.once, setting))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
