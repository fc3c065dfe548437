"""Bytes that a queue and the log keep as one object count once in a node's budget."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from broker.core.desks import Desks
from broker.core.limits import Limits, Timing
from broker.core.ops import OpenPart, PostOfficeOp, Producer, Publish
from broker.core.post_office import PostOffice
from paging.page import SMALL_BYTES
from paging.ranges import Range
from replication.core.segment import LENT_PART_BYTES, OpenSegment, Segment, read_segments
from tests.unit.post_offices import PRODUCER, QUEUE, batch_of

LARGE = 20_000


@dataclass
class FakeStream:
    """As much of a stream as the budget looks at."""

    machine: PostOffice
    kept_bytes: int
    lent_bytes: int


@dataclass
class FakeMember:
    streams: dict[int, FakeStream] = field(default_factory=dict)


def used(office: PostOffice, *, kept: int, lent: int) -> int:
    member = FakeMember({1: FakeStream(office, kept, lent)})
    desks = Desks(
        # The budget looks at what the fake has, and at nothing else.
        member,  # type: ignore[arg-type]
        limits=Limits(),
        timing=Timing(),
        disk_trouble=lambda: None,
    )
    return desks.used_bytes()


def segment_of(*bodies: bytes) -> Segment:
    """A post office's first ops: a queue, a producer, and a batch of each body."""
    ops: list[PostOfficeOp] = [OpenPart(1, QUEUE), Producer(PRODUCER, 1)]
    ops += [
        Publish(1, PRODUCER, 1, n, batch_of([body], first_n=n + 1)) for n, body in enumerate(bodies)
    ]
    opened = OpenSegment(1)
    for op in ops:
        parts = op.parts()
        opened.add(op.kind, parts, sum(map(len, parts)))
    return opened.close(1, 0)


def filled(segment: Segment) -> tuple[PostOffice, Segment]:
    """A shadow's copy that has applied a segment as it was received, and that segment."""
    data = b"".join(segment.wire())
    (received,) = read_segments(data, 0, len(data))
    office = PostOffice(1, 1)
    for record in received.records:
        office.apply(office.decode(*record))
    return office, received


def test_a_large_batch_is_one_object_in_its_page_and_in_the_log() -> None:
    # Given a segment with a large batch, as a shadow receives it
    office, received = filled(segment_of(bytes(LARGE)))

    # When the queue's page is looked at
    ((batch, _, _),) = office.part(1).pages.pieces(Range(0, 1))

    # Then it holds the very object that is kept for repair, and both sides know that
    assert any(batch.data is part for part in received.parts)
    assert received.lent >= LARGE
    assert LENT_PART_BYTES >= SMALL_BYTES, "smaller ones are copied into their page"


def test_what_is_shared_counts_once() -> None:
    # Given a post office whose content is all kept for repair, too
    office, received = filled(segment_of(bytes(LARGE), bytes(LARGE)))

    # When the budget is added up
    total = used(office, kept=received.size, lent=received.lent)

    # Then the bodies are in it once
    assert 2 * LARGE < total < 3 * LARGE


def test_what_is_kept_and_not_in_memory_any_more_counts_for_itself() -> None:
    # Given a post office with content in memory, of which as much is in files as the log lends
    office, received = filled(segment_of(bytes(LARGE), bytes(LARGE)))
    office.shelf.tally.disk_bytes = received.lent

    # When the budget is added up
    total = used(office, kept=received.size, lent=received.lent)

    # Then nothing is taken as shared
    assert total == received.size + office.resident_bytes


@pytest.mark.parametrize("lent", [0, LARGE])
def test_nothing_is_shared_with_a_queue_that_is_empty(lent: int) -> None:
    # Given a post office whose messages are done with
    office = PostOffice(1, 1)

    # When the budget is added up
    total = used(office, kept=2 * LARGE, lent=lent)

    # Then what is kept counts
    assert total == 2 * LARGE
