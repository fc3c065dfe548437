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
from dataclasses import dataclass

from tanist.core.events import Effect
from tanist.core.leg import Leg
from tanist.core.settings import READY_S

_GRANT_SHARE = 8
"""READY legs are given credit when an eighth of the prefetch is free, less only after 20 ms:
else a consumer that acks one at a time would be sent one at a time."""


@dataclass(slots=True)
class _Free:
    """What is neither held nor allowed. May be below zero: a message may go beyond."""

    messages: int
    bytes: int


class Prefetch:
    """The sharing for one consumer.

    Attributes:
        wanted: Whether the application takes messages at all; if not, nothing is granted.
        balance_at: When a leg will have been READY for so long that credit is given or called
            back for it, if nothing happens before; None: there is no such leg.
    """

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        assert messages_max > 0
        assert bytes_max > 0
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.wanted = True
        self._turn = 0
        self.balance_at: float | None = None

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
        self.balance_at = None
        if not self.wanted or not legs:
            return
        free_messages = self.messages_max - held_messages
        free_bytes = self.bytes_max - held_bytes
        for leg in legs:
            free_messages -= leg.outstanding_messages
            free_bytes -= leg.outstanding_bytes
        free = _Free(free_messages, free_bytes)
        ready = [leg for leg in legs if leg.ready_since is not None and not leg.called_back]
        if ready and now >= self._ready_for_long(ready):
            # Before the standing shares: else credit that was called back for these would go
            # to the idle leg that had it, be called back again, and so on.
            self._grant_ready(ready, free, outbox)
        self._top_up(legs, free, outbox)
        ready = [leg for leg in ready if leg.ready_since is not None]
        if ready and (free.messages > 0 or free.bytes > 0):
            worth = any(
                _GRANT_SHARE * (leg.outstanding_messages + free.messages) >= self.messages_max
                and _GRANT_SHARE * (leg.outstanding_bytes + free.bytes) >= self.bytes_max
                for leg in ready
            )
            if worth:
                self._grant_ready(ready, free, outbox)
            elif now < self._ready_for_long(ready):
                self._balance_again(self._ready_for_long(ready))
        if free.messages <= 0 or free.bytes <= 0:
            self._call_back(legs, now, outbox)

    def _top_up(self, legs: Sequence[Leg], free: _Free, outbox: list[Effect]) -> None:
        """Give legs what they lack of their standing share."""
        share_messages = self.messages_max // (2 * len(legs))
        share_bytes = self.bytes_max // (2 * len(legs))
        if not share_messages or not share_bytes:
            return
        for leg in legs:
            short_messages = max(0, share_messages - leg.outstanding_messages)
            short_bytes = max(0, share_bytes - leg.outstanding_bytes)
            # When half of it is gone, and by what is worth a frame.
            short = 2 * short_messages >= share_messages or 2 * short_bytes >= share_bytes
            enough = 2 * free.messages >= short_messages and 2 * free.bytes >= short_bytes
            if short and enough and not leg.called_back:
                messages = min(short_messages, free.messages)
                self._grant(leg, messages, min(short_bytes, free.bytes), free, outbox)

    def _ready_for_long(self, legs: Sequence[Leg]) -> float:
        """When the first of these legs has been READY for long enough."""
        since = [leg.ready_since for leg in legs if leg.ready_since is not None]
        return min(since) + READY_S

    def _grant_ready(self, ready: list[Leg], free: _Free, outbox: list[Effect]) -> None:
        """Share what is free among legs for which messages wait; another one is first each time."""
        self._turn += 1
        first = self._turn % len(ready)
        for left, leg in zip(range(len(ready), 0, -1), ready[first:] + ready[:first], strict=True):
            messages = -(-max(0, free.messages) // left)
            bytes_ = -(-max(0, free.bytes) // left)
            self._grant(leg, messages, bytes_, free, outbox)

    def _grant(
        self, leg: Leg, messages: int, bytes_: int, free: _Free, outbox: list[Effect]
    ) -> None:
        messages, bytes_ = max(0, messages), max(0, bytes_)
        if not messages and not bytes_:
            return
        if not (leg.outstanding_messages + messages and leg.outstanding_bytes + bytes_):
            return  # Without some of both it could not be used.
        leg.grant(messages, bytes_, outbox)
        free.messages -= messages
        free.bytes -= bytes_

    def _call_back(self, legs: Sequence[Leg], now: float, outbox: list[Effect]) -> None:
        """Nothing is free: take it from a leg that does not use it, if another one waits."""
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
            self._balance_again(self._ready_for_long(ready))
            return
        min(idle, key=lambda leg: (leg.delivered_at, leg.office)).call_back(outbox)

    def call_all_back(self, legs: Sequence[Leg], outbox: list[Effect]) -> None:
        """Nothing is wanted any more: what comes now was planned before."""
        self.wanted = False
        for leg in legs:
            unused = leg.outstanding_messages or leg.outstanding_bytes
            if unused and not leg.called_back and not leg.planned_only:
                leg.call_back(outbox)

    def _balance_again(self, at: float) -> None:
        self.balance_at = at if self.balance_at is None else min(at, self.balance_at)
