"""The binary payloads: what a reader returned can be relied on, everything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack, pack_into

import pytest
from hypothesis import given, strategies as st

from tanist.wire.batch import COUNT_MAX, DELIVER_HEADER_BYTES, Batch
from tanist.wire.columns import check_columns, read_properties
from tanist.wire.frames import FRAME_BYTES_MAX, FRAME_HEADER_BYTES, SETTLED_MORE, FrameReader
from tanist.wire.hot import (
    REDELIVERED,
    SPANS_MAX,
    Cause,
    Delivery,
    Settled,
    Settlement,
    confirm,
    credit,
    deliver,
    read_confirm,
    read_credit,
    read_deliver,
    read_settled,
    read_settlement,
    settled,
    settled_frames,
    settlement,
)
from tanist.wire.limits import MESSAGE_BYTES_MAX, NUMBER_END
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

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
numbers = st.integers(0, NUMBER_END - 1)
spans = st.tuples(st.integers(0, NUMBER_END - (1 << 32)), st.integers(1, (1 << 32) - 1))
runs = st.tuples(numbers, spans).map(lambda made: (made[0], *made[1]))

READERS: list[tuple[Callable[[bytes], object], bytes]] = [
    (read_confirm, confirm(7, 3)),
    (read_credit, credit(100, 1 << 20)),
    (read_settlement, settlement(1, Cause.FAILED, [(5, 0, 2), (6, 9, 1)])),
    (read_settled, settled(4, [(0, 2)], [(9, 1), (12, 1)])),
]


def delivered(
    bodies: list[bytes],
    columns: bytes = b"",
    *,
    first: int = 0,
    count: int | None = None,
    attempts: bytes = b"",
    offset: int = 40,
) -> bytes:
    """The payload of a DELIVER for a run of one batch."""
    batch = Batch.parse(batch_bytes(bodies, columns))
    run = count or len(bodies) - first
    parts = deliver(
        number=9,
        first=offset,
        time_ms=batch.time_ms,
        count=run,
        part=2,
        flags=REDELIVERED,
        batch_flags=batch.flags,
        cut=batch.cut(first, run),
        attempts=attempts,
    )
    return b"".join(parts)


def bodies_of(delivery: Delivery) -> list[bytes]:
    found, at = [], 0
    for i in range(delivery.count):
        end = int.from_bytes(delivery.ends[4 * i : 4 * i + 4], "little") - delivery.base
        found.append(delivery.data[delivery.bodies_at + at : delivery.bodies_at + end])
        at = end
    return found


def changed(data: bytes, form: str, at: int, value: int) -> bytes:
    copy = bytearray(data)
    pack_into(form, copy, at, value)
    return bytes(copy)


# Round trips


@given(U64, U32)
def test_a_confirm_reads_as_it_was_written(through_n: int, copies: int) -> None:
    # Given a confirm; when it is written and read, then it is the same
    assert read_confirm(confirm(through_n, copies)) == (through_n, copies)


@given(U64, U64)
def test_credit_reads_as_it_was_written(messages: int, bytes_: int) -> None:
    # Given credit; when it is written and read, then it is the same
    assert read_credit(credit(messages, bytes_)) == (messages, bytes_)


@given(U32, st.sampled_from(Cause), st.lists(runs, max_size=5))
def test_a_settlement_reads_as_it_was_written(
    a: int, cause: Cause, ranges: list[tuple[int, int, int]]
) -> None:
    # Given an ACK or a REQUEUE; when it is written and read, then it is the same
    assert read_settlement(settlement(a, cause, ranges)) == Settlement(a, cause, ranges)


@given(U32, st.lists(spans, max_size=4), st.lists(spans, max_size=4))
def test_what_is_settled_reads_as_it_was_written(
    a: int, already_done: list[tuple[int, int]], not_yours: list[tuple[int, int]]
) -> None:
    # Given the answer to settlements; when it is written and read, then it is the same
    assert read_settled(settled(a, already_done, not_yours)) == Settled(a, already_done, not_yours)


def test_an_answer_that_does_not_fit_a_frame_comes_in_several() -> None:
    # Given more spans than two frames hold
    already_done = [(2 * n, 1) for n in range(SPANS_MAX + 5)]
    not_yours = [(1 + 2 * n, 1) for n in range(SPANS_MAX)]

    # When the answer is made, and read as it comes
    frames = [b"".join(parts) for parts in settled_frames(5, 7, already_done, not_yours)]
    reader = FrameReader(FRAME_BYTES_MAX)
    received = [frame for data in frames for frame in reader.feed(data)]
    read = [read_settled(frame.payload) for frame in received]

    # Then each frame is within the limit, all but the last say that more follows, none is lost
    assert [frame.flags for frame in received] == [SETTLED_MORE, SETTLED_MORE, 0]
    assert {settled.a for settled in read} == {7}
    assert [span for settled in read for span in settled.already_done] == already_done
    assert [span for settled in read for span in settled.not_yours] == not_yours


def test_an_answer_that_just_fits_a_frame_is_one() -> None:
    # Given as many spans as a frame holds; when the answer is made
    frames = list(settled_frames(5, 7, [(2 * n, 1) for n in range(SPANS_MAX)], []))

    # Then it is one frame of nearly the limit
    assert len(frames) == 1
    assert FRAME_BYTES_MAX - 12 < sum(map(len, frames[0])) - FRAME_HEADER_BYTES <= FRAME_BYTES_MAX


@given(st.data())
def test_a_delivery_reads_as_the_run_that_it_was_cut_from(data: st.DataObject) -> None:
    # Given a run of a batch with any columns, and perhaps attempts
    bodies, columns = data.draw(batches())
    first = data.draw(st.integers(0, len(bodies) - 1))
    count = data.draw(st.integers(1, len(bodies) - first))
    attempts = data.draw(
        st.none() | st.lists(st.integers(0, 0xFFFF), min_size=count, max_size=count)
    )
    written = pack(f"<{count}H", *attempts) if attempts else b""

    # When it is delivered and read
    read = read_deliver(delivered(bodies, columns, first=first, count=count, attempts=written))

    # Then the messages, what they have besides, and their attempts are those
    assert bodies_of(read) == bodies[first : first + count]
    assert read_naively(read.columns, count) == cut_naively(
        read_naively(columns, len(bodies)), first, count
    )
    assert (read.attempts is None) == (attempts is None)
    assert list(read.attempts or ()) == (attempts or [])
    assert (read.number, read.first, read.part, read.count) == (9, 40, 2, count)


def test_the_largest_message_fits_into_a_delivery() -> None:
    # Given the largest message that is admitted, delivered for the second time
    payload = delivered([b"x" * MESSAGE_BYTES_MAX], attempts=b"\1\0")

    # When it is read, then it is within the limit of a frame
    assert len(payload) <= FRAME_BYTES_MAX
    assert read_deliver(payload).count == 1


# What is refused


@pytest.mark.parametrize(("read", "valid"), READERS)
def test_a_payload_of_an_odd_size_is_refused(read: Callable[[bytes], object], valid: bytes) -> None:
    # Given a valid payload
    assert read(valid)

    # When it is cut anywhere but between two ranges, or a byte longer
    for size in range(len(valid)):
        decoded(read, valid[:size])

    # Then it is refused
    refusal(read, valid[:-1])
    refusal(read, valid[:1])
    refusal(read, valid + b"\0")


@pytest.mark.parametrize(("read", "valid"), READERS)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(
    read: Callable[[bytes], object], valid: bytes, data: st.DataObject
) -> None:
    # Given anything, and a valid payload that was damaged
    for attempt in (data.draw(st.binary(max_size=80)), data.draw(damaged(valid))):
        # When it is read, then nothing else happens
        decoded(read, attempt)


@pytest.mark.parametrize(
    "lie",
    [
        settlement(1, 0, [(1, 0, 0)]),
        settlement(1, 0, [(1, NUMBER_END, 1)]),
        settlement(1, 0, [(1, NUMBER_END - 1, 2)]),
        settlement(1, 0, [(1, (1 << 64) - 1, 1)]),
        settlement(1, 0, [(NUMBER_END, 0, 1)]),
        settlement(1, 2, [(1, 0, 1)]),
        settlement(1, 0xFFFFFFFF, []),
    ],
)
def test_a_settlement_of_an_impossible_range_or_cause_is_refused(lie: bytes) -> None:
    # Given such an ACK; when it is read, then it is refused
    refusal(read_settlement, lie)


@pytest.mark.parametrize(
    "lie",
    [
        pack("<II", 1, 1),
        pack("<II", 1, 0xFFFFFFFF),
        settled(1, [(0, 0)], []),
        settled(1, [], [(NUMBER_END, 1)]),
    ],
)
def test_an_answer_of_an_impossible_range_or_number_is_refused(lie: bytes) -> None:
    # Given such an answer; when it is read, then it is refused
    refusal(read_settled, lie)


@given(st.binary(max_size=120))
def test_any_bytes_as_a_delivery_are_read_or_refused(data: bytes) -> None:
    # Given anything, alone and behind the header of a delivery
    for attempt in (data, delivered([b"ab", b"c"])[:DELIVER_HEADER_BYTES] + data):
        # When it is read, then nothing else happens
        decoded(read_deliver, attempt)


@given(st.data())
def test_a_damaged_delivery_is_refused_or_can_be_handed_out(data: st.DataObject) -> None:
    # Given a delivery with columns and attempts, damaged
    bodies, columns = data.draw(batches(count_max=5))
    attempts = data.draw(st.sampled_from((b"", b"\2\0" * len(bodies))))
    broken = data.draw(damaged(delivered(bodies, columns, attempts=attempts)))

    # When it is read
    read = decoded(read_deliver, broken)

    # Then it is refused, or every message of it can be taken out
    if read is not None:
        assert sum(map(len, bodies_of(read))) == len(read.data) - read.bodies_at
        assert read.attempts is None or len(read.attempts) == read.count
        check_columns(read.columns, read.count)
        read_properties(read.columns, read.count)


@given(st.data())
def test_a_delivery_that_is_cut_short_is_refused(data: st.DataObject) -> None:
    # Given a delivery with attempts, without its end
    bodies, columns = data.draw(batches(count_max=4))
    whole = delivered(bodies, columns, attempts=b"\1\0" * len(bodies))
    short = whole[: data.draw(st.integers(0, len(whole) - 1))]

    # When it is read, then it is refused
    refusal(read_deliver, short)


def test_attempts_that_end_in_the_middle_of_a_number_are_refused() -> None:
    # Given a delivery that says that it has attempts, and ends one byte into them
    whole = delivered([b"a", b"b", b"c"], attempts=b"\1\0" * 3)

    # When it is read, then it is refused
    refusal(read_deliver, whole[: DELIVER_HEADER_BYTES + 1])


COUNT_AT, BASE_AT, COLUMNS_AT, BODIES_AT, FLAGS_AT, BATCH_FLAGS_AT, ZERO_AT = (
    24,
    28,
    32,
    36,
    44,
    45,
    46,
)


@pytest.mark.parametrize(
    ("form", "at", "value"),
    [
        ("<Q", 0, NUMBER_END),
        ("<Q", 8, NUMBER_END - 1),
        ("<Q", 8, (1 << 64) - 1),
        ("<I", COUNT_AT, 0),
        ("<I", COUNT_AT, 2),
        ("<I", COUNT_AT, COUNT_MAX + 1),
        ("<I", COUNT_AT, 0xFFFFFFFF),
        ("<I", BASE_AT, 0),
        ("<I", BASE_AT, 3),
        ("<I", BASE_AT, 0xFFFFFFFF),
        ("<I", COLUMNS_AT, 1),
        ("<I", COLUMNS_AT, 0xFFFFFFFF),
        ("<I", BODIES_AT, 5),
        ("<I", BODIES_AT, 0xFFFFFFFF),
        ("<B", FLAGS_AT, 4),
        ("<B", FLAGS_AT, 2),
        ("<B", BATCH_FLAGS_AT, 0x41),
        ("<B", BATCH_FLAGS_AT, 0x48),
        ("<B", BATCH_FLAGS_AT, 0xF0),
        ("<H", ZERO_AT, 1),
        ("<I", DELIVER_HEADER_BYTES, 1),
        ("<I", DELIVER_HEADER_BYTES, 7),
        ("<I", DELIVER_HEADER_BYTES + 8, 7),
    ],
)
def test_a_delivery_whose_numbers_do_not_fit_together_is_refused(
    form: str, at: int, value: int
) -> None:
    # Given the last three of four messages of two bytes each, with one number changed
    whole = delivered([b"ab", b"cd", b"ef", b"gh"], first=1)
    assert read_deliver(whole).base == 2

    # When it is read, then it is refused
    refusal(read_deliver, changed(whole, form, at, value))


def test_a_delivery_with_columns_that_do_not_fit_is_refused() -> None:
    # Given properties whose index is for another number of messages
    whole = delivered([b"a"], dictionary(1, [b"{}", b"[]"], [1]))
    index_at = len(whole) - len(b"a") - 2

    # When the index names an entry that does not exist, then it is refused
    assert read_deliver(whole).count == 1
    refusal(read_deliver, changed(whole, "<H", index_at, 2))


def test_a_table_that_ends_rightly_and_falls_on_the_way_is_refused() -> None:
    # Given a delivery of three, whose second message seems to end before the first
    whole = delivered([b"ab", b"cd", b"ef"])
    falling = changed(whole, "<I", DELIVER_HEADER_BYTES, 5)

    # When it is read, then it is refused
    refusal(read_deliver, falling)
