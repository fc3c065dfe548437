"""What the pager asks of a disk, and what the disk answers: plain facts, no I/O.

The pager decides on the loop; threads do as they are told, in any order, but the jobs of one
key in the order in which they were asked for. Each `WritePage`, `ReadPage` and `ReadBlock` is
answered exactly once; `RemovePages` and `RemoveBook` never.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from paging.pagefile import Block, BlockImage, Book, PageImage, PageKey

WRITES_MAX: Final = 16
"""Pages asked to be written and not answered yet. Who asks counts them: more is a bug."""

READS_MAX: Final = 16
"""Pages and blocks asked for and not answered yet: the same."""


class Fault(StrEnum):
    """Why a job failed, as far as it matters to what is done next."""

    FULL = "full"
    """No space, or no quota, left."""
    GONE = "gone"
    """The file or the directory is not there."""
    DAMAGED = "damaged"
    """Torn, truncated, altered, or not the page that was asked for."""
    BROKEN = "broken"
    """Any other error of the system."""


class WritePage(msgspec.Struct, frozen=True, gc=False):
    """Write a sealed page: header, directory and blocks, in one large sequential write."""

    key: PageKey
    end: int
    blocks: list[BlockImage]


class ReadPage(msgspec.Struct, frozen=True, gc=False):
    """Read a whole page and verify it."""

    key: PageKey


class ReadBlock(msgspec.Struct, frozen=True, gc=False):
    """Read and verify the block with one offset, for a reader who wants no more of the page."""

    key: PageKey
    offset: int
    token: int
    """Given back with the answer: several may ask for blocks of one page."""


class RemovePages(msgspec.Struct, frozen=True, gc=False):
    """These files are needed no more. One that is not there is as good as removed."""

    keys: list[PageKey]


class RemoveBook(msgspec.Struct, frozen=True, gc=False):
    """All files of a book, and its directory."""

    book: Book


Job = WritePage | ReadPage | ReadBlock | RemovePages | RemoveBook


class Written(msgspec.Struct, frozen=True, gc=False):
    key: PageKey
    bytes: int
    """Of the whole file."""


class PageRead(msgspec.Struct, frozen=True, gc=False):
    key: PageKey
    image: PageImage


class BlockRead(msgspec.Struct, frozen=True, gc=False):
    key: PageKey
    token: int
    block: Block


class JobFailed(msgspec.Struct, frozen=True, gc=False):
    """`sentence` names the file and what the system or the checksum said, for people."""

    job: WritePage | ReadPage | ReadBlock
    fault: Fault
    sentence: str


Done = Written | PageRead | BlockRead | JobFailed
