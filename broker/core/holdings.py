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

Rule: what a client says of a delivery is checked by the state when the op is applied, range
by range: done, done before, or not his. Only offsets that cannot exist are refused here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from broker.core.channels import ConsumerChannel
from broker.core.dispatcher import Dispatcher
from broker.core.handout import Settle
from broker.core.ops import Ack, Detach, PostOfficeOp, Requeue
from broker.core.post_office import Holder, PostOffice
from paging.part import Answer
from paging.ranges import Range
from replication.core.stream import Stream
from tanist.errors import RemoteProtocolError
from tanist.wire import hot
from tanist.wire.control import OpenConsumer, Run
from tanist.wire.frames import Verb

RUNS_MAX: Final = 1_000
"""Of one ack or requeue op; a client's frame with more becomes several ops."""


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

    def settle(self, channel: ConsumerChannel, verb: int, payload: bytes) -> None:
        """ACK or REQUEUE. Raises `RemoteProtocolError` for what must end the connection."""
        settlement = hot.read_settlement(payload)
        already: list[hot.Span] = []
        not_yours: list[hot.Span] = []
        part = self._office.part_of(channel.queue.id)
        if part is None:
            not_yours = [(first, count) for _, first, count in settlement.ranges]
        else:
            self._check_runs(part, settlement.ranges)
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
        held: dict[int, list[Range]] = {}
        for number, first, count in holds:
            held.setdefault(number, []).append(Range(first, first + count))
        unknown = [
            (number, piece.first, piece.end - piece.first)
            for number, run in self._office.in_flight_of(part, channel.holder)
            for piece in _without(run, held.get(number, []))
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


def _without(run: Range, taken: list[Range]) -> list[Range]:
    """The pieces of `run` that are in none of `taken`."""
    pieces = [run]
    for cut in taken:
        pieces = [
            piece
            for whole in pieces
            for piece in (
                Range(whole.first, min(whole.end, cut.first)),
                Range(max(whole.first, cut.end), whole.end),
            )
            if piece.first < piece.end
        ]
    return pieces
