"""The rules of a part: what is handed out next, and what becomes of it."""

from __future__ import annotations

import pytest

import paging.ranges
from paging.pages import Pages
from paging.part import ATTEMPTS_MAX, Answer, Part, Purged
from paging.ranges import Counted, Range
from paging.spans import Spans
from tanist.wire.batch import IN_DOUBT, Batch, seal

ANNA, BERT = ("anna", 1), ("bert", 1)


def batch(*bodies: bytes, flags: int = 0) -> Batch:
    return Batch.parse(seal(list(bodies), [], flags=flags, first_n=1, time_ms=7))


def part_of(count: int) -> Part:
    """A part with messages of one byte, in one batch."""
    part = Part()
    part.append(batch(*[b"x"] * count))
    return part


def head(part: Part, count_max: int = 1000, bytes_max: int = 1 << 20) -> Range | None:
    found = part.head(count_max=count_max, bytes_max=bytes_max)
    return found and found.run


def give_back(part: Part, number: int, run: Range) -> Answer:
    """A consumer was lost with what it held: flagged, not counted."""
    return part.requeue(number, run, flagged=True, count_attempt=False)


def test_messages_go_out_in_the_order_in_which_they_came() -> None:
    # Given two batches
    part = Part()
    part.append(batch(b"a", b"b"))
    part.append(batch(b"c"))

    # When the head is delivered two at a time
    first = head(part, count_max=2)
    part.deliver(1, Range(0, 2), ANNA)
    second = head(part, count_max=2)
    part.deliver(2, Range(2, 3), ANNA)

    # Then it moved on through them, and nothing waits
    assert (first, second, head(part)) == (Range(0, 2), Range(2, 3), None)
    assert (part.ready, part.in_flight) == (0, 3)
    part.check()


def test_a_head_has_no_more_bytes_than_asked_for_but_always_a_message() -> None:
    # Given bodies of three bytes
    part = Part()
    part.append(batch(b"abc", b"def", b"ghi"))

    # When the head may have seven bytes, or none
    some, least = head(part, bytes_max=7), head(part, bytes_max=0)

    # Then it is two messages, or one
    assert (some, least) == (Range(0, 2), Range(0, 1))


def test_returned_messages_go_out_before_fresh_ones_and_not_together_with_them() -> None:
    # Given messages that were delivered and returned by their consumer
    part = part_of(10)
    part.deliver(1, Range(0, 4), ANNA)
    give_back(part, 1, Range(2, 4))

    # When the head is asked for
    returned = head(part)

    # Then it is these alone, though fresh ones follow at once
    assert returned == Range(2, 4)
    part.deliver(2, Range(2, 4), BERT)
    assert head(part) == Range(4, 10)
    part.check()


def test_flagged_and_unflagged_messages_do_not_go_out_together() -> None:
    # Given returned messages of which the middle ones are flagged
    part = part_of(9)
    part.deliver(1, Range(0, 9), ANNA)
    part.requeue(1, Range(0, 3), flagged=False, count_attempt=False)
    part.requeue(1, Range(3, 6), flagged=True, count_attempt=False)
    part.requeue(1, Range(6, 9), flagged=False, count_attempt=False)

    # When they are handed out
    heads = []
    for number in (2, 3, 4):
        run = head(part)
        assert run is not None
        heads.append((run, part.flagged(run)))
        part.deliver(number, run, BERT)

    # Then there is a run for each kind
    assert heads == [
        (Range(0, 3), []),
        (Range(3, 6), [Range(3, 6)]),
        (Range(6, 9), []),
    ]


def test_a_flag_stays_when_a_later_consumer_returns_the_message_without_one() -> None:
    # Given a flagged message that was delivered again
    part = part_of(2)
    part.deliver(1, Range(0, 1), ANNA)
    give_back(part, 1, Range(0, 1))
    part.deliver(2, Range(0, 1), BERT)

    # When it is returned without a flag
    part.requeue(2, Range(0, 1), flagged=False, count_attempt=False)

    # Then it still has its flag, until it is acknowledged
    assert part.flagged(Range(0, 2)) == [Range(0, 1)]
    part.deliver(3, Range(0, 1), BERT)
    part.ack(3, Range(0, 1))
    assert part.flagged(Range(0, 2)) == []


def test_a_batch_that_is_in_doubt_is_stored_as_flagged() -> None:
    # Given a batch and a repeat of another one to a new life of the stream
    part = Part()
    part.append(batch(b"a"))

    # When the repeat is appended
    part.append(batch(b"b", flags=IN_DOUBT))

    # Then only its message is flagged, and it does not go out with the other
    assert part.flagged(Range(0, 2)) == [Range(1, 2)]
    assert head(part) == Range(0, 1)


def test_attempts_are_counted_only_where_the_consumer_failed() -> None:
    # Given one delivery
    part = part_of(10)
    part.deliver(1, Range(0, 10), ANNA)

    # When some come back because of the consumer, others because of the broker
    part.requeue(1, Range(0, 4), flagged=True, count_attempt=True)
    part.requeue(1, Range(4, 10), flagged=True, count_attempt=False)
    part.deliver(2, Range(0, 10), ANNA)
    part.requeue(2, Range(2, 6), flagged=True, count_attempt=True)

    # Then each has its own number
    assert part.attempts(Range(0, 10)) == [
        Counted(Range(0, 2), 1),
        Counted(Range(2, 4), 2),
        Counted(Range(4, 6), 1),
    ]
    part.check()


def test_attempts_stop_at_what_a_delivery_can_carry() -> None:
    # Given a message that fails each time
    part = part_of(1)
    run = Range(0, 1)

    # When it does so more often than 16 bits can tell
    for number in range(ATTEMPTS_MAX + 2):
        part.deliver(number, run, ANNA)
        part.requeue(number, run, flagged=True, count_attempt=True)

    # Then the number stays where it is
    assert part.attempts(run) == [Counted(run, ATTEMPTS_MAX)]


def test_an_acknowledged_message_is_gone_and_its_bytes_are_given_back() -> None:
    # Given a delivered batch
    part = part_of(600)
    part.deliver(1, Range(0, 600), ANNA)

    # When all of it is acknowledged
    answer = part.ack(1, Range(0, 600))

    # Then that was all there was
    assert answer == Answer([Range(0, 600)], [], [])
    assert (part.ready, part.in_flight, part.bytes) == (0, 0, 0)
    part.check()


def test_an_ack_is_answered_piece_by_piece() -> None:
    # Given a delivery of which some was acknowledged and some requeued
    part = part_of(10)
    part.deliver(1, Range(0, 8), ANNA)
    part.ack(1, Range(1, 3))
    give_back(part, 1, Range(5, 6))

    # When all of it, and what was never delivered, is acknowledged
    answer = part.ack(1, Range(0, 10))

    # Then each piece is told what became of it
    assert answer.done == [Range(0, 1), Range(3, 5), Range(6, 8)]
    assert answer.already_done == [Range(1, 3)]
    assert answer.not_yours == [Range(5, 6), Range(8, 10)]
    part.check()


def test_a_repeated_ack_is_already_done() -> None:
    # Given a delivery that was acknowledged
    part = part_of(3)
    part.deliver(1, Range(0, 3), ANNA)
    part.ack(1, Range(0, 3))

    # When the same comes again
    answer = part.ack(1, Range(0, 3))

    # Then that is said, and nothing else happens
    assert answer == Answer([], [Range(0, 3)], [])
    part.check()


def test_a_late_ack_cannot_take_a_message_from_its_new_consumer() -> None:
    # Given a run that was delivered, requeued and delivered again
    part = part_of(2)
    run = Range(0, 2)
    part.deliver(1, run, ANNA)
    give_back(part, 1, run)
    part.deliver(2, run, BERT)

    # When the first consumer acknowledges it after all
    answer = part.ack(1, run)

    # Then it is told so, and the second one can still acknowledge
    assert answer.not_yours == [run]
    assert part.ack(2, run).done == [run]


def test_a_repeated_requeue_does_not_pull_a_message_from_its_new_consumer() -> None:
    # Given a run that was requeued and delivered again
    part = part_of(2)
    run = Range(0, 2)
    part.deliver(1, run, ANNA)
    give_back(part, 1, run)
    part.deliver(2, run, BERT)

    # When the requeue is repeated
    answer = give_back(part, 1, run)

    # Then the new consumer keeps it
    assert answer == Answer([], [], [run])
    assert part.held_by(BERT) == [(2, run)]


def test_what_a_consumer_holds_is_told_by_delivery() -> None:
    # Given deliveries to two consumers, one with a hole, one all acknowledged
    part = part_of(12)
    part.deliver(1, Range(0, 3), ANNA)
    part.deliver(2, Range(3, 6), BERT)
    part.deliver(3, Range(6, 9), ANNA)
    part.deliver(4, Range(9, 12), BERT)
    part.ack(3, Range(7, 8))
    part.ack(2, Range(3, 6))

    # When it is asked who holds what
    anna, bert, nobody = part.held_by(ANNA), part.held_by(BERT), part.held_by(("carl", 1))

    # Then it is what is left of each one's own
    assert anna == [(1, Range(0, 3)), (3, Range(6, 7)), (3, Range(8, 9))]
    assert bert == [(4, Range(9, 12))]
    assert nobody == []
    part.check()


def test_a_purge_takes_what_waits_and_leaves_what_is_held() -> None:
    # Given messages that are acknowledged, held, returned and fresh
    part = part_of(10)
    part.deliver(1, Range(0, 6), ANNA)
    part.ack(1, Range(0, 1))
    part.requeue(1, Range(2, 4), flagged=True, count_attempt=True)

    # When it is purged up to and with the eighth message
    purged = part.purge(7)

    # Then what was held stays, and so does what comes after
    assert purged == Purged(dropped=4, held=3)
    assert head(part) == Range(8, 10)
    assert part.held_by(ANNA) == [(1, Range(1, 2)), (1, Range(4, 6))]
    assert part.ack(1, Range(4, 8)).already_done == [Range(6, 8)]
    part.check()


@pytest.mark.parametrize(("count", "through", "dropped"), [(0, 0, 0), (3, 99, 3), (3, 0, 1)])
def test_a_purge_may_reach_beyond_the_end(count: int, through: int, dropped: int) -> None:
    # Given a part with so many messages
    part = Part()
    for _ in range(count):
        part.append(batch(b"x"))

    # When it is purged, then no more are dropped than there are
    assert part.purge(through) == Purged(dropped, 0)
    assert part.end == count
    part.check()


def test_a_skip_takes_what_waits_of_a_run_and_leaves_what_is_held() -> None:
    # Given messages that are held, returned and fresh
    part = part_of(10)
    part.deliver(1, Range(0, 6), ANNA)
    part.requeue(1, Range(2, 4), flagged=True, count_attempt=True)

    # When a run with some of each is skipped
    skipped = part.skip(Range(3, 8))

    # Then what was held stays, and so does what is before and after
    assert skipped == Purged(dropped=3, held=2)
    assert part.held_by(ANNA) == [(1, Range(0, 2)), (1, Range(4, 6))]
    assert part.waiting(Range(0, 10)) == [Range(2, 3), Range(8, 10)]
    part.check()


def test_a_requeue_of_ten_thousand_messages_is_one_run_of_each_kind() -> None:
    # Given ten thousand messages with one consumer
    part = Part()
    for _ in range(20):
        part.append(batch(*[b"x"] * 500))
    part.deliver(1, Range(0, 10_000), ANNA)

    # When all of them come back, flagged and counted
    part.requeue(1, Range(0, 10_000), flagged=True, count_attempt=True)

    # Then nothing is known of single messages
    assert part.flagged(Range(0, 10_000)) == [Range(0, 10_000)]
    assert part.attempts(Range(0, 10_000)) == [Counted(Range(0, 10_000), 1)]
    assert part.runs == 1


def test_the_usual_way_of_a_message_makes_no_container_of_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given that nobody may make a container of ranges
    def refuse(*, span_bits: int, runs_max: int) -> Spans:
        raise AssertionError("a container was made")

    monkeypatch.setattr(paging.ranges, "Spans", refuse)
    part = Part()

    # When batches come in, go out in runs that fit no batch, and are acknowledged whole
    number = 0
    for _ in range(10):
        part.append(batch(*[b"x"] * 600))
        while (run := head(part, count_max=64)) and run.size == 64:
            number += 1
            part.deliver(number, run, ANNA)
            assert part.ack(number, run).done == [run]

    # Then none was made, and everything but the rest went through
    assert part.ready == 6000 % 64
    part.check()


def test_holes_are_no_more_than_what_consumers_held_at_a_time() -> None:
    # Given a consumer that never acknowledges every second message, and one that does
    part = Part()
    part.append(batch(*[b"x"] * 5000))

    # When a hundred messages of credit see only fifty come back each time
    for number in range(50):
        run = head(part, count_max=100)
        assert run is not None
        part.deliver(number, run, ANNA)
        for offset in range(run.first, run.end, 2):
            part.ack(number, Range(offset, offset + 1))
        for offset in range(run.first + 1, run.end, 2):
            part.requeue(number, Range(offset, offset + 1), flagged=True, count_attempt=False)

        # Then the runs stay below that credit, and the fresh rest
        assert part.runs <= 101
    part.check()


def deliver_all(part: Part) -> None:
    part.deliver(1, Range(0, 4), ANNA)


def test_digests_are_equal_however_the_pages_were_cut() -> None:
    # Given two nodes with other pages
    parts = [Part(Pages(page_bytes=100)), Part()]

    # When both apply the same
    for part in parts:
        for body in (b"a", b"b" * 9000, b"c" * 90, b"d", b"e"):
            part.append(batch(body))
        deliver_all(part)
        part.ack(1, Range(1, 2))
        part.requeue(1, Range(2, 4), flagged=True, count_attempt=True)

    # Then their pages differ, and their digests do not
    assert parts[0].pages.count != parts[1].pages.count
    assert parts[0].digest() == parts[1].digest()


def test_whatever_differs_shows_in_the_digest() -> None:
    # Given histories that each end in another state
    def fresh(last: bytes = b"d") -> Part:
        part = Part()
        for body in (b"a", b"b", b"c", last):
            part.append(batch(body))
        return part

    def delivered(number: int = 1, holder: tuple[str, int] = ANNA) -> Part:
        part = fresh()
        part.deliver(number, Range(0, 4), holder)
        return part

    def returned(*, flagged: bool, count_attempt: bool) -> Part:
        part = delivered()
        part.requeue(1, Range(1, 2), flagged=flagged, count_attempt=count_attempt)
        return part

    acked, longer, purged = delivered(), fresh(), fresh()
    acked.ack(1, Range(0, 1))
    longer.append(batch(b"e"))
    purged.purge(0)

    # When their digests are taken
    digests = [
        part.digest()
        for part in (
            Part(), fresh(), fresh(b"D"), delivered(), delivered(number=2), delivered(holder=BERT),
            returned(flagged=False, count_attempt=False),
            returned(flagged=True, count_attempt=False),
            returned(flagged=False, count_attempt=True), acked, longer, purged,
        )
    ]  # fmt: skip

    # Then no two are equal
    assert len(set(digests)) == len(digests)


def test_a_delivery_number_is_given_once() -> None:
    # Given a delivery
    part = part_of(2)
    part.deliver(1, Range(0, 1), ANNA)

    # When another one has its number, then that is a mistake
    with pytest.raises(AssertionError):
        part.deliver(1, Range(1, 2), BERT)


def test_what_is_held_is_not_delivered_to_another() -> None:
    # Given a held message
    part = part_of(2)
    part.deliver(1, Range(0, 1), ANNA)

    # When it is delivered to somebody else as well, then that is a mistake
    with pytest.raises(AssertionError):
        part.deliver(2, Range(0, 2), BERT)
