"""What copies say of a damaged page: read as it was written, and nothing else is believed."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, strategies as st

from broker.core.mending_messages import Found, Wanted, encode_found, encode_wanted, read
from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Batch, seal
from tanist.wire.limits import NUMBER_END
from tests.unit.post_offices import batch_of

u64 = st.integers(0, (1 << 64) - 1)
offsets = st.integers(0, 1 << 40)
batches = st.lists(st.binary(max_size=40), min_size=1, max_size=5).map(
    lambda bodies: batch_of(bodies, first_n=7)
)


@st.composite
def founds(draw: st.DrawFn) -> Found:
    made = draw(st.lists(batches, max_size=4))
    gaps = [draw(offsets) for _ in made]
    counts = [batch.count for batch in made]
    ends = list(accumulate(gap + count for gap, count in zip(gaps, counts, strict=True)))
    firsts = [end - count for end, count in zip(ends, counts, strict=True)]
    through = (ends[-1] if ends else 0) + draw(offsets)
    return Found(draw(u64), draw(u64), through, list(zip(firsts, made, strict=True)))


def same(found: Found) -> tuple[object, ...]:
    return (*found[:3], [(first, batch.data) for first, batch in found.pieces])


@given(u64, u64, st.integers(0, (1 << 32) - 1), offsets, st.integers(1, 1 << 20))
def test_a_question_is_read_as_it_was_written(
    token: int, epoch: int, part: int, first: int, size: int
) -> None:
    wanted = Wanted(token, epoch, part, first, first + size)

    assert read(encode_wanted(wanted)) == wanted


@given(founds())
def test_an_answer_is_read_as_it_was_written(found: Found) -> None:
    said = read(encode_found(found))

    assert isinstance(said, Found)
    assert same(said) == same(found)


def test_the_golden_bytes_do_not_change() -> None:
    # Given one of each as they have always been
    batch = Batch.parse(seal([b"a"], [], flags=0, first_n=1, time_ms=5))

    # When they are written
    wanted = encode_wanted(Wanted(1, 2, 3, 4, 5))
    found = encode_found(Found(1, 2, 5, [(4, batch)]))

    # Then another program that knows the docstring can read them
    assert wanted.hex() == "01" + "03000000" + "".join(f"0{n}" + "00" * 7 for n in (1, 2, 4, 5))
    assert found.hex() == (
        "02" + "".join(f"0{n}" + "00" * 7 for n in (1, 2, 5, 4)) + "25000000" + batch.data.hex()
    )


@given(founds(), st.data())
def test_an_altered_answer_is_refused_or_keeps_its_promises(
    found: Found, data: st.DataObject
) -> None:
    # Given an answer of which a byte is another
    payload = bytearray(encode_found(found))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))

    # When it is read
    try:
        said = read(bytes(payload))
    except RemoteProtocolError:
        return

    # Then what is not refused can be relied on
    if isinstance(said, Wanted):
        assert said.first < said.end <= NUMBER_END
        return
    end = 0
    for first, batch in said.pieces:
        assert first >= end
        end = first + batch.count
        Batch.parse(batch.data)
    assert end <= said.through <= NUMBER_END


@given(st.binary(max_size=100))
def test_noise_is_refused(noise: bytes) -> None:
    try:
        said = read(noise)
    except RemoteProtocolError:
        return
    again = encode_wanted(said) if isinstance(said, Wanted) else encode_found(said)
    assert again == noise


def _found(through: int, *pieces: tuple[int, int]) -> bytes:
    made = [(first, batch_of([b"x"] * count, first_n=1)) for first, count in pieces]
    return encode_found(Found(1, 2, through, made))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x03",
        encode_wanted(Wanted(1, 2, 3, 5, 5)),
        encode_wanted(Wanted(1, 2, 3, 4, NUMBER_END + 1)),
        encode_wanted(Wanted(1, 2, 3, 4, 5)) + b"\0",
        _found(9, (0, 5), (4, 1)),
        _found(9, (5, 1), (4, 1)),
        _found(9, (8, 2)),
        _found(NUMBER_END + 1),
        _found(9, (0, 1))[:-1],
        _found(9, (0, 1)) + b"\0",
    ],
    ids=lambda payload: payload[:30].hex(),
)
def test_what_cannot_be_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read(payload)
