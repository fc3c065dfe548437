"""Pages: every batch is found by offset, and given back when its messages are done with."""

from __future__ import annotations

import tracemalloc
from array import array

import pytest

from paging.page import BLOCK_BYTES, SMALL_BYTES
from paging.pages import Pages
from paging.ranges import Range, Ranges
from tanist.wire.batch import Batch, seal


def batch(*bodies: bytes, first_n: int = 1) -> Batch:
    return Batch.parse(seal(list(bodies), [], flags=0, first_n=first_n, time_ms=7))


def bodies(pages: Pages, run: Range) -> list[bytes]:
    """The messages of a run, as a consumer would read them."""
    found = []
    for piece, index, count in pages.pieces(run):
        ends = array("I", [0, *piece.ends()])
        blob = piece.data[piece.bodies_at : piece.bodies_at + piece.bodies_len]
        found += [blob[ends[at] : ends[at + 1]] for at in range(index, index + count)]
    return found


def filled(pages: Pages, count: int, *, body_bytes: int = 100, each: int = 1) -> list[bytes]:
    """Pages get `count` messages, `each` in a batch. Returns the bodies."""
    made = [number.to_bytes(8, "big").ljust(body_bytes, b".") for number in range(count)]
    for at in range(0, count, each):
        pages.append(batch(*made[at : at + each], first_n=at + 1))
    return made


def live(*runs: tuple[int, int]) -> Ranges:
    made = Ranges()
    for first, end in runs:
        made.add(Range(first, end))
    return made


@pytest.mark.parametrize(
    ("body_bytes", "each"), [(10, 1), (100, 7), (3000, 1), (SMALL_BYTES, 1), (100, 600)]
)
def test_every_message_is_found_wherever_its_batch_lies(body_bytes: int, each: int) -> None:
    # Given batches over many pages, blocks that are packed, and some that are not yet
    pages = Pages(page_bytes=100_000)
    made = filled(pages, 5_000 if body_bytes < 200 else 200, body_bytes=body_bytes, each=each)
    assert pages.count > 2

    # When all are read, and a few out of the middle
    everything = bodies(pages, Range(0, len(made)))
    middle = bodies(pages, Range(101, 188))

    # Then each is itself
    assert everything == made
    assert middle == made[101:188]
    pages.check(live((0, len(made))))


def test_small_and_large_batches_may_alternate() -> None:
    # Given batches of one byte and of more than a small batch's, by turns
    pages = Pages(page_bytes=50_000)
    made = [b"s", b"L" * SMALL_BYTES] * 20
    for body in made:
        pages.append(batch(body))

    # When they are read, then each is itself
    assert bodies(pages, Range(0, 40)) == made
    pages.check(live((0, 40)))


def test_a_batch_keeps_its_header_when_it_is_packed() -> None:
    # Given small batches that were packed
    pages = Pages()
    filled(pages, 1000, each=2)

    # When one is asked for
    found, first = pages.batch_at(51)

    # Then it says who it is
    assert (found.first_n, found.count, found.time_ms, first) == (51, 2, 7, 50)


def test_bytes_come_back_when_the_last_message_of_a_batch_is_dropped() -> None:
    # Given two large batches
    pages = Pages()
    filled(pages, 1200, each=600)
    bytes_full = pages.bytes

    # When the first but for one message is dropped, and then that message
    pages.drop(Range(0, 599))
    bytes_but_one = pages.bytes
    pages.drop(Range(599, 600))

    # Then only the last one gives anything back, and all of it
    assert bytes_but_one == bytes_full
    assert pages.bytes == bytes_full / 2
    pages.check(live((600, 1200)))


def test_small_batches_come_back_by_the_block() -> None:
    # Given small batches in several blocks
    pages = Pages()
    filled(pages, 3000)
    bytes_full = pages.bytes

    # When all messages but every thousandth are dropped
    for first in range(0, 3000, 1000):
        pages.drop(Range(first + 1, first + 1000))

    # Then what holds none is gone, and the survivors are still there
    assert 3 * 136 < pages.bytes <= 3 * BLOCK_BYTES < bytes_full
    assert [found[:8] for found in bodies(pages, Range(1000, 1001))] == [(1000).to_bytes(8, "big")]
    pages.check(live((0, 1), (1000, 1001), (2000, 2001)))


@pytest.mark.parametrize("step", [1, 7, 1000, 5000])
def test_nothing_is_left_when_everything_was_dropped(step: int) -> None:
    # Given many pages
    pages = Pages(page_bytes=30_000)
    filled(pages, 5000)

    # When all is dropped, from the back to the front
    for first in range(5000 - step, -1, -step):
        pages.drop(Range(first, first + step))
    if 5000 % step:
        pages.drop(Range(0, 5000 % step))

    # Then there is one empty page, which goes on at the same offset
    assert (pages.bytes, pages.resident_bytes, pages.count) == (0, 0, 1)
    assert pages.append(batch(b"next")) == 5000
    pages.check(live((5000, 5001)))


def test_a_queue_that_is_always_drained_never_seals_a_page() -> None:
    # Given pages of no more than a few batches
    pages = Pages(page_bytes=1000)

    # When many times as much goes in and out again
    for _ in range(100):
        first = pages.append(batch(b"x" * 300))
        pages.drop(Range(first, first + 1))

    # Then only the open page is there, and holds nothing
    assert (pages.count, pages.resident_bytes) == (1, 0)


def test_a_message_that_was_dropped_is_not_dropped_again() -> None:
    # Given a page with a dropped message in a block that others still need
    pages = Pages()
    filled(pages, 2)
    pages.drop(Range(0, 1))

    # When more is dropped than is left, then that is a mistake
    with pytest.raises(AssertionError):
        pages.drop(Range(0, 2))


def test_a_message_of_a_page_that_is_gone_is_not_dropped_again() -> None:
    # Given three sealed pages, of which the middle one is gone
    pages = Pages(page_bytes=100)
    filled(pages, 3)
    pages.drop(Range(1, 2))

    # When its message is dropped once more, then that is a mistake
    with pytest.raises(AssertionError):
        pages.drop(Range(1, 2))


def test_a_freed_batch_is_not_handed_out_from_what_was_read_last() -> None:
    # Given a batch that was read and then dropped, before another one
    pages = Pages()
    filled(pages, 1200, each=600)
    pages.batch_at(0)
    pages.drop(Range(0, 600))

    # When it is asked for, then that is a mistake
    with pytest.raises(AssertionError):
        pages.batch_at(0)


def test_a_run_is_cut_to_the_bytes_that_fit_across_batches() -> None:
    # Given batches of 10, 10 and 30 bytes of bodies
    pages = Pages()
    pages.append(batch(b"12345", b"67890"))
    pages.append(batch(b"1234567890"))
    pages.append(batch(b"1" * 10, b"2" * 10, b"3" * 10))
    run = Range(0, 6)

    # When ever more bytes are allowed
    ends = [
        pages.fitting(run, bytes_max).run.end for bytes_max in (0, 5, 9, 10, 19, 20, 30, 49, 50)
    ]

    # Then as many messages fit as are within, but always one
    assert ends == [1, 1, 1, 2, 2, 3, 4, 5, 6]


def test_a_run_may_start_in_the_middle_of_a_batch_when_it_is_cut() -> None:
    # Given one batch of five bodies of two bytes
    pages = Pages()
    pages.append(batch(*[b"xy"] * 5))

    # When a run from its second message on is cut to five bytes
    fitting = pages.fitting(Range(1, 5), 5)

    # Then two messages fit
    assert fitting.run == Range(1, 3)
    assert [piece[1:] for piece in fitting.pieces] == [(1, 2)]
    assert fitting.bodies_len == 4


def test_a_small_part_of_a_large_record_does_not_pin_the_record() -> None:
    # Given a batch that lies in the middle of a megabyte
    alone = batch(b"small")
    record = bytes(500_000) + alone.data + bytes(500_000)
    pages = Pages()

    # When it is appended
    pages.append(Batch.trusted(record, 500_000))

    # Then the page holds a copy of its own
    kept, _ = pages.batch_at(0)
    assert kept.data == alone.data


def test_a_batch_in_a_record_of_its_own_is_shared() -> None:
    # Given a batch behind the fixed part of an op
    record = bytes(40) + batch(*[b"x" * 100] * 600).data
    pages = Pages()

    # When it is appended
    pages.append(Batch.trusted(record, 40))

    # Then the page keeps that very record
    kept, _ = pages.batch_at(0)
    assert kept.data is record


def test_bookkeeping_is_at_most_eight_bytes_a_message_of_100_bytes() -> None:
    # Given 50,000 messages published one at a time, and as many in batches
    for each in (1, 100):
        pages = Pages()
        tracemalloc.start()
        try:
            filled(pages, 50_000, each=each)
            pages.seal()
            traced_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        # Then what is not the batches' own bytes is within it, and the accounts agree
        assert (traced_bytes - pages.bytes) / 50_000 <= 8
        assert abs(pages.resident_bytes - traced_bytes) <= 0.01 * traced_bytes


def test_a_page_that_is_in_a_file_takes_up_at_most_200_bytes_of_memory() -> None:
    # Given 22,000 pages: just too many for the table that would be large enough for 21,000
    source = batch(*[b"x" * 20] * 400)
    pages = Pages(page_bytes=source.size)
    tracemalloc.start()

    # When each is let go of, as one that is in a file
    try:
        for _ in range(22_000):
            pages.let_go(pages.append(source), 1)
        traced_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Then what is known of one is within it
    assert pages.away == 22_000
    assert traced_bytes / pages.away <= 200


def test_empty_pages_do_not_share_what_is_sealed_in_one_of_them() -> None:
    # Given two parts' pages
    one, other = Pages(), Pages()

    # When the first seals a page
    one.append(batch(b"x"))
    one.seal()

    # Then the second has only its tail
    assert (one.count, other.count, Pages().count) == (2, 1, 1)
