"""The batch: what is admitted can be relied on, and a run is cut without touching messages."""

from __future__ import annotations

from itertools import accumulate
from struct import pack_into

import pytest
from hypothesis import given, strategies as st

from tanist.errors import LocalProtocolError
from tanist.wire.batch import (
    BODIES_BYTES_MAX,
    COUNT_MAX,
    HEADER_BYTES,
    IN_DOUBT,
    PERSISTENT,
    Batch,
    flags_of,
    resealed,
    seal,
)
from tanist.wire.columns import PROPERTIES, read_properties
from tanist.wire.limits import (
    FRAME_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    NUMBER_END,
    PROPERTIES_BYTES_MAX,
)
from tests.unit.wire_material import (
    batch_bytes,
    batches,
    cut_naively,
    damaged,
    decoded,
    dictionary,
    read_naively,
    refusal,
)

FLAGS_AT, COUNT_AT, FIRST_N_AT, COLUMNS_LEN_AT, BODIES_LEN_AT = 3, 4, 8, 24, 28
FLAGS = flags_of(persistent=False)


def bodies_of(batch: Batch) -> list[bytes]:
    starts = [0, *batch.ends()[:-1]]
    return [
        batch.data[batch.bodies_at + a : batch.bodies_at + b]
        for a, b in zip(starts, batch.ends(), strict=True)
    ]


def changed(data: bytes, form: str, at: int, value: int) -> bytes:
    copy = bytearray(data)
    pack_into(form, copy, at, value)
    return bytes(copy)


# What is sealed, and read again


def test_a_sealed_batch_reads_as_what_was_put_in() -> None:
    # Given three messages, one of them empty
    bodies = [b"one", b"", b"three"]

    # When they are sealed, and read where they arrive
    batch = Batch.parse(
        seal(
            bodies,
            [],
            flags=flags_of(persistent=True, in_doubt=True, lane=9),
            first_n=41,
            time_ms=1_700_000_000_000,
        )
    )

    # Then everything is there again
    assert bodies_of(batch) == bodies
    assert (batch.count, batch.first_n, batch.end_n) == (3, 41, 44)
    assert batch.time_ms == 1_700_000_000_000
    assert batch.persistent
    assert batch.flags & IN_DOUBT
    assert batch.flags >> 4 == 9
    assert batch.size == len(batch.data)


def test_a_batch_inside_an_op_reads_as_it_did_when_it_was_admitted() -> None:
    # Given a batch behind other bytes of an op
    sealed = batch_bytes([b"a", b"bc"], first_n=5)
    op = b"header of the op" + sealed + b"next record"

    # When it is taken from there
    batch = Batch.trusted(op, 16)

    # Then it ends where it ends, and its messages are the same
    assert batch.size == len(sealed)
    assert bodies_of(batch) == [b"a", b"bc"]
    assert batch.first_n == 5


@given(batches(), st.integers(1, NUMBER_END - 12), st.integers(0, (1 << 64) - 1))
def test_every_batch_that_keeps_the_rules_is_read(
    made: tuple[list[bytes], bytes], first_n: int, time_ms: int
) -> None:
    # Given a batch with any columns
    bodies, columns = made
    data = batch_bytes(bodies, columns, first_n=first_n, time_ms=time_ms)

    # When it is read
    batch = Batch.parse(data)

    # Then nothing is missing
    assert bodies_of(batch) == bodies
    assert (batch.first_n, batch.time_ms) == (first_n, time_ms)
    assert batch.columns_len == len(columns)


@given(
    st.lists(
        st.tuples(st.binary(max_size=9), st.sampled_from([b"{}", b'{"a":1}', b'{"b":2}'])),
        min_size=1,
    )
)
def test_properties_that_are_sealed_are_read_again(messages: list[tuple[bytes, bytes]]) -> None:
    # Given messages with properties
    bodies, properties = [body for body, _ in messages], [each for _, each in messages]

    # When they are sealed and read
    batch = Batch.parse(seal(bodies, properties, flags=FLAGS, first_n=1, time_ms=0))

    # Then bodies and properties are those, in order
    columns_at = HEADER_BYTES + 4 * batch.count
    columns = batch.data[columns_at : columns_at + batch.columns_len]
    assert bodies_of(batch) == bodies
    assert read_properties(columns, batch.count) == properties


def test_the_largest_message_with_the_largest_properties_is_admitted() -> None:
    # Given a message whose body and properties together are as large as they may be
    properties = b'{"a":"%s"}' % (b"y" * (PROPERTIES_BYTES_MAX - 8))
    body = b"x" * (MESSAGE_BYTES_MAX - len(properties))

    # When it is sealed, then it is admitted
    batch = Batch.parse(seal([body], [properties], flags=FLAGS, first_n=1, time_ms=0))
    assert batch.size < FRAME_BYTES_MAX


# What is refused


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_read_or_refused(data: bytes) -> None:
    # Given bytes, and the same behind the first eight of a batch
    for attempt in (data, b"TB\x01\x40" + data):
        # When they are read, then nothing else happens
        decoded(Batch.parse, attempt)


@given(st.data())
def test_a_damaged_batch_is_refused_or_is_one_that_can_be_handed_out(data: st.DataObject) -> None:
    # Given a batch, damaged
    bodies, columns = data.draw(batches(count_max=6))
    broken = data.draw(damaged(batch_bytes(bodies, columns)))

    # When it is read
    batch = decoded(Batch.parse, broken)

    # Then it is refused, or cutting any run of it is safe
    if batch is not None:
        for first in range(batch.count):
            cut = batch.cut(first, batch.count - first)
            assert sum(map(len, cut.parts)) == (
                4 * (batch.count - first) + cut.columns_len + cut.bodies_len
            )


@given(batches(count_max=4), st.data())
def test_a_batch_that_is_cut_short_is_refused(
    made: tuple[list[bytes], bytes], data: st.DataObject
) -> None:
    # Given a batch without its end
    whole = batch_bytes(*made)
    short = whole[: data.draw(st.integers(0, len(whole) - 1))]

    # When it is read, then it is refused
    refusal(Batch.parse, short)


@pytest.mark.parametrize(
    ("form", "at", "value", "code"),
    [
        ("<B", 0, 0x55, "bad_frame"),
        ("<B", 2, 0, "version"),
        ("<B", 2, 2, "version"),
        ("<B", FLAGS_AT, 0x48, "bad_frame"),
        ("<B", FLAGS_AT, 0xA0, "bad_frame"),
        ("<B", FLAGS_AT, 0x41, "bad_frame"),
        ("<I", COUNT_AT, 0, "limit"),
        ("<I", COUNT_AT, 1, "bad_frame"),
        ("<I", COUNT_AT, 3, "bad_frame"),
        ("<I", COUNT_AT, COUNT_MAX + 1, "limit"),
        ("<I", COUNT_AT, 0xFFFFFFFF, "limit"),
        ("<Q", FIRST_N_AT, 0, "bad_frame"),
        ("<Q", FIRST_N_AT, NUMBER_END - 1, "bad_frame"),
        ("<Q", FIRST_N_AT, (1 << 64) - 1, "bad_frame"),
        ("<I", COLUMNS_LEN_AT, 1, "bad_frame"),
        ("<I", COLUMNS_LEN_AT, 0xFFFFFFFF, "limit"),
        ("<I", BODIES_LEN_AT, 3, "bad_frame"),
        ("<I", BODIES_LEN_AT, 0xFFFFFFFF, "limit"),
        ("<I", HEADER_BYTES, 5, "bad_frame"),
        ("<I", HEADER_BYTES + 4, 3, "bad_frame"),
        ("<I", HEADER_BYTES + 4, 0xFFFFFFFF, "bad_frame"),
    ],
)
def test_a_header_or_table_that_lies_is_refused(form: str, at: int, value: int, code: str) -> None:
    # Given a batch of two messages of two bytes each, with one number changed
    data = changed(batch_bytes([b"ab", b"cd"]), form, at, value)

    # When it is read, then it is refused, and the word for it tells form from size
    assert refusal(Batch.parse, data).code == code


def test_end_offsets_that_fall_and_still_end_rightly_are_refused() -> None:
    # Given three messages; the first seems to end behind the second
    data = changed(batch_bytes([b"ab", b"cd", b"ef"]), "<I", HEADER_BYTES, 5)

    # When it is read, then it is refused
    assert "fall" in str(refusal(Batch.parse, data))


def test_several_messages_have_at_most_64_kib_and_a_single_one_may_have_more() -> None:
    # Given a batch of two that is one byte too large, and one message of that size
    two = batch_bytes([b"x" * BODIES_BYTES_MAX, b"y"])
    one = batch_bytes([b"x" * (BODIES_BYTES_MAX + 1)])

    # When they are read, then only the first is refused
    assert refusal(Batch.parse, two).code == "limit"
    assert Batch.parse(one).count == 1


def test_a_message_above_the_limit_is_refused() -> None:
    # Given the largest message, and one that is a byte larger
    largest = batch_bytes([b"x" * MESSAGE_BYTES_MAX])
    larger = batch_bytes([b"x" * (MESSAGE_BYTES_MAX + 1)])

    # When they are read, then only the second is refused
    assert Batch.parse(largest).bodies_len == MESSAGE_BYTES_MAX
    assert refusal(Batch.parse, larger).code == "limit"


def test_a_batch_that_no_delivery_could_carry_is_refused_when_it_is_published() -> None:
    # Given batches that fit into a frame as they are; a delivery has a larger header and attempts
    space = FRAME_BYTES_MAX - HEADER_BYTES - 4 * 2 - len(b"ab")
    filler = dictionary(77, [b""], [0, 0])
    too_long = dictionary(77, [b"x" * (space - len(filler))], [0, 0])
    long = dictionary(77, [b"x" * (space - len(filler) - 16 - 2 * 2)], [0, 0])
    assert len(batch_bytes([b"a", b"b"], too_long)) == FRAME_BYTES_MAX

    # When they are read, then the one that would never reach a consumer is refused
    assert refusal(Batch.parse, batch_bytes([b"a", b"b"], too_long)).code == "limit"
    assert Batch.parse(batch_bytes([b"a", b"b"], long)).count == 2


def test_columns_without_their_flag_are_refused() -> None:
    # Given a batch with a column, and the flag for it taken away
    data = batch_bytes([b"a"], dictionary(PROPERTIES, [b"{}"], [0]))
    without = changed(data, "<B", FLAGS_AT, 0x40)

    # When it is read, then it is refused
    assert "disagree" in str(refusal(Batch.parse, without))


def test_a_priority_outside_the_lanes_is_the_callers_mistake() -> None:
    # Given a priority that no lane has; when flags are made of it, then it is refused
    with pytest.raises(LocalProtocolError, match="priority 10"):
        flags_of(persistent=False, lane=10)


# Runs


@given(st.data())
def test_a_cut_holds_what_a_naive_cut_holds(data: st.DataObject) -> None:
    # Given a batch with columns of all shapes, and a run of it
    bodies, columns = data.draw(batches())
    first = data.draw(st.integers(0, len(bodies) - 1))
    count = data.draw(st.integers(1, len(bodies) - first))
    batch = Batch.parse(batch_bytes(bodies, columns))

    # When the run is cut
    cut = batch.cut(first, count)

    # Then table, columns and bodies are those that a loop over messages finds
    joined = b"".join(cut.parts)
    ends = list(accumulate(map(len, bodies)))[first : first + count]
    cut_columns = joined[4 * count : 4 * count + cut.columns_len]
    assert joined[: 4 * count] == b"".join(end.to_bytes(4, "little") for end in ends)
    assert cut.base == sum(map(len, bodies[:first]))
    assert read_naively(cut_columns, count) == cut_naively(
        read_naively(columns, len(bodies)), first, count
    )
    assert joined[4 * count + cut.columns_len :] == b"".join(bodies[first : first + count])
    assert len(joined) == 4 * count + cut.columns_len + cut.bodies_len


@given(st.lists(st.integers(0, 9), min_size=16, max_size=16))
def test_fitting_counts_as_a_loop_would(lengths: list[int]) -> None:
    # Given messages of some lengths
    batch = Batch.parse(batch_bytes([b"x" * length for length in lengths]))

    for first in range(len(lengths)):
        sums = list(accumulate(lengths[first:]))
        # When it is asked how many of a run fit into what some of them have, or a byte less
        for bytes_max in {0, *sums, *(total - 1 for total in sums if total)}:
            fitting = batch.fitting(first, len(sums), bytes_max)

            # Then it is as many as a loop counts, and never none
            assert fitting == max(1, sum(total <= bytes_max for total in sums))
            assert batch.fitting(first, 1, bytes_max) == 1


@given(batches(), st.integers(1, NUMBER_END - 12), st.booleans())
def test_a_batch_that_is_sealed_anew_keeps_all_but_its_numbers(
    made: tuple[list[bytes], bytes], first_n: int, in_doubt: bool
) -> None:
    # Given a batch behind other bytes, which was in doubt once before
    old = batch_bytes(*made, flags=IN_DOUBT | PERSISTENT | 0x70)
    batch = Batch.trusted(b"op" + old, 2)

    # When it is sealed for another life of the stream
    new = resealed(batch, first_n=first_n, in_doubt=in_doubt)

    # Then only numbers and the mark are others
    read = Batch.parse(new)
    assert (read.first_n, bool(read.flags & IN_DOUBT)) == (first_n, in_doubt)
    assert read.flags & ~IN_DOUBT == batch.flags & ~IN_DOUBT
    assert read.time_ms == batch.time_ms
    assert new[HEADER_BYTES:] == old[HEADER_BYTES:]
