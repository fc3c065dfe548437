"""Pauses that double, up to a limit, each shortened by chance so that clients spread."""

from __future__ import annotations

from collections.abc import Callable

from tanist.core.settings import BACKOFF_S, BACKOFF_S_MAX

_DOUBLINGS_MAX = 16


class Backoff:
    """How long to wait after each failure in a row.

    Args:
        draw: Uniform in [0, 1).
    """

    __slots__ = ("_draw", "_failures")

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._failures = 0

    def next_s(self) -> float:
        """The pause after one more failure: between a half and the whole of what is due."""
        doubled_s: float = BACKOFF_S * 2.0 ** min(self._failures, _DOUBLINGS_MAX)
        due_s = min(BACKOFF_S_MAX, doubled_s)
        self._failures += 1
        return due_s * (1.0 - 0.5 * self._draw())

    def reset(self) -> None:
        """It worked."""
        self._failures = 0
