"""What a planned delivery looks like on the wire: slices of the batches that it runs through."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator

from broker.core.dispatcher import Planned
from broker.core.post_office import PostOffice
from paging.part import Part
from paging.ranges import Range
from tanist.wire import batch, hot


def deliver_payloads(office: PostOffice, planned: Planned) -> Iterator[tuple[batch.Part, ...]]:
    """The payloads of the DELIVER frames: one for each batch, all with one delivery number.

    What was planned must still be in flight. The attempts at its messages are looked up here:
    nothing changes them while it is.
    """
    part = office.part(planned.part)
    first = planned.first
    flags = hot.REDELIVERED if planned.redelivered else 0
    for source, index, count in planned.pieces:
        yield hot.deliver(
            number=planned.number,
            first=first,
            time_ms=source.time_ms,
            count=count,
            part=planned.part,
            flags=flags,
            batch_flags=source.flags,
            cut=source.cut(index, count),
            attempts=_attempts(part, Range(first, first + count)),
        )
        first += count


def _attempts(part: Part, run: Range) -> bytes:
    """A u16 for each message, or nothing if all are 0."""
    counted = part.attempts(run)
    if not counted:
        return b""
    values = array("H", bytes(2 * run.size))
    for (first, end), value in counted:
        values[first - run.first : end - run.first] = array("H", [value]) * (end - first)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
