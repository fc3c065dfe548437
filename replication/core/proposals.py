"""What this node wants changed in the cluster map, from the wish to the answer.

What is proposed in one turn of the loop travels to the register as one change, when it is this
node's turn (`turns.py`). Who asked is told what became of it, by the number of the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replication.core.changes import Function
from replication.core.register import Register
from replication.core.register_effects import Changed, Effect
from replication.core.turns import Turns


@dataclass(frozen=True, slots=True)
class Wish:
    """One change that is wanted."""

    function: Function
    care: bool = False
    """Of those that care for the map. They look at the map for what became of it."""
    sid: int | None = None
    """The stream that wants it; None: the layer above, if nobody that cares."""
    token: int = 0


class Proposals:
    """The wishes of one node's streams, of those that care for the map, and of the layer above.

    Attributes:
        caring: A wish of those that care is on its way and not answered. They say nothing new
            before: without a majority it would pile up.
    """

    def __init__(self, register: Register, turns: Turns) -> None:
        self.caring = False
        self._register = register
        self._turns = turns
        self._waiting: list[Wish] = []
        self._asked: dict[int, list[Wish]] = {}
        self._caring_request: int | None = None

    def by_stream(self, sid: int, token: int, function: Function) -> None:
        """The stream is told the outcome, by its token."""
        self._waiting.append(Wish(function, sid=sid, token=token))

    def by_care(self, functions: Sequence[Function]) -> None:
        self._waiting += [Wish(function, care=True) for function in functions]

    def from_above(self, token: int, function: Function) -> None:
        """The layer above is told the outcome, by its token."""
        self._waiting.append(Wish(function, token=token))

    def hand_over(self, now: float, outbox: list[Effect]) -> bool:
        """Let the register have what waits, if it can. Whether it has."""
        if not self._may_go() or now < self._turns.since:
            return False
        waiting, self._waiting = self._waiting, []
        request = self._register.change([wish.function for wish in waiting], now, outbox)
        self._asked[request] = waiting
        if any(wish.care for wish in waiting):
            self._caring_request = request
            self.caring = True
        return True

    def answered(self, effect: Changed) -> list[tuple[Wish, str]]:
        """What became of the wishes of a request, but for those of care."""
        if effect.request == self._caring_request:
            self.caring = False
        asked = self._asked.pop(effect.request, [])
        return [
            (wish, result)
            for wish, result in zip(asked, effect.results, strict=False)
            if not wish.care
        ]

    def next_deadline(self) -> float | None:
        return self._turns.since if self._may_go() else None

    def _may_go(self) -> bool:
        return bool(self._waiting) and self._register.value is not None
