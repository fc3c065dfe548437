"""The end of an owner's log, where it grows: ops are applied, numbered, and closed into segments.

An op is applied when it is appended, and joins the open segment. At the end of the turn that
is closed; what was closed is *sealed*: from then on others are told of it.

    1 ……… sealed_end ……… log.end ……… end
      sealed       closed       open

A segment is also closed when it is long enough, in the middle of a turn. It waits for the
others of that turn, since nothing of a turn in which applying failed may be sent.
"""

from __future__ import annotations

from typing import Generic

from replication.core.copy import Copy
from replication.core.machine import OpT, ResultT
from replication.core.segment import (
    RECORD_HEADER_BYTES,
    SEGMENT_OPS_MAX,
    OpenSegment,
    Segment,
)


class ApplyFailed(Exception):
    """Applying an op raised: a bug. The op is gone, and this ownership is over."""


class GrowingLog(Generic[OpT, ResultT]):
    """See the module docstring.

    Attributes:
        log: The copy's, with all that is closed.
        promoted_end: Its end when this ownership began.
        sealed_end, sealed_at: Its end when the last turn ended that appended something, and when
            that was.
        own_receipt: This copy holds all ops through this one, as its owner counts it.
        failed: Applying raised: nothing more is done here.
    """

    __slots__ = (
        "_copy",
        "_epoch",
        "_machine",
        "_open",
        "_segment_bytes",
        "_sid",
        "_unsent",
        "failed",
        "log",
        "own_receipt",
        "promoted_end",
        "sealed_at",
        "sealed_end",
    )

    def __init__(
        self, copy: Copy[OpT, ResultT], *, sid: int, epoch: int, segment_bytes: int, now: float
    ) -> None:
        assert copy.applied == copy.log.end - 1, "the tail is applied before anything is appended"
        self.log = copy.log
        self.promoted_end = self.sealed_end = self.log.end
        self.sealed_at = now
        self.own_receipt = 0
        self.failed = ""
        self._copy = copy
        self._machine = copy.machine
        self._sid = sid
        self._epoch = epoch
        self._segment_bytes = segment_bytes
        self._open = OpenSegment(self.log.end)
        self._unsent: list[Segment] = []

    @property
    def end(self) -> int:
        """Number of the next op."""
        return self._open.first_seq + self._open.count

    @property
    def bytes_total(self) -> int:
        """The log's, with what is in the open segment."""
        return self.log.bytes_total + self._open.size

    def append(self, op: OpT) -> ResultT:
        """Apply an op and put it into the open segment. Raises `ApplyFailed`: see there."""
        if self.failed:
            raise ApplyFailed(self.failed)
        try:
            result = self._machine.apply(op)
        except Exception as error:
            self.failed = f"applying op {self.end} of stream {self._sid} failed: {error!r}"
            self._unsent.clear()
            raise ApplyFailed(self.failed) from error
        parts = op.parts()
        size = sum(map(len, parts))
        opened = self._open
        if opened.count and (
            opened.size + RECORD_HEADER_BYTES + size > self._segment_bytes
            or opened.count == SEGMENT_OPS_MAX
        ):
            opened = self._close()
        opened.add(op.kind, parts, size)
        return result

    def seal(self, now: float) -> list[Segment]:
        """The turn ends: what was appended in it is immutable. The segments to be sent."""
        if self._open.count:
            self._close()
        unsent = self._unsent
        if unsent:
            self._unsent = []
            self.sealed_end = self.log.end
            self.sealed_at = now
        return unsent

    @property
    def has_own_news(self) -> bool:
        """Whether the own copy does not count yet for what was sealed."""
        return self.own_receipt < self.sealed_end - 1

    def count_own(self) -> None:
        self.own_receipt = self.sealed_end - 1

    def finish(self) -> None:
        """Another owner is there. What was applied here belongs to this copy's log, sent or not."""
        if self._open.count:
            self._close()
        self._copy.applied = self.log.end - 1

    def check(self) -> None:
        """Verify every invariant. For tests and simulation."""
        self._copy.check()
        assert self.own_receipt < self.sealed_end <= self.log.end <= self.end
        assert self._copy.history[-1].epoch == self._epoch
        assert self._copy.history[-1].start == self.promoted_end

    def _close(self) -> OpenSegment:
        segment = self._open.close(self._epoch, self.log.chain)
        self.log.append(segment)
        self._unsent.append(segment)
        self._open = OpenSegment(self.log.end)
        return self._open
