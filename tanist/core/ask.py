"""One request with one answer: declare, delete, describe, list, stat, purge, status."""

from __future__ import annotations

from collections.abc import Callable

from tanist.core.errand import Errand
from tanist.core.events import Effect
from tanist.core.link import Link
from tanist.errors import (
    Error,
    OverloadedError,
    QueueExistsDifferently,
    QueueNotFound,
    RefusedError,
)
from tanist.wire import control

Answered = Callable[[control.Done | Error, float, list[Effect]], None]


class Ask(Errand):
    """A request that is repeated until it has its answer; all of them may be.

    Args:
        then: Told the answer, or why there is none.
        queue: The name that errors speak of.
        missing_is_done: `not_found` is the answer wished for if an earlier try may have
            made it so.
    """

    def __init__(
        self,
        request: control.Request,
        *,
        sid: int | None,
        then: Answered,
        draw: Callable[[], float],
        now: float,
        queue: str = "",
        missing_is_done: bool = False,
    ) -> None:
        super().__init__(sid, draw, now)
        self._request = request
        self._then = then
        self._missing_is_done = missing_is_done
        self.queue = queue

    def request(self, link: Link) -> tuple[control.Request, int]:
        return self._request, 0

    def answered(self, answer: control.Answer, now: float, outbox: list[Effect]) -> None:
        self.done()
        assert isinstance(answer, control.Done)
        self._then(answer, now, outbox)

    def refused(self, error: Error, now: float, outbox: list[Effect]) -> None:
        tried_before = self.asked_often > 1
        self.done()
        if self._missing_is_done and tried_before and isinstance(error, QueueNotFound):
            self._then(control.Done(), now, outbox)
        else:
            self._then(error, now, outbox)

    def gave_up(self, error: Error, now: float, outbox: list[Effect]) -> None:
        self.done()
        self._then(error, now, outbox)


def error_of(error: control.Error, queue: str) -> Error:
    """What a node's ERROR means to the application."""
    match error.code:
        case "not_found" | "deleted":
            return QueueNotFound(queue)
        case "exists_differently":
            return QueueExistsDifferently(error.sentence)
        case "full":
            return OverloadedError(error.sentence, retry_after_s=1.0)
        case _:
            return RefusedError(error.sentence, code=error.code, retryable=error.retryable)
