"""The post office: what ops do to it, and what its owner learns from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.core.ops import ExpireProducer, OpenPart, PostOfficeOp, Producer, Publish
from broker.core.post_office import PostOffice, Standing
from paging.pages import Shelf
from paging.part import Answer
from paging.ranges import Range
from tanist.errors import RemoteProtocolError
from tanist.wire.control import PartStat
from tests.unit.post_offices import PRODUCER, QUEUE, Office, batch_of, holder, queue_info


def replayed(ops: list[PostOfficeOp], *, page_bytes: int) -> PostOffice:
    """A shadow that got the same ops as records, and cuts its pages in its own way."""
    shadow = PostOffice(1, 1, shelf=Shelf.in_memory(page_bytes=page_bytes))
    for op in ops:
        record = b"".join(op.parts())
        shadow.apply(shadow.decode(op.kind, b"\0" * 6 + record, 6, 6 + len(record)))
    return shadow


def test_a_part_comes_into_being_by_its_first_op() -> None:
    # Given a post office that knows nothing of a queue
    office = Office()
    before = office.state.part_of(QUEUE.id)

    # When the part is opened
    part = office.open()

    # Then it is found by the queue, with its definition, and the next one gets another number
    assert before is None
    assert office.state.part_of(QUEUE.id) == part
    assert office.state.queue_of(part) == QUEUE.id
    assert office.state.queues() == [QUEUE]
    assert office.state.queue_ids() == [QUEUE.id]
    assert office.state.next_part == part + 1


def test_S29_parts_of_different_queues_stay_apart() -> None:
    # Given parts of two queues
    office = Office()
    office.publish(b"a", b"b")
    other = queue_info(2)

    # When something is published to the second
    run = office.publish(b"c", queue=other)

    # Then it has offsets of its own, and the first is as it was
    assert run == Range(0, 1)
    assert office.state.stat(QUEUE.id).ready == 2
    assert office.state.stat(other.id).ready == 1


def test_the_statistics_of_a_part_that_does_not_exist_are_those_of_an_empty_one() -> None:
    # Given a queue that nobody used here
    office = Office()

    # When its statistics are asked for
    stat = office.state.stat(QUEUE.id)

    # Then nothing is there
    assert stat == PartStat(ready=0, in_flight=0, bytes=0, consumers=0)


def test_the_statistics_follow_each_message() -> None:
    # Given three messages, one of them in flight and one acknowledged
    office = Office()
    office.publish(b"a", b"b", b"c")
    number = office.deliver(0, 2, consumer=office.attach())
    office.ack((number, 0, 1))

    # When the statistics are asked for
    stat = office.state.stat(QUEUE.id)

    # Then each is counted where it is
    assert (stat.ready, stat.in_flight, stat.consumers) == (1, 1, 1)
    assert stat.bytes == office.state.held_bytes == office.state.bytes_of(1) > 0


def test_I64_a_producer_is_expected_to_go_on_where_it_stopped() -> None:
    # Given a producer with a batch of three
    office = Office()
    office.publish(b"a", b"b", b"c")

    # When it is looked up
    standing, n = office.state.expected(PRODUCER, 1)

    # Then the fourth message is next: what is below was stored
    assert (standing, n) == (Standing.KNOWN, 4)


def test_a_producer_that_never_came_is_unknown_and_begins_at_one() -> None:
    # Given a post office without producers
    office = Office()

    # When one is looked up
    found = office.state.expected(PRODUCER, 7)

    # Then it would begin
    assert found == (Standing.UNKNOWN, 1)


def test_a_higher_producer_epoch_begins_again_and_fences_the_older_client() -> None:
    # Given a producer in epoch 1 with two messages
    office = Office()
    office.publish(b"a", b"b")
    before = office.state.expected(PRODUCER, 2)

    # When it is bound again, in epoch 2
    office.append(Producer(PRODUCER, 2))

    # Then it begins at 1 there, and epoch 1 is over
    assert before == (Standing.UNKNOWN, 1)
    assert office.state.expected(PRODUCER, 2) == (Standing.KNOWN, 1)
    assert office.state.expected(PRODUCER, 1) == (Standing.FENCED, 1)


@pytest.mark.parametrize(
    ("first_n", "epoch", "base"),
    [(1, 1, 2), (4, 1, 2), (3, 2, 2), (3, 1, 1)],
    ids=["a repeat", "a gap", "another epoch", "another offset"],
)
def test_a_publish_that_admission_must_not_let_through_stops_the_copy(
    first_n: int, epoch: int, base: int
) -> None:
    # Given a producer with two messages
    office = Office()
    office.publish(b"a", b"b")
    digest = office.state.digest()

    # When a publish comes that does not fit on them
    with pytest.raises(AssertionError):
        office.append(Publish(1, PRODUCER, epoch, base, batch_of([b"c"], first_n=first_n)))

    # Then nothing has changed
    assert office.state.digest() == digest


def test_producers_that_were_idle_for_longest_are_forgotten_first() -> None:
    # Given three producers, of which the first was used again last
    office = Office()
    for producer in (b"1" * 16, b"2" * 16, b"3" * 16, b"1" * 16):
        office.publish(b"a", producer=producer)

    # When one too many is to be forgotten
    expired = office.state.producers_to_expire(2)

    # Then it is the second
    assert expired == [b"2" * 16]


def test_a_producer_with_an_open_channel_is_never_forgotten() -> None:
    # Given three producers, of which the two idle for longest have channels
    office = Office()
    for producer in (b"1" * 16, b"2" * 16, b"3" * 16):
        office.publish(b"a", producer=producer)

    # When all but one are to be forgotten
    expired = office.state.producers_to_expire(1, in_use={b"1" * 16, b"2" * 16})

    # Then only the third can be
    assert expired == [b"3" * 16]


def test_nobody_is_forgotten_while_there_is_room() -> None:
    # Given one producer, and room for one
    office = Office()
    office.publish(b"a")

    # When it is asked who is to be forgotten
    expired = office.state.producers_to_expire(1)

    # Then nobody is
    assert expired == []


def test_a_forgotten_producer_is_unknown() -> None:
    # Given a producer
    office = Office()
    office.publish(b"a")

    # When it expires
    office.append(ExpireProducer(PRODUCER))

    # Then what it says is no repeat any more
    assert office.state.expected(PRODUCER, 1) == (Standing.UNKNOWN, 1)


def test_I42_what_a_consumer_holds_is_known_by_its_session() -> None:
    # Given two consumers with deliveries
    office = Office()
    office.publish(b"a", b"b", b"c", b"d")
    first = office.attach(who=holder(1))
    second = office.attach(who=holder(2))
    one = office.deliver(0, 1, consumer=first)
    office.deliver(1, 2, consumer=second)
    three = office.deliver(3, 1, consumer=first)

    # When one of them is asked for
    held = office.state.in_flight_of(1, holder(1))

    # Then it is what was delivered to that one
    assert held == [(one, Range(0, 1)), (three, Range(3, 4))]
    assert office.state.holders() == [holder(1), holder(2)]
    assert office.state.parts_of(holder(1)) == [1]


def test_a_consumer_that_nothing_was_delivered_to_is_unknown() -> None:
    # Given a part
    office = Office()
    office.publish(b"a")

    # When a consumer that has only a channel is looked up
    held = office.state.in_flight_of(1, holder())

    # Then it holds nothing and cost the stream nothing
    assert held == []
    assert not office.state.is_attached(holder())
    assert office.state.parts_of(holder()) == []
    assert office.state.consumer_number(1, holder()) is None


def test_I47_acks_are_answered_run_by_run() -> None:
    # Given three messages: done, back at their place, and held
    office = Office()
    office.publish(b"a", b"b", b"c")
    number = office.deliver(0, 3, consumer=office.attach())
    office.ack((number, 0, 1))
    office.requeue((number, 1, 1))

    # When all are acknowledged
    answers = office.ack((number, 0, 1), (number, 1, 1), (number, 2, 1))

    # Then each answer says what became of it
    assert answers == [
        Answer([], [Range(0, 1)], []),
        Answer([], [], [Range(1, 2)]),
        Answer([Range(2, 3)], [], []),
    ]


def test_a_late_ack_cannot_take_a_message_from_its_new_consumer() -> None:
    # Given a message that was requeued and delivered to somebody else
    office = Office()
    office.publish(b"a")
    old = office.deliver(0, 1, consumer=office.attach(who=holder(1)))
    office.requeue((old, 0, 1))
    new = office.deliver(0, 1, consumer=office.attach(who=holder(2)))

    # When the first consumer acknowledges it after all
    late = office.ack((old, 0, 1))

    # Then it is told so, and the second one still holds it
    assert late == [Answer([], [], [Range(0, 1)])]
    assert office.state.in_flight_of(1, holder(2)) == [(new, Range(0, 1))]


def test_S27_I46_a_claim_says_what_may_be_kept_and_changes_nothing() -> None:
    # Given deliveries of which one was acknowledged and one went back
    office = Office()
    office.publish(b"a", b"b", b"c")
    number = office.deliver(0, 3, consumer=office.attach())
    office.ack((number, 0, 1))
    office.requeue((number, 1, 1))
    digest = office.state.digest()

    # When the client comes back with all of them
    claim = office.state.claim(1, number, Range(0, 3))

    # Then it may keep the third
    assert claim == Answer([Range(2, 3)], [Range(0, 1)], [Range(1, 2)])
    assert office.state.digest() == digest


def test_a_claim_under_a_number_that_is_done_keeps_nothing() -> None:
    # Given a delivery that was acknowledged
    office = Office()
    office.publish(b"a")
    number = office.deliver(0, 1, consumer=office.attach())
    office.ack((number, 0, 1))

    # When it is claimed
    claim = office.state.claim(1, number, Range(0, 1))

    # Then it was done before
    assert claim == Answer([], [Range(0, 1)], [])


def test_I45_a_returned_message_has_its_old_place_and_its_flags() -> None:
    # Given two messages that were delivered
    office = Office()
    office.publish(b"a", b"b")
    number = office.deliver(0, 2, consumer=office.attach())

    # When the consumer fails at the first, and the second was never sent
    office.requeue((number, 0, 1), flagged=True, failed=True)
    office.requeue((number, 1, 1), flagged=False)

    # Then they wait where they were, and only the first is flagged and counted
    part = office.state.part(1)
    head = part.head(count_max=10, bytes_max=100)
    assert head is not None
    assert head.run == Range(0, 1)
    assert part.flagged(Range(0, 2)) == [Range(0, 1)]
    assert [tuple(counted) for counted in part.attempts(Range(0, 2))] == [(Range(0, 1), 1)]


def test_a_consumer_that_left_is_attached_no_more() -> None:
    # Given a consumer that returned what it held
    office = Office()
    office.publish(b"a")
    number = office.deliver(0, 1, consumer=office.attach())
    office.requeue((number, 0, 1))

    # When it is detached
    office.detach()

    # Then nobody is there, and the next one gets a number of its own
    assert not office.state.is_attached(holder())
    assert office.state.stat(QUEUE.id).consumers == 0
    assert office.state.next_consumer == 2
    office.state.check()


def test_a_consumer_cannot_leave_with_messages() -> None:
    # Given a consumer that holds one
    office = Office()
    office.publish(b"a")
    office.deliver(0, 1, consumer=office.attach())

    # When it is detached by mistake
    with pytest.raises(AssertionError) as caught:
        office.detach()

    # Then it is found: the message would be in flight to nobody
    assert "left with messages" in str(caught.value)


def test_a_delivery_cannot_go_to_a_consumer_of_another_part() -> None:
    # Given a consumer of one queue, and a message in another
    office = Office()
    office.open()
    consumer = office.attach()
    office.publish(b"a", queue=queue_info(2))

    # When the message is delivered to it by mistake
    with pytest.raises(AssertionError):
        office.deliver(0, 1, consumer=consumer, part=2)

    # Then it still waits
    assert office.state.stat(queue_info(2).id).ready == 1


def test_a_purge_leaves_what_is_in_flight_and_what_came_later() -> None:
    # Given five messages, the first in flight
    office = Office()
    office.publish(b"a", b"b", b"c", b"d", b"e")
    number = office.deliver(0, 1, consumer=office.attach())

    # When all up to the fourth are purged
    purged = office.purge(3)

    # Then those that waited are gone
    assert purged == 3
    assert office.state.stat(QUEUE.id).ready == 1
    assert office.state.in_flight_of(1, holder()) == [(number, Range(0, 1))]


def test_a_dropped_part_goes_with_its_messages_and_consumers() -> None:
    # Given two parts, with a consumer on both and one on the first
    office = Office()
    office.publish(b"a")
    office.publish(b"bb", queue=queue_info(2))
    office.deliver(0, 1, consumer=office.attach(part=1))
    office.attach(part=2)
    office.attach(part=1, who=holder(2))

    # When the first is dropped
    office.drop(1)

    # Then only what belongs to the second is left
    assert office.state.part_of(QUEUE.id) is None
    assert office.state.holders() == [holder(1)]
    assert office.state.parts_of(holder(1)) == [2]
    assert office.state.held_bytes == office.state.bytes_of(2)
    office.state.check()


def test_a_queue_that_comes_again_gets_another_part() -> None:
    # Given a part that was dropped
    office = Office()
    office.publish(b"a")
    office.drop(1)

    # When a queue of the same name is used, which has another id
    part = office.open(queue_info(2))

    # Then nothing that names the old part can hit it
    assert part == 2
    assert office.state.end_of(part) == 0


def test_the_bytes_of_all_parts_are_the_sum_of_each() -> None:
    # Given batches in two parts
    office = Office()
    office.publish(b"x" * 20_000)
    office.publish(b"y" * 30_000, queue=queue_info(2))
    before = office.state.held_bytes

    # When the first is done with
    number = office.deliver(0, 1, consumer=office.attach())
    office.ack((number, 0, 1))

    # Then only the second counts
    assert before > 50_000
    assert office.state.held_bytes == office.state.bytes_of(2) > 30_000


def test_copies_with_other_pages_have_equal_digests() -> None:
    # Given a state with something of everything
    office = Office()
    office.publish(b"a", b"b", b"c")
    office.publish(b"d" * 100, in_doubt=True)
    office.publish(b"e", queue=queue_info(2), producer=b"2" * 16)
    number = office.deliver(0, 2, consumer=office.attach())
    office.requeue((number, 1, 1), failed=True)

    # When a shadow applies the same ops from their records, with tiny pages
    shadow = replayed(office.log, page_bytes=1)

    # Then both are the same state
    assert shadow.digest() == office.state.digest()
    shadow.check()


@pytest.mark.parametrize("change", range(8))
def test_a_digest_tells_states_apart(change: int) -> None:
    # Given a state, and a copy of it
    office = Office()
    office.publish(b"a", b"b")
    office.publish(b"c", producer=b"2" * 16)
    number = office.deliver(0, 1, consumer=office.attach())
    before = office.state.digest()

    # When one thing is changed
    changes: list[Callable[[], object]] = [
        lambda: office.open(queue_info(2)),
        lambda: office.publish(b"c"),
        lambda: office.append(Producer(PRODUCER, 2)),
        lambda: office.append(ExpireProducer(PRODUCER)),
        lambda: office.attach(who=holder(2)),
        lambda: office.deliver(1, 1),
        lambda: office.ack((number, 0, 1)),
        lambda: office.requeue((number, 0, 1), flagged=False),
    ]
    changes[change]()

    # Then the digest is another one
    assert office.state.digest() != before


def test_the_order_in_which_producers_will_be_forgotten_is_part_of_the_state() -> None:
    # Given two post offices where the same was published
    one, other = Office(), Office()
    for office in (one, other):
        office.open()
        office.append(Producer(b"1" * 16, 1))
        office.append(Producer(b"2" * 16, 1))

    # When one of them used its producers in the other order
    one.append(Publish(1, b"1" * 16, 1, 0, batch_of([b"a"], first_n=1)))
    one.append(Publish(1, b"2" * 16, 1, 1, batch_of([b"a"], first_n=1)))
    other.append(Publish(1, b"2" * 16, 1, 0, batch_of([b"a"], first_n=1)))
    other.append(Publish(1, b"1" * 16, 1, 1, batch_of([b"a"], first_n=1)))

    # Then they will not forget the same one, and say so
    assert one.state.producers_to_expire(1) != other.state.producers_to_expire(1)
    assert one.state.digest() != other.state.digest()


def test_an_op_of_a_newer_version_is_refused() -> None:
    # Given a copy
    office = Office()

    # When it gets an op of a kind that it does not know
    with pytest.raises(RemoteProtocolError) as caught:
        office.state.decode(99, b"", 0, 0)

    # Then it says why it cannot go on
    assert caught.value.code == "version"


def test_a_part_number_is_given_once() -> None:
    # Given a part
    office = Office()
    office.open()

    # When its number is used again by mistake
    with pytest.raises(AssertionError):
        office.append(OpenPart(1, queue_info(2)))

    # Then the first one stays
    assert office.state.queues() == [QUEUE]
