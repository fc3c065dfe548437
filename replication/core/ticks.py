"""An owner's ticks: how far it is, said to all, and the proof that it was heard.

A tick goes out at regular times, and soon after the last op or release of a burst: without it
the last segment, if it is lost, would never be missed. Each has a number, and who answers it
followed this epoch when it was *sent*.
"""

from __future__ import annotations

from collections import deque

from replication.core.stream_limits import StreamLimits


class Ticks:
    """When the next tick is due, and when the latest ones were sent.

    Attributes:
        number: Of the last one, in this epoch; 0: none yet.
    """

    __slots__ = ("_limits", "_news_since", "_sent", "_sent_last_at", "number")

    def __init__(self, limits: StreamLimits, now: float) -> None:
        self.number = 0
        self._limits = limits
        self._sent: deque[tuple[int, float]] = deque()
        self._sent_last_at = now
        self._news_since: float | None = None

    def news(self, now: float) -> None:
        """There is an op or a release that no tick told of."""
        self._news_since = now

    def due_at(self) -> float:
        regular = self._sent_last_at + self._limits.tick_s
        if self._news_since is None:
            return regular
        return min(regular, self._news_since + self._limits.tick_soon_s)

    def take(self, now: float, *, heard: bool, memory_s: float) -> bool:
        """A tick is due. Whether the group is to hear it, too.

        `heard`: there is anybody to hear it. Those older than `memory_s` are forgotten: an
        answer to them proves nothing any more.
        """
        is_news = self._news_since is not None
        self._sent_last_at = now
        self._news_since = None
        if not heard:
            return False
        self.number += 1
        self._sent.append((self.number, now))
        while self._sent[0][1] < now - memory_s:
            self._sent.popleft()
        return is_news or self.number % self._limits.group_tick_every == 0

    def sent_at(self, number: int) -> float | None:
        """When this one was sent, if that is still known."""
        sent = self._sent
        if not number or not sent or number < sent[0][0]:
            return None
        return sent[number - sent[0][0]][1]  # They are numbered without a gap.
