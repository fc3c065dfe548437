"""Requests that wait: for an owner, for this node's copy of the catalog, or for a vote.

A request that cannot be answered yet is told so with WAIT and kept, at most `park_ms`; then
it is answered RETRY, and the client asks again, perhaps somewhere else. Whenever something
changed that may help, all are tried anew, in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.core.connection import Connection, State
from broker.core.events import Effect
from tanist.wire.control import Request, Retry, Wait

RETRY_AFTER_MS = 100


@dataclass(slots=True)
class Waiting:
    """One request."""

    connection: Connection
    channel: int
    request: Request
    until: float
    caught_up: tuple[int, int] | None = None
    """How far the catalog's owner was when it was asked: (gen, seq). When our copy is there,
    what it does not have does not exist."""
    asked: int | None = None
    """Number of the question to the catalog's owner, or of the proposal, that is under way."""
    verdict: str | None = None
    """What the voting nodes made of what it proposes: `DONE`, or why it is refused."""
    told: bool = False
    """WAIT was said."""


class WaitingRoom:
    """All requests of a node that wait.

    Args:
        park_s: How long one may wait.
    """

    def __init__(self, park_s: float) -> None:
        self._park_s = park_s
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def new(self, connection: Connection, channel: int, request: Request, now: float) -> Waiting:
        """A request that just came; it waits only if it is put into the room."""
        return Waiting(connection, channel, request, now + self._park_s)

    def put(self, waiting: Waiting, *, sid: int, why: str, outbox: list[Effect]) -> None:
        """It cannot be answered yet."""
        if not waiting.told:
            waiting.told = True
            wait = Wait(req=waiting.request.req, sid=sid, why=why)
            waiting.connection.say(wait, outbox, waiting.channel)
        self._waiting.append(waiting)

    def drop(self, connection: Connection, channel: int) -> None:
        """The client gave up what it asked for on this channel."""
        self._waiting = [
            one
            for one in self._waiting
            if one.connection is not connection or one.channel != channel
        ]

    def found(self, asked: int, caught_up: tuple[int, int] | None) -> None:
        """The catalog's owner answered; None: it was no longer the owner."""
        for waiting in self._waiting:
            if waiting.asked == asked:
                waiting.asked = None
                waiting.caught_up = caught_up

    def decided(self, asked: int, verdict: str) -> None:
        """The voting nodes agreed about what a request proposes."""
        for waiting in self._waiting:
            if waiting.asked == asked:
                waiting.verdict = verdict

    def try_again(self, answer: Callable[[Waiting], None]) -> None:
        """Try all: `answer` answers a request, or puts it back."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if one.connection.state is State.WELCOME:
                answer(one)

    def expire(self, now: float, outbox: list[Effect]) -> None:
        """Answer RETRY to those that have waited for long enough."""
        for one in [one for one in self._waiting if now >= one.until]:
            self._waiting.remove(one)
            if one.connection.state is State.WELCOME:
                retry = Retry(req=one.request.req, after_ms=RETRY_AFTER_MS)
                one.connection.say(retry, outbox, one.channel)

    def next_deadline(self) -> float | None:
        return min((one.until for one in self._waiting), default=None)
