"""How a consumer's prefetch is shared by its legs.

    free = prefetch - allowed and not yet delivered - held

Each leg has a standing share, prefetch / (2 x legs), rounded down: what arrives there comes
at once. The rest goes to legs that said READY, taking turns. If nothing is free and a leg
has been READY for 20 ms, the leg that has been idle for longest is asked for its credit
back: with a prefetch of one, that is how five legs share it.

Both messages and bytes are counted; credit is of use with some of both.
"""

from __future__ import annotations

from collections.abc import Sequence

from tanist.core.events import Effect
from tanist.core.leg import Leg
from tanist.core.settings import READY_S

_GRANT_SHARE = 8
"""READY legs are given credit when an eighth of the prefetch is free, less only after 20 ms:
else a consumer that acks one at a time would be sent one at a time."""


class Prefetch:
    """The sharing for one consumer.

    Attributes:
        wanted: Whether the application takes messages at all; if not, nothing is granted.
        starving: Credit is to be given or called back when a leg has been READY for long.
        starving: A leg for which messages wait is to get credit soon, if nothing happens before.
    """

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        assert messages_max > 0
        assert bytes_max > 0
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.wanted = True
        self._turn = 0
        self.starving = False

    def balance(
        self,
        legs: Sequence[Leg],
        *,
        held_messages: int,
        held_bytes: int,
        now: float,
        outbox: list[Effect],
    ) -> None:
        """Give credit, or call some back. `legs`: those that are open."""
        self.starving = False
        if not self.wanted or not legs:
            return
        free_messages = self.messages_max - held_messages
        free_bytes = self.bytes_max - held_bytes
        for leg in legs:
            free_messages -= leg.outstanding_messages
            free_bytes -= leg.outstanding_bytes
        share_messages = self.messages_max // (2 * len(legs))
        share_bytes = self.bytes_max // (2 * len(legs))
        for leg in legs:
            if leg.called_back or not share_messages or not share_bytes:
                continue
            short_messages = share_messages - leg.outstanding_messages
            short_bytes = share_bytes - leg.outstanding_bytes
            # Topped up when half of it is gone, and by what is worth a frame.
            if (
                2 * max(short_messages, 0) >= share_messages
                or 2 * max(short_bytes, 0) >= share_bytes
            ) and (2 * free_messages >= short_messages and 2 * free_bytes >= short_bytes):
                given = self._grant(
                    leg, min(short_messages, free_messages), min(short_bytes, free_bytes), outbox
                )
                free_messages -= given[0]
                free_bytes -= given[1]
        ready = [leg for leg in legs if leg.ready_since is not None and not leg.called_back]
        if ready and (free_messages > 0 or free_bytes > 0):
            worth = any(
                _GRANT_SHARE * (leg.outstanding_messages + free_messages) >= self.messages_max
                and _GRANT_SHARE * (leg.outstanding_bytes + free_bytes) >= self.bytes_max
                for leg in ready
            )
            if worth or now >= self._ready_for_long(ready):
                given = self._grant_ready(ready, free_messages, free_bytes, outbox)
                free_messages -= given[0]
                free_bytes -= given[1]
            elif free_messages > 0 and free_bytes > 0:
                self.starving = True
        self._call_back(legs, free_messages, free_bytes, now, outbox)

    def _ready_for_long(self, legs: Sequence[Leg]) -> float:
        """When the first of these legs has been READY for long enough."""
        since = [leg.ready_since for leg in legs if leg.ready_since is not None]
        return min(since) + READY_S

    def _grant_ready(
        self, ready: list[Leg], free_messages: int, free_bytes: int, outbox: list[Effect]
    ) -> tuple[int, int]:
        """Share what is free among legs for which messages wait; another one is first each time."""
        self._turn += 1
        first = self._turn % len(ready)
        messages_left, bytes_left = free_messages, free_bytes
        for left, leg in zip(range(len(ready), 0, -1), ready[first:] + ready[:first], strict=True):
            messages = -(-max(0, messages_left) // left)
            bytes_ = -(-max(0, bytes_left) // left)
            given = self._grant(leg, messages, bytes_, outbox)
            messages_left -= given[0]
            bytes_left -= given[1]
        return free_messages - messages_left, free_bytes - bytes_left

    def _grant(self, leg: Leg, messages: int, bytes_: int, outbox: list[Effect]) -> tuple[int, int]:
        messages, bytes_ = max(0, messages), max(0, bytes_)
        if not messages and not bytes_:
            return 0, 0
        if not (leg.outstanding_messages + messages and leg.outstanding_bytes + bytes_):
            return 0, 0  # Without some of both it could not be used.
        leg.grant(messages, bytes_, outbox)
        return messages, bytes_

    def _call_back(
        self,
        legs: Sequence[Leg],
        free_messages: int,
        free_bytes: int,
        now: float,
        outbox: list[Effect],
    ) -> None:
        if free_messages > 0 and free_bytes > 0:
            return
        ready = [leg for leg in legs if leg.ready_since is not None]
        if not ready or any(leg.called_back for leg in legs):
            return
        idle = [
            leg
            for leg in legs
            if leg.ready_since is None
            and not leg.planned_only
            and leg.outstanding_messages
            and leg.outstanding_bytes
        ]
        if not idle:
            return
        if now < self._ready_for_long(ready):
            self.starving = True
            return
        min(idle, key=lambda leg: (leg.delivered_at, leg.office)).call_back(outbox)

    def call_all_back(self, legs: Sequence[Leg], outbox: list[Effect]) -> None:
        """Nothing is wanted any more: what comes now was planned before."""
        self.wanted = False
        for leg in legs:
            unused = leg.outstanding_messages or leg.outstanding_bytes
            if unused and not leg.called_back and not leg.planned_only:
                leg.call_back(outbox)

    def next_deadline(self, legs: Sequence[Leg]) -> float:
        """When that is; for one that is starving."""
        return self._ready_for_long(legs)
