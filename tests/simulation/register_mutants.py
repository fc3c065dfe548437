"""Mistakes planted in the register, to prove that its simulation would find them.

Each one is known from a real implementation of this algorithm, or is the omission of one rule
that the code states. They replace a part's class from outside: the core knows nothing of them.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from replication.core.acceptor import Acceptor
from replication.core.envelope import AcceptorId, Envelope
from replication.core.proposer import Proposer, _Attempt
from replication.core.register_effects import Changed, Effect
from replication.core.register_messages import (
    Accept,
    Accepted,
    Nack,
    Prepare,
    Promise,
    RegisterMessage,
)
from tests.simulation.register_world import Mutant


class BallotReused(Proposer):
    """After an accept round without an answer the prepared ballot is used for another value."""

    _kept: _Attempt | None = None

    def _abandon(self, now: float) -> None:
        attempt = self._attempt
        super()._abandon(now)
        if attempt is not None and attempt.new is not None and now >= attempt.deadline:
            self._kept = attempt

    def _begin(self, now: float, outbox: list[Effect]) -> None:
        kept = self._kept
        if kept is None or self._batch is None or self._retry_at is not None:
            super()._begin(now, outbox)
            return
        assert kept.base is not None
        self._kept = None
        self._batch.proposed = False  # It takes up what was asked for since.
        self._attempt = replace_attempt(kept, deadline=now + 1.0)
        self._propose(self._attempt, kept.base, outbox)


def replace_attempt(kept: _Attempt, *, deadline: float) -> _Attempt:
    return _Attempt(kept.ballot, deadline, heard=kept.heard, shown=kept.shown, base=kept.base)


class PromiseInMemory(Acceptor):
    """A promise is not written to disk; only the accepted value is."""

    def _prepare(self, message: Prepare) -> Promise | Nack:
        reply = super()._prepare(message)
        self._stored = self.vote
        return reply


class AnswersBeforeDurable(Acceptor):
    """The vote is written, and the answer does not wait for it."""

    def answer(self, node: str, reply: RegisterMessage, outbox: list[Effect]) -> None:
        super().answer(node, reply, outbox)
        self.persisted(self._written, outbox)


class AcceptKeepsPromise(Acceptor):
    """To accept a value does not raise the promise."""

    def _accept(self, message: Accept) -> Accepted | Nack:
        promised = self.vote.promised
        reply = super()._accept(message)
        self.vote = replace(self.vote, promised=promised)
        return reply


class AcceptIgnoresPromise(Acceptor):
    """A value is compared with the accepted ballot only, not with the promised one."""

    def _accept(self, message: Accept) -> Accepted | Nack:
        promised = self.vote.promised
        self.vote = replace(self.vote, promised=self.vote.accepted)
        reply = super()._accept(message)
        self.vote = replace(self.vote, promised=max(promised, self.vote.promised))
        return reply


class LatePromiseCounts(Proposer):
    """A promise for an earlier ballot is counted for the current one."""

    def handle(
        self, sender: str, message: Promise | Accepted | Nack, now: float, outbox: list[Effect]
    ) -> None:
        attempt = self._attempt
        if isinstance(message, Promise) and attempt is not None and attempt.new is None:
            self._promised(attempt, AcceptorId(sender, message.acc_inc), message, now, outbox)
        else:
            super().handle(sender, message, now, outbox)


class TimeoutIsNo(Proposer):
    """An accept round that got no answer in time is reported as a failure."""

    def wake(self, now: float, outbox: list[Effect]) -> None:
        attempt, batch = self._attempt, self._batch
        if attempt is not None and attempt.new is not None and now >= attempt.deadline:
            self._abandon(now)
            if batch is not None:
                self._batch = None
                for request, functions in batch.requests:
                    results = ("refused: no majority answered",) * len(functions)
                    outbox.append(Changed(request, self._learner.ver, results))
        super().wake(now, outbox)


class AppliesTwice(Proposer):
    """A batch that somebody carried along is not recognised, and is applied once more."""

    def _derive(self, base: Envelope) -> Envelope:
        others = {node: done for node, done in base.done.items() if node != self.me.node}
        return super()._derive(replace(base, done=others))


class DropsShownValue(Proposer):
    """The base is the newest value that the proposer knows as committed, not what is shown."""

    def _propose(self, attempt: _Attempt, base: Envelope, outbox: list[Effect]) -> None:
        chosen = self._learner.chosen
        super()._propose(attempt, chosen.envelope if chosen is not None else base, outbox)


MUTANTS: Final[dict[str, Mutant]] = {
    "a ballot is used for a second value": Mutant(proposer=BallotReused),
    "a promise is kept in memory": Mutant(acceptor=PromiseInMemory),
    "an answer leaves before it is durable": Mutant(acceptor=AnswersBeforeDurable),
    "an accept does not raise the promise": Mutant(acceptor=AcceptKeepsPromise),
    "an accept ignores the promise": Mutant(acceptor=AcceptIgnoresPromise),
    "a late promise counts": Mutant(proposer=LatePromiseCounts),
    "a wiped acceptor keeps its identity": Mutant(wiped_keeps_identity=True),
    "a timeout is a no": Mutant(proposer=TimeoutIsNo),
    "a batch is applied twice": Mutant(proposer=AppliesTwice),
    "the value that promises show is ignored": Mutant(proposer=DropsShownValue),
}
