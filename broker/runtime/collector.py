"""When garbage is collected: in turns of the loop that had nothing else to do.

The broker makes no cycles on its hot path; what little there is comes from errors and tasks.
A collection in the middle of a burst would hold up everything for nothing.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_EVERY_S: Final = 1.0
"""Between two collections of what is young, in idle turns."""

OVERDUE_S: Final = 30.0
"""A node that is never idle collects what is young after this time all the same."""

ALL_EVERY: Final = 60
"""Each so many collections, and only in idle turns, everything is looked at."""


class Collector:
    """Takes the place of the automatic collection. What exists at `start` is never looked at."""

    def __init__(self) -> None:
        self._at = 0.0
        self._count = 0

    def start(self, now: float) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        self._at = now

    def stop(self) -> None:
        gc.unfreeze()
        gc.enable()

    def turn(self, now: float, *, idle: bool) -> None:
        if now - self._at < (YOUNG_EVERY_S if idle else OVERDUE_S):
            return
        self._at = now
        self._count += 1
        gc.collect(2 if idle and self._count % ALL_EVERY == 0 else 1)
