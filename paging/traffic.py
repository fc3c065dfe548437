"""What went to and came from the disk with pages, added up for people who watch a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from paging.disk import BlockRead, Done, JobFailed, PageRead, WritePage, Written


@dataclass(slots=True)
class Traffic:
    """Since the process started. Of bytes and seconds follows how fast the disk is.

    Attributes:
        writing_s: Seconds that the threads were busy with it, checksums included, and what
            failed in the end. The same of `reading_s` and `removing_s`.
        failed: Jobs that were answered with a fault.
        left: Files and directories that could not be removed.
        why_left: Of the last of them.
    """

    files_written: int = 0
    bytes_written: int = 0
    writing_s: float = 0.0
    files_read: int = 0
    blocks_read: int = 0
    bytes_read: int = 0
    reading_s: float = 0.0
    files_removed: int = 0
    bytes_removed: int = 0
    removing_s: float = 0.0
    failed: int = 0
    left: int = 0
    why_left: str = ""

    def answered(self, done: Done, busy_s: float) -> None:
        match done:
            case Written():
                self.files_written += 1
                self.bytes_written += done.bytes
            case PageRead():
                self.files_read += 1
                self.bytes_read += len(done.image.data)
            case BlockRead():
                self.blocks_read += 1
                self.bytes_read += len(done.block.data)
            case JobFailed():
                self.failed += 1
            case _:
                assert_never(done)
        job = done.job if isinstance(done, JobFailed) else done
        if isinstance(job, WritePage | Written):
            self.writing_s += busy_s
        else:
            self.reading_s += busy_s

    def removed(self, files: int, size: int, left: Sequence[str], busy_s: float) -> None:
        self.files_removed += files
        self.bytes_removed += size
        self.removing_s += busy_s
        self.left += len(left)
        if left:
            self.why_left = left[-1]
