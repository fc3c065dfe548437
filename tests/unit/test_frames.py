"""Frames: found in any pieces, refused by their header, and never more held than one frame."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given, strategies as st

from tanist.errors import RemoteProtocolError
from tanist.wire.frames import (
    CREDIT_BACK,
    FRAME_BYTES_MAX,
    FRAME_BYTES_MAX_BEFORE_WELCOME,
    FRAME_HEADER_BYTES,
    SETTLED_MORE,
    Frame,
    FrameReader,
    Verb,
    frame,
)
from tests.unit.wire_material import damaged, refusal

frames = st.lists(
    st.builds(
        lambda verb, channel, payload: Frame(verb, 0, channel, payload),
        st.integers(0, 255),
        st.integers(0, 0xFFFF),
        st.binary(max_size=40),
    ),
    max_size=8,
)


def on_the_wire(each: list[Frame]) -> bytes:
    return b"".join(
        pack("<IBBH", len(f.payload), f.verb, f.flags, f.channel) + f.payload for f in each
    )


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(marks)]


def test_a_frame_is_a_header_and_its_parts_one_after_the_other() -> None:
    # Given a payload in two parts; when a frame is made of them
    written = b"".join(frame(Verb.CREDIT, 3, b"ab", memoryview(b"cde"), flags=CREDIT_BACK))

    # Then its length counts both
    assert written == b"\5\0\0\0" + bytes([Verb.CREDIT, CREDIT_BACK]) + b"\3\0" + b"abcde"


@given(frames, st.lists(st.integers(0, 400), max_size=12))
def test_frames_are_found_whatever_the_pieces(each: list[Frame], cuts: list[int]) -> None:
    # Given frames, cut anywhere
    reader = FrameReader(64)

    # When the pieces arrive
    found = [f for piece in pieces_of(on_the_wire(each), cuts) for f in reader.feed(piece)]

    # Then the frames are those, and nothing is held
    assert found == each
    assert reader.held_bytes == 0


@given(frames, st.lists(st.integers(0, 400), max_size=12), st.integers(0, 40))
def test_no_more_is_held_than_a_header_and_the_limit(
    each: list[Frame], cuts: list[int], bytes_max: int
) -> None:
    # Given a reader with a limit that some of the frames break
    reader = FrameReader(bytes_max)

    # When pieces arrive
    for piece in pieces_of(on_the_wire(each), cuts):
        try:
            reader.feed(piece)
        except RemoteProtocolError:
            break
        # Then never more is held than one frame can have
        assert reader.held_bytes <= FRAME_HEADER_BYTES + bytes_max


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_bytes_of_any_kind_give_frames_or_a_refusal(pieces: list[bytes]) -> None:
    # Given pieces of anything
    reader = FrameReader(32)

    # When they arrive, then frames within the limit come out, or the connection is refused
    try:
        found = [f for piece in pieces for f in reader.feed(piece)]
    except RemoteProtocolError:
        return
    assert all(len(f.payload) <= 32 for f in found)
    assert sum(FRAME_HEADER_BYTES + len(f.payload) for f in found) + reader.held_bytes == (
        sum(map(len, pieces))
    )


@given(st.data())
def test_damaged_frames_give_frames_or_a_refusal(data: st.DataObject) -> None:
    # Given frames, damaged; when they arrive
    broken = data.draw(damaged(on_the_wire(data.draw(frames)) or b"\0"))
    reader = FrameReader(64)
    try:
        found = reader.feed(broken)
    except RemoteProtocolError:
        return

    # Then nothing was made up
    assert on_the_wire(found) == broken[: len(broken) - reader.held_bytes]


@pytest.mark.parametrize("split", [0, 1, 7])
def test_a_length_above_the_limit_is_refused_when_its_header_is_read(split: int) -> None:
    # Given a reader before WELCOME, and a header that promises a byte too many
    reader = FrameReader(FRAME_BYTES_MAX_BEFORE_WELCOME)
    header = pack("<IBBH", FRAME_BYTES_MAX_BEFORE_WELCOME + 1, Verb.HELLO, 0, 0)

    # When it arrives, whole or in two pieces, then it is refused without its payload
    reader.feed(header[:split])
    assert refusal(reader.feed, header[split:]).code == "limit"


def test_a_limit_that_is_raised_holds_for_the_next_frame() -> None:
    # Given a reader before WELCOME
    reader = FrameReader(FRAME_BYTES_MAX_BEFORE_WELCOME)
    large = on_the_wire([Frame(Verb.PUBLISH, 0, 1, bytes(FRAME_BYTES_MAX))])

    # When the connection is welcome
    reader.bytes_max = FRAME_BYTES_MAX

    # Then a frame of the full size is read
    assert len(reader.feed(large)[0].payload) == FRAME_BYTES_MAX


@pytest.mark.parametrize(
    ("verb", "flags", "known"),
    [
        (Verb.CREDIT, 0, True),
        (Verb.CREDIT, CREDIT_BACK, True),
        (Verb.CREDIT, CREDIT_BACK | 2, False),
        (Verb.SETTLED, SETTLED_MORE, True),
        (Verb.SETTLED, SETTLED_MORE | 2, False),
        (Verb.PUBLISH, CREDIT_BACK, False),
        (Verb.PUBLISH, 0x80, False),
    ],
)
def test_flags_that_nobody_has_defined_are_refused(verb: Verb, flags: int, known: bool) -> None:
    # Given a frame with flags; when it arrives
    reader = FrameReader(64)
    header = pack("<IBBH", 0, verb, flags, 0)

    # Then it is read only if the flag is one of its verb
    if known:
        assert reader.feed(header)[0].flags == flags
    else:
        assert refusal(reader.feed, header).code == "bad_frame"


def test_a_frame_that_comes_byte_by_byte_costs_about_its_size() -> None:
    # Given a client that sends one byte at a time, and never the last one
    reader = FrameReader(FRAME_BYTES_MAX_BEFORE_WELCOME)
    data = on_the_wire([Frame(Verb.HELLO, 0, 0, bytes(FRAME_BYTES_MAX_BEFORE_WELCOME))])
    pieces = [data[i : i + 1] for i in range(len(data) - 1)]

    # When all of it has arrived
    tracemalloc.start()
    for piece in pieces:
        reader.feed(piece)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # Then no more memory is held than the frame has, and some room to grow
    assert reader.held_bytes == len(data) - 1
    assert held < 2 * len(data)
