from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from replication.core.history import Entry
from replication.core.messages import (
    HEADER_BYTES,
    Aligned,
    Invite,
    Join,
    MessageType,
    Nak,
    NewEpoch,
    Receipt,
    Segments,
    StreamMessage,
    Tick,
    Void,
    decode,
    encode,
)
from replication.core.segment import OpenSegment, Segment
from tanist.errors import RemoteProtocolError

HEAD = (b"cluster8", 5, 2, 9, 0xFFEE)


def a_segment() -> Segment:
    segment = OpenSegment(41)
    segment.add(3, (b"abc", bytes(600)), 603)
    segment.add(4, (b"",), 0)
    return segment.close(8, 1234)


PLAIN: list[StreamMessage] = [
    Receipt(*HEAD, 7, 3, 40, 39, 1 << 30),
    Nak(*HEAD, 41, 43),
    Invite(*HEAD),
    Join(*HEAD, (Entry(1, 1, 0), Entry(4, 9, 77)), 12, 10, "why not"),
    NewEpoch(*HEAD, (Entry(1, 1, 0), Entry(9, 9, 77)), 12, 99, 1),
    Aligned(*HEAD, 11, 10),
    Void(*HEAD),
    Tick(*HEAD, 40, 43, 39, 8, 7),
]


def wire(message: StreamMessage) -> bytes:
    return b"".join(encode(message))


@pytest.mark.parametrize("message", PLAIN, ids=lambda message: type(message).__name__)
def test_what_is_written_is_read_again(message: StreamMessage) -> None:
    assert decode(wire(message)) == message


@pytest.mark.parametrize("repair", [False, True])
def test_segments_come_out_as_they_went_in(repair: bool) -> None:
    message = Segments(*HEAD, 40, repair, (a_segment(),))

    read = decode(wire(message))

    assert isinstance(read, Segments)
    assert (read.commit, read.repair) == (40, repair)
    assert b"".join(read.segments[0].wire()) == b"".join(a_segment().wire())


def test_a_frame_begins_with_what_subscribers_filter_by() -> None:
    data = wire(Tick(*HEAD, 40, 43, 39, 8, 7))

    assert data[:HEADER_BYTES] == (
        b"cluster8"
        + bytes.fromhex("0500000002000000")
        + b"TS"
        + bytes([1, MessageType.TICK])
        + bytes.fromhex("09000000eeff0000000000002800000000000000000020000000")
    )


def test_a_receipt_is_small() -> None:
    assert len(wire(PLAIN[0])) < 80


@given(st.binary(max_size=120))
def test_whatever_comes_is_a_message_or_a_protocol_error(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        decode(data)


@given(
    st.sampled_from([*PLAIN, Segments(*HEAD, 40, False, (a_segment(),))]),
    st.integers(0, 1 << 20),
    st.integers(1, 255),
    st.integers(-20, 20),
)
def test_a_damaged_message_is_read_or_refused_and_nothing_else(
    message: StreamMessage, at: int, flip: int, longer: int
) -> None:
    data = bytearray(wire(message))
    data[at % len(data)] ^= flip
    damaged = bytes(data[:longer] if longer < 0 else data + bytes(longer))

    with suppress(RemoteProtocolError):
        decode(damaged)


@given(st.sampled_from(range(4, 12)), st.binary(max_size=60))
def test_a_body_of_anything_is_read_or_refused(kind: int, body: bytes) -> None:
    data = bytearray(wire(Invite(*HEAD)))[:HEADER_BYTES]
    data[19] = kind
    data[42:46] = len(body).to_bytes(4, "little")

    with suppress(RemoteProtocolError):
        decode(bytes(data) + body)


def test_an_unknown_version_is_refused_as_such() -> None:
    data = bytearray(wire(PLAIN[0]))
    data[18] = 9

    with pytest.raises(RemoteProtocolError) as refused:
        decode(bytes(data))

    assert refused.value.code == "version"


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        decode(wire(Nak(*HEAD, -1, 5)))


def test_data_is_one_segment() -> None:
    with pytest.raises(RemoteProtocolError):
        decode(wire(Segments(*HEAD, 40, False, (a_segment(), a_segment()))))
