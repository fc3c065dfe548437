"""A consumer's channel to the owner of one post office: deliveries come, settlements go.

Theory of operation
-------------------
A *settlement* is an ack or a requeue of ranges of deliveries. It leaves at the end of the
turn and stays here until it is answered, as does everything that was delivered and not
settled. When the channel ends, both are presented to whoever is the owner then:

    held       delivered, not settled         stays ours, without a redelivery
    acked      settled, not answered          done now, if it was not before
    requeued   the same

What is in flight to us there and in none of the three goes back to its place. The answer
says which of it was done already, and which is not ours any more.

Rules
-----
1. A message is presented once: held, acked or requeued.
2. A delivery with a higher number than one that we know for the same offset tells what
   became of the older one: it is not ours any more, and what was settled by it is answered.
3. If the content was lost, nothing is presented. What is held is still handed out, and its
   settlements end here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tanist.core.channel import Channel
from tanist.core.errand import Stage
from tanist.core.events import Effect, Tell, Write
from tanist.core.link import Link
from tanist.core.run import Run
from tanist.core.settings import RUNS_MAX, SETTLEMENT_RUNS_MAX
from tanist.errors import Error, RemoteProtocolError
from tanist.events import Lost, Resumed
from tanist.wire import control, hot
from tanist.wire.frames import CREDIT_BACK, SETTLED_MORE, Frame, Verb, frame

if TYPE_CHECKING:
    from tanist.core.consumer import ConsumerCore

_A_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Stale:
    """Messages whose ack or requeue had no effect: somebody else may have them by now."""

    sid: int
    gen: int
    part: int
    first: int
    count: int

    @property
    def ids(self) -> list[str]:
        """The ids of these messages."""
        return [
            f"{self.sid}.{self.gen}.{self.part}.{offset}"
            for offset in range(self.first, self.first + self.count)
        ]


class Settlement:
    """What one turn settled on a leg with one verb and cause.

    Attributes:
        order: Grows over all settlements of a consumer.
        a: The number of the frame on the current channel; 0: not sent on it.
        presented: It is part of the last OPEN.
    """

    __slots__ = ("a", "cause", "order", "part", "presented", "runs")

    def __init__(self, order: int, part: int, cause: hot.Cause | None, runs: list[hot.Run]) -> None:
        self.order = order
        self.part = part
        self.cause = cause
        self.runs = runs
        self.a = 0
        self.presented = False


class Leg(Channel):
    """One leg. Its consumer decides about credit."""

    role = "consumer"

    def __init__(
        self,
        consumer: ConsumerCore,
        sid: int,
        draw: Callable[[], float],
        now: float,
    ) -> None:
        super().__init__(sid, consumer.queue, draw, now)
        self.consumer = consumer
        self.tried = False
        """It has had its first answer, whatever that was."""
        self.asked_for = consumer.info
        """With which id of the queue it was opened last."""
        self.granted_messages = self.granted_bytes = 0
        self.delivered_messages = self.delivered_bytes = 0
        self.ready_since: float | None = None
        """Messages wait for credit."""
        self.called_back = False
        """It was asked to give its credit back, and has not answered."""
        self.planned_only = False
        """It has answered: what is outstanding was planned by then, and will come."""
        self.delivered_at = now
        self._fresh = 0
        """The offset after the highest that was delivered here."""
        self._runs: dict[Run, None] = {}
        """All that are held, in part at least, in the order of delivery."""
        self._acks: list[hot.Run] = []
        self._requeues: dict[hot.Cause, list[hot.Run]] = {}
        self._part = 0
        self._unanswered: deque[Settlement] = deque()
        self._a = 0
        self._not_yours: list[hot.Span] = []
        """Of an answer that comes in several frames, what came so far."""

    # Credit

    @property
    def outstanding_messages(self) -> int:
        """Allowed and not yet delivered."""
        return max(0, self.granted_messages - self.delivered_messages)

    @property
    def outstanding_bytes(self) -> int:
        return max(0, self.granted_bytes - self.delivered_bytes)

    def grant(self, messages: int, bytes_: int, outbox: list[Effect]) -> None:
        """Allow so much more. READY ends with it."""
        # What came beyond the credit is not held against this grant: it is held already.
        self.granted_messages = max(self.granted_messages, self.delivered_messages) + messages
        self.granted_bytes = max(self.granted_bytes, self.delivered_bytes) + bytes_
        self.ready_since = None
        self.planned_only = False
        self._say_credit(0, outbox)

    def call_back(self, outbox: list[Effect]) -> None:
        """Ask for the credit that is not used."""
        self.called_back = True
        self._say_credit(CREDIT_BACK, outbox)

    def _say_credit(self, flags: int, outbox: list[Effect]) -> None:
        assert self.link is not None
        payload = hot.credit(self.granted_messages, self.granted_bytes)
        parts = frame(Verb.CREDIT, self.number, payload, flags=flags)
        outbox.append(Write(self.link.connection, parts))

    # Settling

    def settle(self, run: Run, first: int, end: int, cause: hot.Cause | None) -> None:
        """These indexes of a run were taken out of what is held."""
        if not run.held:
            self._runs.pop(run, None)
        if run.gen != self.gen:
            return  # That content is no more, and neither is what its acks would be for.
        self._part = run.part
        piece = (run.number, run.first + first, end - first)
        runs = self._acks if cause is None else self._requeues.setdefault(cause, [])
        if runs:
            number, offset, count = runs[-1]
            if number == piece[0] and offset + count == piece[1]:
                runs[-1] = (number, offset, count + piece[2])
                return
        runs.append(piece)

    def send_settlements(self, outbox: list[Effect]) -> None:
        """The turn is over: what it settled leaves, or waits for a channel."""
        self.collect()
        if self.stage is Stage.DONE:
            for settlement in self._unsent():
                self._send(settlement, outbox)

    def collect(self) -> None:
        """What was settled until now becomes a settlement."""
        if self._acks:
            acks, self._acks = self._acks, []
            self._queue(acks, None)
        if self._requeues:
            requeues, self._requeues = self._requeues, {}
            for cause, runs in requeues.items():
                self._queue(runs, cause)

    def _queue(self, runs: list[hot.Run], cause: hot.Cause | None) -> None:
        for at in range(0, len(runs), SETTLEMENT_RUNS_MAX):
            piece = runs[at : at + SETTLEMENT_RUNS_MAX]
            order = self.consumer.next_order()
            self._unanswered.append(Settlement(order, self._part, cause, piece))

    def _unsent(self) -> list[Settlement]:
        """Those at the end that have no number yet."""
        unsent: list[Settlement] = []
        for settlement in reversed(self._unanswered):
            if settlement.a:
                break
            unsent.append(settlement)
        unsent.reverse()
        return unsent

    def _send(self, settlement: Settlement, outbox: list[Effect]) -> None:
        assert self.link is not None
        # It grows, as it must, until it has no more bits: after weeks of busy turns.
        self._a = self._a % _A_MAX + 1
        settlement.a = self._a
        verb = Verb.ACK if settlement.cause is None else Verb.REQUEUE
        payload = hot.settlement(self._a, settlement.cause or 0, settlement.runs)
        outbox.append(Write(self.link.connection, frame(verb, self.number, payload)))

    @property
    def unanswered(self) -> int:
        """Messages in settlements without an answer."""
        return sum(count for s in self._unanswered for _, _, count in s.runs)

    @property
    def oldest_unanswered(self) -> int | None:
        """The order of the first settlement that has no answer; None: all have."""
        return self._unanswered[0].order if self._unanswered else None

    @property
    def held(self) -> int:
        """Messages held from this leg."""
        return sum(run.held.size for run in self._runs)

    @property
    def is_idle(self) -> bool:
        """Nothing is held from it, and nothing waits for an answer."""
        return not self._runs and not self._unanswered and not self._acks and not self._requeues

    # The channel

    def request(self, link: Link) -> tuple[control.Request, int]:
        number = self.take_number(link)
        self._trim()
        self.asked_for = self.consumer.info
        acked: list[hot.Run] = []
        requeued: list[tuple[int, int, int, int]] = []
        for settlement in self._unanswered:
            settlement.presented = True
            if settlement.cause is None:
                acked += settlement.runs
            else:
                requeued += [(*run, int(settlement.cause)) for run in settlement.runs]
        request = control.OpenConsumer(
            req=0,
            sid=self.office,
            gen=self.gen,
            epoch=self.epoch if self.gen else 0,
            queue_id=self.consumer.info.id,
            consumer=self.consumer.id,
            mode="auto" if self.consumer.auto_ack else "ack",
            catalog=self.consumer.known(),
            held=_merged(
                (run.number, run.first + first, end - first)
                for run in self._runs
                for first, end in run.held
            ),
            acked=_merged(acked),
            requeued=requeued,
        )
        return request, number

    def answered(self, answer: control.Answer, now: float, outbox: list[Effect]) -> None:
        assert isinstance(answer, control.Opened)
        self.tried = True
        if answer.lost:
            self._lost(answer, now, outbox)
            return
        old_owner, in_doubt = self.owner, self.unanswered
        self.opened(answer)
        self._settled_by_resume(answer, outbox)
        self.delivered_at = now
        if self.fails_over:
            self.fails_over = False
            resumed = Resumed(
                sid=self.office,
                queue=self.queue,
                role=self.role,
                old_owner=old_owner,
                new_owner=self.owner,
                gen=self.gen,
                epoch=self.epoch,
                in_doubt=in_doubt,
                held=self.held,
                at=now,
            )
            outbox.append(Tell(resumed))
        self.consumer.changed()

    def _settled_by_resume(self, answer: control.Opened, outbox: list[Effect]) -> None:
        while self._unanswered and self._unanswered[0].presented:
            self._report_stale(self._unanswered.popleft(), answer.not_yours)
        self._drop((*answer.already_done, *answer.not_yours), outbox)

    def _drop(self, spans: Iterable[hot.Span], outbox: list[Effect]) -> None:
        """Held messages at these offsets are not ours."""
        dropped = False
        for first, count in spans:
            for run in list(self._runs):
                begin = max(first, run.first) - run.first
                end = min(first + count, run.end) - run.first
                if begin < end:
                    dropped = self._let_go(run, begin, end) or dropped
        if dropped:
            self.consumer.dropped(outbox)

    def _let_go(self, run: Run, first: int, end: int) -> bool:
        taken = run.held.take(first, end)
        for piece_first, piece_end in taken:
            run.stale.append((piece_first, piece_end))
            self.consumer.no_longer_held(run, piece_first, piece_end)
        if not run.held:
            self._runs.pop(run, None)
        return bool(taken)

    def _report_stale(self, settlement: Settlement, not_yours: Iterable[hot.Span]) -> None:
        for first, count in not_yours:
            for _, run_first, run_count in settlement.runs:
                begin = max(first, run_first)
                end = min(first + count, run_first + run_count)
                if begin < end:
                    self.consumer.report_stale(
                        Stale(self.office, self.gen, settlement.part, begin, end - begin)
                    )

    def _lost(self, answer: control.Opened, now: float, outbox: list[Effect]) -> None:
        in_doubt = self.unanswered
        self._forget()
        self.gen, self.epoch = answer.gen, answer.epoch
        outbox.append(Tell(Lost(self.office, self.queue, self.role, answer.gen, in_doubt, now)))
        self.wait(now)
        self.consumer.changed()

    def closed(self, now: float) -> None:
        self.granted_messages = self.granted_bytes = 0
        self.delivered_messages = self.delivered_bytes = 0
        self.ready_since = None
        self.called_back = self.planned_only = False
        for settlement in self._unanswered:
            settlement.a = 0
        self._not_yours = []
        self.consumer.changed()

    def hop(self, now: float, away_from: str) -> None:
        self.tried = True
        super().hop(now, away_from)

    def pause(self, now: float) -> None:
        self.tried = True
        self.consumer.changed()
        super().pause(now)

    def waits(self, why: str, *, held: bool, now: float, outbox: list[Effect]) -> None:
        self.tried = True
        self.consumer.changed()
        super().waits(why, held=held, now=now, outbox=outbox)

    def refused(self, error: Error, now: float, outbox: list[Effect]) -> None:
        self.consumer.leg_refused(self, error, now, outbox)

    def gave_up(self, error: Error, now: float, outbox: list[Effect]) -> None:
        self.tried = True
        self.tell_failed(error, now, outbox)
        self.consumer.leg_gave_up(error, now, outbox)

    def _trim(self) -> None:
        """Let go of the newest runs that do not fit into one OPEN, if nobody has seen them."""
        presented = len(self._unanswered)
        for run in list(self._runs):
            presented += run.held.runs
            if presented > RUNS_MAX and self.consumer.unbuffer(run):
                del self._runs[run]

    def retire(self, outbox: list[Effect]) -> None:
        """The post office exists no more, or the consumer is closed."""
        self.close(outbox)
        # What is held of it is handed out all the same, and settled here.
        self._forget()

    def _forget(self) -> None:
        self._unanswered.clear()
        self._acks.clear()
        self._requeues.clear()
        self._runs.clear()
        self._fresh = 0
        self.gen = self.epoch = 0

    # Frames

    def frame(self, received: Frame, now: float, outbox: list[Effect]) -> None:
        if self.stage is not Stage.DONE:
            return
        match received.verb:
            case Verb.DELIVER:
                self._delivered(hot.read_deliver(received.payload), now, outbox)
            case Verb.SETTLED:
                settled = hot.read_settled(received.payload)
                self._not_yours += settled.not_yours
                if not received.flags & SETTLED_MORE:
                    self._answers(settled.a)
            case Verb.READY:
                if self.ready_since is None:
                    self.ready_since = now
            case Verb.CREDIT:
                planned = hot.read_credit(received.payload)
                self.granted_messages, self.granted_bytes = planned
                self.called_back = False
                self.planned_only = True
            case _:
                raise RemoteProtocolError(
                    f"{Verb(received.verb).name} on a consumer's channel",
                    code="bad_state",
                    value=str(received.verb),
                )
        self.stalled = False
        self.consumer.changed()

    def _delivered(self, delivery: hot.Delivery, now: float, outbox: list[Effect]) -> None:
        run = Run(self, delivery, now)
        if run.first < self._fresh:
            self._supersede(run, outbox)
        self._fresh = max(self._fresh, run.end)
        self._runs[run] = None
        self.delivered_messages += run.count
        self.delivered_bytes += run.size
        self.delivered_at = now
        self.consumer.delivered(run, outbox)

    def _supersede(self, run: Run, outbox: list[Effect]) -> None:
        """Rule 2: whatever we know of these offsets under a lower number is over."""
        self.collect()
        for settlement in self._unanswered:
            left: list[hot.Run] = []
            for number, first, count in settlement.runs:
                begin, end = max(first, run.first), min(first + count, run.end)
                if number >= run.number or begin >= end:
                    left.append((number, first, count))
                    continue
                if settlement.cause is None:
                    self.consumer.report_stale(
                        Stale(self.office, self.gen, settlement.part, begin, end - begin)
                    )
                if first < begin:
                    left.append((number, first, begin - first))
                if end < first + count:
                    left.append((number, end, first + count - end))
            settlement.runs = left
        dropped = False
        for older in list(self._runs):
            begin = max(older.first, run.first) - older.first
            end = min(older.end, run.end) - older.first
            if older.number < run.number and begin < end:
                dropped = self._let_go(older, begin, end) or dropped
        if dropped:
            self.consumer.dropped(outbox)

    def _answers(self, through: int) -> None:
        not_yours, self._not_yours = self._not_yours, []
        unanswered = self._unanswered
        while unanswered and unanswered[0].a and _is_through(unanswered[0].a, through):
            settlement = unanswered.popleft()
            if not_yours:
                self._report_stale(settlement, not_yours)

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(runs)`."""
        for run in self._runs:
            run.held.check()
            assert run.held, "a run is kept of which nothing is held"
            assert run.gen == self.gen, "a run of a life that is over would be presented"
        orders = [settlement.order for settlement in self._unanswered]
        assert orders == sorted(orders)


def _is_through(a: int, through: int) -> bool:
    """Whether frame `a` is among those up to `through`, which may have begun anew since."""
    return (through - a) % (_A_MAX + 1) <= _A_MAX // 2


def _merged(runs: Iterable[hot.Run]) -> list[hot.Run]:
    """The same runs, those that follow each other in one delivery as one."""
    merged: list[hot.Run] = []
    for number, first, count in runs:
        if merged and merged[-1][0] == number and merged[-1][1] + merged[-1][2] == first:
            merged[-1] = (number, merged[-1][1], merged[-1][2] + count)
        else:
            merged.append((number, first, count))
    return merged
