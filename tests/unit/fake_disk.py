"""A disk in memory, which answers a pager's jobs when a test says so, and fails when it says so.

It watches the agreement of `paging.disk`, too: how many jobs may wait, and that no version of a
page is written twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from paging import pager as pager_module
from paging.disk import (
    Done,
    Fault,
    Job,
    ReadBlock,
    ReadPage,
    RemoveBook,
    RemovePages,
    WritePage,
)
from paging.pagefile import Book, PageKey
from tests.unit.files_in_memory import FilesInMemory


class FakeDisk(FilesInMemory):
    def __init__(self) -> None:
        super().__init__()
        self.pending: list[Job] = []
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
        return self.finish(job, fault)

    def do_all(self, fault: Fault | None = None) -> Iterator[Done]:
        """What is asked for meanwhile is done, too."""
        while self.pending:
            done = self.do(self.next_ones()[0], fault)
            if done is not None:
                yield done
