"""The history checker: each kind of violation is found in a history that was made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from msgspec.structs import replace as changed

from tests.simulation.history import (
    Answered,
    Confirmed,
    Consumes,
    Counts,
    Gone,
    Handed,
    Left,
    Message,
    PassedOver,
    Posted,
    Recorded,
    Refused,
    Settled,
    StreamLost,
    Unanswered,
    check,
)

FIRST, SECOND = Message("p", 1), Message("p", 2)


def posted(message: Message = FIRST, at: float = 1.0) -> Posted:
    return Posted(at=at, message=message, queue="q")


def confirmed(message: Message = FIRST, at: float = 2.0, epoch: int = 1) -> Confirmed:
    return Confirmed(at=at, message=message, sid=1, gen=1, epoch=epoch, copies=3)


def handed(
    message: Message = FIRST,
    at: float = 3.0,
    *,
    number: int = 7,
    client: str = "x",
    redelivered: bool = False,
) -> Handed:
    return Handed(
        at=at,
        message=message,
        queue="q",
        client=client,
        consumer=f"{client}-c",
        sid=1,
        gen=1,
        part=1,
        offset=message.n,
        number=number,
        redelivered=redelivered,
    )


def settled(copy: Handed, *, acked: bool = True) -> Settled:
    return Settled(
        at=copy.at + 0.1,
        message=copy.message,
        consumer=copy.consumer,
        sid=copy.sid,
        gen=copy.gen,
        number=copy.number,
        acked=acked,
    )


def answered(copy: Handed, *, good: bool = True) -> Answered:
    return Answered(
        at=copy.at + 0.2,
        message=copy.message,
        consumer=copy.consumer,
        sid=copy.sid,
        gen=copy.gen,
        number=copy.number,
        acked=True,
        good=good,
    )


def story(message: Message = FIRST, at: float = 1.0) -> list[Recorded]:
    """A message that was posted, confirmed, handed out and acknowledged."""
    copy = handed(message, at + 2, number=int(at * 100))
    return [posted(message, at), confirmed(message, at + 1), copy, settled(copy), answered(copy)]


def kinds(events: Sequence[Recorded]) -> set[str]:
    return check(events).kinds()


def test_a_history_in_which_all_went_well_is_clean() -> None:
    # Given two messages that were posted, confirmed, handed out and acknowledged, and a queue
    # that is empty in the end
    events: list[Recorded] = [*story(FIRST, 1.0), *story(SECOND, 1.5)]
    events.append(Left(at=9.0, queue="q", sid=1, ready=0, in_flight=0))

    # When it is checked
    verdict = check(events)

    # Then there is nothing to say, and it was not vacuous
    assert verdict.violations == []
    assert verdict.counts == Counts(posted=2, confirmed=2, handed=2, acked=2)
    assert verdict.counts.vacuous() == []


def test_a_confirmed_message_that_nobody_acknowledged_is_lost() -> None:
    # Given three messages of one producer, of which the second one went nowhere
    third = Message("p", 3)
    events: list[Recorded] = [
        *story(FIRST, 1.0),
        posted(SECOND),
        confirmed(SECOND),
        *story(third, 1.5),
    ]

    # When they are checked
    verdict = check(events)

    # Then it is named, with its place
    assert [v.kind for v in verdict.violations] == ["lost"]
    assert "p#2 (in the middle" in verdict.violations[0].text


def test_a_message_that_was_handed_out_and_then_forgotten_is_lost() -> None:
    # Given a consumer that was given a message and died with it
    events: list[Recorded] = [posted(), confirmed(), handed(), Gone(at=4.0, client="x")]

    # When nobody is given it again
    found = kinds(events)

    # Then it is lost, although it was delivered
    assert found == {"lost"}


def test_what_was_never_confirmed_may_be_lost_or_handed_out() -> None:
    # Given one message without an answer that is gone, and one that came through
    copy = handed(SECOND)
    events: list[Recorded] = [posted(FIRST), posted(SECOND), copy, settled(copy)]

    # When they are checked
    verdict = check(events)

    # Then both are right, and counted
    assert verdict.violations == []
    assert (verdict.counts.in_doubt, verdict.counts.recovered) == (1, 1)


def test_what_was_lost_with_its_stream_is_excused_and_nothing_else_is() -> None:
    # Given two confirmed messages of one post office that went nowhere, of two gens
    later = changed(confirmed(SECOND), gen=2)
    events: list[Recorded] = [posted(FIRST), confirmed(FIRST), posted(SECOND), later]

    # When the first gen was declared lost
    verdict = check([*events, StreamLost(at=5.0, sid=1, gen=1)])

    # Then only the other message is missed
    assert verdict.counts.excused == 1
    assert [v.kind for v in verdict.violations] == ["lost"]
    assert "p#2" in verdict.violations[0].text


def test_a_message_that_nobody_posted_is_unexpected() -> None:
    # Given a delivery of a message that does not exist
    copy = handed()

    # When it is checked
    found = kinds([copy, settled(copy)])

    # Then it is found
    assert found == {"unexpected"}


def test_a_message_that_was_refused_must_not_be_handed_out() -> None:
    # Given a message whose producer was told that it was not taken
    copy = handed()

    # When a consumer gets it all the same
    found = kinds([posted(), Refused(at=2.0, message=FIRST), copy, settled(copy)])

    # Then it is found
    assert found == {"unexpected"}


def test_the_next_life_of_a_stream_may_refuse_what_was_stored_in_the_one_before() -> None:
    # Given a message that was stored, and in doubt when its stream was lost
    copy = handed()
    events: list[Recorded] = [posted(), copy, settled(copy), StreamLost(at=4.0, sid=1, gen=1)]

    # When its repeat is refused
    found = kinds([*events, Refused(at=5.0, message=FIRST)])

    # Then nothing is wrong
    assert found == set()


def test_a_second_copy_without_the_flag_is_a_duplicate_even_if_the_holder_is_gone() -> None:
    # Given a consumer that died with a message
    events: list[Recorded] = [posted(), confirmed(), handed(), Gone(at=4.0, client="x")]

    # When another one is given it as if it were new
    copy = handed(at=5.0, number=8, client="y")
    found = kinds([*events, copy, settled(copy)])

    # Then it is found
    assert found == {"duplicated"}


def test_copies_are_ordered_by_delivery_number_and_not_by_arrival() -> None:
    # Given a message that was handed out again, with the flag, since its holder was out of touch
    again = handed(at=5.0, number=8, client="y", redelivered=True)
    events: list[Recorded] = [
        posted(),
        confirmed(),
        again,
        settled(again),
        Gone(at=7.0, client="x"),
    ]

    # When the first holder reads its old copy, which has no flag, after that
    found = kinds([*events, handed(at=6.0, number=7, client="x")])

    # Then nothing is wrong
    assert found == set()


def test_a_flagged_copy_is_a_duplicate_if_the_holder_was_there_all_the_time() -> None:
    # Given a message that a consumer has
    events: list[Recorded] = [posted(), confirmed(), handed()]

    # When another one is given it, and the first one neither returned it nor was gone
    copy = handed(at=5.0, number=8, client="y", redelivered=True)
    found = kinds([*events, copy, settled(copy)])

    # Then it is found
    assert found == {"duplicated"}


def test_what_was_on_its_way_when_its_client_was_gone_may_be_handed_out_twice() -> None:
    # Given a client that was gone, and then reads what had been on its way to it
    events: list[Recorded] = [posted(), confirmed(), Gone(at=4.0, client="x"), handed(at=5.0)]

    # When another one is given the message too, with the flag
    copy = handed(at=4.5, number=8, client="y", redelivered=True)
    found = kinds([*events, copy, settled(copy)])

    # Then nothing is wrong; it would be, had the client been gone before there was the message
    assert found == set()
    events[2] = Gone(at=0.5, client="x")
    assert kinds([*events, copy, settled(copy)]) == {"duplicated"}


def test_what_a_consumer_returned_may_be_handed_out_again() -> None:
    # Given a consumer that returned its message
    first = handed()
    events: list[Recorded] = [posted(), confirmed(), first, settled(first, acked=False)]

    # When another one is given it, with the flag
    copy = handed(at=5.0, number=8, client="y", redelivered=True)
    verdict = check([*events, copy, settled(copy)])

    # Then nothing is wrong, and it is counted
    assert verdict.violations == []
    assert (verdict.counts.returned, verdict.counts.redelivered) == (1, 1)


@pytest.mark.parametrize("change", [{"number": 7}, {"offset": 2}, {"sid": 2}, {"part": 2}])
def test_a_message_has_one_place_and_each_delivery_a_number_of_its_own(
    change: dict[str, int],
) -> None:
    # Given a message that was handed out, and returned
    first = handed()
    events: list[Recorded] = [posted(), confirmed(), first, settled(first, acked=False)]

    # When it comes again under the same number, or from another place
    copy = changed(handed(at=5.0, number=8, redelivered=True), **change)
    found = kinds([*events, copy, settled(copy)])

    # Then it is found
    assert found == {"duplicated"}


def test_what_was_in_doubt_when_its_stream_was_lost_comes_again_only_with_the_flag() -> None:
    # Given a message that was handed out, and then its stream was lost
    events: list[Recorded] = [posted(), handed(), StreamLost(at=4.0, sid=1, gen=1)]

    # When it comes again from the next life of the stream, with and without the flag
    flagged = changed(handed(at=5.0, number=1, redelivered=True), gen=2, offset=0)
    unflagged = changed(flagged, redelivered=False)

    # Then only the latter is wrong
    assert kinds([*events, flagged, settled(flagged)]) == set()
    assert kinds([*events, unflagged, settled(unflagged)]) == {"duplicated"}


def test_a_producers_messages_reach_a_queues_only_consumer_in_order() -> None:
    # Given two messages of one producer
    events: list[Recorded] = [
        posted(FIRST, 1.0),
        posted(SECOND, 1.1),
        confirmed(FIRST),
        confirmed(SECOND),
    ]

    # When the consumer gets the second one first
    copies = [handed(SECOND, 3.0, number=7), handed(FIRST, 4.0, number=8)]
    found = kinds([*events, *copies, *map(settled, copies)])

    # Then it is found
    assert found == {"reordered"}


def test_what_was_said_to_be_unreadable_may_come_late_and_nothing_else_may() -> None:
    # Given two messages of one producer, of which the first could not be read for a while
    events: list[Recorded] = [posted(FIRST, 1.0), posted(SECOND, 1.1)]
    events += [confirmed(FIRST), confirmed(SECOND)]
    copies = [handed(SECOND, 3.0), handed(FIRST, 4.0, number=8)]
    events += [*copies, *map(settled, copies)]

    # When a node says so of it, or of messages beside it
    excused = kinds([*events, PassedOver(at=2.0, queue="q", sid=1, first=1, end=2)])
    others = [
        PassedOver(at=2.0, queue="q", sid=1, first=0, end=1),
        PassedOver(at=2.0, queue="q", sid=2, first=1, end=2),
        PassedOver(at=2.0, queue="r", sid=1, first=1, end=2),
    ]
    not_excused = kinds([*events, *others])

    # Then only the first is a reason to hand it out after the second
    assert excused == set()
    assert not_excused == {"reordered"}


def test_two_consumers_share_a_queue_in_any_order() -> None:
    # Given two messages of one producer
    events: list[Recorded] = [
        posted(FIRST, 1.0),
        posted(SECOND, 1.1),
        confirmed(FIRST),
        confirmed(SECOND),
    ]

    # When one consumer gets the second one before another one gets the first
    copies = [handed(SECOND, 3.0, client="x"), handed(FIRST, 4.0, number=8, client="y")]
    found = kinds([*events, *copies, *map(settled, copies)])

    # Then nothing is wrong
    assert found == set()


def test_a_second_consumer_counts_even_if_it_was_given_nothing() -> None:
    # Given two messages of one producer, and two consumers
    events: list[Recorded] = [posted(FIRST, 1.0), posted(SECOND, 1.1)]
    events += [confirmed(FIRST), confirmed(SECOND), Consumes(at=0.5, queue="q", consumer="y-c")]

    # When what was meant for the one, and never left, goes to the other after later messages
    copies = [handed(SECOND, 3.0, number=7), handed(FIRST, 4.0, number=8)]
    found = kinds([*events, *copies, *map(settled, copies)])

    # Then nothing is wrong
    assert found == set()


def test_an_acknowledged_message_does_not_come_back() -> None:
    # Given a message whose acknowledgement was answered well
    first = handed()
    events: list[Recorded] = [posted(), confirmed(), first, settled(first), answered(first)]
    events.append(Gone(at=4.0, client="x"))

    # When it comes again, with the flag
    found = kinds([*events, handed(at=5.0, number=8, redelivered=True)])

    # Then it is found
    assert found == {"resurrected"}


def test_an_acknowledgement_that_was_not_his_forbids_nothing() -> None:
    # Given a holder that was out of touch, and is told that the message is not his
    late = handed()
    events: list[Recorded] = [
        posted(),
        confirmed(),
        late,
        settled(late),
        answered(late, good=False),
    ]
    events.append(Gone(at=4.0, client="x"))

    # When the message goes to another one
    copy = handed(at=5.0, number=8, client="y", redelivered=True)
    verdict = check([*events, copy, settled(copy)])

    # Then nothing is wrong, and it is counted
    assert verdict.violations == []
    assert verdict.counts.not_yours == 1


def test_a_late_acknowledgement_takes_a_message_from_nobody() -> None:
    # Given a holder that was out of touch, and another one that has the message now
    late, copy = handed(), handed(at=5.0, number=8, client="y", redelivered=True)
    events: list[Recorded] = [posted(), confirmed(), late, Gone(at=4.0, client="x"), copy]

    # When the first one is told that its acknowledgement was done
    asked = changed(settled(late), at=5.1)
    told = changed(answered(late), at=5.2)
    found = kinds([*events, asked, told])

    # Then it is found; not if the second one had acknowledged it by then
    assert found == {"taken"}
    assert kinds([*events, asked, changed(settled(copy), at=5.15), told]) == set()


def test_a_consumer_that_was_closed_excuses_no_other_one() -> None:
    # Given a client with two consumers, of which one is closed
    events: list[Recorded] = [posted(), confirmed(), handed()]
    copy = handed(at=5.0, number=8, client="y", redelivered=True)

    # When what one of them had is handed out again
    other = kinds([*events, Gone(at=4.0, client="x", consumer="x-other"), copy, settled(copy)])
    same = kinds([*events, Gone(at=4.0, client="x", consumer="x-c"), copy, settled(copy)])

    # Then it is found, but for the one that was closed
    assert other == {"duplicated"}
    assert same == set()


def test_nothing_posted_after_a_confirm_of_a_later_epoch_is_confirmed_in_an_earlier_one() -> None:
    # Given a confirm of epoch 2
    events: list[Recorded] = [*story(FIRST)]
    events[1] = confirmed(FIRST, 2.0, epoch=2)

    # When a message posted after that is confirmed in epoch 1
    second = [*story(SECOND, 2.5)]
    found = kinds([*events, *second])

    # Then there were two owners
    assert found == {"two owners"}


@pytest.mark.parametrize(
    "event",
    [
        Left(at=9.0, queue="q", sid=1, ready=1, in_flight=0),
        Left(at=9.0, queue="q", sid=1, ready=0, in_flight=1),
        Unanswered(at=9.0, what="declare q"),
    ],
)
def test_what_is_left_at_the_end_is_stuck(event: Recorded) -> None:
    # Given a history in which all went well but for that
    events: list[Recorded] = [*story(), event]

    # When it is checked
    found = kinds(events)

    # Then it is found
    assert found == {"stuck"}


def test_a_history_without_traffic_is_vacuous() -> None:
    # Given a run in which messages were posted, and nothing came of it
    verdict = check([posted()])

    # When it is asked what the run has tested
    missing = verdict.counts.vacuous()

    # Then it says what never happened; together with a better run there is nothing to say
    assert missing == ["confirmed", "handed", "acked"]
    total = replace(verdict.counts)
    total.add(check(story(SECOND)).counts)
    assert total.vacuous() == []


def test_events_travel_between_processes_as_json() -> None:
    # Given the events of a history
    events = story()

    # When they are written as lines and read again
    lines = [msgspec.json.encode(event) for event in events]
    read = [msgspec.json.decode(line, type=Recorded) for line in lines]

    # Then they are the same
    assert read == events
