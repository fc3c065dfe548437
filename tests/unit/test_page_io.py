"""Page files from a loop: answered once and in order, whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
import uvloop

from broker.runtime import page_io
from broker.runtime.page_io import READERS, PageIo
from paging.disk import (
    READS_MAX,
    WRITES_MAX,
    BlockRead,
    Done,
    Fault,
    Job,
    JobFailed,
    PageRead,
    ReadBlock,
    ReadPage,
    RemoveBook,
    RemovePages,
    WritePage,
    Written,
)
from paging.files import FileFault, PageFiles, Removal
from paging.pagefile import Block, BlockImage, Book, PageImage, PageKey
from tanist.wire.batch import seal

WAIT_S = 10.0
LIFE = bytes(range(16))
BOOK = Book(sid=7, gen=2, part=0, copy=1)
DATA = seal([b"x" * 10_000], [], flags=0, first_n=1, time_ms=7)


def key(number: int, book: Book = BOOK) -> PageKey:
    return PageKey(book, 10 * number, 1)


def write(number: int, book: Book = BOOK) -> WritePage:
    """A page of two messages."""
    first = 10 * number
    blocks = [BlockImage(first, DATA, None), BlockImage(first + 1, DATA, None)]
    return WritePage(key(number, book), first + 2, blocks)


class Disk(PageFiles):
    """A real one, on which jobs wait at a gate, or fail, as the test says."""

    def __init__(self, directory: Path, life: bytes) -> None:
        super().__init__(directory, life)
        self.log: list[str] = []
        self.gates: dict[PageKey, threading.Event] = {}
        self.errors: dict[PageKey, Exception] = {}
        self.arrived = threading.Semaphore(0)
        """Counts the jobs that came to a gate."""

    def write(self, key: PageKey, end: int, blocks: list[BlockImage]) -> int:
        self._enter("write", key)
        return super().write(key, end, blocks)

    def read(self, key: PageKey) -> PageImage:
        self._enter("read", key)
        return super().read(key)

    def read_block(self, key: PageKey, offset: int) -> Block:
        self._enter("read block", key)
        return super().read_block(key, offset)

    def remove(self, keys: Iterable[PageKey]) -> Removal:
        keys = list(keys)
        for key in keys:
            self._enter("remove", key)
        return super().remove(keys)

    def _enter(self, what: str, key: PageKey) -> None:
        if key in self.gates:
            self.arrived.release()
            assert self.gates[key].wait(WAIT_S)
        if key in self.errors:
            raise self.errors[key]
        self.log.append(f"{what} {key.first // 10}")


class Bench:
    """A `PageIo` on a disk, and what it answered."""

    def __init__(self, directory: Path) -> None:
        self.disk = Disk(directory, LIFE)
        self.calls: list[list[Done]] = []
        self.errors: list[BaseException] = []
        self._came = asyncio.Event()
        self.io = PageIo(self.disk, self._answer)
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self.errors.append(context["exception"])
        )

    @property
    def answers(self) -> list[Done]:
        return [done for call in self.calls for done in call]

    def _answer(self, answers: list[Done]) -> None:
        self.calls.append(answers)
        self._came.set()

    async def until(self, count: int) -> list[Done]:
        """So many answers, and no more of them."""
        async with asyncio.timeout(WAIT_S):
            while len(self.answers) < count:
                self._came.clear()
                await self._came.wait()
        assert len(self.answers) == count
        return self.answers

    async def is_there(self, number: int) -> bool:
        """Whether a page is, once all removals that were under way are done."""
        marker = write(10_000 + len(self.answers))
        self.io.submit(marker)
        await self.until(len(self.answers) + 1)
        return self.disk.path(key(number)).exists()


Rule = Callable[[Bench], Awaitable[None]]


def run(directory: Path, rule: Rule, *, closes: bool = True) -> None:
    """Run one test on a loop, and end its threads."""

    async def main() -> None:
        bench = Bench(directory)
        try:
            await rule(bench)
        finally:
            for gate in bench.disk.gates.values():
                gate.set()
            if closes:
                assert await bench.io.close()

    asyncio.run(main())


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_written_is_read(
    tmp_path: Path, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        # Given a page that was written
        bench = Bench(tmp_path)
        bench.io.submit(write(1))
        (written,) = await bench.until(1)

        # When it is read, and blocks of it
        bench.io.submit(ReadPage(key(1)))
        bench.io.submit(ReadBlock(key(1), 11, token=5))
        bench.io.submit(ReadBlock(key(1), 10, token=6))
        _, *read = await bench.until(4)

        # Then all are answered once, and what the disk did is counted
        size = bench.disk.path(key(1)).stat().st_size
        assert written == Written(key(1), size)
        (image,) = [done.image for done in read if isinstance(done, PageRead)]
        blocks = {done.token: done.block for done in read if isinstance(done, BlockRead)}
        assert (image.first, image.end, image.bytes) == (10, 12, 2 * len(DATA))
        assert {token: block.first for token, block in blocks.items()} == {5: 11, 6: 10}
        traffic = bench.io.traffic
        assert (traffic.files_written, traffic.bytes_written) == (1, size)
        assert (traffic.files_read, traffic.blocks_read) == (1, 2)
        assert traffic.bytes_read == size + 2 * len(DATA)
        assert traffic.writing_s > 0
        assert traffic.reading_s > 0
        assert await bench.io.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_a_removal_does_not_overtake_the_write_of_its_page(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        # Given a write that takes its time
        gate = bench.disk.gates[key(1)] = threading.Event()
        bench.io.submit(write(1))

        # When the page is removed meanwhile
        bench.io.submit(RemovePages([key(1)]))
        gate.set()
        await bench.until(1)

        # Then it is written, and removed
        assert not await bench.is_there(1)
        assert bench.disk.log[:2] == ["write 1", "remove 1"]
        traffic = bench.io.traffic
        assert (traffic.files_removed, traffic.bytes_removed) == (1, traffic.bytes_written // 2)
        assert traffic.removing_s > 0

    run(tmp_path, rule)


@pytest.mark.parametrize("removal", [RemovePages([key(1), key(2)]), RemoveBook(BOOK)])
@pytest.mark.parametrize("read", [ReadPage(key(1)), ReadBlock(key(1), 10, token=1)])
def test_a_removal_does_not_overtake_a_read_of_its_page(
    tmp_path: Path, removal: RemovePages | RemoveBook, read: ReadPage | ReadBlock
) -> None:
    async def rule(bench: Bench) -> None:
        # Given two reads of a page, one of which takes its time
        for number in (1, 2):
            bench.io.submit(write(number))
        await bench.until(2)
        gate = bench.disk.gates[key(1)] = threading.Event()
        bench.io.submit(read)
        assert bench.disk.arrived.acquire(timeout=WAIT_S)

        # When that page and another are removed
        bench.io.submit(removal)
        other = write(3, BOOK._replace(copy=2))
        bench.io.submit(other)
        await bench.until(3)
        was_there = bench.disk.path(key(1)).exists()
        gate.set()
        *_, answer = await bench.until(4)
        bench.io.submit(write(4, other.key.book))
        await bench.until(5)

        # Then it is there until the read was answered, and no longer
        assert was_there
        assert isinstance(answer, PageRead | BlockRead)
        assert not bench.disk.path(key(1)).exists()
        assert not bench.disk.path(key(2)).exists()
        assert bench.disk.path(other.key).exists()

    run(tmp_path, rule)


def test_a_removal_of_one_page_does_not_wait_for_the_read_of_another(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        # Given a read that takes its time
        for number in (1, 2):
            bench.io.submit(write(number))
        await bench.until(2)
        bench.disk.gates[key(1)] = threading.Event()
        bench.io.submit(ReadPage(key(1)))

        # When its page is removed together with another
        bench.io.submit(RemovePages([key(1), key(2)]))

        # Then that one is gone already
        assert not await bench.is_there(2)
        assert await bench.is_there(1)

    run(tmp_path, rule)


def test_a_burst_of_answers_wakes_the_loop_once(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        # Given a loop that is busy while many pages are written
        for number in range(WRITES_MAX):
            bench.io.submit(write(number))
        tick = threading.Event()
        for _ in range(int(WAIT_S / 0.001)):
            if bench.io.traffic.files_written == WRITES_MAX:
                break
            tick.wait(0.001)

        # When it has time again
        await bench.until(WRITES_MAX)

        # Then it hears of all of them at once, in order
        assert len(bench.calls) == 1
        assert [done.key for done in bench.answers if isinstance(done, Written)] == [
            key(number) for number in range(WRITES_MAX)
        ]

    run(tmp_path, rule)


@pytest.mark.parametrize(
    ("number", "fault"),
    [(errno.ENOSPC, Fault.FULL), (errno.EIO, Fault.BROKEN), (errno.ENOENT, Fault.GONE)],
)
def test_a_fault_is_the_answer_and_the_next_job_is_done(
    tmp_path: Path, number: int, fault: Fault
) -> None:
    async def rule(bench: Bench) -> None:
        # Given a disk that fails with one page
        bench.io.submit(write(1))
        await bench.until(1)
        error = FileFault.of(bench.disk.path(key(1)), "used", OSError(number, ""))
        for failing in (key(1), key(2)):
            bench.disk.errors[failing] = error

        # When it is read, and others are written
        jobs: list[Job] = [ReadPage(key(1)), ReadBlock(key(1), 10, token=9), write(2)]
        for job in jobs:
            bench.io.submit(job)
        _, *failed = await bench.until(4)
        bench.io.submit(write(3))
        *_, last = await bench.until(5)

        # Then each failure is answered with the job, the fault and a sentence
        assert all(isinstance(done, JobFailed) for done in failed)
        found = [done for done in failed if isinstance(done, JobFailed)]
        assert all(any(done.job is job for done in found) for job in jobs)
        assert {(done.fault, done.sentence) for done in found} == {(fault, str(error))}
        assert isinstance(last, Written)
        assert bench.io.traffic.failed == 3

    run(tmp_path, rule)


def test_after_a_failed_write_the_page_may_be_written_again(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        # Given a page that the disk had no room for
        bench.disk.errors[key(1)] = FileFault.of(
            bench.disk.path(key(1)), "written", OSError(errno.ENOSPC, "")
        )
        bench.io.submit(write(1))
        await bench.until(1)

        # When there is room
        bench.disk.errors.clear()
        bench.io.submit(write(1))

        # Then it is written
        *_, last = await bench.until(2)
        assert isinstance(last, Written)

    run(tmp_path, rule)


def test_a_directory_that_somebody_removes_costs_what_was_in_it(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        # Given pages whose directory is removed
        bench.io.submit(write(1))
        await bench.until(1)
        shutil.rmtree(tmp_path / "pages")

        # When they are read, and others written and read
        bench.io.submit(ReadPage(key(1)))
        bench.io.submit(write(2))
        _, *answers = await bench.until(3)
        bench.io.submit(ReadPage(key(2)))
        *_, last = await bench.until(4)

        # Then the former are gone, and nothing else is
        (failed,) = [done for done in answers if isinstance(done, JobFailed)]
        assert (failed.job, failed.fault) == (ReadPage(key(1)), Fault.GONE)
        assert isinstance(last, PageRead)

    run(tmp_path, rule)


def test_a_slow_write_holds_up_no_read_and_a_slow_read_no_other(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        # Given a write and a read that hang
        for number in range(2):
            bench.io.submit(write(number))
        await bench.until(2)
        for number, job in ((0, ReadPage(key(0))), (5, write(5))):
            bench.disk.gates[key(number)] = threading.Event()
            bench.io.submit(job)
            assert bench.disk.arrived.acquire(timeout=WAIT_S)

        # When another page is read
        bench.io.submit(ReadPage(key(1)))
        *_, answer = await bench.until(3)

        # Then it is answered
        assert isinstance(answer, PageRead)
        assert answer.key == key(1)

    run(tmp_path, rule)


def test_a_removal_that_fails_is_counted_and_named(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        bench.io.submit(write(1))
        await bench.until(1)
        notes = bench.disk.path(key(1)).with_name("notes")
        notes.touch()

        bench.io.submit(RemoveBook(BOOK))
        await bench.is_there(1)

        assert bench.io.traffic.left == 1
        assert bench.io.traffic.why_left == f"{notes} stays: it is not a page"

    run(tmp_path, rule)


def test_more_than_was_agreed_is_a_bug(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        # Given as many jobs as may be under way
        bench.io.submit(write(0))
        await bench.until(1)
        for number in (0, 1):
            bench.disk.gates[key(number)] = threading.Event()
        for number in range(1, WRITES_MAX + 1):
            bench.io.submit(write(number))
        for _ in range(READS_MAX):
            bench.io.submit(ReadPage(key(0)))

        for job in (write(WRITES_MAX + 1), ReadPage(key(0)), ReadBlock(key(0), 0, token=1)):
            # When one more is asked for
            with pytest.raises(AssertionError, match="than agreed"):
                bench.io.submit(job)

        # Then that was all; the others are answered
        for gate in bench.disk.gates.values():
            gate.set()
        await bench.until(1 + WRITES_MAX + READS_MAX)

    run(tmp_path, rule)


def test_a_page_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        bench.disk.gates[key(1)] = threading.Event()
        bench.io.submit(write(1))

        with pytest.raises(AssertionError, match="before it was known to be written"):
            bench.io.submit(ReadPage(key(1)))
        with pytest.raises(AssertionError, match="written once"):
            bench.io.submit(write(1))

    run(tmp_path, rule)


def test_a_bug_in_a_thread_is_raised_on_the_loop(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        # Given a mistake of ours, which is not the disk's
        bug = ValueError("a mistake")
        bench.disk.errors[key(1)] = bug

        # When it happens
        bench.io.submit(write(1))
        bench.io.submit(write(2))
        await bench.until(1)

        # Then the loop hears of it, and the thread lives on
        assert bench.errors == [bug]
        assert [type(done) for done in bench.answers] == [Written]

    run(tmp_path, rule)


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("tanist-pages")]


def test_the_end_leaves_no_thread_no_file_and_answers_nothing(tmp_path: Path) -> None:
    async def rule(bench: Bench) -> None:
        # Given pages, a job under way and others that wait
        assert len(alive()) == 1 + READERS
        bench.io.submit(write(0))
        await bench.until(1)
        gate = bench.disk.gates[key(1)] = threading.Event()
        for number in range(1, 5):
            bench.io.submit(write(number))
        bench.io.submit(RemovePages([key(0)]))
        bench.io.submit(ReadPage(key(0)))
        assert bench.disk.arrived.acquire(timeout=WAIT_S)

        # When the node ends
        asyncio.get_running_loop().call_soon(gate.set)
        ended = await bench.io.close()

        # Then so do the threads, without the jobs that waited
        assert ended
        for thread in alive():
            thread.join(WAIT_S)
        assert alive() == []
        assert list((tmp_path / "pages").iterdir()) == []
        assert "write 2" not in bench.disk.log
        assert len(bench.answers) == 1
        with pytest.raises(AssertionError):
            bench.io.submit(write(9))

    run(tmp_path, rule, closes=False)


def test_the_end_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_io, "CLOSE_S_MAX", 0.05)
    hanging: list[threading.Event] = []

    async def rule(bench: Bench) -> None:
        # Given a disk that hangs
        hanging.append(threading.Event())
        bench.disk.gates[key(1)] = hanging[0]
        bench.io.submit(write(1))
        assert bench.disk.arrived.acquire(timeout=WAIT_S)

        # When the node ends
        ended = await bench.io.close()

        # Then it does not wait, and says so
        assert not ended
        bench.disk.gates.clear()

    run(tmp_path, rule, closes=False)

    # And a disk that wakes up when the loop is closed finds nobody, and does no harm
    hanging[0].set()
    for thread in alive():
        thread.join(WAIT_S)
    assert alive() == []
    assert list((tmp_path / "pages").iterdir()) == []
