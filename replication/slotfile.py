"""One small state on disk, replaced as a whole, that a crash leaves either old or new.

Theory of operation
-------------------
The file has two slots. A state of generation n goes into slot n mod 2, over the one of n - 2,
and counts as written after `fdatasync`; until then the slot of n - 1 is untouched.

A slot is written in blocks of a disk's sector, each with the generation and a checksum of its
own. That tells two kinds of damage apart which would look alike with one checksum per slot:

    torn     all blocks are intact, and belong to different generations: the power went while
             the slot was written. Nobody was told of that state, so the other slot is the truth
    rotten   a block is not intact. It may have been the newest state, and somebody may rely on
             it: the other slot would be a step back in time

Rules
-----
1. After any error the file is never written again by this process: a later `fdatasync` may
   report success for pages that the failed one lost.
2. Rotten is not empty. A vote that forgot what it promised is worse than none.
3. The file appears under its name, with its first state in it, by a rename, and the directory
   is synced after it. So what is found without an intact state was damaged.

Not detected: an older copy of the whole file, put back. Nothing in the file could tell.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from crc32c import crc32c

from tanist.errors import Error

BLOCK_BYTES: Final = 512
SLOT_BLOCKS: Final = 256
SLOT_BYTES: Final = SLOT_BLOCKS * BLOCK_BYTES

_BLOCK: Final = struct.Struct("<4sQII")  # magic, generation, index, checksum of the rest
_LENGTH: Final = struct.Struct("<I")
_MAGIC: Final = b"TNS1"
_CHUNK_BYTES: Final = BLOCK_BYTES - _BLOCK.size
_NEVER_WRITTEN: Final = bytes(BLOCK_BYTES)

STATE_BYTES_MAX: Final = SLOT_BLOCKS * _CHUNK_BYTES - _LENGTH.size


class SlotFileError(Error):
    """The state could not be written, or was not earlier: give up what depends on it until the
    process starts anew."""


class SlotFileDamaged(Error):
    """What the file held is lost. The text tells the operator what to do."""


class SlotFile:
    """A state in a file. Blocking: for a thread.

    Attributes:
        state: What was read when it was opened, or written since; None: there is no file yet.

    Raises:
        SlotFileDamaged: There is a file, and it cannot be trusted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed: str | None = None
        self._fd: int | None = None
        self._generation = 0
        self.state: bytes | None = None
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            self._generation, self.state = self._read(self._fd)
        except BaseException:
            self.close()
            raise

    def write(self, state: bytes) -> None:
        """Returns when `state` is durable. Raises `SlotFileError` if it may not be, and from
        then on for ever."""
        assert len(state) <= STATE_BYTES_MAX
        if self._failed is not None:
            raise SlotFileError(f"{self._path} failed earlier ({self._failed}): restart the node")
        try:
            if self._fd is None:
                self._create(state)
            else:
                generation = self._generation + 1
                offset = generation % 2 * SLOT_BYTES
                _write_all(self._fd, _blocks(generation, state), offset)
                os.fdatasync(self._fd)
                self._generation = generation
        except OSError as error:
            self._failed = str(error)
            raise SlotFileError(f"{self._path} cannot be written: {error}") from error
        self.state = state

    def close(self) -> None:
        """Release the file. It cannot be written any more."""
        self._failed = self._failed or "it was closed"
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _create(self, state: bytes) -> None:
        # Under another name until it is complete, so that nobody finds it half made. Both
        # slots are allocated now: a full disk must not come up in the middle of a vote.
        made = self._path.with_name(self._path.name + ".new")
        fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            first = _blocks(1, state)
            _write_all(fd, bytes(SLOT_BYTES) + first + bytes(SLOT_BYTES - len(first)), 0)
            os.fsync(fd)
            os.rename(made, self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                made.unlink()
            raise
        self._fd, self._generation = fd, 1

    def _read(self, fd: int) -> tuple[int, bytes]:
        content = _read_all(fd)
        if len(content) != 2 * SLOT_BYTES:
            raise self._damaged(f"it has {len(content)} bytes instead of {2 * SLOT_BYTES}")
        found = []
        for number in range(2):
            slot = content[number * SLOT_BYTES : (number + 1) * SLOT_BYTES]
            state = _state_of(slot)
            if state is not None and state[0] % 2 == number:
                found.append(state)
            elif state is not None or not _is_torn(slot):
                raise self._damaged(f"slot {number} is not what was written")
        if not found:
            raise self._damaged("neither slot holds a state")
        return max(found)

    def _damaged(self, how: str) -> SlotFileDamaged:
        return SlotFileDamaged(
            f"{self._path} is damaged: {how}. What this node promised to the others may be lost,"
            " so it must not vote any more as the one that it was. Check the disk, then remove"
            " the file: the node will take part in the cluster as a new one, which does not vote"
        )


def _blocks(generation: int, state: bytes) -> bytes:
    content = _LENGTH.pack(len(state)) + state
    blocks = []
    for index, at in enumerate(range(0, len(content), _CHUNK_BYTES)):
        chunk = content[at : at + _CHUNK_BYTES].ljust(_CHUNK_BYTES, b"\0")
        checksum = _checksum(generation, index, chunk)
        blocks.append(_BLOCK.pack(_MAGIC, generation, index, checksum) + chunk)
    return b"".join(blocks)


def _checksum(generation: int, index: int, chunk: bytes) -> int:
    return crc32c(chunk, crc32c(struct.pack("<QI", generation, index)))


def _block_at(slot: bytes, index: int) -> tuple[int, bytes] | None:
    """The generation and the content of an intact block."""
    block = slot[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
    magic, generation, number, checksum = _BLOCK.unpack_from(block)
    chunk = block[_BLOCK.size :]
    if (magic, number, checksum) != (_MAGIC, index, _checksum(generation, index, chunk)):
        return None
    return generation, chunk


def _state_of(slot: bytes) -> tuple[int, bytes] | None:
    """The generation and the state of a slot that was written completely."""
    first = _block_at(slot, 0)
    if first is None:
        return None
    generation, chunk = first
    (length,) = _LENGTH.unpack_from(chunk)
    if length > STATE_BYTES_MAX:
        return None
    chunks = [chunk]
    for index in range(1, -(-(_LENGTH.size + length) // _CHUNK_BYTES)):
        block = _block_at(slot, index)
        if block is None or block[0] != generation:
            return None
        chunks.append(block[1])
    return generation, b"".join(chunks)[_LENGTH.size : _LENGTH.size + length]


def _is_torn(slot: bytes) -> bool:
    """Whether a slot without a state has only intact blocks, or such as were never written."""
    return all(
        slot[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] == _NEVER_WRITTEN
        or _block_at(slot, index) is not None
        for index in range(SLOT_BLOCKS)
    )


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _read_all(fd: int) -> bytes:
    content = b""
    while chunk := os.pread(fd, 2 * SLOT_BYTES, len(content)):
        content += chunk
    return content
