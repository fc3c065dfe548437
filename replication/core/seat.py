"""Where a copy is: which stream, on which node, and within which limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from replication.core.identity import Incarnation
from replication.core.stream_limits import StreamLimits


@dataclass(frozen=True, slots=True)
class Seat:
    sid: int
    me: Incarnation
    cluster8: bytes
    limits: StreamLimits
    free_bytes: Callable[[], int]
    counts: Counter[str] = field(default_factory=Counter)
    """How often what is rare happened: for status, and so that a simulation is not vacuous."""

    def head(self, gen: int, epoch: int) -> tuple[bytes, int, int, int, int]:
        """What every message of this copy begins with."""
        return (self.cluster8, self.sid, gen, epoch, self.me.inc)
