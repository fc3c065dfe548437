"""What consumers hold of one post office: how it is settled, and how it returns.

Theory of operation
-------------------
A message is in flight under the number of the delivery that it went out with, to one holder.
It leaves that state by an op: an ack, or a requeue, which brings it back to its place. Here
these ops are made, from what clients say and from what the desk knows of channels that ended.

    why it returns                                flag   counts as an attempt
    the consumer requeued it because it failed    yes    yes
    the consumer requeued it otherwise            yes    no
    its delivery never left this node             no     no
    the client came back and does not know it     yes    no
    the channel was closed, or a grace ended      yes    as the grace says

What a client says of a delivery is checked by the state when the op is applied, range by
range: done, done before, or not his. Only offsets that cannot exist are refused here.

An ack makes room, so it does not ask for any, but there is an end to that, too: when nothing
leaves because copies are missing, and the whole window of the stream is used up, what consumers
say is parked, leg by leg and in order.

Rules
-----
1. What is parked is settled when there is room, or when its leg ends, whichever is first: what
   was acknowledged before a CLOSE never returns.
2. It is answered like all the rest, and a client repeats what was not answered. So nothing is
   lost where a connection ends, nor where the post office gets another owner.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from broker.core.channels import ConsumerChannel
from broker.core.dispatcher import Dispatcher
from broker.core.handout import Settle
from broker.core.ops import Ack, Detach, PostOfficeOp, Requeue
from broker.core.post_office import Holder, PostOffice
from paging.part import Answer
from paging.ranges import Range, Ranges
from replication.core.stream import Stream
from tanist.errors import RemoteProtocolError
from tanist.wire import hot
from tanist.wire.control import OpenConsumer, Run
from tanist.wire.frames import Verb

RUNS_MAX: Final = 1_000
"""Of one ack or requeue op; a client's frame with more becomes several ops."""
PARKED_BYTES_MAX: Final = 16 << 20
"""Parked of one leg: more than a client says that settles each message of its credit alone."""
_PARKED_OVERHEAD: Final = 128
"""Of one frame, beside its bytes."""


class Holdings:
    """Settles and returns what is in flight.

    Args:
        stream: Owned by this node.
        office: What it carries.
        dispatcher: Told what returns, and what a leg has settled.
    """

    def __init__(
        self,
        *,
        stream: Stream[PostOfficeOp, object],
        office: PostOffice,
        dispatcher: Dispatcher,
    ) -> None:
        self._stream = stream
        self._office = office
        self._dispatcher = dispatcher
        self._parked: dict[ConsumerChannel, deque[tuple[int, Callable[[], None]]]] = {}
        self.parked_bytes = 0

    def settle(self, channel: ConsumerChannel, verb: int, payload: bytes) -> None:
        """ACK or REQUEUE. Raises `RemoteProtocolError` for what must end the connection."""
        settlement = hot.read_settlement(payload)
        part = self._office.part_of(channel.queue.id)
        if part is not None:
            self._check_runs(part, settlement.ranges)
        if self.must_wait(channel):
            self.park(channel, len(payload), partial(self._settle, channel, verb, settlement))
        else:
            self._settle(channel, verb, settlement)

    def must_wait(self, channel: ConsumerChannel) -> bool:
        """Whether what this leg says now is to be parked."""
        return channel in self._parked or self._stream.full()

    def park(self, channel: ConsumerChannel, size: int, step: Callable[[], None]) -> None:
        """Do this later. Raises `RemoteProtocolError` if too much of a leg waits already."""
        steps = self._parked.setdefault(channel, deque())
        steps.append((size + _PARKED_OVERHEAD, step))
        self.parked_bytes += size + _PARKED_OVERHEAD
        channel.parked_bytes += size + _PARKED_OVERHEAD
        if channel.parked_bytes > PARKED_BYTES_MAX:
            raise RemoteProtocolError(
                f"{channel.parked_bytes} bytes of acknowledgements wait on channel"
                f" {channel.number}, more than its credit can cause",
                code="limit",
                value=str(channel.number),
            )

    def unpark(self) -> None:
        """Settle what was parked, as far as there is room now."""
        while self._parked and not self._stream.full():
            channel = next(iter(self._parked))
            self._next_parked(channel)

    def settle_parked(self, channel: ConsumerChannel) -> None:
        """The leg ends: what was said on it before counts."""
        while channel in self._parked:
            self._next_parked(channel)

    def _next_parked(self, channel: ConsumerChannel) -> None:
        steps = self._parked[channel]
        size, step = steps.popleft()
        self.parked_bytes -= size
        channel.parked_bytes -= size
        if not steps:
            del self._parked[channel]
        step()

    def _settle(self, channel: ConsumerChannel, verb: int, settlement: hot.Settlement) -> None:
        already: list[hot.Span] = []
        not_yours: list[hot.Span] = []
        part = self._office.part_of(channel.queue.id)
        if part is None:
            not_yours = [(first, count) for _, first, count in settlement.ranges]
        else:
            for at in range(0, len(settlement.ranges), RUNS_MAX):
                runs = settlement.ranges[at : at + RUNS_MAX]
                if verb == Verb.ACK:
                    answers = self._ack(part, runs)
                else:
                    failed = settlement.cause == hot.Cause.FAILED
                    answers = self._requeue(part, runs, flagged=True, failed=failed)
                self._collect(answers, already, not_yours)
        settled = sum(count for _, _, count in settlement.ranges)
        self._dispatcher.settled(channel.leg, settled)
        self._stream.answer(Settle(channel, settlement.a, already, not_yours))

    def resume(
        self, channel: ConsumerChannel, asked: OpenConsumer
    ) -> tuple[list[hot.Span], list[hot.Span]]:
        """What was settled and not answered first; then what the client does not know of.

        Returns what of it was done before, and what is not this consumer's any more.
        """
        already: list[hot.Span] = []
        not_yours: list[hot.Span] = []
        part = self._office.part_of(channel.queue.id)
        end = 0 if part is None else self._office.end_of(part)

        def here(run: Run) -> bool:
            # A queue that has another id since the catalog was lost has another part, too.
            _, first, count = run
            if first + count > end:
                not_yours.append((first, count))
            return first + count <= end

        holds = [run for run in asked.held if here(run)]
        acked = [run for run in asked.acked if here(run)]
        requeued = [((n, f, c), cause) for n, f, c, cause in asked.requeued if here((n, f, c))]
        if part is None:
            return already, not_yours
        if acked:
            self._collect(self._ack(part, acked), already, not_yours)
        for run, cause in requeued:
            failed = cause == hot.Cause.FAILED
            answers = self._requeue(part, [run], flagged=True, failed=failed)
            self._collect(answers, already, not_yours)
        self._collect(
            [self._office.claim(part, n, Range(f, f + c)) for n, f, c in holds],
            already,
            not_yours,
        )
        held: defaultdict[int, Ranges] = defaultdict(Ranges)
        for number, first, count in holds:
            held[number].merge(Range(first, first + count))
        unknown = [
            (number, piece.first, piece.size)
            for number, run in self._office.in_flight_of(part, channel.holder)
            for piece in held[number].gaps(run)
        ]
        if unknown:
            self._requeue(part, unknown, flagged=True, failed=False)
        return already, not_yours

    def return_unsent(self, channel: ConsumerChannel) -> None:
        """What was planned and never left returns as if it had never been delivered."""
        part = self._office.part_of(channel.queue.id)
        if part is None or not channel.unsent:
            return
        never_left = [
            (number, run.first, run.end - run.first)
            for number, run in self._office.in_flight_of(part, channel.holder)
            if number in channel.unsent
        ]
        channel.unsent.clear()
        if never_left:
            self._requeue(part, never_left, flagged=False, failed=False)

    def return_all(self, holder: Holder, *, failed: bool) -> None:
        """Whatever this consumer holds returns, and it is attached no more."""
        for part in self._office.parts_of(holder):
            self.return_from(part, holder, failed=failed)
        if self._office.is_attached(holder):
            self._stream.append(Detach(*holder))

    def return_from(self, part: int, holder: Holder, *, failed: bool) -> None:
        """Whatever this consumer holds of one part returns."""
        runs = [
            (number, run.first, run.end - run.first)
            for number, run in self._office.in_flight_of(part, holder)
        ]
        if runs:
            self._requeue(part, runs, flagged=True, failed=failed)

    def _ack(self, part: int, runs: Iterable[Run]) -> list[Answer]:
        return self._office.answers(self._stream.append(Ack(part, tuple(runs))))

    def _requeue(
        self, part: int, runs: Iterable[Run], *, flagged: bool, failed: bool
    ) -> list[Answer]:
        op = Requeue(part, tuple(runs), flagged=flagged, count_attempt=failed)
        answers = self._office.answers(self._stream.append(op))
        self._dispatcher.touched(self._office.queue_of(part))
        return answers

    def _check_runs(self, part: int, runs: Iterable[Run]) -> None:
        end = self._office.end_of(part)
        for number, first, count in runs:
            if first + count > end:
                raise RemoteProtocolError(
                    f"delivery {number} cannot hold offset {first + count - 1}: the part ends"
                    f" at {end}",
                    code="bad_state",
                    value=str(first + count - 1),
                )

    def _collect(
        self, answers: Iterable[Answer], already: list[hot.Span], not_yours: list[hot.Span]
    ) -> None:
        for answer in answers:
            already += [(run.first, run.end - run.first) for run in answer.already_done]
            not_yours += [(run.first, run.end - run.first) for run in answer.not_yours]
