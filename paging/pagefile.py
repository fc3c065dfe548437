"""The bytes of a page file: one sealed page, so that it can be told from anything else.

Theory of operation
-------------------
A page is written once, in one sequential write, and never changed. All numbers are little
endian, except the places:

    'TNPG' | format u16 | flags u16 | life 16 bytes
           | sid u32 | gen u64 | part u64 | copy u64 | first u64 | end u64 | version u32
           | blocks u32 | directory_len u32 | file_len u64 | crc u32           92 bytes
    directory, for each block:
           first u64 | position u64 | length u32 | places u32 | crc u32        28 bytes
    blocks, in the same order and without a gap:
           places u32[]     none for a lone batch; see `Block`
           batches          `length` bytes, as they were published

`crc` in the header is CRC32C over the header up to itself and the directory; the one of a
block, over its places and batches. So a block can be verified without the rest of the page:
one read for header and directory, one for the block.

The file says whose it is: the life of the process that wrote it, the key of the page with its
version, and its own length. An intact file in the wrong place is refused like a damaged one.

Rules
-----
1. What `decode` returns is what `encode` was given. Otherwise it raises; there is no repair.
2. Neither copies the bytes of a block, and nothing is done for each batch: a page of ten
   thousand small ones is as quick as a page of one.
3. Places are in the machine's byte order. Nobody reads a page but the process that wrote it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from struct import Struct
from typing import Final, NamedTuple

from crc32c import crc32c

from tanist.errors import Error
from tanist.wire.batch import Batch

MAGIC: Final = b"TNPG"
FORMAT: Final = 1
LIFE_BYTES: Final = 16

HEADER: Final = Struct("<4sHH16sIQQQQQIIIQI")
ENTRY: Final = Struct("<QQIII")
_CRC: Final = Struct("<I")
_PLACE_BYTES: Final = 4
_SECTOR_BYTES: Final = 512
_NEVER_WRITTEN: Final = bytes(_SECTOR_BYTES)


class Book(NamedTuple):
    """All pages of one part in one copy of it that this node holds."""

    sid: int
    gen: int
    part: int
    copy: int


class PageKey(NamedTuple):
    """One state of a page: each rewrite is another version, in a file of its own."""

    book: Book
    first: int
    version: int


class BlockImage(NamedTuple):
    """A block as it is written.

    `data` is one batch if `places` is None, else batches one after another. A place says of a
    batch, in the upper 16 bits, its first offset counted from the block's, and in the lower
    ones where it starts in `data`. Offsets may have gaps: a rewrite leaves batches out.
    """

    first: int
    data: bytes | memoryview
    places: array[int] | memoryview | None


class PageFileError(Error):
    """This is not the page that was written. The text says how that shows."""


class Block:
    """A block that is complete: verified, in the bytes that it was read with, or packed here.

    Attributes:
        first: The offset of its first message.
        end: Where the next block of the page begins, or the page ends. If a rewrite left a
            gap after the block, the gap counts as its own.
        data: The bytes that it is in: its own alone, or those of all its page.
        start: Where the batches begin in `data`.
        size: How many bytes of batches there are.
        places: As in `BlockImage`.
    """

    __slots__ = ("data", "end", "first", "places", "size", "start")

    def __init__(
        self,
        first: int,
        end: int,
        data: bytes,
        start: int,
        size: int,
        places: array[int] | memoryview | None,
    ) -> None:
        self.first = first
        self.end = end
        self.data = data
        self.start = start
        self.size = size
        self.places = places

    def find(self, offset: int) -> tuple[Batch, int]:
        """The batch with a message that is stored here, and the batch's first offset."""
        first, start, places = self.first, self.start, self.places
        if places is not None:
            place = places[bisect_right(places, offset - first << 16 | 0xFFFF) - 1]
            first += place >> 16
            start += place & 0xFFFF
        batch = Batch.trusted(self.data, start)
        assert first <= offset < first + batch.count, "the block does not have that message"
        return batch, first

    def image(self) -> BlockImage:
        """To write it again, into another version of the page."""
        view = memoryview(self.data)[self.start : self.start + self.size]
        return BlockImage(self.first, view, self.places)


class PageImage:
    """A verified page, in the bytes of its file.

    Attributes:
        first: As in its key: the first block may begin later.
        end: The first offset of the next page.
        data: The whole file.
        bytes: Of batches, all blocks together.
        blocks: By first offset.
    """

    __slots__ = ("_firsts", "blocks", "bytes", "data", "end", "first")

    def __init__(self, first: int, end: int, data: bytes, blocks: list[Block]) -> None:
        self.first = first
        self.end = end
        self.data = data
        self.blocks = blocks
        self.bytes = sum([block.size for block in blocks])
        self._firsts = array("Q", [block.first for block in blocks])

    def find(self, offset: int) -> tuple[Batch, int]:
        """The batch with a message that is stored here, and the batch's first offset."""
        return self.blocks[bisect_right(self._firsts, offset) - 1].find(offset)


class Entry(NamedTuple):
    """What the directory says of a block: `length` is without its places, `crc` with them."""

    first: int
    position: int
    length: int
    places: int
    crc: int

    @property
    def size(self) -> int:
        """How many bytes of the file the block takes up."""
        return _PLACE_BYTES * self.places + self.length


class Directory:
    """Header and directory of a file, verified, and whose they are.

    Attributes:
        end: The first offset of the next page.
        file_len: How long the file must be.
        entries: By first offset.
    """

    __slots__ = ("_firsts", "end", "entries", "file_len")

    def __init__(self, end: int, file_len: int, entries: list[Entry]) -> None:
        self.end = end
        self.file_len = file_len
        self.entries = entries
        self._firsts = array("Q", [entry.first for entry in entries])

    def index_of(self, offset: int) -> int:
        """Which block has a message that is stored here."""
        at = bisect_right(self._firsts, offset) - 1
        assert at >= 0, "the file does not have that message"
        assert offset < self.end, "the file does not have that message"
        return at

    def block(self, index: int, data: bytes, start: int = 0) -> Block:
        """Verify a block, whose bytes are in `data` from `start` on.

        Raises `PageFileError`.
        """
        entry = self.entries[index]
        end = self._firsts[index + 1] if index + 1 < len(self._firsts) else self.end
        view = memoryview(data)[start : start + entry.size]
        if len(view) < entry.size:
            raise PageFileError(
                f"truncated: {len(view)} of the {entry.size} bytes of block {index} are there"
            )
        if crc32c(view) != entry.crc:
            raise PageFileError(
                f"{_damage(view, entry.position)}: block {index} of {len(self.entries)}, at byte"
                f" {entry.position}, is not what its checksum was made of"
            )
        batches_at = _PLACE_BYTES * entry.places
        places = view[:batches_at].cast("I") if entry.places else None
        return Block(entry.first, end, data, start + batches_at, entry.length, places)


def encode(
    key: PageKey, life: bytes, end: int, blocks: list[BlockImage]
) -> list[bytes | memoryview]:
    """The file of a page, as buffers to be written one after another. `O(blocks)`.

    Args:
        end: The first offset of the next page.
        blocks: By first offset; at least one.
    """
    assert len(life) == LIFE_BYTES
    assert blocks, "a page without blocks needs no file"
    directory_len = ENTRY.size * len(blocks)
    position = HEADER.size + directory_len
    entries: list[bytes] = []
    buffers: list[bytes | memoryview] = []
    before = key.first - 1
    for first, data, places in blocks:
        assert before < first < end, "blocks are not in order"
        assert len(data) > 0
        count, crc = 0, 0
        if places is not None:
            count = len(places)
            assert count > 0, "a block without batches"
            view = memoryview(places).cast("B")
            crc = crc32c(view)
            buffers.append(view)
        buffers.append(data)
        entry = Entry(first, position, len(data), count, crc32c(data, crc))
        entries.append(ENTRY.pack(*entry))
        position += entry.size
        before = first
    directory = b"".join(entries)
    header = HEADER.pack(
        *(MAGIC, FORMAT, 0, life, *key.book, key.first, end, key.version),
        *(len(blocks), directory_len, position, 0),
    )[: -_CRC.size]
    crc = crc32c(directory, crc32c(header))
    return [header + _CRC.pack(crc) + directory, *buffers]


def directory_end(data: bytes) -> int:
    """How many bytes of a file are its header and directory, if its beginning can be trusted.

    Raises `PageFileError` if this is not the beginning of a page file.
    """
    if len(data) < HEADER.size:
        raise PageFileError(f"truncated: {len(data)} bytes are not even a header")
    magic, format_version, *_, directory_len, _, _ = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise PageFileError(
            f"not a page file, or torn: it begins with {magic.hex()} and not with {MAGIC.hex()}"
        )
    if format_version != FORMAT:
        raise PageFileError(
            f"format version {format_version} is not known here (known: {FORMAT}), or altered"
        )
    return HEADER.size + int(directory_len)


def decode_directory(data: bytes, key: PageKey, life: bytes) -> Directory:
    """Header and directory, from the beginning of a file. Raises `PageFileError`."""
    blocks_at = directory_end(data)
    _, _, flags, its_life, *numbers, blocks, _, file_len, crc = HEADER.unpack_from(data)
    if len(data) < blocks_at:
        raise PageFileError(
            f"truncated, or altered: {len(data)} of the {blocks_at} bytes of header and directory"
            " are there"
        )
    whole = memoryview(data)[:blocks_at]
    unsigned = HEADER.size - _CRC.size
    if crc32c(whole[HEADER.size :], crc32c(whole[:unsigned])) != crc:
        raise PageFileError(
            f"{_damage(whole, 0)}: header and directory are not what their checksum was made of"
        )
    if flags:
        raise PageFileError(f"flags {flags:#06x} are not known here (known: none)")
    if its_life != life:
        raise PageFileError(
            f"of another process: life {its_life.hex()} wrote it, and this is {life.hex()}"
        )
    *book, first, end, version = numbers
    its_key = PageKey(Book(*book), first, version)
    if its_key != key:
        raise PageFileError(f"another page: it is {_name(its_key)}, and not {_name(key)}")
    if blocks_at != HEADER.size + ENTRY.size * blocks:
        raise PageFileError(f"no directory of {blocks} blocks has {blocks_at - HEADER.size} bytes")
    entries = [Entry(*entry) for entry in ENTRY.iter_unpack(whole[HEADER.size :])]
    return Directory(end, file_len, entries)


def decode(data: bytes, key: PageKey, life: bytes) -> PageImage:
    """The page in the bytes of a whole file. `O(blocks)`, and the checksum.

    Raises `PageFileError` unless this is the page, of this version and life, that was written.
    """
    directory = decode_directory(data, key, life)
    if len(data) < directory.file_len:
        raise PageFileError(f"truncated: {len(data)} of its {directory.file_len} bytes are there")
    if len(data) > directory.file_len:
        raise PageFileError(f"{len(data) - directory.file_len} bytes follow the end of the page")
    blocks = [
        directory.block(index, data, entry.position)
        for index, entry in enumerate(directory.entries)
    ]
    return PageImage(key.first, directory.end, data, blocks)


def _damage(view: memoryview, position: int) -> str:
    # A guess for people: what the disk never got usually reads as zeros.
    step = -position % _SECTOR_BYTES
    for at in range(step, len(view) - _SECTOR_BYTES + 1, _SECTOR_BYTES):
        if view[at : at + _SECTOR_BYTES] == _NEVER_WRITTEN:
            return f"torn (zeros from byte {position + at})"
    return "torn or altered"


def _name(key: PageKey) -> str:
    sid, gen, part, copy = key.book
    return f"{sid}.{gen}.{part}.{key.first} version {key.version} of copy {copy}"
