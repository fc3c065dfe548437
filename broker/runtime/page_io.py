"""Writes, reads and removes page files in threads: the loop never waits for a disk.

Theory of operation
-------------------
One thread writes and removes, in the order that was asked for: a disk gains nothing from two
writers, and what is removed was written before. Two threads read, so that a consumer who wants
a page does not wait behind one who wants another, and never behind what is being written.

That gives the order of the jobs of one key almost by itself: a read is only asked for once the
write was answered. What is left is a removal that could overtake a read, so it is held back on
the loop until the reads of its pages were answered.

Answers collect while the loop is busy: it is woken for the first of them, and takes them all.

Rules
-----
1. Everything but `_work` and what it calls runs on the loop. Between them are two queues, and a
   list and the counters under one lock.
2. A file that fails is an answer. Any other error of a thread is a bug, and raised on the loop.
3. A disk may hang for ever, so nobody waits for a thread without a bound.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from time import perf_counter
from typing import Final, Protocol, assert_never

from paging.disk import (
    READS_MAX,
    WRITES_MAX,
    BlockRead,
    Done,
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
from paging.files import FileFault, Removal
from paging.pagefile import Block, BlockImage, Book, PageImage, PageKey
from paging.traffic import Traffic

READERS: Final = 2

CLOSE_S_MAX: Final = 5.0
"""So long the end of a node waits for its disk. The next life removes what is left."""


Reading = ReadPage | ReadBlock
Removing = RemovePages | RemoveBook


class Files(Protocol):
    """What a thread asks of `paging.files.PageFiles`."""

    def write(self, key: PageKey, end: int, blocks: list[BlockImage]) -> int: ...
    def read(self, key: PageKey) -> PageImage: ...
    def read_block(self, key: PageKey, offset: int) -> Block: ...
    def remove(self, keys: Iterable[PageKey]) -> Removal: ...
    def remove_book(self, book: Book) -> Removal: ...
    def remove_life(self) -> Removal: ...


class PageIo:
    """Does the jobs of a pager.

    Args:
        files: Whose directory it is; blocking.
        answer: Takes the answers, on the loop, one call for all that are ready.
    """

    def __init__(self, files: Files, answer: Callable[[list[Done]], None]) -> None:
        self._files = files
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._writing: set[PageKey] = set()
        self._reading: Counter[PageKey] = Counter()
        # Removals that wait until nothing of theirs is read any more.
        self._held: list[Removing] = []
        self._closed = False
        self._running = 1 + READERS
        self._all_ended = asyncio.Event()
        self._lock = Lock()
        self._done: list[Done] = []
        self._traffic = Traffic()
        self._to_write: SimpleQueue[WritePage | Removing | None] = SimpleQueue()
        self._to_read: SimpleQueue[Reading | None] = SimpleQueue()
        for number, work in enumerate([self._write, *[self._read] * READERS]):
            # Not waited for at the end of the process: a disk may hang for ever.
            Thread(target=work, name=f"tanist-pages-{number}", daemon=True).start()

    @property
    def traffic(self) -> Traffic:
        """What the disk did until now. The caller may keep it."""
        with self._lock:
            return replace(self._traffic)

    def submit(self, job: Job) -> None:
        """Do a job. Of those that are answered, at most `WRITES_MAX` and `READS_MAX` may wait."""
        assert not self._closed
        match job:
            case WritePage():
                assert len(self._writing) < WRITES_MAX, "more writes than agreed"
                assert job.key not in self._writing, "a page is written once"
                assert not any(
                    isinstance(held, RemoveBook) and held.book == job.key.book
                    for held in self._held
                ), "written into a book that is to be removed"
                self._writing.add(job.key)
                self._to_write.put(job)
            case ReadPage() | ReadBlock():
                assert self._reading.total() < READS_MAX, "more reads than agreed"
                assert job.key not in self._writing, "read before it was known to be written"
                self._reading[job.key] += 1
                self._to_read.put(job)
            case RemovePages() | RemoveBook():
                self._remove(job)
            case _:
                assert_never(job)

    async def close(self) -> bool:
        """End the threads, and remove all pages of this life. Nothing is answered any more.

        Returns whether that was done within `CLOSE_S_MAX`.
        """
        self._closed = True
        self._to_write.put(None)
        for _ in range(READERS):
            self._to_read.put(None)
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._all_ended.wait()
        except TimeoutError:
            return False
        return True

    def _remove(self, job: Removing) -> None:
        if isinstance(job, RemoveBook):
            if any(key.book == job.book for key in self._reading):
                self._held.append(job)
            else:
                self._to_write.put(job)
            return
        held = [key for key in job.keys if key in self._reading]
        if held:
            self._held.append(RemovePages(held))
            job = RemovePages([key for key in job.keys if key not in self._reading])
        if job.keys:
            self._to_write.put(job)

    def _deliver(self) -> None:
        with self._lock:
            answers, self._done = self._done, []
        if self._closed:
            return
        for done in answers:
            job = done.job if isinstance(done, JobFailed) else done
            if isinstance(job, WritePage | Written):
                self._writing.remove(job.key)
            else:
                self._reading[job.key] -= 1
                if not self._reading[job.key]:
                    del self._reading[job.key]
        held, self._held = self._held, []
        for removal in held:
            self._remove(removal)
        self._answer(answers)

    def _thread_ended(self) -> None:
        self._running -= 1
        if not self._running:
            self._all_ended.set()

    # The threads, from here on.

    def _write(self) -> None:
        while (job := self._to_write.get()) is not None:
            if self._closed:
                continue
            if isinstance(job, WritePage):
                self._guard(partial(self._do, job))
            else:
                self._guard(partial(self._clear, job))
        self._guard(partial(self._clear, None))
        self._tell(self._thread_ended)

    def _read(self) -> None:
        while (job := self._to_read.get()) is not None:
            if not self._closed:
                self._guard(partial(self._do, job))
        self._tell(self._thread_ended)

    def _do(self, job: WritePage | Reading) -> None:
        started = perf_counter()
        done: Done
        try:
            match job:
                case WritePage():
                    size = self._files.write(job.key, job.end, job.blocks)
                    done = Written(job.key, size)
                case ReadPage():
                    done = PageRead(job.key, self._files.read(job.key))
                case ReadBlock():
                    block = self._files.read_block(job.key, job.offset)
                    done = BlockRead(job.key, job.token, block)
                case _:
                    assert_never(job)
        except FileFault as error:
            done = JobFailed(job, error.fault, str(error))
        with self._lock:
            self._traffic.answered(done, perf_counter() - started)
            is_first = not self._done
            self._done.append(done)
        if is_first:
            self._tell(self._deliver)

    def _clear(self, job: Removing | None) -> None:
        """Remove something; all of this life, if no job says what."""
        started = perf_counter()
        match job:
            case RemovePages():
                removal = self._files.remove(job.keys)
            case RemoveBook():
                removal = self._files.remove_book(job.book)
            case None:
                removal = self._files.remove_life()
            case _:
                assert_never(job)
        with self._lock:
            busy_s = perf_counter() - started
            self._traffic.removed(removal.files, removal.bytes, removal.left, busy_s)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._tell(partial(_raise, error))

    def _tell(self, what: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody wants to know.
            self._loop.call_soon_threadsafe(what)


def _raise(error: Exception) -> None:
    raise error
