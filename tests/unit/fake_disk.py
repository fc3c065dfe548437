"""A disk in memory, which answers a pager's jobs when a test says so, and fails when it says so.

It watches the agreement of `paging.disk`, too: how many jobs may wait, that no file is written
over another, and that none is asked for or removed that never was there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from paging import pager as pager_module
from paging.disk import (
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
from paging.pagefile import Book, PageFileError, PageKey, decode, encode

LIFE: Final = bytes(range(16))


class FakeDisk:
    def __init__(self) -> None:
        self.files: dict[PageKey, bytes] = {}
        self.pending: list[Job] = []
        self.removed_by_others: set[PageKey] = set()
        self._keys_seen: set[PageKey] = set()

    def ask(self, jobs: list[Job]) -> None:
        """Take jobs in. One that removes several pages is as good as several jobs."""
        for job in jobs:
            match job:
                case RemovePages(keys=keys):
                    self.pending += [RemovePages([key]) for key in keys]
                case WritePage(key=key):
                    assert key not in self._keys_seen, "a version is written twice"
                    self._keys_seen.add(key)
                    self.pending.append(job)
                case _:
                    self.pending.append(job)
        assert len(self.writes) <= pager_module.WRITES_MAX, "more writes than agreed"
        assert len(self.reads) <= pager_module.READS_MAX, "more reads than agreed"

    @property
    def writes(self) -> list[WritePage]:
        return [job for job in self.pending if isinstance(job, WritePage)]

    @property
    def reads(self) -> list[ReadPage | ReadBlock]:
        return [job for job in self.pending if isinstance(job, ReadPage | ReadBlock)]

    @property
    def kept(self) -> set[PageKey]:
        """The files that will still be there when all removals that were asked for are done."""
        kept = set(self.files)
        for job in self.pending:
            if isinstance(job, RemovePages):
                kept.difference_update(job.keys)
            elif isinstance(job, RemoveBook):
                kept -= {key for key in kept if key.book == job.book}
        return kept

    def next_ones(self) -> list[Job]:
        """The jobs that may be done now: of each key, in the order in which they were asked."""
        found: list[Job] = []
        keys: set[PageKey] = set()
        books: set[Book] = set()
        removed: set[Book] = set()
        for job in self.pending:
            if isinstance(job, RemoveBook):
                if job.book not in books:
                    found.append(job)
                removed.add(job.book)
                continue
            key = job.keys[0] if isinstance(job, RemovePages) else job.key
            if key not in keys and key.book not in removed:
                found.append(job)
            keys.add(key)
            books.add(key.book)
        return found

    def do(self, job: Job, fault: Fault | None = None) -> Done | None:
        """Do a job of `next_ones`. A fault is passed over where it makes no sense."""
        self.pending.remove(job)
        match job:
            case WritePage():
                if fault in (Fault.FULL, Fault.BROKEN):
                    return JobFailed(job, fault, "it could not be written")
                buffers = encode(job.key, LIFE, job.end, job.blocks)
                assert job.key not in self.files
                self.files[job.key] = b"".join(buffers)
                return Written(job.key, len(self.files[job.key]))
            case ReadPage() | ReadBlock():
                return self._read(job, fault)
            case RemovePages(keys=[key]):
                assert key in self.files or key in self.removed_by_others
                self.files.pop(key, None)
            case RemoveBook():
                for key in [key for key in self.files if key.book == job.book]:
                    del self.files[key]
            case RemovePages():
                raise AssertionError("split when it was asked")
        return None

    def do_all(self, fault: Fault | None = None) -> Iterator[Done]:
        """What is asked for meanwhile is done, too."""
        while self.pending:
            done = self.do(self.next_ones()[0], fault)
            if done is not None:
                yield done

    def damage(self, key: PageKey) -> None:
        data = bytearray(self.files[key])
        data[-1] ^= 0x10
        self.files[key] = bytes(data)

    def remove(self, key: PageKey) -> None:
        """As somebody would who has no business there."""
        del self.files[key]
        self.removed_by_others.add(key)

    def _read(self, job: ReadPage | ReadBlock, fault: Fault | None) -> Done:
        key = job.key
        if fault is Fault.BROKEN:
            return JobFailed(job, fault, "the system would not read it")
        if fault is Fault.GONE and key in self.files:
            self.remove(key)
        if fault is Fault.DAMAGED and isinstance(job, ReadBlock):
            return JobFailed(job, fault, "read wrongly, and well the next time")
        if fault is Fault.DAMAGED and key in self.files:
            self.damage(key)
        if key not in self.files:
            assert key in self.removed_by_others, "a file that was never there, or not any more"
            return JobFailed(job, Fault.GONE, "it is not there")
        try:
            image = decode(self.files[key], key, LIFE)
        except PageFileError as error:
            return JobFailed(job, Fault.DAMAGED, str(error))
        if isinstance(job, ReadPage):
            return PageRead(key, image)
        block = next(block for block in image.blocks if block.first <= job.offset < block.end)
        return BlockRead(key, job.token, block)
