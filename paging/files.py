"""Page files in a node's directory. Blocking: for threads.

Theory of operation
-------------------
    <dir>/pages/<life, 32 hex>/<sid>-<gen>-<part>-<copy>/<first, 16 hex>.<version>.page

What is on the disk is worth nothing once the process has ended: the other copies of a part are
in other nodes' memory and files, and a node that starts anew gets its parts from there. So
nothing is ever synced, and a page needs no name to be renamed from: who has not been told that
a file is complete does not read it.

A life is a directory, so that what a killed process left can be told from what is in use. Its
successor removes it, whenever it has the time. A directory with a file named `KEEP` is left
alone for whoever put it there.

Rules
-----
1. Only what has a name as above is ever removed, and no link is followed.
2. Directories are made when a file needs them, also a second time: an operator who clears the
   wrong directory costs the pages in it, and no later ones.
3. A write that failed leaves no file.
4. Every failure is a `FileFault`: what it means for the page, and a sentence for people.
"""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from paging.disk import Fault
from paging.pagefile import (
    LIFE_BYTES,
    Block,
    BlockImage,
    Book,
    PageFileError,
    PageImage,
    PageKey,
    decode,
    decode_directory,
    directory_end,
    encode,
)
from tanist.errors import Error

KEEP: Final = "KEEP"

HEAD_BYTES: Final = 4096
"""Read at once where one block is wanted: header and directory of a page of 143 blocks."""

CACHED_FILES: Final = 64
"""The last files that were written may be in the system's cache. Each has about `page_bytes`."""

_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
_LIFE_NAME: Final = re.compile(f"[0-9a-f]{{{2 * LIFE_BYTES}}}")
_BOOK_NAME: Final = re.compile(r"[0-9]+-[0-9]+-[0-9]+-[0-9]+")
_PAGE_NAME: Final = re.compile(r"[0-9a-f]{16}\.[0-9]+\.page")

_FAULTS: Final = {
    errno.ENOSPC: Fault.FULL,
    errno.EDQUOT: Fault.FULL,
    errno.ENOENT: Fault.GONE,
    errno.ENOTDIR: Fault.GONE,
    errno.ESTALE: Fault.GONE,
}
_WHAT_TO_DO: Final = {
    Fault.FULL: "free space on that file system, or give the node a larger one",
    Fault.GONE: "something else removes files there; only the node may, while it runs",
    Fault.DAMAGED: "check the disk",
    Fault.BROKEN: "check the disk, the permissions there, and the system's log",
}


class FileFault(Error):
    """A job failed. The text names the file, says what happened, and what to do."""

    def __init__(self, path: Path, doing: str, what: str, fault: Fault) -> None:
        super().__init__(f"{path} cannot be {doing}: {what}: {_WHAT_TO_DO[fault]}")
        self.fault = fault

    @classmethod
    def of(cls, path: Path, doing: str, error: OSError) -> Self:
        fault = _FAULTS.get(error.errno or 0, Fault.BROKEN)
        return cls(path, doing, os.strerror(error.errno) if error.errno else str(error), fault)


@dataclass(slots=True)
class Removal:
    """What became of files that are needed no more."""

    files: int = 0
    bytes: int = 0
    left: list[str] = field(default_factory=list)
    """What stays, and why, a sentence each."""


class PageFiles:
    """The page files of one life of a node.

    Args:
        free_bytes_min: So much is left free on the disk: no page is written that would take it.
    """

    def __init__(self, directory: Path, life: bytes, *, free_bytes_min: int = 0) -> None:
        assert len(life) == LIFE_BYTES
        self._free_bytes_min = free_bytes_min
        self._life = life
        self._pages = directory / "pages"
        self._mine = self._pages / life.hex()
        self._cached: deque[Path] = deque()
        """Used by the thread that writes, of which there is one."""

    @classmethod
    def open(cls, directory: Path, life: bytes, *, free_bytes_min: int = 0) -> PageFiles:
        """Raises `FileFault` if no file can be written there: better now than under load."""
        files = cls(directory, life, free_bytes_min=free_bytes_min)
        try:
            files._mine.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise FileFault.of(files._mine, "made", error) from error
        return files

    def write(self, key: PageKey, end: int, blocks: list[BlockImage]) -> int:
        """Write a page. Returns the bytes of the file, which is not synced: pages die with the
        process. Raises `FileFault`."""
        buffers = encode(key, self._life, end, blocks)
        path = self.path(key)
        if self._free_bytes_min and (free := self.free_bytes()) < self._free_bytes_min:
            what = f"{free:,} bytes are free, and {self._free_bytes_min:,} are to be left"
            raise FileFault(path, "written", what, Fault.FULL)
        try:
            fd = _create(path)
            try:
                try:
                    written = _write_all(fd, buffers)
                    _forget_cached(fd)
                finally:
                    os.close(fd)  # May fail, too: some file systems count quotas only here.
            except BaseException:
                with suppress(OSError):
                    path.unlink()
                raise
        except OSError as error:
            raise FileFault.of(path, "written", error) from error
        self._forget_the_oldest(path)
        return written

    def _forget_the_oldest(self, written: Path) -> None:
        self._cached.append(written)
        if len(self._cached) > CACHED_FILES:
            # It may have been removed, and this only saves memory.
            with suppress(OSError):
                fd = os.open(self._cached.popleft(), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _forget_cached(fd)
                finally:
                    os.close(fd)

    def read(self, key: PageKey) -> PageImage:
        """A whole page, verified. Raises `FileFault`."""
        path = self.path(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = _read(fd, os.fstat(fd).st_size, 0)
                _forget_cached(fd)
            finally:
                os.close(fd)
            return decode(data, key, self._life)
        except OSError as error:
            raise FileFault.of(path, "read", error) from error
        except PageFileError as error:
            raise FileFault(path, "used", str(error), Fault.DAMAGED) from error

    def read_block(self, key: PageKey, offset: int) -> Block:
        """The block with a message, verified, and no more of the page. Raises `FileFault`."""
        path = self.path(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                head = _read(fd, HEAD_BYTES, 0)
                missing = directory_end(head) - len(head)
                if missing > 0:
                    head += _read(fd, missing, len(head))
                directory = decode_directory(head, key, self._life)
                index = directory.index_of(offset)
                entry = directory.entries[index]
                return directory.block(index, _read(fd, entry.size, entry.position))
            finally:
                os.close(fd)
        except OSError as error:
            raise FileFault.of(path, "read", error) from error
        except PageFileError as error:
            raise FileFault(path, "used", str(error), Fault.DAMAGED) from error

    def remove(self, keys: Iterable[PageKey]) -> Removal:
        """Remove pages. One that is not there is as good as removed."""
        done = Removal()
        for key in keys:
            _remove_file(self.path(key), done)
        return done

    def remove_book(self, book: Book) -> Removal:
        """All pages of a book, and its directory."""
        done = Removal()
        _remove_book(self._mine / _book_name(book), done)
        return done

    def remove_life(self) -> Removal:
        """All pages of this life, and its directory. Nothing is written or read after that."""
        done = Removal()
        for _ in _remove_life(self._mine, done):
            pass
        return done

    def remove_earlier_lives(self) -> Iterator[Removal]:
        """Remove what killed processes left. Yields after each directory the same `Removal`,
        with all that was done so far.

        The caller must be the only one to use the node's directory, by its lock.
        """
        done = Removal()
        for entry in _entries(self._pages, done):
            path = Path(entry.path)
            if path == self._mine:
                continue
            if _LIFE_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield from _remove_life(path, done)
            else:
                _leave(done, path, "it is not a directory of pages")
                yield done

    def free_bytes(self) -> int:
        """What a process without privileges can still write there. Raises `FileFault`."""
        try:
            try:
                found = os.statvfs(self._mine)
            except FileNotFoundError:
                found = os.statvfs(self._pages.parent)
        except OSError as error:
            raise FileFault.of(self._pages, "measured", error) from error
        return found.f_bavail * found.f_frsize

    def path(self, key: PageKey) -> Path:
        """Where a page is, or would be."""
        return self._mine / _book_name(key.book) / f"{key.first:016x}.{key.version}.page"


def _book_name(book: Book) -> str:
    return f"{book.sid}-{book.gen}-{book.part}-{book.copy}"


def _create(path: Path) -> int:
    # Never over another file: one of that name would be a page that somebody may read.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def _write_all(fd: int, buffers: list[bytes | memoryview]) -> int:
    total = 0
    at = 0
    while at < len(buffers):
        written = os.writev(fd, buffers[at : at + _IOV_MAX])
        total += written
        while at < len(buffers) and written >= len(buffers[at]):
            written -= len(buffers[at])
            at += 1
        if written:
            buffers[at] = memoryview(buffers[at])[written:]
    return total


def _forget_cached(fd: int) -> None:
    """Start to write what is not on the disk yet; forget what is."""
    with suppress(OSError):  # Advice: a file system may not know it.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _read(fd: int, size: int, at: int) -> bytes:
    """`size` bytes, or as many as there are until the file ends."""
    data = os.pread(fd, size, at)
    while len(data) < size and (more := os.pread(fd, size - len(data), at + len(data))):
        data += more
    return data


def _remove_life(directory: Path, done: Removal) -> Iterator[Removal]:
    if (directory / KEEP).exists():
        _leave(done, directory, f"it has a file named {KEEP}")
        yield done
        return
    for entry in _entries(directory, done):
        path = Path(entry.path)
        if _BOOK_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            _remove_book(path, done)
        else:
            _leave(done, path, "it is not a directory of pages")
        yield done
    _remove_directory(directory, done)
    yield done


def _remove_book(directory: Path, done: Removal) -> None:
    for entry in _entries(directory, done):
        path = Path(entry.path)
        if _PAGE_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            _remove_file(path, done)
        else:
            _leave(done, path, "it is not a page")
    _remove_directory(directory, done)


def _entries(directory: Path, done: Removal) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as found:
            return sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        _failed(done, directory, error)
        return []


def _remove_file(path: Path, done: Removal) -> None:
    try:
        size = os.lstat(path).st_size
        os.unlink(path)
    except OSError as error:
        if _FAULTS.get(error.errno or 0) is not Fault.GONE:
            _failed(done, path, error)
        return
    done.files += 1
    done.bytes += size


def _remove_directory(directory: Path, done: Removal) -> None:
    try:
        directory.rmdir()
    except OSError as error:
        # What is left in it was named before.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            _failed(done, directory, error)


def _failed(done: Removal, path: Path, error: OSError) -> None:
    done.left.append(str(FileFault.of(path, "removed", error)))


def _leave(done: Removal, path: Path, why: str) -> None:
    done.left.append(f"{path} stays: {why}")
