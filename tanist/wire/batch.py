"""The batch: many messages as one block of bytes, from the client's `post` to the consumer's loop.

Theory of operation
-------------------
A producer packs the messages of one turn into a batch and seals it when it is first
sent. From then on nobody rewrites it: the same bytes are the frame's payload, the body
of the publish op, what lies in a page, and what is delivered. A run of its messages is
cut out by slicing its table and its bodies; the reader subtracts a base.

    'TB' | version u8 | flags u8 | count u32 | first_n u64 | time_ms u64
         | columns_len u32 | bodies_len u32                               32 bytes
    end offsets u32[count]       where each body ends, counted from the first one's start
    columns                      only if the flags say so; see `columns.py`
    bodies

Rules
-----
1. `Batch.parse` checks all that a reader will ever rely on, once, at admission. Whoever
   holds a batch that was admitted uses `Batch.trusted`. What is admitted can be handed out:
   a DELIVER of the whole batch, with its attempts, fits into a frame.
2. Nothing here loops over messages in Python: the table is checked and cut as a whole.
3. All integers are little endian and unsigned.
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from struct import Struct
from typing import Final

from tanist.errors import LocalProtocolError, RemoteProtocolError
from tanist.wire.columns import (
    check_columns,
    cut_columns,
    falls,
    properties_column,
    to_bytes,
    u32s,
)
from tanist.wire.limits import (
    BODIES_BYTES_MAX as BODIES_BYTES_MAX,
    COUNT_MAX as COUNT_MAX,
    FRAME_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    NUMBER_END,
)

MAGIC: Final = b"TB"
VERSION: Final = 1

HAS_COLUMNS: Final = 1
PERSISTENT: Final = 2
IN_DOUBT: Final = 4
LANE_SHIFT: Final = 4
LANE_DEFAULT: Final = 4
LANE_MAX: Final = 9
_KNOWN_FLAGS: Final = HAS_COLUMNS | PERSISTENT | IN_DOUBT | 0xF0

HEADER: Final = Struct("<2sBBIQQII")
HEADER_BYTES: Final = HEADER.size
assert HEADER_BYTES == 32
DELIVER_HEADER_BYTES: Final = 48
"""Of a DELIVER: it takes the place of the batch's own. Attempts are 2 bytes a message besides."""

Part = bytes | memoryview


def flags_of(*, persistent: bool, in_doubt: bool = False, lane: int = LANE_DEFAULT) -> int:
    """The flags byte of a batch, without `HAS_COLUMNS`."""
    if not 0 <= lane <= LANE_MAX:
        raise LocalProtocolError(f"priority {lane} is not within 0 to {LANE_MAX}")
    return (PERSISTENT if persistent else 0) | (IN_DOUBT if in_doubt else 0) | lane << LANE_SHIFT


def check_flags(flags: int) -> None:
    """Raises `RemoteProtocolError` if this is not the flags byte of a batch."""
    if flags & ~_KNOWN_FLAGS or flags >> LANE_SHIFT > LANE_MAX:
        raise _bad("unknown flags", flags)


class Batch:
    """A sealed batch: the header's fields, and where the rest lies in `data`."""

    __slots__ = (
        "bodies_at",
        "bodies_len",
        "columns_len",
        "count",
        "data",
        "first_n",
        "flags",
        "size",
        "start",
        "table_at",
        "time_ms",
    )

    def __init__(self, data: bytes, start: int = 0) -> None:
        fields = HEADER.unpack_from(data, start)
        self.data = data
        self.start = start
        self.flags: int = fields[2]
        self.count: int = fields[3]
        self.first_n: int = fields[4]
        self.time_ms: int = fields[5]
        self.columns_len: int = fields[6]
        self.bodies_len: int = fields[7]
        self.table_at = start + HEADER_BYTES
        self.bodies_at: int = self.table_at + 4 * self.count + self.columns_len
        self.size: int = self.bodies_at + self.bodies_len - start

    @classmethod
    def trusted(cls, data: bytes, start: int = 0) -> Batch:
        """The batch at `start`, which was parsed when it was admitted. `O(1)`."""
        return cls(data, start)

    @classmethod
    def parse(cls, data: bytes) -> Batch:
        """The batch that is all of `data`. Raises `RemoteProtocolError` if it is not one."""
        if len(data) < HEADER_BYTES:
            raise _bad("shorter than a batch header", len(data))
        magic, version, flags, count, first_n, _, columns_len, bodies_len = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise _bad("not a batch", magic)
        if version != VERSION:
            raise RemoteProtocolError(
                f"batch version {version} is not known here (known: {VERSION})",
                code="version",
                value=str(version),
            )
        check_flags(flags)
        if not 0 < count <= COUNT_MAX:
            raise _limit("messages in a batch", count, COUNT_MAX)
        if bodies_len > BODIES_BYTES_MAX and count > 1:
            raise _limit(
                "bytes of bodies in a batch of several messages", bodies_len, BODIES_BYTES_MAX
            )
        if bodies_len > MESSAGE_BYTES_MAX:
            raise _limit("bytes of a message", bodies_len, MESSAGE_BYTES_MAX)
        delivered_len = DELIVER_HEADER_BYTES + 6 * count + columns_len + bodies_len
        if delivered_len > FRAME_BYTES_MAX:
            raise _limit("bytes of a batch as a delivery", delivered_len, FRAME_BYTES_MAX)
        if not 0 < first_n <= NUMBER_END - count:
            raise _bad("its numbers do not begin at 1 or above, or have no end", first_n)
        if HEADER_BYTES + 4 * count + columns_len + bodies_len != len(data):
            raise _bad("its lengths do not add up to its size", len(data))
        batch = cls(data)
        table = batch.ends()
        if table[-1] != bodies_len or falls(table):
            raise _bad("end offsets fall, or do not end with the bodies", table[-1])
        if bool(flags & HAS_COLUMNS) != bool(columns_len):
            raise _bad("flag and length of the columns disagree", columns_len)
        if columns_len:
            at = HEADER_BYTES + 4 * count
            check_columns(data[at : at + columns_len], count)
        return batch

    @property
    def end_n(self) -> int:
        """The number after that of the last message."""
        return self.first_n + self.count

    @property
    def persistent(self) -> bool:
        return bool(self.flags & PERSISTENT)

    def ends(self) -> array[int]:
        """Where each body ends, counted from the start of the bodies. `O(count)`, in C."""
        return u32s(self.data[self.table_at : self.table_at + 4 * self.count])

    def end_of(self, index: int) -> int:
        """Where the body of message `index` ends; 0 for -1. `O(1)`."""
        if index < 0:
            return 0
        at = self.table_at + 4 * index
        return int.from_bytes(self.data[at : at + 4], "little")

    def fitting(self, first: int, count: int, bytes_max: int) -> int:
        """How many of `count` messages from `first` have at most `bytes_max` bytes; at least 1.

        `O(log count)`.
        """
        limit = self.end_of(first - 1) + bytes_max
        if self.end_of(first + count - 1) <= limit:
            return count
        low, high = 1, count
        while low < high:
            middle = (low + high + 1) // 2
            if self.end_of(first + middle - 1) <= limit:
                low = middle
            else:
                high = middle - 1
        return low

    def cut(self, first: int, count: int) -> Cut:
        """The run of `count` messages from index `first`, ready for a DELIVER frame."""
        assert 0 <= first < first + count <= self.count
        base = self.end_of(first - 1)
        end = self.end_of(first + count - 1)
        view = memoryview(self.data)
        if count == self.count:
            rest = view[self.table_at : self.start + self.size]
            return Cut(0, self.columns_len, end, (rest,))
        table = view[self.table_at + 4 * first : self.table_at + 4 * (first + count)]
        bodies = view[self.bodies_at + base : self.bodies_at + end]
        if not self.columns_len:
            return Cut(base, 0, end - base, (table, bodies))
        columns_at = self.table_at + 4 * self.count
        whole = self.data[columns_at : columns_at + self.columns_len]
        columns = cut_columns(whole, self.count, first, count)
        return Cut(base, len(columns), end - base, (table, columns, bodies))

    def slice(self, first: int, count: int) -> bytes:
        """The run of `count` messages from index `first`, as a batch of its own. `O(count)`."""
        cut = self.cut(first, count)
        first_n = self.first_n + first
        header = _header(self.flags, count, first_n, self.time_ms, cut.columns_len, cut.bodies_len)
        if not cut.base:
            return b"".join((header, *cut.parts))
        ends = array("I", (end - cut.base for end in u32s(bytes(cut.parts[0]))))
        return b"".join((header, to_bytes(ends), *cut.parts[1:]))


class Cut:
    """A run of messages: `parts` are its table, columns and bodies, one after the other."""

    __slots__ = ("base", "bodies_len", "columns_len", "parts")

    def __init__(
        self, base: int, columns_len: int, bodies_len: int, parts: tuple[Part, ...]
    ) -> None:
        self.base = base
        self.columns_len = columns_len
        self.bodies_len = bodies_len
        self.parts = parts


def seal(
    bodies: list[bytes], properties: list[bytes], *, flags: int, first_n: int, time_ms: int
) -> bytes:
    """Messages as a batch. `properties` is empty, or has one JSON object for each body."""
    assert 0 < len(bodies) <= COUNT_MAX
    assert not properties or len(properties) == len(bodies)
    columns = properties_column(properties) if properties else b""
    ends = array("I", accumulate(map(len, bodies)))
    bodies_len = ends[-1]
    if columns:
        flags |= HAS_COLUMNS
    header = _header(flags, len(bodies), first_n, time_ms, len(columns), bodies_len)
    return b"".join((header, to_bytes(ends), columns, *bodies))


def resealed(batch: Batch, *, first_n: int, in_doubt: bool) -> bytes:
    """The same messages under new numbers, for another life of the stream or after a refusal."""
    flags = batch.flags & ~IN_DOUBT | (IN_DOUBT if in_doubt else 0)
    header = _header(
        flags, batch.count, first_n, batch.time_ms, batch.columns_len, batch.bodies_len
    )
    return header + batch.data[batch.table_at : batch.start + batch.size]


def _header(
    flags: int, count: int, first_n: int, time_ms: int, columns_len: int, bodies_len: int
) -> bytes:
    return HEADER.pack(MAGIC, VERSION, flags, count, first_n, time_ms, columns_len, bodies_len)


def _bad(what: str, value: object) -> RemoteProtocolError:
    return RemoteProtocolError(f"bad batch: {what} ({value!r})", value=repr(value))


def _limit(what: str, value: int, most: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"{what}: {value} is not within 1 to {most}", code="limit", value=str(value)
    )
