"""Columns: checked once by shape, cut by shape, refused when they lie."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given, strategies as st

from tanist.wire.columns import (
    BLOBS,
    DICTIONARY,
    DUE_MS,
    DUPLICATE_ID,
    EXPIRY_MS,
    GROUP_ID,
    MUST_KNOW,
    PROPERTIES,
    TIME_DELTA_MS,
    VALUES,
    WHOLE,
    check_columns,
    cut_columns,
    properties_column,
    read_properties,
)
from tanist.wire.limits import PROPERTIES_BYTES_MAX
from tests.unit.wire_material import (
    UNKNOWN,
    blobs,
    column,
    column_sets,
    cut_naively,
    damaged,
    decoded,
    dictionary,
    read_naively,
    refusal,
    table,
    values,
)


def check_for_two(data: bytes) -> None:
    check_columns(data, 2)


@given(st.integers(1, 9).flatmap(lambda count: st.tuples(st.just(count), column_sets(count))))
def test_columns_that_keep_the_rules_are_admitted(made: tuple[int, bytes]) -> None:
    # Given columns of any kinds; when they are checked, then nothing is refused
    count, columns = made
    check_columns(columns, count)


@given(st.data())
def test_a_cut_of_any_shape_is_what_a_loop_over_messages_finds(data: st.DataObject) -> None:
    # Given columns, and a run
    count = data.draw(st.integers(1, 9))
    columns = data.draw(column_sets(count))
    first = data.draw(st.integers(0, count - 1))
    run = data.draw(st.integers(1, count - first))

    # When the run is cut
    cut = cut_columns(columns, count, first, run)

    # Then every message has what it had, and the cut would be admitted itself
    assert read_naively(cut, run) == cut_naively(read_naively(columns, count), first, run)
    check_columns(cut, run)


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=40))
def test_properties_are_read_as_they_were_written(each: list[bytes]) -> None:
    # Given what each message has; when it is written as a column and read
    written = properties_column(each)
    check_columns(written, len(each))

    # Then it is the same, and what is the same is stored once
    assert read_properties(written, len(each)) == each
    assert len(written) == 8 + 4 + 2 * len(each) + sum(4 + len(blob) for blob in set(each))


def test_a_batch_without_properties_has_none() -> None:
    # Given another column only; when properties are asked for, then there are none
    assert read_properties(values(EXPIRY_MS, 8, [1, 2]), 2) is None


@given(st.binary(max_size=120), st.integers(1, 6))
def test_bytes_of_any_kind_are_admitted_or_refused(data: bytes, count: int) -> None:
    # Given bytes, alone and as the inside of each shape
    attempts = [data, *(column(UNKNOWN, shape, data, width=0) for shape in range(5))]

    # When they are checked, then nothing else happens
    for attempt in attempts:
        decoded(lambda given: check_columns(given, count), attempt)


@given(st.data())
def test_damaged_columns_are_refused_or_can_be_read_and_cut(data: st.DataObject) -> None:
    # Given columns, damaged
    count = data.draw(st.integers(1, 6))
    broken = data.draw(damaged(data.draw(column_sets(count)) or b"\0"))

    # When they are checked
    def checked(columns: bytes) -> bytes:
        check_columns(columns, count)
        return columns

    admitted = decoded(checked, broken)

    # Then what is admitted can be read and cut
    if admitted is not None:
        for first in range(count):
            check_columns(cut_columns(admitted, count, first, count - first), count - first)
        read_properties(admitted, count)


@pytest.mark.parametrize(
    "lie",
    [
        column(PROPERTIES, DICTIONARY, b""),
        column(PROPERTIES, DICTIONARY, b"\0\0\0"),
        column(PROPERTIES, DICTIONARY, pack("<HH", 0, 0) + pack("<HH", 0, 0)),
        column(PROPERTIES, DICTIONARY, pack("<HH", 1, 1) + table([2]) + b"{}" + bytes(4)),
        column(PROPERTIES, DICTIONARY, pack("<HH", 0xFFFF, 0) + table([2]) + b"{}" + bytes(4)),
        column(PROPERTIES, DICTIONARY, pack("<HH", 1, 0) + table([3]) + b"{}" + bytes(4)),
        column(PROPERTIES, DICTIONARY, pack("<HHII", 2, 0, 2, 1) + b"a" + bytes(4)),
        dictionary(PROPERTIES, [b"{}"], [0]),
        dictionary(PROPERTIES, [b"{}"], [0, 1]),
        column(EXPIRY_MS, VALUES, bytes(15), width=8),
        column(EXPIRY_MS, VALUES, bytes(17), width=8),
        column(UNKNOWN, VALUES, b"", width=0),
        column(DUPLICATE_ID, BLOBS, bytes(7)),
        column(DUPLICATE_ID, BLOBS, table([1, 1]) + b"abc"),
        column(DUPLICATE_ID, BLOBS, pack("<II", 2, 1) + b"a"),
        column(UNKNOWN, 4, b""),
        column(UNKNOWN, WHOLE, b"x", width=1),
        column(GROUP_ID, DICTIONARY, dictionary(GROUP_ID, [b"g"], [0, 0])[8:], width=2),
        column(UNKNOWN, WHOLE, b"x")[:-1],
        column(UNKNOWN, WHOLE, b"x") + b"\0",
        b"\x4d\x00\x00\x01" + bytes(4),
        b"\x4d\x00\x00\x00\xff\xff\xff\xff",
    ],
)
def test_a_column_that_lies_about_itself_is_refused(lie: bytes) -> None:
    # Given columns of two messages that do not fit together; when they are checked
    refused = refusal(check_for_two, lie)

    # Then they are refused
    assert refused.code == "bad_frame"


@pytest.mark.parametrize(
    "known",
    [
        blobs(PROPERTIES, [b"{}", b"{}"]),
        blobs(EXPIRY_MS, [b"12345678", b""]),
        values(EXPIRY_MS, 4, [1, 2]),
        values(DUE_MS, 4, [1, 2]),
        values(TIME_DELTA_MS, 8, [1, 2]),
        values(DUPLICATE_ID, 4, [1, 2]),
        column(GROUP_ID, WHOLE, b"g"),
    ],
)
def test_a_known_kind_has_one_shape_and_one_width(known: bytes) -> None:
    # Given a known kind in another form; when it is checked
    refused = refusal(check_for_two, known)

    # Then it is refused, and the form that it must have is said
    assert "instead of" in str(refused)


def test_a_kind_that_must_be_known_is_refused_by_who_does_not_know_it() -> None:
    # Given one column below and one from the bound; when they are checked
    below = column(MUST_KNOW - 1, WHOLE, b"x")
    above = column(MUST_KNOW, WHOLE, b"x")

    # Then the first is passed on, and the second refused
    check_for_two(below)
    assert "must be known" in str(refusal(check_for_two, above))


def test_a_kind_is_given_once() -> None:
    # Given two columns of one kind; when they are checked, then they are refused
    twice = values(EXPIRY_MS, 8, [1, 2]) * 2
    assert "twice" in str(refusal(check_for_two, twice))


def test_properties_have_at_most_64_kib_a_message() -> None:
    # Given properties at the limit, several together above it, and one above it
    at_limit = dictionary(PROPERTIES, [b"x" * PROPERTIES_BYTES_MAX, b"y"], [0, 1])
    above = dictionary(PROPERTIES, [b"x" * (PROPERTIES_BYTES_MAX + 1)], [0, 0])

    # When they are checked, then only the message above the limit is refused
    check_for_two(at_limit)
    assert refusal(check_for_two, above).code == "limit"
