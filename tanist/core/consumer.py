"""A consumer: legs to all post offices of its queue, one buffer, settlements.

What legs deliver is buffered in the order in which it came, and taken run by run. Each
message is held from its delivery until it is acked or requeued; all that is held, buffered
or not, counts against the prefetch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tanist.core.errand import Stage
from tanist.core.events import Deliverable, Dropped, Effect, Resolve, Tell
from tanist.core.leg import Leg, Stale
from tanist.core.prefetch import Prefetch
from tanist.core.run import Run
from tanist.core.settings import STALE_MAX
from tanist.errors import ClosedError, Error, FailoverTimeout, QueueNotFound
from tanist.events import Failed
from tanist.wire import control
from tanist.wire.hot import Cause


@dataclass(slots=True)
class _Flush:
    """Resolved when every settlement up to `through` is answered."""

    through: int
    token: object


class ConsumerCore:
    """One consumer of one queue.

    `ack_run` and `ack_end` are for the caller's fast path: while a message is the next one
    (its run is `ack_run`, its index `ack_end`), it may be acked by adding one to `ack_end`,
    without calling `ack`. At the beginning of each turn there is no such run, so that the
    first ack of a turn comes by `ack`, which tells that the turn's end has work.

    Args:
        consumer: 128 bits as hexadecimal digits, never used before.
        missing: Asked when the queue's id is not known; whether another one is looked for.
        changed: Told when the turn's end has work for this consumer.
    """

    def __init__(
        self,
        *,
        info: control.QueueInfo,
        consumer: str,
        prefetch: Prefetch,
        auto_ack: bool,
        known: Callable[[], control.Known],
        changed: Callable[[ConsumerCore], None],
        missing: Callable[[ConsumerCore, float], bool],
        opened_token: object,
        draw: Callable[[], float],
    ) -> None:
        self.info = info
        self.queue = info.name
        self.id = consumer
        self.auto_ack = auto_ack
        self.prefetch = prefetch
        self.known = known
        self._changed = changed
        self._missing = missing
        self._opened_token: object = opened_token
        self._draw = draw
        self.legs: dict[int, Leg] = {}
        self._buffer: deque[Run] = deque()
        self._held_messages = 0
        self._held_bytes = 0
        self._order = 0
        self._stale: deque[Stale] = deque(maxlen=STALE_MAX)
        self._flushes: deque[_Flush] = deque()
        self._drains: list[object] = []
        self.ack_run: Run | None = None
        self._ack_first = 0
        self.ack_end = 0
        self._error: Error | None = None
        self._hiccup: Error | None = None

    # The application's side

    @property
    def error(self) -> Error | None:
        """Why this consumer is over, if it is."""
        return self._error

    def take_error(self) -> Error | None:
        """What the next call for messages must raise: the end, or, once, that a leg found no
        owner in time."""
        if self._error is not None:
            return self._error
        error, self._hiccup = self._hiccup, None
        return error

    @property
    def held(self) -> int:
        """Messages delivered and not settled."""
        return self._held_messages

    def want(self) -> None:
        """The application takes messages (again)."""
        if not self.prefetch.wanted:
            self.prefetch.wanted = True
            self.changed()

    def take(self) -> Run | None:
        """The next run with messages to hand out: those of `run.held`."""
        while self._buffer:
            run = self._buffer.popleft()
            if run.held:
                return run
        return None

    def ack(self, run: Run, index: int) -> None:
        """A message is done with."""
        if run is self.ack_run and index == self.ack_end:
            self.ack_end = index + 1
            return
        self._close_range()
        self.ack_run = run
        self._ack_first = index
        self.ack_end = index + 1
        self.changed()

    def requeue(self, run: Run, index: int, cause: Cause) -> None:
        """A message goes back to its place in the queue."""
        self._close_range()
        self._settle(run, index, index + 1, cause)
        self.changed()

    def _close_range(self) -> None:
        if self.ack_run is not None:
            run, self.ack_run = self.ack_run, None
            self._settle(run, self._ack_first, self.ack_end, None)

    def _settle(self, run: Run, first: int, end: int, cause: Cause | None) -> None:
        missing = end - first
        for piece_first, piece_end in run.held.take(first, end):
            self.no_longer_held(run, piece_first, piece_end)
            run.leg.settle(run, piece_first, piece_end, cause)
            missing -= piece_end - piece_first
        if missing:
            # Either settled before, by the same application, or not ours any more.
            for stale_first, stale_end in run.stale:
                begin, stop = max(first, stale_first), min(end, stale_end)
                if begin < stop:
                    self.report_stale(
                        Stale(run.sid, run.gen, run.part, run.first + begin, stop - begin)
                    )

    def flush(self, token: object) -> None:
        """Resolve `token` when all settlements made until now are answered: with the list of
        `Stale` of those since the last flush that had no effect."""
        self._close_range()
        for leg in self.legs.values():
            leg.collect()
        self._flushes.append(_Flush(self._order, token))
        self.changed()

    def drain(self, token: object) -> None:
        """Want nothing more; resolve `token` when nothing more will come."""
        self.prefetch.wanted = False
        self._drains.append(token)
        self.changed()

    # For the legs

    def changed(self) -> None:
        self._changed(self)

    def next_order(self) -> int:
        self._order += 1
        return self._order

    def delivered(self, run: Run, outbox: list[Effect]) -> None:
        self._held_messages += run.count
        self._held_bytes += run.size
        if not self._buffer:
            outbox.append(Deliverable(self))
        self._buffer.append(run)

    def no_longer_held(self, run: Run, first: int, end: int) -> None:
        self._held_messages -= end - first
        self._held_bytes -= run.bytes_of(first, end)

    def dropped(self, outbox: list[Effect]) -> None:
        """Some of what was taken may not be held any more."""
        outbox.append(Dropped(self))
        self.changed()

    def unbuffer(self, run: Run) -> bool:
        """Let go of a run that nobody has seen; whether that was so."""
        if run not in self._buffer:
            return False
        self._buffer.remove(run)
        for first, end in list(run.held):
            self.no_longer_held(run, first, end)
        return True

    def report_stale(self, stale: Stale) -> None:
        self._stale.append(stale)

    def leg_refused(self, leg: Leg, error: Error, now: float, outbox: list[Effect]) -> None:
        if isinstance(error, QueueNotFound) and leg.asked_for is not self.info:
            # Another leg has learned meanwhile that the queue has another id.
            leg.wait(now)
            return
        if isinstance(error, QueueNotFound) and self._missing(self, now):
            leg.park()
            return
        self.fail(error, now, outbox)

    def leg_gave_up(self, error: Error, now: float, outbox: list[Effect]) -> None:
        if self._opened_token is not None:
            # Nobody has it, so nobody would take what other legs are sent.
            self.fail(error, now, outbox)
            return
        self._hiccup = error
        outbox.append(Deliverable(self))
        in_doubt = sum(leg.unanswered for leg in self.legs.values())
        flushes, self._flushes = self._flushes, deque()
        doubt = FailoverTimeout(str(error), in_doubt=in_doubt)
        outbox.extend(Resolve(flush.token, None, doubt) for flush in flushes)

    # For the core

    def place_legs(self, offices: Iterable[int], now: float, outbox: list[Effect]) -> list[Leg]:
        """There is a leg to each of these post offices, and to no other. Returns new ones."""
        if self._error is not None:
            return []
        wanted = [self.info.sid] if self.info.spread == "one" else list(offices)
        for sid in [sid for sid in self.legs if sid not in wanted]:
            self.legs.pop(sid).retire(outbox)
        new = [sid for sid in wanted if sid not in self.legs]
        for sid in new:
            self.legs[sid] = Leg(self, sid, self._draw, now)
        self.changed()
        return [self.legs[sid] for sid in new]

    def renamed(self, info: control.QueueInfo, now: float) -> None:
        """The queue has another id since the catalog was put together again."""
        self.info = info
        for leg in self.legs.values():
            if leg.stage is Stage.OVER:
                leg.since = now
                leg.wait(now)

    def settle(self, now: float, outbox: list[Effect]) -> None:
        """The turn's end: settlements leave, credit is given, and what is decided resolved."""
        self._close_range()
        if self._error is None:
            for leg in self.legs.values():
                leg.send_settlements(outbox)
                if self._flushes and leg.given_up:
                    # Whoever waits now waits a whole while of his own.
                    leg.given_up, leg.since = False, now
            open_legs = self._open_legs()
            if self._drains:
                self.prefetch.call_all_back(open_legs, outbox)
            self.prefetch.balance(
                open_legs,
                held_messages=self._held_messages,
                held_bytes=self._held_bytes,
                now=now,
                outbox=outbox,
            )
        self._resolve(outbox)

    def _open_legs(self) -> list[Leg]:
        return [leg for leg in self.legs.values() if leg.stage is Stage.DONE]

    def _resolve(self, outbox: list[Effect]) -> None:
        if self._opened_token is not None and all(leg.tried for leg in self.legs.values()):
            outbox.append(Resolve(self._opened_token, self))
            self._opened_token = None
        if self._flushes:
            oldest = [leg.oldest_unanswered for leg in self.legs.values()]
            first = min((order for order in oldest if order is not None), default=None)
            while self._flushes:
                if first is not None and first <= self._flushes[0].through:
                    break
                token = self._flushes.popleft().token
                outbox.append(Resolve(token, list(self._stale), self._error))
                self._stale.clear()
        if self._drains and not any(
            leg.called_back or leg.outstanding_messages for leg in self._open_legs()
        ):
            drains, self._drains = self._drains, []
            outbox.extend(Resolve(token, None) for token in drains)

    def fail(self, error: Error, now: float, outbox: list[Effect]) -> None:
        """It is over."""
        if self._error is not None:
            return
        self._close_range()
        for leg in self.legs.values():
            leg.send_settlements(outbox)
            leg.retire(outbox)
        self._error = error
        sid = min(self.legs, default=0)
        self.legs.clear()
        self._buffer.clear()
        if self._opened_token is not None:
            outbox.append(Resolve(self._opened_token, None, error))
            self._opened_token = None
        elif not isinstance(error, ClosedError):
            outbox.append(Tell(Failed(sid, self.queue, "consumer", error, now)))
        outbox.append(Deliverable(self))
        self.changed()

    def next_deadline(self) -> float | None:
        """When credit is to be given or called back, if nothing happens before."""
        return self.prefetch.balance_at if self._error is None else None

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(runs)`."""
        for leg in self.legs.values():
            leg.check()
        assert self._held_messages >= 0
        assert self._held_bytes >= 0
