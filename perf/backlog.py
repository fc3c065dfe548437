"""A queue many times as large as memory: filled, then drained.

Question: does a node keep to its budget while one queue goes far beyond it, and does the queue
take and give messages as fast as one that never left memory?

Method: three nodes on loopback with two failover peers, so each holds the whole queue; one
producer and then one consumer, each a process of its own on uvloop. Every body carries its
number, and the consumer looks at it: nothing may be missing, and all must be in order. Before
and after, a small queue goes the same way some times and stays in memory; its median is the base
of the consume rate. All is done twice: free, and with each node in a control group whose limit
counts the kernel's cache of its files, too. Where no such group can be made, that is said.

    peak        the largest resident size of each process, by the kernel's own mark (VmHWM)
    publishing  confirmed messages a second, over the last million against the first
    consuming   messages a second from the first one taken to the last ack answered
    processor   time of all nodes and of the client at work, for each message: where something
                else runs on the machine, this tells more than rates do
    disk        what the nodes' processes really wrote and read (/proc/PID/io); without a group
                much of what is read comes from the kernel's cache

Not shown: publishing and consuming at the same time; several queues; a disk of the node's own,
since three copies share one here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop

import tanist
from perf.cgroup import MemoryGroup, NoGroup, memory_groups
from perf.cluster import Cluster
from perf.memory import rss_mib
from perf.plot import Panel, Points, sparkline, svg
from perf.throughput import ROUND_S_MAX, Role, cpu_s

T = TypeVar("T")

BODY_BYTES: Final = 100
NUMBER_BYTES: Final = 8
STORED_BYTES: Final = 106
"""Of one message on one node: its body, its place in the batch's table, its share of headers."""
NODES: Final = 3
SPARE_BYTES: Final = 2 << 30
"""Left free: nodes stop to write before a disk is full."""

CHUNK: Final = 2000
SAY_EVERY_S: Final = 0.1
SAMPLE_EVERY_S: Final = 1.0
POINTS_MIN: Final = 50
"""Of a rate, also if it lasts for less than as many samples."""
PROGRESS_EVERY_S: Final = 5.0

STRETCH: Final = 1_000_000
"""Messages over which the publish rate is taken, at both ends."""
BASE_MESSAGES: Final = 1_000_000
BASE_SHARE: Final = 0.4
"""Of the budget: a queue of the base takes no more."""
BASE_ROUNDS: Final = 3

RATIO_MIN: Final = 0.8
RSS_BUDGETS: Final = 2
"""The most that a process may take, in budgets."""


# The programs at both ends


async def produce(url: str, queue: str, messages: int) -> None:
    """Publish numbered messages, and say how many are confirmed."""
    async with tanist.connect(url) as client, client.producer(queue) as producer:
        post, rest = producer.post, bytes(BODY_BYTES - NUMBER_BYTES)
        say = _Saying()
        say.now(0)
        for first in range(0, messages, CHUNK):
            end = min(messages, first + CHUNK)
            for number in range(first, end):
                await post(number.to_bytes(NUMBER_BYTES, "big") + rest)
            say.perhaps(end - producer.unanswered)
        await producer.flush()
        say.now(messages)


async def consume(url: str, queue: str, messages: int) -> None:
    """Take messages, check their numbers, ack them, and say how many there were."""
    async with (
        tanist.connect(url) as client,
        client.consumer(queue, prefetch=20_000, prefetch_bytes=16 << 20) as consumer,
    ):
        ack, number = consumer.ack, 0
        say = _Saying()
        async for message in consumer:
            if not number:
                say.now(0)
            found = int.from_bytes(message.body[:NUMBER_BYTES], "big")
            if found != number:
                say.now(number, found=found)
                return
            ack(message)
            number += 1
            if not number % CHUNK:
                say.perhaps(number)
            if number == messages:
                break
        stale = await consumer.flush()
        assert not stale, stale
        say.now(number)


ROLES: Final[dict[str, Callable[[str, str, int], Coroutine[None, None, None]]]] = {
    "produce": produce,
    "consume": consume,
}


class _Saying:
    """Says how far a role is, not too often."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def now(self, n: int, **values: int) -> None:
        at = time.monotonic()
        self._next_at = at + SAY_EVERY_S
        print(json.dumps({"at": at, "n": n, **values}), flush=True)

    def perhaps(self, n: int) -> None:
        if time.monotonic() >= self._next_at:
            self.now(n)


# What is seen of them


class Disordered(Exception):
    """A message is missing, or came out of order."""


@dataclass
class Marks:
    """How many messages had passed at which time, and what that had cost; between two marks, as
    much as between them.

    Args:
        cpu_s: Says how much processor time was used so far.
    """

    cpu_s: Callable[[], float] = lambda: 0.0
    seen: list[tuple[float, int]] = field(default_factory=list)
    used: list[tuple[float, int]] = field(default_factory=list)
    """The same with seconds of processor time instead of seconds."""

    def add(self, at: float, n: int) -> None:
        self.seen.append((at, n))
        self.used.append((self.cpu_s(), n))

    @property
    def seconds(self) -> float:
        return self.seen[-1][0] - self.seen[0][0]

    @property
    def count(self) -> int:
        return self.seen[-1][1] if self.seen else 0

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    def rate_between(self, first: int, end: int) -> float:
        return (end - first) / (_when(self.seen, end) - _when(self.seen, first))

    def cpu_us_between(self, first: int, end: int) -> float:
        """Of a message."""
        return 1e6 * (_when(self.used, end) - _when(self.used, first)) / (end - first)

    @property
    def cpu_us(self) -> float:
        return self.cpu_us_between(0, self.count)

    def points(self, since: float) -> Points:
        """Messages a second, over time."""
        points: Points = []
        if not self.seen:
            return points
        every_s = min(SAMPLE_EVERY_S, self.seconds / POINTS_MIN)
        last_at, last_n = self.seen[0]
        for at, n in self.seen:
            if at - last_at >= every_s and at > last_at:
                points.append((at - since, (n - last_n) / (at - last_at)))
                last_at, last_n = at, n
        return points


def _when(seen: list[tuple[float, int]], n: int) -> float:
    last_at, last_n = seen[0]
    for at, count in seen:
        if count >= n:
            step = count - last_n
            return at if not step else last_at + (at - last_at) * (n - last_n) / step
        last_at, last_n = at, count
    raise AssertionError(f"{n} of {last_n} messages")


@dataclass(frozen=True, slots=True)
class Sample:
    """All nodes at one moment."""

    at: float
    rss_mib: dict[str, float]
    paging: dict[str, dict[str, Any]]
    """What each node's status says. Any: it is a document for people."""


class Watch:
    """Looks at the nodes once a second, and tells people how it goes."""

    def __init__(self, cluster: Cluster, say: Callable[[str], None]) -> None:
        self.began = time.monotonic()
        self.samples: list[Sample] = []
        self._cluster = cluster
        self._say = say
        self._what = ""
        self._marks = Marks()
        self._of = 0

    def begin(self, what: str, marks: Marks, messages: int) -> None:
        self._what, self._marks, self._of = what, marks, messages

    async def run(self) -> None:
        cluster = self._cluster
        clients = {name: await tanist.connect(cluster.url_of(name)) for name in cluster.names}
        try:
            next_line_at = 0.0
            while True:
                self.samples.append(await self._sample(clients))
                if self._what and time.monotonic() >= next_line_at:
                    next_line_at = time.monotonic() + PROGRESS_EVERY_S
                    self._say(self._line())
                await asyncio.sleep(SAMPLE_EVERY_S)
        finally:
            for client in clients.values():
                await client.close()

    async def _sample(self, clients: dict[str, tanist.Client]) -> Sample:
        documents: list[Any] = [await client.status() for client in clients.values()]
        return Sample(
            time.monotonic(),
            {name: rss_mib(self._cluster.pid(name)) for name in clients},
            {document["node"]: document["paging"] for document in documents},
        )

    def _line(self) -> str:
        sample, seen = self.samples[-1], self._marks.seen[-60:]
        rate = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]) if len(seen) > 1 else 0.0
        most = max(sample.rss_mib.values())
        away = max(paging["disk_bytes"] for paging in sample.paging.values())
        trouble = {p["trouble"] for p in sample.paging.values() if p["trouble"]}
        return (
            f"{sample.at - self.began:6.0f} s  {self._what:9}"
            f" {self._marks.count:>11,} of {self._of:,}  {rate:>9,.0f}/s  RSS {most:5.0f} MiB"
            f"  files {away / 1e6:8,.0f} MB  {'; '.join(sorted(trouble))}"
        )

    def points(self, value: Callable[[Sample, str], float]) -> dict[str, Points]:
        """A line for each node."""
        return {
            name: [(s.at - self.began, value(s, name)) for s in self.samples]
            for name in self._cluster.names
        }


@asynccontextmanager
async def watching(cluster: Cluster, say: Callable[[str], None]) -> AsyncIterator[Watch]:
    watch = Watch(cluster, say)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def follow(role: Role, messages: int, marks: Marks) -> None:
    """Until a role has done all. Raises `Disordered`, and what `Role.line` does."""
    while marks.count < messages:
        try:
            line = await role.line()
        except TimeoutError:
            raise SystemExit(f"nothing happened for {ROUND_S_MAX} s") from None
        marks.add(line["at"], int(line["n"]))
        if "found" in line:
            raise Disordered(f"instead of message {line['n']:,} came {line['found']:,}")


async def fill(url: str, queue: str, messages: int, marks: Marks) -> None:
    """Publish so many numbered messages, from a process of its own."""
    await _through("produce", url, queue, messages, marks)


async def _through(name: str, url: str, queue: str, messages: int, marks: Marks) -> None:
    nodes_s, role = marks.cpu_s, Role(name, url, queue, messages, module="perf.backlog")
    marks.cpu_s = lambda: nodes_s() + cpu_s(role.pid)
    try:
        await follow(role, messages, marks)
    except BaseException:
        role.kill()
        raise
    role.end()


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What processes have moved to and from a disk so far."""

    written: int
    read: int

    def __sub__(self, other: DiskUse) -> DiskUse:
        return DiskUse(self.written - other.written, self.read - other.read)


def disk_use(cluster: Cluster) -> DiskUse:
    written = read = 0
    for name in cluster.names:
        text = Path(f"/proc/{cluster.pid(name)}/io").read_text()
        values = dict(line.split(": ") for line in text.splitlines())
        written += int(values["write_bytes"])
        read += int(values["read_bytes"])
    return DiskUse(written, read)


def peak_rss_mib(pid: int) -> float:
    """The largest resident size that a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("a kernel without VmHWM")


def until_stopped(work: Coroutine[None, None, T]) -> T:
    """Run this. SIGTERM, too, ends it so that no process and no file is left."""

    async def stoppable() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return uvloop.run(stoppable())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


def check_room(directory: Path, messages: int) -> None:
    """Exits with a sentence if a disk has no room for all copies of so many messages."""
    needed = NODES * messages * STORED_BYTES + SPARE_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise SystemExit(
            f"{directory}: {needed / 1e9:.1f} GB are needed for {NODES} copies of {messages:,}"
            f" messages and for what nodes leave free, and {free / 1e9:.1f} GB are free:"
            " choose another --dir or fewer --messages"
        )


# One run


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    messages: int
    budget_mib: int
    directory: Path
    plot: Path | None

    @property
    def limit_mib(self) -> int:
        return RSS_BUDGETS * self.budget_mib

    @property
    def base_messages(self) -> int:
        fits = int(BASE_SHARE * (self.budget_mib << 20)) // STORED_BYTES
        return min(BASE_MESSAGES, self.messages, fits)

    @property
    def stretch(self) -> int:
        return min(STRETCH, self.messages // 5)


async def run(plan: Plan, groups: dict[str, MemoryGroup], say: Callable[[str], None]) -> Figures:
    """Base, fill, drain, base again."""
    extra = f"[limits]\nbudget_bytes = {plan.budget_mib << 20}\n"
    launchers = {name: group.launcher for name, group in groups.items()}
    disorder = ""
    async with (
        Cluster(NODES, extra=extra, under=plan.directory, launchers=launchers) as cluster,
        tanist.connect(cluster.url) as client,
        watching(cluster, say) as watch,
    ):
        published, consumed = _marks(cluster), _marks(cluster)
        bases = await _base(cluster, client, plan, "before")
        base_paged = _pages_on_disk(watch)
        say(f"a queue in memory: {_in_words(bases)} messages/s out of it")
        await client.declare("backlog", spread="one")
        uses = [disk_use(cluster)]
        watch.begin("publish", published, plan.messages)
        await fill(cluster.url, "backlog", plan.messages, published)
        uses.append(disk_use(cluster))
        watch.begin("consume", consumed, plan.messages)
        try:
            await _through("consume", cluster.url, "backlog", plan.messages, consumed)
        except Disordered as error:
            disorder = str(error)
        uses.append(disk_use(cluster))
        stat = await client.stat("backlog")
        watch.begin("", Marks(), 0)
        bases += await _base(cluster, client, plan, "after")
        say(f"and afterwards: {_in_words(bases[BASE_ROUNDS:])}")
        peaks = {name: peak_rss_mib(cluster.pid(name)) for name in cluster.names}
        killed = sum(group.killed for group in groups.values())
        counted = [group.peak_bytes for group in groups.values()]
    return Figures(
        plan=plan,
        published=published,
        consumed=consumed,
        bases=bases,
        base_paged=base_paged,
        disorder=disorder,
        left=stat.ready + stat.in_flight,
        peaks=peaks,
        writing=uses[1] - uses[0],
        reading=uses[2] - uses[1],
        watch=watch,
        killed=killed,
        counted_mib=[None if peak is None else round(peak / (1 << 20)) for peak in counted],
    )


async def _base(cluster: Cluster, client: tanist.Client, plan: Plan, when: str) -> list[Marks]:
    found: list[Marks] = []
    for number in range(BASE_ROUNDS):
        queue = f"{when}{number}"
        await client.declare(queue, spread="one")
        await fill(cluster.url, queue, plan.base_messages, Marks())
        found.append(_marks(cluster))
        await _through("consume", cluster.url, queue, plan.base_messages, found[-1])
        await client.delete(queue)
    return found


def _marks(cluster: Cluster) -> Marks:
    """With what the nodes of the cluster use."""
    return Marks(lambda: sum(cpu_s(cluster.pid(name)) for name in cluster.names))


def _pages_on_disk(watch: Watch) -> int:
    most: int = max(p["pages_on_disk"] for s in watch.samples for p in s.paging.values())
    return most


def _in_words(passages: Sequence[Marks]) -> str:
    return ", ".join(f"{marks.rate:,.0f}" for marks in passages)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run showed."""

    plan: Plan
    published: Marks
    consumed: Marks
    bases: list[Marks]
    base_paged: int
    disorder: str
    left: int
    peaks: dict[str, float]
    writing: DiskUse
    """While the queue was filled."""
    reading: DiskUse
    """While it was drained."""
    watch: Watch
    killed: int
    counted_mib: list[int | None]

    def document(self) -> dict[str, Any]:
        # Any: for programs that collect figures; nothing here reads it but what prints it.
        plan, published, consumed = self.plan, self.published, self.consumed
        ends = ((0, plan.stretch), (plan.messages - plan.stretch, plan.messages))
        first, last = (published.rate_between(*end) for end in ends)
        first_us, last_us = (published.cpu_us_between(*end) for end in ends)
        base = statistics.median(marks.rate for marks in self.bases)
        base_us = statistics.median(marks.cpu_us for marks in self.bases)
        paging = [p for sample in self.watch.samples for p in sample.paging.values()]
        peak = max(self.peaks.values())
        complete = not self.disorder and consumed.count == plan.messages and not self.left
        consume_rate = consumed.rate if len(consumed.seen) > 1 else 0.0
        targets = {
            "complete_and_in_order": complete,
            "went_to_files": max(p["pages_on_disk"] for p in paging) > 0 and not self.base_paged,
            "peak_rss": peak <= plan.limit_mib and not self.killed,
            "publish_rate": last >= RATIO_MIN * first,
            "consume_rate": consume_rate >= RATIO_MIN * base,
        }
        return {
            "peak_rss_mib": {name: round(mib) for name, mib in self.peaks.items()},
            "publish_per_s": round(published.rate),
            "publish_first_per_s": round(first),
            "publish_last_per_s": round(last),
            "publish_ratio": round(last / first, 3),
            "consume_per_s": round(consume_rate),
            "base_consume_per_s": [round(marks.rate) for marks in self.bases],
            "consume_ratio": round(consume_rate / base, 3),
            "publish_cpu_us_first": round(first_us, 2),
            "publish_cpu_us_last": round(last_us, 2),
            "consume_cpu_us": round(consumed.cpu_us, 2),
            "base_consume_cpu_us": round(base_us, 2),
            "base_pages_on_disk": self.base_paged,
            "files_bytes_max": max(p["disk_bytes"] for p in paging),
            "pages_on_disk_max": max(p["pages_on_disk"] for p in paging),
            "written_bytes": self.writing.written + self.reading.written,
            "read_bytes": self.writing.read + self.reading.read,
            "written_mb_per_s": round(self.writing.written / 1e6 / published.seconds, 1),
            "read_mb_per_s": round(self.reading.read / 1e6 / max(consumed.seconds, 1e-3), 1),
            "publish_s": round(published.seconds, 1),
            "consume_s": round(consumed.seconds, 1),
            "counted_by_group_mib": self.counted_mib,
            "killed_by_kernel": self.killed,
            "disorder": self.disorder,
            "left": self.left,
            "trouble": sorted({p["trouble"] for p in paging if p["trouble"]}),
            "targets": targets,
            "good": all(targets.values()),
        }

    def panels(self, which: str) -> list[Panel]:
        watch, plan = self.watch, self.plan
        rates = {
            "published": self.published.points(watch.began),
            "consumed": self.consumed.points(watch.began),
        }
        rss = watch.points(lambda sample, name: sample.rss_mib[name])
        files = watch.points(lambda sample, name: sample.paging[name]["disk_bytes"] / 1e6)
        return [
            Panel(f"{which}: messages a second", rates),
            Panel(f"{which}: resident MiB of each node", rss, ("limit", plan.limit_mib)),
            Panel(f"{which}: MB in page files of each node", files),
        ]

    def say(self, say: Callable[[str], None]) -> None:
        """For people."""
        watch, d = self.watch, self.document()
        rss = [(s.at - watch.began, max(s.rss_mib.values())) for s in watch.samples]
        say(f"  published {sparkline(self.published.points(watch.began))}")
        say(f"  consumed  {sparkline(self.consumed.points(watch.began))}")
        say(f"  resident  {sparkline(rss)}")
        say(
            f"  {d['publish_per_s']:,}/s in, the last {self.plan.stretch:,} at"
            f" {d['publish_ratio']} of the first; {d['consume_per_s']:,}/s out,"
            f" {d['consume_ratio']} of a queue in memory"
        )
        say(
            f"  processor, nodes and client: {d['publish_cpu_us_first']} µs for one of the first"
            f" published, {d['publish_cpu_us_last']} for one of the last; {d['consume_cpu_us']} for"
            f" one consumed, {d['base_consume_cpu_us']} from memory"
        )
        say(
            f"  resident at most {max(self.peaks.values()):.0f} MiB of {self.plan.limit_mib};"
            f" files of {d['files_bytes_max'] / 1e6:,.0f} MB a node"
        )
        say(
            f"  disk, all nodes: {d['written_bytes'] / 1e6:,.0f} MB written,"
            f" {d['written_mb_per_s']:,} MB/s while filled;"
            f" {d['read_bytes'] / 1e6:,.0f} MB read, {d['read_mb_per_s']:,} MB/s while drained"
        )
        for name, good in d["targets"].items():
            say(f"  {name.replace('_', ' '):24} {'good' if good else 'MISSED'}")
        for sentence in filter(None, [d["disorder"], *d["trouble"]]):
            say(f"  {sentence}")


async def bench(plan: Plan, which: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """All that is asked for, one after the other. The document has all figures."""
    check_room(plan.directory, plan.messages)
    runs: dict[str, dict[str, Any]] = {}
    panels: list[Panel] = []
    for name in which:
        with ExitStack() as held:
            groups: dict[str, MemoryGroup] = {}
            if name == "limited":
                nodes = [f"node{number}" for number in range(1, NODES + 1)]
                try:
                    groups = held.enter_context(memory_groups(nodes, plan.limit_mib << 20))
                except NoGroup as error:
                    say(f"--- limited: SKIPPED, no control group can be made here: {error}")
                    runs[name] = {"skipped": str(error)}
                    continue
            say(f"--- {name}: {plan.messages:,} messages, a budget of {plan.budget_mib} MiB")
            figures = await run(plan, groups, say)
            figures.say(say)
            runs[name] = figures.document()
            panels += figures.panels(name)
    if plan.plot is not None and panels:
        plan.plot.parent.mkdir(parents=True, exist_ok=True)
        plan.plot.write_text(svg(panels), encoding="utf-8")
        say(f"plot: {plan.plot}")
    return {
        "bench": "backlog",
        "messages": plan.messages,
        "body_bytes": BODY_BYTES,
        "budget_mib": plan.budget_mib,
        "limit_mib": plan.limit_mib,
        "base_messages": plan.base_messages,
        "runs": runs,
        "good": all(run.get("good", True) for run in runs.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--role", choices=sorted(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--messages", type=int, default=50_000_000)
    parser.add_argument("--budget-mib", type=int, default=512, help="of each node")
    parser.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="where nodes have their files"
    )
    parser.add_argument("--runs", choices=("both", "free", "limited"), default="both")
    parser.add_argument("--plot", type=Path, help="an SVG file of rates and sizes over time")
    parser.add_argument("--json", action="store_true", help="progress goes to standard error")
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        url, queue, messages = options.arguments
        uvloop.run(ROLES[options.role](url, queue, int(messages)))
        return
    plan = Plan(options.messages, options.budget_mib, options.dir, options.plot)
    which = ("free", "limited") if options.runs == "both" else (options.runs,)
    target = sys.stderr if options.json else sys.stdout

    def say(line: str) -> None:
        print(line, file=target, flush=True)

    result = until_stopped(bench(plan, which, say))
    print(json.dumps(result), flush=True)
    sys.exit(0 if result["good"] else 1)


if __name__ == "__main__":
    main()
