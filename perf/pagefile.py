"""What page files cost, and what of it the loop pays.

Question: how many MiB a second does a node write to and read from page files, how much of the
loop's time does a page take, and how late is the loop for others meanwhile?

Method: pages of 1 MiB, once of 16 large batches and once of some 4,400 small ones packed into 16
blocks, through `PageIo` on uvloop: as many writes under way as are allowed, eight reads, and
every answer asks for the next page. In a page that is read one message is looked up. *Loop* is
the CPU time of the loop's thread for each job: submitting, being woken, taking the answer.
*Late* is the worst that a timer of 5 ms was late. Reads are measured twice: from the system's
cache, and after it was told to forget the files. A block is read from pages in a shuffled
order, and not from the cache. Median of the rounds, and the worst of *late*.

Not shown: a disk that others use; what a pager decides; what its consumers do with batches; and
how fast the disk really writes, since nothing is synced: short runs end in the system's memory.

Each result is a line for people, and with `--json` one JSON object for `perf/history/`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import NamedTuple

import uvloop

from broker.runtime.page_io import PageIo
from paging.disk import (
    WRITES_MAX,
    BlockRead,
    Done,
    Job,
    JobFailed,
    PageRead,
    ReadBlock,
    ReadPage,
    RemoveBook,
    WritePage,
)
from paging.files import PageFiles
from paging.pagefile import BlockImage, Book, PageKey
from tanist.wire.batch import seal

PAGE_BYTES = 1 << 20
BLOCK_BYTES = 1 << 16
READS = 8
BODY = b"x" * 200
TICK_S = 0.005
BOOK = Book(1, 1, 0, 1)


def large(first: int) -> tuple[BlockImage, int]:
    """A batch that fills a block, and how many messages that is."""
    count = BLOCK_BYTES // (len(BODY) + 4)
    return BlockImage(first, seal([BODY] * count, [], flags=0, first_n=1, time_ms=1), None), count


def packed(first: int) -> tuple[BlockImage, int]:
    """Batches of one message, as many as a block takes."""
    one = seal([BODY], [], flags=0, first_n=1, time_ms=1)
    count = BLOCK_BYTES // len(one)
    places = array("I", [at << 16 | at * len(one) for at in range(count)])
    return BlockImage(first, one * count, places), count


SHAPES = {"16 large batches": large, "4,400 small batches": packed}


def page(make: str, number: int) -> WritePage:
    """A page, in bytes of its own, as it is when it comes from producers."""
    first = at = number << 20
    blocks: list[BlockImage] = []
    while sum(len(block.data) for block in blocks) < PAGE_BYTES - BLOCK_BYTES // 2:
        block, count = SHAPES[make](at)
        blocks.append(block)
        at += count
    return WritePage(PageKey(BOOK, first, 1), at, blocks)


class Measured(NamedTuple):
    """One run over all pages."""

    mib_s: float
    loop_us: float
    """CPU of the loop's thread, for a job."""
    late_ms: float


class Pump:
    """Keeps jobs under way until all are done."""

    def __init__(self, files: PageFiles) -> None:
        self.io = PageIo(files, self._answer)
        self._jobs: Iterator[Job] = iter(())
        self._under_way = 0
        self._bytes = 0
        self._done = asyncio.Event()

    async def run(self, jobs: Iterable[Job], under_way: int) -> Measured:
        jobs = list(jobs)
        count = len(jobs)
        self._jobs = iter(jobs)
        self._bytes = 0
        self._done.clear()
        late = asyncio.create_task(self._lateness())
        await asyncio.sleep(10 * TICK_S)
        begin, cpu_begin = perf_counter(), thread_time()
        for _ in range(under_way):
            self._next()
        await self._done.wait()
        cpu_s, seconds = thread_time() - cpu_begin, perf_counter() - begin
        return Measured(self._bytes / seconds / (1 << 20), cpu_s / count * 1e6, await late * 1e3)

    async def _lateness(self) -> float:
        worst_s = 0.0
        while not self._done.is_set():
            begin = perf_counter()
            await asyncio.sleep(TICK_S)
            worst_s = max(worst_s, perf_counter() - begin - TICK_S)
        return worst_s

    def _next(self) -> None:
        job = next(self._jobs, None)
        if job is not None:
            self._under_way += 1
            self.io.submit(job)

    def _answer(self, answers: list[Done]) -> None:
        for done in answers:
            self._under_way -= 1
            match done:
                case JobFailed():
                    raise SystemExit(done.sentence)
                case PageRead():
                    self._bytes += len(done.image.data)
                    done.image.find(done.image.blocks[0].first)
                case BlockRead():
                    self._bytes += len(done.block.data)
                    done.block.find(done.block.first)
                case _:
                    self._bytes += done.bytes
            self._next()
        if not self._under_way:
            self._done.set()


def forget(directory: Path) -> None:
    """Have the system read from the disk again."""
    for path in directory.rglob("*.page"):
        fd = os.open(path, os.O_RDONLY)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


async def measure(directory: Path, make: str, pages: int, rounds: int) -> dict[str, Measured]:
    files = PageFiles.open(directory, secrets.token_bytes(16))
    pump = Pump(files)
    found: dict[str, list[Measured]] = {}
    for _ in range(rounds):
        writes = [page(make, number) for number in range(pages)]
        keys = [job.key for job in writes]
        reads = [ReadPage(key) for key in keys]
        blocks = [ReadBlock(key, key.first, token=0) for key in keys]
        random.Random(1).shuffle(blocks)
        runs: list[tuple[str, list[Job], int, bool]] = [
            ("write", [*writes], WRITES_MAX, False),
            ("read from the cache", [*reads], READS, False),
            ("read", [*reads], READS, True),
            ("read a block", [*blocks], READS, True),
        ]
        for what, jobs, under_way, cold in runs:
            if cold:
                forget(directory)
            found.setdefault(what, []).append(await pump.run(jobs, under_way))
        pump.io.submit(RemoveBook(BOOK))
    await pump.io.close()
    return {
        what: Measured(
            median(run.mib_s for run in runs),
            median(run.loop_us for run in runs),
            max(run.late_ms for run in runs),
        )
        for what, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--pages", type=int, default=256, help="in one run (default: 256)")
    parser.add_argument("--rounds", type=int, default=5, help="of all runs (default: 5)")
    parser.add_argument("--dir", type=Path, help="on the disk in question (default: a temporary)")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"{'pages of 1 MiB':44} {'MiB/s':>8} {'loop µs':>9} {'late ms':>9}")
    with tempfile.TemporaryDirectory(dir=arguments.dir) as made:
        for make in SHAPES:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                found = runner.run(measure(Path(made), make, arguments.pages, arguments.rounds))
            for what, result in found.items():
                if arguments.json:
                    line = {"benchmark": "pagefile", "page": make, "what": what}
                    print(json.dumps({**line, **result._asdict()}))
                else:
                    mib_s, loop_us, late_ms = result
                    name = f"{what}, {make}"
                    print(f"  {name:42} {mib_s:8.0f} {loop_us:9.1f} {late_ms:9.2f}")


if __name__ == "__main__":
    main()
