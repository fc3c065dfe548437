from __future__ import annotations

from contextlib import suppress

import pytest
from crc32c import crc32c
from hypothesis import given, strategies as st

from replication.core.segment import (
    LENT_PART_BYTES,
    OWN_PART_BYTES,
    RECORD_HEADER_BYTES,
    OpenSegment,
    Segment,
    read_segments,
)
from tanist.errors import RemoteProtocolError

payloads = st.lists(st.binary(max_size=3 * OWN_PART_BYTES), min_size=1, max_size=20)


def closed(*payload_parts: tuple[bytes, ...], epoch: int = 3, chain: int = 0) -> Segment:
    segment = OpenSegment(first_seq=10)
    for parts in payload_parts:
        segment.add(1, parts, sum(map(len, parts)))
    return segment.close(epoch, chain)


def wire(*segments: Segment) -> bytes:
    return b"".join(part for segment in segments for part in segment.wire())


def payloads_of(segment: Segment) -> list[bytes]:
    return [data[start:end] for _, data, start, end in segment.records]


def test_the_bytes_of_a_segment_are_these() -> None:
    # Given a segment of two ops, after a chain of 0x01020304
    segment = closed((b"ab",), (b"", b"c"), chain=0x01020304)

    # When it is written
    data = wire(segment)

    # Then each integer stands where the format says, and the chain covers the records only
    records = bytes.fromhex("010002000000") + b"ab" + bytes.fromhex("010001000000") + b"c"
    chain_after = crc32c(records, 0x01020304).to_bytes(4, "little")
    assert data == (
        bytes.fromhex("030000000a00000000000000020004030201")
        + chain_after
        + len(records).to_bytes(4, "little")
        + records
    )


@given(payloads)
def test_what_is_written_is_read_again(contents: list[bytes]) -> None:
    segment = closed(*((content[:3], content[3:]) for content in contents), chain=77)
    data = b"xyz" + wire(segment)

    (read,) = read_segments(data, 3, len(data))

    assert payloads_of(read) == contents
    assert (read.first_seq, read.end_seq) == (10, 10 + len(contents))
    assert read.intact()
    assert wire(read) == wire(segment)


def test_a_large_part_is_kept_as_the_object_that_it_was() -> None:
    large = bytes(OWN_PART_BYTES)

    segment = closed((b"head", large), (b"small",))

    assert any(part is large for part in segment.parts)


def test_a_large_payload_is_read_into_an_object_of_its_own_and_small_ones_share_one() -> None:
    # Given small ops around a large one
    data = wire(closed((b"a",), (b"b",), (bytes(OWN_PART_BYTES),), (b"c",)))

    # When they are read
    (read,) = read_segments(data, 0, len(data))

    # Then the large one can be kept without keeping anything else
    objects = [record.data for record in read.records]
    assert objects[0] is objects[1]
    assert objects[2] == bytes(OWN_PART_BYTES)
    assert len(objects[3]) == RECORD_HEADER_BYTES + 1


def test_a_changed_byte_is_noticed() -> None:
    data = bytearray(wire(closed((b"abc",))))
    data[-1] ^= 1

    (read,) = read_segments(bytes(data), 0, len(data))

    assert not read.intact()


@given(st.binary(max_size=200))
def test_whatever_comes_is_segments_or_a_protocol_error(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        read_segments(data, 0, len(data))


@given(st.integers(0, 25 + 3 * 7), st.integers(1, 255))
def test_a_damaged_segment_is_read_or_refused_and_nothing_else(at: int, flip: int) -> None:
    data = bytearray(wire(closed((b"a",), (b"b",), (b"c",))))
    data[min(at, len(data) - 1)] ^= flip

    with suppress(RemoteProtocolError):
        read_segments(bytes(data), 0, len(data))


@pytest.mark.parametrize("missing", [1, 7, 20, 30])
def test_a_segment_cut_short_is_refused(missing: int) -> None:
    data = wire(closed((b"abc",), (b"def",)))

    with pytest.raises(RemoteProtocolError):
        read_segments(data, 0, len(data) - missing)


def test_what_the_machine_may_keep_as_it_is_is_counted_by_writer_and_reader() -> None:
    # Given ops with payloads below and above the size of what is lent
    small, large = bytes(LENT_PART_BYTES - 1), bytes(LENT_PART_BYTES)
    made = closed((b"a", small), (large,), (large, b"b"))

    # When the segment is read
    (read,) = read_segments(wire(made), 0, len(wire(made)))

    # Then the large ones are lent, to the byte here, and with what stands around them there
    assert made.lent == 2 * LENT_PART_BYTES
    assert read.lent == 3 * LENT_PART_BYTES + 1
