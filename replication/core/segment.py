"""The segment: ops appended in one turn of the loop, as one immutable block of bytes.

Theory of operation
-------------------
    segment = created_epoch u32 | first_seq u64 | count u16
            | chain_before u32 | chain_after u32 | len u32 | record*count      26 bytes + len
    record  = kind u8 | flags u8 | len u32 | payload                           6 bytes + len

A segment is sent, stored, confirmed, cut and repaired as a whole, and never changes, whoever
sends it: a repair in a later epoch carries it as it was made. `chain` is the crc32c over all
records of the log so far, so two logs that agree in it at one place agree below that place.

A segment is a list of parts. What is large (a batch of messages) is a part of its own, made
once: the machine's pages, what is kept for repair and what is being sent are the same bytes
object. Small neighbouring records share a part, since an object for each would cost more
memory than they have content.

Rules
-----
1. Nothing here keeps a view into a receive buffer; what is kept is copied out once.
2. `read_segments` believes nothing: lengths are checked before anything is cut.
3. The chain is verified by the reader of the log (`intact`), not at decoding: what is a
   duplicate needs no checksum.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from crc32c import crc32c

from tanist.errors import RemoteProtocolError

SEGMENT: Final = Struct("<IQHIII")
SEGMENT_HEADER_BYTES: Final = SEGMENT.size
assert SEGMENT_HEADER_BYTES == 26
RECORD: Final = Struct("<BBI")
RECORD_HEADER_BYTES: Final = RECORD.size
assert RECORD_HEADER_BYTES == 6

OWN_PART_BYTES: Final = 512
"""A payload of this size or more is a bytes object of its own."""
LENT_PART_BYTES: Final = 8 << 10
"""A part of this size or more may be kept by the machine as the same object: it is *lent*."""
SEGMENT_OPS_MAX: Final = 65_535


class Record(NamedTuple):
    """Where an op's payload stands: `data[start:end]`. `data` may be kept."""

    kind: int
    data: bytes
    start: int
    end: int


class Segment:
    """See the module docstring. `end_seq` is the number of the op after the last one.

    Attributes:
        lent: Bytes of those parts that the machine may keep, too.
        parts: The records, as bytes one after the other, without the segment's header.
        records: Where the ops stand in `parts`; empty once this copy has applied them.
    """

    __slots__ = (
        "chain_after",
        "chain_before",
        "count",
        "created_epoch",
        "end_seq",
        "first_seq",
        "lent",
        "parts",
        "records",
        "size",
    )

    def __init__(
        self,
        created_epoch: int,
        first_seq: int,
        count: int,
        chain_before: int,
        chain_after: int,
        size: int,
        parts: tuple[bytes, ...],
        records: tuple[Record, ...] = (),
        lent: int = 0,
    ) -> None:
        self.created_epoch = created_epoch
        self.first_seq = first_seq
        self.count = count
        self.end_seq = first_seq + count
        self.chain_before = chain_before
        self.chain_after = chain_after
        self.size = size
        self.parts = parts
        self.records = records
        self.lent = lent

    @property
    def wire_bytes(self) -> int:
        return SEGMENT_HEADER_BYTES + self.size

    def wire(self) -> tuple[bytes, ...]:
        """The header, then the parts, all of them the very objects that are kept."""
        header = SEGMENT.pack(
            self.created_epoch,
            self.first_seq,
            self.count,
            self.chain_before,
            self.chain_after,
            self.size,
        )
        return (header, *self.parts)

    def intact(self) -> bool:
        """Whether the records are those that the header was made for."""
        return chain_over(self.parts, self.chain_before) == self.chain_after

    def __repr__(self) -> str:
        return f"Segment({self.first_seq}..{self.end_seq - 1}, epoch {self.created_epoch})"


class OpenSegment:
    """The ops of this turn, until it ends."""

    __slots__ = ("_lent", "_parts", "_small", "count", "first_seq", "size")

    def __init__(self, first_seq: int) -> None:
        self.first_seq = first_seq
        self.count = 0
        self.size = 0
        self._lent = 0
        self._parts: list[bytes] = []
        self._small: list[bytes] = []

    def add(self, kind: int, parts: tuple[bytes, ...], payload_bytes: int) -> None:
        """One more op, whose payload is `parts` one after the other."""
        small = self._small
        small.append(RECORD.pack(kind, 0, payload_bytes))
        for part in parts:
            if len(part) < OWN_PART_BYTES:
                small.append(part)
            else:
                self._parts.append(b"".join(small))
                self._parts.append(part)
                small.clear()
                if len(part) >= LENT_PART_BYTES:
                    self._lent += len(part)
        self.count += 1
        self.size += RECORD_HEADER_BYTES + payload_bytes

    def close(self, epoch: int, chain_before: int) -> Segment:
        assert self.count
        if self._small:
            self._parts.append(b"".join(self._small))
        parts = tuple(part for part in self._parts if part)
        chain_after = chain_over(parts, chain_before)
        return Segment(
            epoch,
            self.first_seq,
            self.count,
            chain_before,
            chain_after,
            self.size,
            parts,
            lent=self._lent,
        )


def chain_over(parts: tuple[bytes, ...], chain: int) -> int:
    for part in parts:
        chain = crc32c(part, chain)
    return chain


def read_segments(data: bytes, at: int, end: int) -> tuple[Segment, ...]:
    """The segments that are all of `data[at:end]`. Raises `RemoteProtocolError` if they are not."""
    segments: list[Segment] = []
    while at < end:
        if end - at < SEGMENT_HEADER_BYTES:
            raise _bad("a segment's header is cut short", end - at)
        epoch, first_seq, count, before, after, size = SEGMENT.unpack_from(data, at)
        at += SEGMENT_HEADER_BYTES
        if size > end - at:
            raise _bad("a segment is longer than its frame", size)
        if not (epoch and first_seq and count and first_seq + count < 1 << 63):
            raise _bad("a segment is without epoch, number or ops", first_seq)
        parts, records, lent = _read_records(data, at, at + size, count)
        segments.append(Segment(epoch, first_seq, count, before, after, size, parts, records, lent))
        at += size
    return tuple(segments)


def _read_records(
    data: bytes, at: int, end: int, count: int
) -> tuple[tuple[bytes, ...], tuple[Record, ...], int]:
    lent = 0
    parts: list[bytes] = []
    records: list[Record] = []
    # Small records wait as positions, until the run that they share is cut out: from
    # `run_at`, and in `records` from index `waiting`.
    run_at = at
    waiting: list[tuple[int, int, int]] = []

    def cut_run(run_end: int) -> None:
        if run_at == run_end:
            return
        run = data[run_at:run_end]
        parts.append(run)
        records.extend(Record(kind, run, a - run_at, b - run_at) for kind, a, b in waiting)
        waiting.clear()

    unpack = RECORD.unpack_from
    for _ in range(count):
        if end - at < RECORD_HEADER_BYTES:
            raise _bad("a record's header is cut short", end - at)
        kind, flags, length = unpack(data, at)
        at += RECORD_HEADER_BYTES
        if length > end - at:
            raise _bad("a record is longer than its segment", length)
        if flags:
            raise _bad("unknown flags of a record", flags)
        if length < OWN_PART_BYTES:
            waiting.append((kind, at, at + length))
        else:
            cut_run(at)
            own = data[at : at + length]
            parts.append(own)
            records.append(Record(kind, own, 0, length))
            run_at = at + length
            if length >= LENT_PART_BYTES:
                lent += length
        at += length
    if at != end:
        raise _bad("a segment has bytes after its last record", end - at)
    cut_run(end)
    return tuple(parts), tuple(records), lent


def _bad(what: str, value: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"{what} ({value})", value=str(value))
