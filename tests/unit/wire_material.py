"""Batches with every shape of column, and bytes that are almost right: what wire tests share."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack, unpack_from
from typing import TypeVar

import pytest
from hypothesis import strategies as st

from tanist.errors import RemoteProtocolError
from tanist.wire.batch import HAS_COLUMNS, HEADER, HEADER_BYTES, MAGIC, VERSION
from tanist.wire.columns import (
    BLOBS,
    DICTIONARY,
    DUE_MS,
    DUPLICATE_ID,
    EXPIRY_MS,
    GROUP_ID,
    PROPERTIES,
    TIME_DELTA_MS,
    VALUES,
    WHOLE,
)

T = TypeVar("T")
UNKNOWN = 77
"""A kind that nobody has defined, and that a node passes on."""


def table(lengths: list[int]) -> bytes:
    """End offsets, one after the other."""
    ends, at = [], 0
    for length in lengths:
        at += length
        ends.append(at)
    return pack(f"<{len(ends)}I", *ends)


def column(kind: int, shape: int, body: bytes, *, width: int = 0) -> bytes:
    return pack("<BBBBI", kind, shape, width, 0, len(body)) + body


def dictionary(kind: int, distinct: list[bytes], index: list[int]) -> bytes:
    body = pack("<HH", len(distinct), 0) + table([len(blob) for blob in distinct])
    return column(kind, DICTIONARY, body + b"".join(distinct) + pack(f"<{len(index)}H", *index))


def values(kind: int, width: int, each: list[int]) -> bytes:
    body = b"".join(value.to_bytes(width, "little") for value in each)
    return column(kind, VALUES, body, width=width)


def blobs(kind: int, each: list[bytes]) -> bytes:
    return column(kind, BLOBS, table([len(blob) for blob in each]) + b"".join(each))


def batch_bytes(
    bodies: list[bytes],
    columns: bytes = b"",
    *,
    first_n: int = 1,
    time_ms: int = 7,
    flags: int = 0x40,
    count: int | None = None,
) -> bytes:
    """A batch, written down without the code that is tested."""
    joined = b"".join(bodies)
    header = HEADER.pack(
        MAGIC,
        VERSION,
        flags | (HAS_COLUMNS if columns else 0),
        len(bodies) if count is None else count,
        first_n,
        time_ms,
        len(columns),
        len(joined),
    )
    assert len(header) == HEADER_BYTES
    return header + table([len(body) for body in bodies]) + columns + joined


Read = dict[int, tuple[int, list[bytes]]]
"""Columns by kind: the shape, and what each message has."""


def read_naively(columns: bytes, count: int) -> Read:
    """Columns, taken apart message by message."""
    found: Read = {}
    at = 0
    while at < len(columns):
        kind, shape, width, _, length = unpack_from("<BBBBI", columns, at)
        body = columns[at + 8 : at + 8 + length]
        at += 8 + length
        if shape == WHOLE:
            found[kind] = shape, [body]
        elif shape == VALUES:
            found[kind] = shape, [body[width * i : width * (i + 1)] for i in range(count)]
        elif shape == DICTIONARY:
            (distinct,) = unpack_from("<H", body)
            words = _split(body[4:], distinct)
            index = unpack_from(f"<{count}H", body, len(body) - 2 * count)
            found[kind] = shape, [words[i] for i in index]
        else:
            found[kind] = shape, _split(body, count)
    assert at == len(columns)
    return found


def cut_naively(read: Read, first: int, count: int) -> Read:
    """What the run's messages have."""
    return {
        kind: (shape, each if shape == WHOLE else each[first : first + count])
        for kind, (shape, each) in read.items()
    }


def _split(data: bytes, count: int) -> list[bytes]:
    ends = unpack_from(f"<{count}I", data)
    starts = (0, *ends[:-1])
    return [data[4 * count + a : 4 * count + b] for a, b in zip(starts, ends, strict=True)]


def column_sets(count: int) -> st.SearchStrategy[bytes]:
    """Columns of a batch of `count` messages, any of every kind that there is."""

    def of_dictionary(kind: int) -> st.SearchStrategy[bytes]:
        return st.lists(st.binary(max_size=9), min_size=1, max_size=5).flatmap(
            lambda words: st.lists(
                st.integers(0, len(words) - 1), min_size=count, max_size=count
            ).map(lambda index: dictionary(kind, words, index))
        )

    def of_values(kind: int, width: int) -> st.SearchStrategy[bytes]:
        each = st.integers(0, (1 << 8 * width) - 1)
        return st.lists(each, min_size=count, max_size=count).map(
            lambda made: values(kind, width, made)
        )

    def of_blobs(kind: int) -> st.SearchStrategy[bytes]:
        return st.lists(st.binary(max_size=9), min_size=count, max_size=count).map(
            lambda made: blobs(kind, made)
        )

    one_of_each: list[st.SearchStrategy[bytes]] = [
        of_dictionary(PROPERTIES),
        of_values(EXPIRY_MS, 8),
        of_values(DUE_MS, 8),
        of_values(TIME_DELTA_MS, 4),
        of_blobs(DUPLICATE_ID),
        of_dictionary(GROUP_ID),
        st.one_of(
            st.binary(max_size=20).map(lambda body: column(UNKNOWN, WHOLE, body)),
            of_values(UNKNOWN, 3),
            of_dictionary(UNKNOWN),
            of_blobs(UNKNOWN),
        ),
    ]
    return st.tuples(*(st.one_of(st.just(b""), each) for each in one_of_each)).map(b"".join)


@st.composite
def batches(draw: st.DrawFn, *, count_max: int = 12) -> tuple[list[bytes], bytes]:
    """Bodies, and columns for them."""
    bodies = draw(st.lists(st.binary(max_size=30), min_size=1, max_size=count_max))
    return bodies, draw(column_sets(len(bodies)))


_LIES = (0, 1, 2, 3, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` cut short, made longer, with bytes changed, or with a number that lies."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(("cut", "grow", "change", "lie", "drop"))):
            case "cut":
                del data[at:]
            case "grow":
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "lie":
                size = draw(st.sampled_from((1, 2, 4)))
                lie = draw(st.sampled_from(_LIES)) & ((1 << 8 * size) - 1)
                data[at : at + size] = lie.to_bytes(size, "little")
            case _:
                del data[at : at + draw(st.integers(1, 9))]
    return bytes(data)


def decoded(decode: Callable[[bytes], T], data: bytes) -> T | None:
    """What was read, or None if it was refused. Anything but a refusal fails the test."""
    try:
        return decode(data)
    except RemoteProtocolError as refused:
        # It goes back to the sender: a word that is documented, and no sentence without end.
        if refused.code not in {"bad_frame", "limit", "version"} or len(str(refused)) >= 400:
            raise
        return None


def refusal(decode: Callable[[bytes], object], data: bytes) -> RemoteProtocolError:
    """The refusal of `data`, which must be refused."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode(data)
    return caught.value
