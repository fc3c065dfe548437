"""Page files in memory: what a disk makes of one job, well or with a fault.

Who uses it says when a job is done, and whether it fails. What is written is encoded as in a
file, and verified when it is read.
"""

from __future__ import annotations

from typing import Final, assert_never

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
from paging.pagefile import LIFE_BYTES, PageFileError, PageKey, decode, encode

LIFE: Final = bytes(range(LIFE_BYTES))


class FilesInMemory:
    """Of one process. No file is written over another, and none is asked for or removed that
    never was there."""

    def __init__(self) -> None:
        self.files: dict[PageKey, bytes] = {}
        self.removed_by_others: set[PageKey] = set()

    def finish(self, job: Job, fault: Fault | None = None) -> Done | None:
        """A fault is passed over where it makes no sense."""
        match job:
            case WritePage():
                if fault in (Fault.FULL, Fault.BROKEN):
                    return JobFailed(job, fault, "it could not be written")
                assert job.key not in self.files, "written over another"
                data = b"".join(encode(job.key, LIFE, job.end, job.blocks))
                self.files[job.key] = data
                return Written(job.key, len(data))
            case ReadPage() | ReadBlock():
                return self._read(job, fault)
            case RemovePages():
                for key in job.keys:
                    self._forget(key)
            case RemoveBook():
                for key in [key for key in self.files if key.book == job.book]:
                    self._forget(key)
            case _:
                assert_never(job)
        return None

    def damage(self, key: PageKey) -> None:
        data = bytearray(self.files[key])
        data[-1] ^= 0x10
        self.files[key] = bytes(data)

    def remove(self, key: PageKey) -> None:
        """As somebody would who has no business there."""
        del self.files[key]
        self.removed_by_others.add(key)

    def _forget(self, key: PageKey) -> None:
        assert key in self.files or key in self.removed_by_others, "it never was there"
        self.files.pop(key, None)

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
