"""Kills at random moments, under load, each on a fresh cluster of real processes.

Question: is a confirmed message ever lost, reordered or handed out twice when nodes die, stop
or lose their backups, or when a consumer dies?

Method: each kill has its own cluster, two queues (one with a single consumer, whose order is
checked, one that two consumers share), a producer for each of them at every node, and a seed
that draws victim and moment. In most of them a backup stands still for the last milliseconds
before, as one does that pauses or is busy. Everything that applications did and saw is recorded
and checked (`tests.simulation.history`). A line a kill says what there was to go wrong; at the
end, in how many kills there was something.

Not shown: faults of the network (the simulator has them), several faults in a row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

import msgspec
import uvloop

import tanist
from perf.cluster import Cluster, Status
from perf.load import DRAIN_S_MAX, History, HoldingConsumer, SteadyProducer, left_over
from tests.simulation.history import Gone, Recorded, check

Kind = Literal["kill", "stop", "pair", "consumer"]

ORDERED, SHARED = "ordered", "shared"
STOPPED_S: Final = 5.0
AFTER_S: Final = 1.5
PRESSED_MESSAGES: Final = 3
PRESSED_S_MIN: Final = 0.005
PRESSED_S_MAX: Final = 0.02
LATE_SHARE: Final = 0.7
"""In so many kills a backup stands still while the producers press: what others hold then is
not confirmed, and is repeated."""
REJOIN_S_MAX: Final = 20.0
GAP_S_MAX: Final = 0.3
"""The median gap after a kill must stay below this."""
SHARE_MIN: Final = 0.8
"""In so many of the kills that hit a node there must have been something to go wrong."""


@dataclass
class Line:
    """What one kill met, and what came of it."""

    kind: Kind
    seed: int
    victim: str = ""
    unconfirmed: int = 0
    in_flight: int = 0
    adopted: int = 0
    duplicates: int = 0
    held: int = 0
    rejoined: str = ""
    frame_gap_ms: float | None = None
    confirm_gap_ms: float | None = None
    messages: int = 0
    redelivered: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def ms(value: float | None) -> str:
            return "-" if value is None else f"{value:.0f}"

        return (
            f"{self.kind:8} {self.victim:12} seed {self.seed:<6} unconfirmed {self.unconfirmed:>5}"
            f"  in flight {self.in_flight:>4}  tail adopted {self.adopted:>4}"
            f"  duplicates {self.duplicates:>5}  resumed with {self.held:>4}"
            f"  gap {ms(self.frame_gap_ms):>5}/{ms(self.confirm_gap_ms):>5} ms"
            f"  {self.rejoined or '-':24} {self.messages:>6} messages"
            f"  {'ok' if not self.violations else 'VIOLATED'}"
        )


def kinds(kills: int) -> list[Kind]:
    """At least a fifth stops, a tenth pairs and a tenth consumers, mixed; the rest kills."""
    tenth = -(-kills // 10)
    stops, pairs, consumers = 2 * tenth, tenth, tenth
    rest = max(0, kills - stops - pairs - consumers)
    counted: list[tuple[Kind, int]] = [
        ("kill", rest),
        ("stop", stops),
        ("pair", pairs),
        ("consumer", consumers),
    ]
    return [kind for kind, count in counted for _ in range(count)]


async def episode(kind: Kind, seed: int) -> Line:
    """One kill. Never raises for a violation: it is in the line."""
    chance = random.Random(seed)
    line = Line(kind, seed)
    history = History()
    nodes = 5 if kind == "pair" else 3
    extra = f"[cluster]\nfailover_peers = {3 if kind == 'pair' else 2}\n"
    async with Cluster(nodes, extra=extra) as cluster, AsyncExitStack() as held:
        client = await held.enter_async_context(tanist.connect(cluster.url))
        for queue in (ORDERED, SHARED):
            await client.declare(queue)
        producers = [
            await _producer(held, cluster, name, queue, history)
            for name in cluster.names
            for queue in (ORDERED, SHARED)
        ]
        consumers = [
            await _consumer(held, cluster, name, queue, history)
            for name, queue in (("one", ORDERED), ("two", SHARED), ("three", SHARED))
        ]
        tasks = [asyncio.create_task(consumer.run()) for consumer in consumers]
        posting = [asyncio.create_task(producer.run()) for producer in producers]
        # Whatever happens they end before their clients do.
        held.push_async_callback(_end, [*tasks, *posting])
        mortal = _Mortal(cluster.url) if kind == "consumer" else None
        await asyncio.sleep(0.4 + chance.random())
        if mortal is not None:
            await mortal.took(100)
            line.victim = "a consumer"
            history.events += await mortal.kill()
            await asyncio.sleep(AFTER_S + 2.0)
        else:
            await _fault(kind, chance, cluster, producers, consumers, history, line)
        for producer in producers:
            await producer.finish()
        for posted in posting:
            await posted
        for consumer in consumers:
            consumer.drain()
        await _drained(history, consumers)
        for consumer in consumers:
            await consumer.flush()
        for queue in (ORDERED, SHARED):
            history.events += await left_over(client, queue)
        for done in await _end(tasks):
            if isinstance(done, Exception):
                raise done
    verdict = check(history.events)
    line.violations = [str(violation) for violation in verdict.violations]
    line.messages = verdict.counts.confirmed
    line.redelivered = verdict.counts.redelivered
    return line


async def _end(tasks: list[asyncio.Task[None]]) -> list[BaseException | None]:
    """What became of them."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def _producer(
    held: AsyncExitStack, cluster: Cluster, node: str, queue: str, history: History
) -> SteadyProducer:
    client = await held.enter_async_context(
        tanist.connect(cluster.url_of(node), listener=history.hear)
    )
    producer = await client.producer(queue)
    return SteadyProducer(f"{node}/{queue}", producer, history)


async def _consumer(
    held: AsyncExitStack, cluster: Cluster, name: str, queue: str, history: History
) -> HoldingConsumer:
    client = await held.enter_async_context(tanist.connect(cluster.url, listener=history.hear))
    consumer = await client.consumer(queue, prefetch=400)
    return HoldingConsumer(name, consumer, history)


async def _fault(
    kind: Kind,
    chance: random.Random,
    cluster: Cluster,
    producers: list[SteadyProducer],
    consumers: list[HoldingConsumer],
    history: History,
    line: Line,
) -> None:
    victim = chance.choice(cluster.names)
    status = await cluster.status(chance.choice([n for n in cluster.names if n != victim]))
    [sid] = [int(sid) for sid, s in status["streams"].items() if s["home"] == victim]
    backups = [who.split(".")[0] for who in status["streams"][str(sid)]["in_sync"]]
    backup = chance.choice([name for name in backups if name != victim])
    line.victim = f"{victim}+{backup}" if kind == "pair" else victim
    mine = [producer for producer in producers if producer.producer.sid == sid]
    late = backup if chance.random() < LATE_SHARE else None
    if late is not None:
        cluster.stop(late)
    await _press(mine, chance.uniform(PRESSED_S_MIN, PRESSED_S_MAX))
    since = time.monotonic()
    line.unconfirmed = sum(producer.unconfirmed for producer in mine)
    line.in_flight = sum(consumer.held_of(sid) for consumer in consumers)
    if kind == "stop":
        cluster.stop(victim)
    else:
        cluster.kill(victim)
        if kind == "pair":
            cluster.kill(backup)
    if late is not None and late in cluster.running():
        cluster.go_on(late)
    if kind == "stop":
        await asyncio.sleep(STOPPED_S)
        cluster.go_on(victim)
    survivor = next(n for n in cluster.names if n not in (victim, backup))
    await cluster.wait_for(survivor, lambda s: _moved(s, sid, victim), "taken over", REJOIN_S_MAX)
    await asyncio.sleep(AFTER_S)
    if kind != "stop":
        cluster.start(victim)
    status = await cluster.wait_for(
        victim, lambda s: _rejoined(s, sid) != "", "joined again", REJOIN_S_MAX
    )
    line.rejoined = _rejoined(status, sid)
    owner = status["streams"][str(sid)]["owner"].split(".")[0]
    here = (await cluster.status(owner))["streams"][str(sid)]
    line.adopted = here["here"]["counts"].get("adopted", 0)
    line.duplicates = here["desk"]["duplicates"]
    line.held = sum(event.held for event in history.resumed if event.sid == sid)
    gap = history.frame_gap_s(sid, since)
    line.frame_gap_ms = None if gap is None else 1000 * gap
    gap = history.confirm_gap_s(sid, since)
    line.confirm_gap_ms = None if gap is None else 1000 * gap


async def _press(producers: list[SteadyProducer], seconds: float) -> None:
    """Post in every turn of the loop, until there is a batch in each stage up to its confirm.

    A timer would not do: its resolution is 1 ms, and a batch is confirmed in less.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for producer in producers:
            producer.burst(PRESSED_MESSAGES)
        await asyncio.sleep(0)


def _moved(status: Status, sid: int, victim: str) -> bool:
    owner: str = status["streams"][str(sid)]["owner"]
    return owner.split(".")[0] != victim


def _rejoined(status: Status, sid: int) -> str:
    """How the victim's own copy stands: by ops, waiting for transfer, or "" (not yet)."""
    here = status["streams"][str(sid)].get("here", {})
    role: str = here.get("role", "none")
    if role in ("shadow", "joiner") and here["epoch"] > 1:
        return "rejoined by ops"
    return role if role == "waiting for transfer" else ""


async def _drained(history: History, consumers: list[HoldingConsumer]) -> None:
    """Until nothing was handed out for a while: then what is missing is missing."""
    until = time.monotonic() + DRAIN_S_MAX
    handed, quiet_since = -1, time.monotonic()
    while time.monotonic() < until:
        now = sum(consumer.handed for consumer in consumers)
        if now != handed:
            handed, quiet_since = now, time.monotonic()
        elif time.monotonic() - quiet_since > 1.0:
            return
        await asyncio.sleep(0.05)


# A consumer that dies


class _Mortal:
    """A consumer in a process of its own, which tells us what it does."""

    NAME: Final = "mortal"

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "perf.torture", "--mortal", url], stdout=subprocess.PIPE
        )
        self._lines: list[bytes] = []
        self._reading = asyncio.create_task(asyncio.to_thread(self._read))

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as told:
            self._lines.extend(told)

    async def took(self, messages: int) -> None:
        """Until it has been handed so many."""
        async with asyncio.timeout(DRAIN_S_MAX):
            while len(self._lines) < messages:
                await asyncio.sleep(0.01)

    async def kill(self) -> list[Recorded]:
        """End it, and say what it had told."""
        self._process.kill()
        at = time.monotonic()
        self._process.wait()
        await self._reading
        told: list[Recorded] = [
            _DECODER.decode(line) for line in self._lines if line.endswith(b"\n")
        ]
        return [*told, Gone(at=at, client=self.NAME)]


_DECODER: Final = msgspec.json.Decoder(Recorded)


async def be_mortal(url: str) -> None:
    """Consume and tell, until killed."""

    def tell(event: Recorded) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
        sys.stdout.buffer.flush()

    async with tanist.connect(url) as client, client.consumer(SHARED, prefetch=400) as consumer:
        await HoldingConsumer(_Mortal.NAME, consumer, History(), tell).run()


# The run


async def torture(kills: int, seed: int) -> int:
    chance = random.Random(seed)
    plan = kinds(kills)
    chance.shuffle(plan)
    lines: list[Line] = []
    for number, kind in enumerate(plan, start=1):
        line = await episode(kind, seed + number)
        lines.append(line)
        print(f"{number:>3}/{len(plan)} {line}", flush=True)
        for violation in line.violations[:5]:
            print(f"      {violation}", flush=True)
    return report(lines)


def report(lines: list[Line]) -> int:
    """The sums, and the exit code."""
    of_nodes = [line for line in lines if line.kind != "consumer"]
    bad = [line for line in lines if line.violations]
    failures: list[str] = [f"{len(bad)} kills with violations"] if bad else []
    for name in ("unconfirmed", "in_flight", "adopted", "duplicates", "held"):
        share = sum(1 for line in of_nodes if getattr(line, name)) / max(1, len(of_nodes))
        print(f"{name:12} above 0 in {share:4.0%} of the kills that hit a node")
        if len(of_nodes) >= 10 and share < SHARE_MIN:
            failures.append(f"{name} was above 0 in {share:.0%} of the kills only")
    gaps = [line.frame_gap_ms for line in lines if line.kind == "kill" and line.frame_gap_ms]
    median = statistics.median(gaps) if gaps else None
    if median is not None:
        print(f"gap after SIGKILL, median of {len(gaps)}: {median:.0f} ms")
        if len(gaps) >= 20 and median > 1000 * GAP_S_MAX:
            failures.append(f"the median gap is {median:.0f} ms")
    total = {"kills": len(lines), "messages": sum(line.messages for line in lines)}
    print(json.dumps({"torture": total, "gap_ms": median, "failures": failures}))
    for line in bad:
        print(json.dumps(asdict(line)))
    return 1 if failures else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--mortal", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mortal:
        uvloop.run(be_mortal(options.mortal))
    else:
        sys.exit(uvloop.run(torture(options.kills, options.seed)))


if __name__ == "__main__":
    main()
