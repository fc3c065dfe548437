"""The dispatcher: fair turns, credit, and who is told that messages wait."""

from __future__ import annotations

from broker.core.dispatcher import (
    ALONE_MESSAGES_MAX,
    AT_ONCE,
    PLAN_PIECES_MAX,
    READY_AGAIN_S,
    RUN_BYTES_MAX,
    RUN_MESSAGES_MAX,
    Planned,
)
from broker.core.ops import Attach, Deliver
from tests.unit.post_offices import PLENTY, QUEUE, Office, holder, queue_info, spans


def messages(count: int) -> list[bytes]:
    return [b"x"] * count


def delivered(planned: list[Planned], leg: int) -> int:
    return sum(p.count for p in planned if p.leg == leg)


def facts(planned: list[Planned]) -> list[tuple[int, int, int, int, int, bool]]:
    """Leg, part, delivery number, first, count and flag of each, without the messages."""
    return [(p.leg, p.part, p.number, p.first, p.count, p.redelivered) for p in planned]


def test_I40_a_published_message_is_planned_in_the_same_turn() -> None:
    # Given a leg with credit
    office = Office()
    office.add_leg(7, messages=10)

    # When messages are published and the turn ends
    office.publish(b"a", b"b")
    planned = office.plan()

    # Then their delivery is an op of the same turn, right behind the attachment
    assert facts(planned) == [(7, 1, 1, 0, 2, False)]
    assert office.log[-2:] == [Attach(1, 1, *holder(7), False), Deliver(1, 0, 2, 1, 1)]
    assert office.state.in_flight_of(1, holder(7))[0][0] == 1


def test_a_consumer_is_attached_once() -> None:
    # Given a consumer that was served
    office = Office()
    office.add_leg(1, messages=10, automatic=True)
    office.publish(b"a")
    office.plan()

    # When it is served again
    office.publish(b"b")
    office.plan()

    # Then the stream has one attachment
    assert [op for op in office.log if isinstance(op, Attach)] == [Attach(1, 1, *holder(1), True)]


def test_a_leg_without_messages_costs_the_stream_nothing() -> None:
    # Given a leg with credit, and no messages
    office = Office()
    office.add_leg(1, messages=10)

    # When the turn ends
    planned = office.plan()

    # Then nothing was appended
    assert planned == []
    assert office.log == []


def test_messages_that_waited_are_planned_when_a_leg_comes() -> None:
    # Given a new owner with messages, who was told nothing about them
    office = Office()
    office.publish(b"a", b"b")
    office.plan()

    # When a leg comes and gives credit
    office.add_leg(1, messages=1)

    # Then it gets as much as it allows
    assert spans(office.plan()) == [(1, 0, 1)]


def test_credit_is_cumulative_and_repeating_it_gives_nothing() -> None:
    # Given a leg that used its credit of two
    office = Office()
    office.publish(*messages(5))
    office.add_leg(1, messages=2)
    office.plan()

    # When it says the same again, then less, then three
    office.dispatcher.credit(1, 2, PLENTY)
    office.dispatcher.credit(1, 1, PLENTY)
    before = office.plan()
    office.dispatcher.credit(1, 3, PLENTY)

    # Then only the third brings a message
    assert before == []
    assert spans(office.plan()) == [(1, 2, 1)]


def test_a_leg_without_credit_is_skipped() -> None:
    # Given three legs, the second of which has no credit
    office = Office()
    office.add_leg(1, messages=100)
    office.add_leg(2)
    office.add_leg(3, messages=100)

    # When messages come
    office.publish(*messages(150))

    # Then the others share them
    planned = office.plan()
    assert delivered(planned, 2) == 0
    assert delivered(planned, 1) + delivered(planned, 3) == 150


def test_legs_with_credit_take_turns_in_runs() -> None:
    # Given three legs with plenty of credit
    office = Office()
    for leg in (1, 2, 3):
        office.add_leg(leg, messages=10_000)

    # When much is published
    office.publish(*messages(6 * RUN_MESSAGES_MAX))

    # Then each has its turn, twice
    run = RUN_MESSAGES_MAX
    assert spans(office.plan()) == [(1 + i % 3, i * run, run) for i in range(6)]


def test_turns_go_on_where_they_stopped() -> None:
    # Given two legs, the first of which had the last turn
    office = Office()
    office.add_leg(1, messages=100)
    office.add_leg(2, messages=100)
    office.publish(b"a")
    first = office.plan()

    # When messages come one by one
    served = []
    for _ in range(4):
        office.publish(b"b")
        served += spans(office.plan())

    # Then they alternate
    assert spans(first) == [(1, 0, 1)]
    assert [leg for leg, _, _ in served] == [2, 1, 2, 1]


def test_S26_many_legs_share_evenly_over_time() -> None:
    # Given ten legs that settle what they get and allow more
    office = Office()
    legs = range(1, 11)
    for leg in legs:
        office.add_leg(leg, messages=30)
    served = dict.fromkeys(legs, 0)

    # When batches come for a while
    for _ in range(100):
        office.publish(*messages(37))
        for p in office.plan():
            served[p.leg] += p.count
            office.ack((p.number, p.first, p.count))
            office.dispatcher.credit(p.leg, served[p.leg] + 30, PLENTY)

    # Then nobody got much more than another
    assert sum(served.values()) == 3_700
    assert max(served.values()) - min(served.values()) <= 37


def test_a_batch_for_the_only_leg_with_credit_is_not_chopped() -> None:
    # Given two legs, one of them with credit
    office = Office()
    office.add_leg(1, messages=10_000)
    office.add_leg(2)

    # When a batch of 600 comes
    office.publish(*messages(600))

    # Then it is one run
    assert spans(office.plan()) == [(1, 0, 600)]


def test_a_long_backlog_for_one_leg_is_cut_into_runs_that_are_bounded() -> None:
    # Given more than one run may have
    office = Office()
    office.publish(*messages(ALONE_MESSAGES_MAX + 10))

    # When one leg comes
    office.add_leg(1, messages=10_000)

    # Then it gets all, in two runs
    assert spans(office.plan()) == [(1, 0, ALONE_MESSAGES_MAX), (1, ALONE_MESSAGES_MAX, 10)]


def test_a_run_is_bounded_in_bytes() -> None:
    # Given messages of which three fill a run, and two legs
    office = Office()
    office.add_leg(1, messages=100)
    office.add_leg(2, messages=100)

    # When five come
    for _ in range(5):
        office.publish(b"x" * (RUN_BYTES_MAX // 3))

    # Then the first leg gets three of them
    assert spans(office.plan()) == [(1, 0, 3), (2, 3, 2)]


def test_a_large_message_may_go_beyond_the_bytes_that_are_left() -> None:
    # Given a leg with one byte of credit
    office = Office()
    office.add_leg(1, messages=10, bytes_=1)

    # When two large messages come
    office.publish(b"x" * 1_000, b"y" * 1_000)

    # Then it gets one of them, and its credit is used up
    assert spans(office.plan()) == [(1, 0, 1)]
    assert office.plan() == []


def test_bytes_of_credit_are_counted_over_runs() -> None:
    # Given a leg with credit for two and a half messages
    office = Office()
    office.add_leg(1, messages=100, bytes_=250)

    # When they come one by one
    for _ in range(5):
        office.publish(b"x" * 100)

    # Then three go, the last one beyond the limit
    assert spans(office.plan()) == [(1, 0, 2), (1, 2, 1)]
    assert office.plan() == []


def test_I51_returned_messages_come_first_and_apart_from_fresh_ones() -> None:
    # Given a message that was returned, and three fresh ones
    office = Office()
    office.add_leg(1, messages=2)
    office.publish(b"a", b"b")
    (first,) = office.plan()
    office.ack((first.number, 0, 1))
    office.requeue((first.number, 1, 1))
    office.publish(b"c", b"d", b"e")

    # When a leg has credit for all
    office.dispatcher.credit(1, 100, PLENTY)

    # Then the returned one is a delivery of its own, and says what it is
    assert facts(office.plan()) == [(1, 1, 2, 1, 1, True), (1, 1, 3, 2, 3, False)]


def test_credit_that_was_called_back_is_what_was_planned() -> None:
    # Given a leg with three of ten messages planned
    office = Office()
    office.add_leg(1, messages=10, bytes_=10_000)
    office.publish(b"aa", b"bb", b"cc")
    office.plan()

    # When its credit is called back, and more comes
    planned = office.dispatcher.credit_back(1)
    office.publish(b"dd")

    # Then the answer counts what was planned, and nothing more is
    assert planned == (3, 6)
    assert office.plan() == []


def test_credit_given_after_it_was_called_back_counts_from_the_start_of_the_channel() -> None:
    # Given a leg whose credit of ten was called back after three
    office = Office()
    office.add_leg(1, messages=10)
    office.publish(*messages(3))
    office.plan()
    office.dispatcher.credit_back(1)
    office.publish(*messages(10))

    # When it allows five in all
    office.dispatcher.credit(1, 5, PLENTY)

    # Then two more come
    assert sum(p.count for p in office.plan()) == 2


def test_a_leg_that_is_gone_gets_nothing() -> None:
    # Given two legs, one of which is removed
    office = Office()
    office.add_leg(1, messages=100)
    office.add_leg(2, messages=100)
    office.dispatcher.remove_leg(1)

    # When messages come
    office.publish(*messages(200))

    # Then the other one gets all of them
    assert spans(office.plan()) == [(2, 0, 100)]


def test_I53_a_leg_is_held_to_a_bound_whatever_its_client_allows() -> None:
    # Given a client that allows a million, and a bound of 100
    office = Office(unacked_max=100)
    office.add_leg(1, messages=1_000_000)
    office.publish(*messages(250))
    first = office.plan()

    # When it settles 30 of them
    office.ack((first[0].number, 0, 30))
    office.dispatcher.settled(1, 30)
    second = office.plan()

    # Then 30 more follow, and meanwhile nobody says READY to one who cannot help it
    assert spans(first) == [(1, 0, 100)]
    assert spans(second) == [(1, 100, 30)]
    assert office.dispatcher.ready_legs(0.0) == []


def test_what_an_earlier_channel_was_sent_does_not_widen_the_bound() -> None:
    # Given a leg that has been sent nothing
    office = Office(unacked_max=10)
    office.add_leg(1, messages=100)

    # When its client settles what it holds from before, and messages come
    office.dispatcher.settled(1, 50)
    office.publish(*messages(30))

    # Then the bound is what it was
    assert spans(office.plan()) == [(1, 0, 10)]


def test_queues_take_turns_within_a_call() -> None:
    # Given two queues with long backlogs of single messages, a leg on each
    office = Office()
    other = queue_info(2)
    for _ in range(ALONE_MESSAGES_MAX + 1):
        office.publish(b"x")
        office.publish(b"y", queue=other)
    office.add_leg(1, messages=PLENTY)
    office.add_leg(2, messages=PLENTY, queue=other)

    # When they are planned
    first, second = office.plan(), office.plan()

    # Then the second queue has its turn before the first has its next one
    assert spans(first) == [(1, 0, ALONE_MESSAGES_MAX)]
    assert spans(second) == [(2, 0, ALONE_MESSAGES_MAX)]


def test_a_call_does_a_bounded_amount_of_work_and_asks_for_another() -> None:
    # Given more batches than one call may touch
    office = Office()
    for _ in range(PLAN_PIECES_MAX + 500):
        office.publish(b"x")
    office.add_leg(1, messages=PLENTY)
    office.add_leg(2, messages=PLENTY)

    # When it is called once
    first = office.plan()
    deadline = office.dispatcher.next_deadline()
    second = office.plan()

    # Then the rest is planned at once by another call
    assert PLAN_PIECES_MAX - 100 < sum(p.count for p in first) < PLAN_PIECES_MAX + 100
    assert deadline == AT_ONCE
    assert sum(p.count for p in (*first, *second)) == PLAN_PIECES_MAX + 500
    assert office.dispatcher.next_deadline() is None


def test_the_part_of_a_queue_that_was_deleted_is_let_go() -> None:
    # Given a leg with credit on a part that is dropped while work waits
    office = Office()
    office.add_leg(1, messages=10)
    office.publish(b"a")
    office.drop(1)

    # When the turn ends
    planned = office.plan()

    # Then there is nothing to do
    assert planned == []
    assert office.dispatcher.ready_legs(0.0) == []


def test_ready_is_said_when_messages_begin_to_wait() -> None:
    # Given two legs without credit
    office = Office()
    office.add_leg(1)
    office.add_leg(2)
    before = office.dispatcher.ready_legs(0.0)

    # When five messages come
    office.publish(*messages(5))
    office.plan()

    # Then both are told, once
    assert before == []
    assert office.dispatcher.ready_legs(1.0) == [1, 2]
    assert office.dispatcher.ready_legs(2.0) == []
    assert office.dispatcher.next_deadline() is None


def test_ready_is_said_to_no_more_legs_than_messages_wait() -> None:
    # Given five legs without credit
    office = Office()
    for leg in range(1, 6):
        office.add_leg(leg)

    # When two messages come
    office.publish(b"a", b"b")

    # Then two are told, and after 50 ms without credit two more, and so on
    assert office.dispatcher.ready_legs(1.0) == [1, 2]
    assert office.dispatcher.next_deadline() == 1.0 + READY_AGAIN_S
    assert office.dispatcher.ready_legs(1.0 + 0.9 * READY_AGAIN_S) == []
    assert office.dispatcher.ready_legs(1.0 + READY_AGAIN_S) == [3, 4]
    assert office.dispatcher.ready_legs(1.0 + 2 * READY_AGAIN_S) == [5]
    assert office.dispatcher.next_deadline() is None


def test_messages_that_come_while_some_wait_are_for_more_legs() -> None:
    # Given a leg that was told of one message
    office = Office()
    for leg in range(1, 6):
        office.add_leg(leg)
    office.publish(b"a")
    first = office.dispatcher.ready_legs(0.0)

    # When two more come
    office.publish(b"b", b"c")
    office.plan()

    # Then two more are told at once
    assert first == [1]
    assert office.dispatcher.ready_legs(0.001) == [2, 3]


def test_a_leg_whose_credit_runs_out_while_messages_wait_is_told() -> None:
    # Given a leg with credit for one of three messages
    office = Office()
    office.add_leg(1, messages=1)

    # When they come
    office.publish(*messages(3))
    office.plan()

    # Then it is told that there are more
    assert office.dispatcher.ready_legs(0.0) == [1]


def test_a_leg_is_told_again_each_time_its_credit_runs_out() -> None:
    # Given five messages, and a leg that was told of them
    office = Office()
    office.add_leg(1)
    office.publish(*messages(5))
    told = [office.dispatcher.ready_legs(0.0)]

    # When it allows one, time after time
    for allowed in range(1, 6):
        office.dispatcher.credit(1, allowed, PLENTY)
        office.plan()
        told.append(office.dispatcher.ready_legs(0.001 * allowed))

    # Then it hears each time that more wait, and not when none does
    assert told == [[1], [1], [1], [1], [1], []]


def test_busy_consumers_that_were_told_do_not_keep_a_free_one_waiting() -> None:
    # Given three consumers that were told and are busy, and a free one that took a message
    office = Office()
    office.publish(*messages(4))
    for leg in (1, 2, 3, 4):
        office.add_leg(leg)
    office.dispatcher.ready_legs(0.0)
    office.dispatcher.credit(4, 1, PLENTY)
    office.plan()
    office.dispatcher.ready_legs(0.001)
    office.dispatcher.ready_legs(0.001 + READY_AGAIN_S)

    # When it takes one more
    office.dispatcher.credit(4, 2, PLENTY)
    office.plan()

    # Then it is told of the next one at once, though the others still hope for two
    assert office.state.stat(QUEUE.id).ready == 2
    assert office.dispatcher.ready_legs(0.002 + READY_AGAIN_S) == [4]


def test_nobody_is_told_while_a_leg_has_credit() -> None:
    # Given a leg with credit, and one without
    office = Office()
    office.add_leg(1, messages=100)
    office.add_leg(2)

    # When messages come
    office.publish(*messages(50))
    office.plan()

    # Then they went where the credit was
    assert office.dispatcher.ready_legs(0.0) == []
    assert office.dispatcher.next_deadline() is None


def test_a_leg_that_was_told_and_gave_no_credit_is_not_told_twice() -> None:
    # Given a leg that was told, whose message then went to another one
    office = Office()
    office.add_leg(1)
    office.add_leg(2)
    office.publish(b"a")
    first = office.dispatcher.ready_legs(0.0)
    office.dispatcher.credit(2, 1, PLENTY)
    office.plan()
    office.dispatcher.ready_legs(0.001)

    # When another message begins to wait
    office.publish(b"b")
    office.plan()

    # Then the one that has heard nothing is told at once: the other one has READY already
    assert first == [1]
    assert office.dispatcher.ready_legs(0.002) == [2]


def test_when_a_told_leg_goes_another_is_told_in_its_place() -> None:
    # Given two legs, one of which was told of the only message
    office = Office()
    office.add_leg(1)
    office.add_leg(2)
    office.publish(b"a")
    first = office.dispatcher.ready_legs(0.0)

    # When that one closes
    office.dispatcher.remove_leg(1)

    # Then the other one need not wait 50 ms
    assert first == [1]
    assert office.dispatcher.ready_legs(0.001) == [2]


def test_a_leg_that_comes_while_messages_wait_is_told() -> None:
    # Given messages without a leg
    office = Office()
    office.publish(*messages(3))
    office.plan()

    # When one comes
    office.add_leg(1)

    # Then it is told
    assert office.dispatcher.ready_legs(0.0) == [1]


def test_who_calls_credit_back_while_messages_wait_hears_of_them() -> None:
    # Given a leg with credit
    office = Office()
    office.add_leg(1, messages=10)

    # When it calls it back in the turn in which a message comes
    office.publish(b"a")
    office.dispatcher.credit_back(1)
    office.plan()

    # Then it is told that one waits
    assert office.dispatcher.ready_legs(0.0) == [1]


def test_after_the_last_leg_nothing_is_left_to_do() -> None:
    # Given two legs, told and not told, and a time at which more would be
    office = Office()
    office.add_leg(1)
    office.add_leg(2)
    office.publish(b"a")
    office.dispatcher.ready_legs(0.0)

    # When both close
    office.dispatcher.remove_leg(2)
    office.dispatcher.remove_leg(1)

    # Then no time is set, and nobody is told
    assert office.dispatcher.next_deadline() is None
    assert office.dispatcher.ready_legs(1.0) == []
    office.dispatcher.check()


def test_a_purge_ends_the_waiting() -> None:
    # Given two legs and one message, of which one leg was told
    office = Office()
    office.add_leg(1)
    office.add_leg(2)
    office.publish(b"a")
    office.dispatcher.ready_legs(0.0)

    # When the message is purged, and the time comes at which another would be told
    office.purge(0)

    # Then nobody is
    assert office.dispatcher.ready_legs(READY_AGAIN_S) == []
    assert office.dispatcher.next_deadline() is None


def test_credit_from_one_who_was_told_puts_off_that_others_are() -> None:
    # Given three legs and two messages, of which two legs were told
    office = Office()
    for leg in (1, 2, 3):
        office.add_leg(leg)
    office.publish(b"a", b"b")
    office.dispatcher.ready_legs(0.0)

    # When one of them gives credit for one message, a little later
    office.dispatcher.credit(1, 1, PLENTY)
    office.plan()
    told = office.dispatcher.ready_legs(0.02)

    # Then the 50 ms begin again
    assert told == []
    assert office.dispatcher.next_deadline() == 0.02 + READY_AGAIN_S


def test_no_time_is_set_once_nothing_waits() -> None:
    # Given a message of which one of two legs was told
    office = Office()
    office.add_leg(1)
    office.add_leg(2)
    office.publish(b"a")
    office.dispatcher.ready_legs(0.0)

    # When the other one takes it
    office.dispatcher.credit(2, 1, PLENTY)
    office.plan()
    office.dispatcher.ready_legs(0.001)

    # Then there is nothing to wake up for
    assert office.dispatcher.next_deadline() is None


def test_nothing_fresh_is_handed_out_while_a_part_has_too_many_holes() -> None:
    # Given a part that may have no more than a few holes, with every second message acknowledged
    office = Office(bookkeeping_bytes_max=3_000)
    office.publish(*[b"x"] * 1_000)
    office.add_leg(1, messages=100)
    [planned] = office.plan()
    before = office.state.part(1).bookkeeping_bytes
    office.ack(*[(planned.number, offset, 1) for offset in range(0, 100, 2)])
    assert before < 3_000 < office.state.part(1).bookkeeping_bytes

    # When the leg has credit again
    office.dispatcher.settled(1, 50)
    office.dispatcher.credit(1, 200, PLENTY)
    waits = office.plan()

    # Then it gets nothing new; but when it acknowledges the rest, it does
    assert waits == []
    office.ack(*[(planned.number, offset, 1) for offset in range(1, 100, 2)])
    office.dispatcher.settled(1, 50)
    assert spans(office.plan()) == [(1, 100, 100)]
