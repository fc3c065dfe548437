"""The epoch history of a log: who may have written what, and where two logs part.

Theory of operation
-------------------
An entry says: in this epoch the log began to grow here, and its chain was this. Two copies
that took part in the same epochs have equal histories. From the first entry in which they
differ on, different owners wrote; what stands below all of their starts is the same:

    common = min(both log ends, the starts of both histories' first different entries)

Rules
-----
1. An entry beyond the end of its own log says nothing, and makes others cut too late. Who
   becomes owner drops these first (`begun`), then adds its own.
2. Starts never fall.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class Entry(NamedTuple):
    """From op number `start` on the log was written in this epoch."""

    epoch: int
    start: int
    chain: int
    """Of the log below `start`."""


History = tuple[Entry, ...]


def begun(history: History, *, epoch: int, log_end: int, chain: int) -> History:
    """The history of a log that goes on in a new epoch, at its end."""
    kept = tuple(entry for entry in history if entry.start < log_end)
    return (*kept, Entry(epoch, log_end, chain))


def common_point(mine: History, my_end: int, theirs: History, their_end: int) -> int:
    """The number of the first op in which two logs may differ."""
    same = 0
    for one, other in zip(mine, theirs, strict=False):
        if one != other:
            break
        same += 1
    starts = [history[same].start for history in (mine, theirs) if len(history) > same]
    return min(my_end, their_end, *starts)


def check_history(history: History) -> None:
    """Verify that epochs grow and starts never fall. For tests and simulation."""
    for earlier, later in pairwise(history):
        assert earlier.epoch < later.epoch, history
        assert earlier.start <= later.start, history
