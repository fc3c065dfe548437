"""What it costs that a part has a million pages in files.

Question: how long does it take to find the page of a message among 1,000,000, and to have that
message from its file; does a page in a file take up 200 bytes of memory at most, and a message
in memory 8 at most beside its batch?

Method: a real part with a real pager, in a process of its own. Most pages are one batch of 300
messages, and of these the pager is merely told that they were written. A thousand, spread evenly,
are 16 batches of 62 KB in a real file. Memory is what the process has grown by, for each page
that is away. Then the pages of random messages are looked up, and messages in random files are
asked for by `peek`, one block each: *cold* when the system was told to forget all files, *warm*
once more after that. The *floor* is measured in turns with it: for the look-up `bisect` over a
list of numbers, for a read one `pread` of as many bytes from a file that is open. A single look-up
is timed, with the 0.1 µs that this takes.

What is kept for a message is what a process grows by for 1,000,000 messages of 100 B in sealed
pages, beyond their batches; 600 in a batch is what a client sends when it has enough.

Not shown: the threads that read for a node (`perf.pagefile`), consumers that read whole pages, and
a disk that others use. The host of a virtual machine may remember what its guest forgot.

Prints a table for people, and JSON as its last line. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import secrets
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Callable
from ctypes import CDLL
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from time import perf_counter_ns
from typing import Final, NamedTuple

from paging.disk import BlockRead, Job, ReadBlock, WritePage, Written
from paging.files import HEAD_BYTES, PageFiles
from paging.page import Away
from paging.pagefile import ENTRY, HEADER, PageKey
from paging.pager import Pager
from paging.pages import PAGE_BYTES
from paging.part import Part
from perf.pagefile import forget
from perf.ranges import resident_bytes
from tanist.wire.batch import Batch, seal

PAGE_BYTES_MAX: Final = 200
"""Of memory, for a page that is in a file."""
MESSAGE_BYTES_MAX: Final = 8
"""Of memory, for a message, beside its batch."""

EACH: Final = (1, 64, 600)
"""Messages of a batch."""
IN_TURNS: Final = 100
"""Look-ups of one kind, then of the other."""
BLOCKS: Final = 16
"""Of a page that has a file."""
WHAT: Final = {
    "look_up": "find the page of a message, µs",
    "cold": "have a message from its file, cold, µs",
    "warm": "the same from the cache, µs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    pages: int
    files: int
    messages: int
    look_ups: int
    rounds: int
    directory: Path


class Times(NamedTuple):
    """Of single operations, in microseconds."""

    median: float
    p99: float

    @staticmethod
    def of(taken_ns: list[int]) -> Times:
        taken_ns.sort()
        return Times(taken_ns[len(taken_ns) // 2] / 1e3, taken_ns[len(taken_ns) * 99 // 100] / 1e3)


def batch(count: int, body_bytes: int) -> Batch:
    """Each of its messages begins with its place in the batch."""
    bodies = [number.to_bytes(2, "big").ljust(body_bytes, b".") for number in range(count)]
    return Batch.parse(seal(bodies, [], flags=0, first_n=1, time_ms=1))


class Index:
    """A part of which nearly all pages are in files, or said to be."""

    def __init__(self, files: PageFiles, *, pages: int, with_file: int) -> None:
        self._files = files
        self._pager = Pager(ahead_bytes=PAGE_BYTES)
        self.part = Part(self._pager.shelf(1, 1).new_pages(1))
        self._with_file: set[int] = set()
        self.block = batch(600, 100)
        small = batch(300, 30)  # Large enough to be kept as it is: all share its bytes.
        for number in range(pages):
            if number % (pages // with_file) == 0:
                self._with_file.add(self.part.end)
                for _ in range(BLOCKS):
                    self.part.append(Batch.trusted(self.block.data))
            else:
                self.part.append(Batch.trusted(small.data))
            self.part.pages.seal()
            if number % 16 == 0:
                self._write()
        self._write()

    def _write(self) -> None:
        jobs: list[Job] = []
        while True:
            self._pager.end_turn(0.0, 0, jobs)
            if not jobs:
                return
            for job in jobs:
                assert isinstance(job, WritePage)
                size = 0
                if job.key.first in self._with_file:
                    size = self._files.write(job.key, job.end, job.blocks)
                self._pager.handle(Written(job.key, size), 0.0)
            jobs.clear()

    def in_files(self) -> list[int]:
        """Where the pages begin that are away, and in real files."""
        sealed = self.part.pages.sealed
        return [first for first in sorted(self._with_file) if isinstance(sealed(first), Away)]

    def look_up(self, offset: int) -> object:
        return self.part.pages.page_with(offset)

    def fetch(self, offset: int) -> bytes:
        """A message out of its file, as somebody has it who does not consume."""
        jobs: list[Job] = []
        self._pager.peek(self.part.pages, offset, jobs)
        (job,) = jobs
        assert isinstance(job, ReadBlock)
        block = self._files.read_block(job.key, job.offset)
        self._pager.handle(BlockRead(job.key, job.token, block), 0.0)
        (peeked,) = self._pager.take_peeked()
        assert peeked.found is not None
        found, first = peeked.found
        index = offset - first
        at = found.bodies_at
        return found.data[at + found.end_of(index - 1) : at + found.end_of(index)]

    def read_bare(self, offset: int) -> int:
        """Nanoseconds of one `pread` of as many bytes as it takes to fetch a message."""
        pages = self.part.pages
        at = pages.page_with(offset)
        assert at is not None
        first, page = at
        path = self._files.path(PageKey(self._pager.book_of(pages), first, page.version))
        position = HEADER.size + BLOCKS * ENTRY.size
        position += (offset - first) // self.block.count * self.block.size
        fd = os.open(path, os.O_RDONLY)
        try:
            begin = perf_counter_ns()
            os.pread(fd, HEAD_BYTES + self.block.size, max(0, position - HEAD_BYTES))
            return perf_counter_ns() - begin
        finally:
            os.close(fd)


def timed(operation: Callable[[int], object], offset: int) -> int:
    """Nanoseconds."""
    begin = perf_counter_ns()
    operation(offset)
    return perf_counter_ns() - begin


def look_ups(index: Index, count: int, random: Random) -> dict[str, Times]:
    firsts = [*index.part.pages.firsts()]

    def bare(offset: int) -> int:
        return firsts[bisect_right(firsts, offset) - 1]

    ours: list[int] = []
    floor: list[int] = []
    for _ in range(count // IN_TURNS):
        for operation, taken in ((index.look_up, ours), (bare, floor)):
            # Others each time: who comes second would find all of them in the caches.
            offsets = [random.randrange(index.part.end) for _ in range(IN_TURNS)]
            taken += [timed(operation, offset) for offset in offsets]
    return {"look_up": Times.of(ours), "look_up_floor": Times.of(floor)}


def reads(index: Index, plan: Plan, random: Random) -> dict[str, Times]:
    taken: dict[str, list[int]] = {}
    for _ in range(plan.rounds):
        firsts = index.in_files()
        random.shuffle(firsts)
        offsets = [first + random.randrange(BLOCKS * index.block.count) for first in firsts]
        forget(plan.directory)
        for what in ("cold", "warm"):
            taken.setdefault(what, []).extend(timed(index.fetch, offset) for offset in offsets)
        forget(plan.directory)
        for what in ("cold_floor", "warm_floor"):
            taken.setdefault(what, []).extend(index.read_bare(offset) for offset in offsets)
    return {what: Times.of(times) for what, times in taken.items()}


def settle_memory() -> int:
    """What the process takes up, without what was freed."""
    gc.collect()
    CDLL(None).malloc_trim(0)
    return resident_bytes()


class Found(NamedTuple):
    """Of an index."""

    pages_away: int
    page_bytes: float
    """Of memory, for each of them."""
    us: dict[str, Times]


def with_files(plan: Plan) -> Found:
    """All that is asked of an index. In a process of its own."""
    gc.disable()  # A node collects in idle turns only.
    random = Random(1)
    files = PageFiles.open(plan.directory, secrets.token_bytes(16))
    before = settle_memory()
    index = Index(files, pages=plan.pages, with_file=plan.files)
    grown = settle_memory() - before
    first = index.in_files()[0]
    assert index.fetch(first + 1_201)[:2] == (1).to_bytes(2, "big"), "another message"
    away = index.part.pages.away
    us = look_ups(index, plan.look_ups, random) | reads(index, plan, random)
    files.remove_life()
    return Found(away, round(grown / away, 1), us)


def beside_batches(each: int, messages: int) -> float:
    """What a message in a sealed page takes up beside its batch. In a process of its own."""
    gc.disable()
    one, part = batch(each, 100), Part()
    before = settle_memory()
    for _ in range(messages // each):
        # A batch of its own each time, as it is when they come from producers.
        part.append(Batch.trusted(bytes(bytearray(one.data))))
    part.pages.seal()
    grown = settle_memory() - before
    return round((grown - part.bytes) / part.end, 2)


def bench(plan: Plan) -> dict[str, object]:
    """Prints a table. The document has all of it."""
    start = get_context("spawn").Pool
    with start(1) as pool:
        found = pool.apply(with_files, (plan,))
    beside: dict[int, float] = {}
    for each in EACH:
        with start(1) as pool:
            beside[each] = pool.apply(beside_batches, (each, plan.messages))

    title = f"{found.pages_away:,} pages in files"
    print(f"{title:44} {'median':>8} {'p99':>8}   {'floor':>8} {'ratio':>6}")
    for what, name in WHAT.items():
        (median, p99), floor = found.us[what], found.us[f"{what}_floor"].median
        print(f"  {name:42} {median:8.1f} {p99:8.1f}   {floor:8.2f} {median / floor:6.1f}")
    good = {
        "page_bytes": found.page_bytes <= PAGE_BYTES_MAX,
        "message_bytes": max(beside.values()) <= MESSAGE_BYTES_MAX,
    }
    verdict = "good" if good["page_bytes"] else f"MORE than {PAGE_BYTES_MAX}"
    print(f"  {'bytes in memory, a page in a file':42} {found.page_bytes:8.1f}   {verdict}")
    for each, message_bytes in beside.items():
        verdict = "good" if message_bytes <= MESSAGE_BYTES_MAX else f"MORE than {MESSAGE_BYTES_MAX}"
        name = f"bytes beside a batch of {each}, a message"
        print(f"  {name:42} {message_bytes:8.2f}   {verdict}")
    return {
        "bench": "pages",
        "pages": plan.pages,
        "pages_away": found.pages_away,
        "us": {what: times._asdict() for what, times in found.us.items()},
        "page_bytes": found.page_bytes,
        "message_bytes": beside,
        "targets": good,
        "good": all(good.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1_000, help="of 1 MiB (default: 1000)")
    parser.add_argument("--messages", type=int, default=1_000_000, help="that are kept in memory")
    parser.add_argument("--look-ups", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="of all reads (default: 3)")
    parser.add_argument("--dir", type=Path, help="on the disk in question (default: a temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        plan = Plan(
            pages=options.pages,
            files=options.files,
            messages=options.messages,
            look_ups=options.look_ups,
            rounds=options.rounds,
            directory=Path(made),
        )
        result = bench(plan)
    print(json.dumps(result), flush=True)
    sys.exit(0 if result["good"] else 1)


if __name__ == "__main__":
    main()
