"""A run of messages as one DELIVER brought it: tables and bytes, nothing per message."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import orjson

from tanist.core.spans import Spans
from tanist.wire import hot
from tanist.wire.batch import PERSISTENT
from tanist.wire.columns import read_properties, u32s

if TYPE_CHECKING:
    from tanist.core.leg import Leg


class Run:
    """What a consumer has of one delivery, and which of it is still held.

    Attributes:
        number: The delivery number, by which acks and requeues are valid.
        first: Offset of the first message.
        held: Indexes that were neither acked nor requeued, and are ours.
        stale: Index runs that turned out not to be ours any more.
    """

    __slots__ = (
        "_columns",
        "_data",
        "_ends",
        "_origin",
        "_properties",
        "at",
        "attempts",
        "count",
        "epoch",
        "first",
        "gen",
        "held",
        "leg",
        "number",
        "part",
        "persistent",
        "redelivered",
        "sid",
        "size",
        "stale",
        "time_ms",
    )

    def __init__(self, leg: Leg, delivery: hot.Delivery, at: float) -> None:
        self.leg = leg
        self.sid = leg.office
        self.gen = leg.gen
        self.epoch = leg.epoch
        self.part = delivery.part
        self.number = delivery.number
        self.first = delivery.first
        self.count = delivery.count
        self.time_ms = delivery.time_ms
        self.redelivered = bool(delivery.flags & hot.REDELIVERED)
        self.persistent = bool(delivery.batch_flags & PERSISTENT)
        self.attempts = delivery.attempts
        self.held = Spans(delivery.count)
        self.stale: list[tuple[int, int]] = []
        self.at = at
        # One entry more than messages, so that body i lies between entries i and i + 1.
        # They count from the first body of the batch that this was cut out of.
        self._ends = array("I", (delivery.base,)) + u32s(delivery.ends)
        self._origin = delivery.bodies_at - delivery.base
        self._data = delivery.data
        self._columns = delivery.columns
        self._properties: list[bytes] | None = None
        self.size = self.bytes_of(0, delivery.count)

    @property
    def end(self) -> int:
        """The offset after that of the last message."""
        return self.first + self.count

    def body(self, index: int) -> bytes:
        ends, origin = self._ends, self._origin
        return self._data[origin + ends[index] : origin + ends[index + 1]]

    def bytes_of(self, first: int, end: int) -> int:
        """Bytes of the bodies of these. `O(1)`."""
        return self._ends[end] - self._ends[first]

    def properties(self, index: int) -> dict[str, object]:
        """The properties of one message; decoded when asked for."""
        if not self._columns:
            return {}
        if self._properties is None:
            blobs = read_properties(self._columns, self.count)
            self._properties = blobs if blobs is not None else [b"{}"] * self.count
        value = orjson.loads(self._properties[index])
        return value if isinstance(value, dict) else {}
