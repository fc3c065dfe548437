"""Deliveries as frames: slices of what producers sent, with flags and attempts of their own."""

from __future__ import annotations

from itertools import pairwise

from broker.core.delivery import deliver_payloads
from broker.core.dispatcher import Planned
from tanist.wire.columns import read_properties
from tanist.wire.hot import REDELIVERED, Delivery, read_deliver
from tests.unit.post_offices import PLENTY, Office


def frames(office: Office, planned: Planned) -> list[Delivery]:
    return [
        read_deliver(b"".join(bytes(part) for part in payload))
        for payload in deliver_payloads(office.state, planned)
    ]


def bodies(frame: Delivery) -> list[bytes]:
    """As a client reads them."""
    ends = memoryview(frame.ends).cast("I").tolist()
    at = [frame.bodies_at + end - frame.base for end in (frame.base, *ends)]
    return [frame.data[a:b] for a, b in pairwise(at)]


def attempts(frame: Delivery) -> list[int]:
    return list(frame.attempts or [])


def served(*batches: list[bytes], properties: bool = False) -> tuple[Office, Planned]:
    """All of these, delivered in one run."""
    office = Office()
    for batch in batches:
        office.publish(*batch, properties=properties)
    office.add_leg(1, messages=sum(map(len, batches)))
    (planned,) = office.plan()
    return office, planned


def test_a_whole_batch_is_one_frame() -> None:
    # Given a delivery of a batch
    office, planned = served([b"one", b"", b"three"])

    # When its frames are made
    (frame,) = frames(office, planned)

    # Then it names the delivery, and has the bodies and the producer's time
    assert (frame.number, frame.first, frame.count, frame.part) == (1, 0, 3, 1)
    assert (frame.flags, frame.time_ms) == (0, 1)
    assert bodies(frame) == [b"one", b"", b"three"]


def test_a_delivery_across_batches_is_several_frames_with_one_number() -> None:
    # Given a delivery of three batches
    office, planned = served([b"a", b"b"], [b"c"], [b"d", b"e", b"f"])

    # When its frames are made
    made = frames(office, planned)

    # Then each batch is one, with its own time, and the offsets go on
    assert [(f.number, f.first, f.count, f.time_ms) for f in made] == [
        (1, 0, 2, 1),
        (1, 2, 1, 3),
        (1, 3, 3, 4),
    ]
    assert [bodies(f) for f in made] == [[b"a", b"b"], [b"c"], [b"d", b"e", b"f"]]


def test_a_run_from_the_middle_of_a_batch_has_only_its_own_bodies() -> None:
    # Given a batch of which the first two went to another leg
    office = Office()
    office.add_leg(1, messages=2)
    office.publish(b"aa", b"bb", b"cc", b"dd", b"ee", properties=True)
    office.plan()
    office.add_leg(2, messages=2)

    # When the next two are delivered
    (planned,) = office.plan()
    (frame,) = frames(office, planned)

    # Then it has them and their properties
    assert (frame.first, frame.count) == (2, 2)
    assert bodies(frame) == [b"cc", b"dd"]
    assert read_properties(frame.columns, 2) == [b'{"i":2}', b'{"i":3}']


def test_what_was_returned_says_that_it_may_have_been_seen() -> None:
    # Given a delivery that was returned, without fault of the consumer
    office, first = served([b"a", b"b"])
    office.requeue((first.number, 0, 2))
    office.dispatcher.credit(1, 10, PLENTY)

    # When it is delivered again
    (planned,) = office.plan()
    (frame,) = frames(office, planned)

    # Then it is flagged, and nobody failed at it
    assert frame.flags == REDELIVERED
    assert frame.attempts is None
    assert frame.number == 2


def test_attempts_are_listed_message_by_message() -> None:
    # Given four messages: the second failed twice, the third once, the others went back
    office, planned = served([b"a", b"b", b"c", b"d"])
    office.requeue((planned.number, 1, 2), failed=True)
    second = office.deliver(1, 1)
    office.requeue((second, 1, 1), failed=True)
    office.requeue((planned.number, 0, 1), (planned.number, 3, 1))
    office.dispatcher.credit(1, 100, PLENTY)

    # When they are delivered again
    (again,) = office.plan()
    (frame,) = frames(office, again)

    # Then each has its number
    assert attempts(frame) == [0, 2, 1, 0]
    assert bodies(frame) == [b"a", b"b", b"c", b"d"]


def test_frames_without_attempts_carry_no_list_of_them() -> None:
    # Given two batches, at the second of which a consumer failed
    office, planned = served([b"a", b"b"], [b"c"])
    office.requeue((planned.number, 2, 1), failed=True)
    office.requeue((planned.number, 0, 2))
    office.dispatcher.credit(1, 100, PLENTY)

    # When both are delivered again
    (again,) = office.plan()
    made = frames(office, again)

    # Then only the second has a list
    assert [frame.attempts is None for frame in made] == [True, False]
    assert attempts(made[1]) == [1]


def test_pain_20_a_batch_in_doubt_is_delivered_as_redelivered() -> None:
    # Given a batch that its producer repeated after a loss
    office = Office()
    office.add_leg(1, messages=10)
    office.publish(b"a", in_doubt=True)

    # When it is delivered for the first time here
    (planned,) = office.plan()
    (frame,) = frames(office, planned)

    # Then it says that it may have been seen
    assert frame.flags == REDELIVERED
