"""One node's proposals to the register: changes and reads, without I/O and without a clock.

Theory of operation
-------------------
    submit            promises of a quorum          accepted by a quorum
  IDLE ────▶ PREPARE ──────────────────────▶ ACCEPT ─────────────────────▶ committed, IDLE
     ▲          │ a higher ballot, or time     │ a higher ballot, or time
     └──────────┴──────── wait, then anew ─────┘

What was asked for since the last round goes into one batch, and one batch is on its way at a
time. A round takes the newest value that its promises show as its base, applies the batch to
it, and asks for the result to be stored. A read is a batch with nothing in it: its round
stores the base once more, and by that proves that no newer one was there.

An attempt that was abandoned may have succeeded, or may yet: that is *unknown*, never *no*.
Only another whole round tells, since its promises kill the old ballot; so a batch is repeated
until a round commits. It may then find itself in the base, carried along by somebody else:
`done` in the envelope says so, and it is not applied twice.

Rules
-----
1. A ballot belongs to one attempt, and an attempt proposes one value. What is late, or belongs
   to another attempt, is dropped by comparing ballots.
2. A batch that was proposed once is never added to: its number stands for these changes.
3. No durable state. The incarnation in the ballot is new for each process, so a ballot that a
   former life used cannot come back.
4. *Commit before reconfigure*: a value with other acceptors than its base may only be proposed
   if the base is known to be committed; otherwise the base is committed first. Nothing changes
   the acceptors in this version, and the rule stands where such a change would come through.

Reference: Rystsov, "CASPaxos: Replicated State Machines without logs".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from msgspec.structs import replace

from replication.core.changes import Form, Function
from replication.core.clustermap import decode_map, encode_map
from replication.core.envelope import (
    MAP_BYTES_MAX,
    RESULTS_MAX,
    AcceptorId,
    Done,
    Envelope,
    decode_envelope,
    encode_envelope,
)
from replication.core.identity import Ballot, Incarnation
from replication.core.learner import Learner
from replication.core.register_effects import Changed, Effect, Send
from replication.core.register_messages import (
    Accept,
    Accepted,
    Nack,
    Prepare,
    Promise,
)

ATTEMPT_S: Final = 0.5
"""So long the first attempt waits for a quorum; each one after a timeout twice as long, up to
`ATTEMPT_S_MAX`: with slow disks, or a slow network, a longer one succeeds in the end."""

ATTEMPT_S_MAX: Final = 8.0

BACKOFF_S_MAX: Final = 1.0


@dataclass(slots=True)
class _Batch:
    number: int
    requests: list[tuple[int, tuple[Function, ...]]] = field(default_factory=list)
    proposed: bool = False

    @property
    def functions(self) -> list[Function]:
        return [function for _, functions in self.requests for function in functions]


@dataclass(slots=True)
class _Attempt:
    ballot: Ballot
    deadline: float
    asked: set[AcceptorId] = field(default_factory=set)
    heard: set[AcceptorId] = field(default_factory=set)
    """Who promised."""

    accepted: set[AcceptorId] = field(default_factory=set)
    shown: tuple[Ballot, bytes] | None = None
    """The newest value that the promises showed."""

    base: Envelope | None = None
    new: Envelope | None = None
    """What was proposed: chosen as soon as a quorum accepted it."""

    raw: bytes = b""
    """Its bytes."""


class Proposer:
    """Queues requests and proposes them until their outcome is known.

    Args:
        me: The proposing process.
        learner: What is known to be committed; what this proposer commits is added.
        rank: Its place among the nodes; the lower ones go first after a collision.
        form: What makes version 1 out of version 0.
        draw: Uniform in [0, 1).
    """

    def __init__(
        self,
        *,
        me: Incarnation,
        rank: int,
        form: Form,
        learner: Learner,
        draw: Callable[[], float],
    ) -> None:
        self.me = me
        self.round = 0
        self.last_majority_at: float | None = None
        self._rank = rank
        self._form = form
        self._learner = learner
        self._draw = draw
        self._cluster_id = ""
        self._ask: frozenset[AcceptorId] = frozenset()
        self._forming = False
        self._request = 0
        self._queue: deque[tuple[int, tuple[Function, ...]]] = deque()
        self._batches = 0
        self._batch: _Batch | None = None
        self._attempt: _Attempt | None = None
        self._retry_at: float | None = None
        self._nacks = self._timeouts = 0

    def open(self, cluster_id: str, ask: Iterable[AcceptorId], *, form: bool = False) -> None:
        """From now on there is a cluster, and these are whom to ask. What was submitted so
        far begins with the next `wake`; so does version 1, if this node shall `form` it."""
        self._cluster_id = cluster_id
        self._ask = frozenset(ask)
        self._forming = form

    @property
    def is_open(self) -> bool:
        return self._cluster_id != ""

    def submit(self, functions: Sequence[Function], now: float, outbox: list[Effect]) -> int:
        """Have these applied, in this order and in one step; none: a read. Returns the
        request's number, which `Changed` will name."""
        assert len(functions) <= RESULTS_MAX
        self._request += 1
        self._queue.append((self._request, tuple(functions)))
        self._begin(now, outbox)
        return self._request

    def handle(
        self,
        sender: str,
        message: Promise | Accepted | Nack,
        now: float,
        outbox: list[Effect],
    ) -> None:
        """An acceptor's answer. What belongs to another attempt is dropped."""
        attempt = self._attempt
        if attempt is None or message.ballot != attempt.ballot:
            return
        acceptor = AcceptorId(sender, message.acc_inc)
        match message:
            case Promise():
                if attempt.new is None:
                    self._promised(attempt, acceptor, message, now, outbox)
            case Accepted():
                if attempt.new is not None:
                    self._accepted(attempt, acceptor, now, outbox)
            case Nack():
                self.saw(message.beat)
                self._nacks += 1
                self._abandon(now)
            case _:
                assert_never(message)

    def learned(self, now: float, outbox: list[Effect]) -> None:
        """The learner knows a newer value, from somebody else."""
        known = self._learner.chosen
        assert known is not None
        self.saw(known.ballot)
        self._forming = False
        if self._batch is not None and self._finds_itself_in(known.envelope):
            # It was carried along, and no further round is needed to know that.
            self._attempt = self._retry_at = None
            self._finish(known.envelope, outbox)
            self._begin(now, outbox)

    def saw(self, ballot: Ballot) -> None:
        """A higher ballot is about: the next attempt begins above it."""
        self.round = max(self.round, ballot.round)

    def wake(self, now: float, outbox: list[Effect]) -> None:
        if self._attempt is not None and now >= self._attempt.deadline:
            self._timeouts += 1
            self._abandon(now)
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
        self._begin(now, outbox)

    def next_deadline(self) -> float | None:
        if self._attempt is not None:
            return self._attempt.deadline
        return self._retry_at

    # One attempt, from its beginning to its end.

    def _begin(self, now: float, outbox: list[Effect]) -> None:
        idle = self._attempt is None and self._retry_at is None
        if not (idle and self.is_open and (self._batch or self._queue or self._forming)):
            return
        if self._batch is None:
            self._batches += 1
            self._batch = _Batch(self._batches)
        self.round += 1
        patience_s = min(ATTEMPT_S_MAX, ATTEMPT_S * 2.0 ** min(self._timeouts, 10))
        self._attempt = _Attempt(Ballot(self.round, self.me), deadline=now + patience_s)
        self._prepare(self._attempt, self._ask, outbox)
        if (known := self._learner.chosen) is not None:
            self._prepare(self._attempt, known.envelope.voters, outbox)

    def _prepare(
        self, attempt: _Attempt, voters: Iterable[AcceptorId], outbox: list[Effect]
    ) -> None:
        for voter in sorted(frozenset(voters) - attempt.asked):
            attempt.asked.add(voter)
            outbox.append(
                Send(
                    voter.node,
                    Prepare(cluster_id=self._cluster_id, acc_inc=voter.inc, ballot=attempt.ballot),
                )
            )

    def _promised(
        self,
        attempt: _Attempt,
        acceptor: AcceptorId,
        message: Promise,
        now: float,
        outbox: list[Effect],
    ) -> None:
        attempt.heard.add(acceptor)
        if attempt.shown is None or message.accepted > attempt.shown[0]:
            attempt.shown = (message.accepted, message.value)
            attempt.base = decode_envelope(message.value)
        base = attempt.base
        assert base is not None
        self._prepare(attempt, base.voters, outbox)
        chosen = self._learner.chosen
        known = chosen.envelope if chosen is not None else base
        if not (base.quorum(attempt.heard) and known.quorum(attempt.heard)):
            return
        self.last_majority_at = now
        self._propose(attempt, base, outbox)

    def _propose(self, attempt: _Attempt, base: Envelope, outbox: list[Effect]) -> None:
        assert attempt.shown is not None
        chosen = self._learner.chosen
        new = self._derive(base)
        is_committed = chosen is not None and chosen.raw == attempt.shown[1]
        if (new.cfg, new.prev) != (base.cfg, base.prev) and not is_committed:
            new = base
        attempt.new = new
        attempt.raw = attempt.shown[1] if new is base else encode_envelope(new)
        voters = base.voters | new.voters
        if chosen is not None:
            voters |= chosen.envelope.voters
        outbox.extend(
            Send(
                voter.node,
                Accept(
                    cluster_id=self._cluster_id,
                    acc_inc=voter.inc,
                    ballot=attempt.ballot,
                    value=attempt.raw,
                ),
            )
            for voter in sorted(voters)
        )

    def _accepted(
        self, attempt: _Attempt, acceptor: AcceptorId, now: float, outbox: list[Effect]
    ) -> None:
        attempt.accepted.add(acceptor)
        base, new = attempt.base, attempt.new
        assert base is not None
        assert new is not None
        chosen = self._learner.chosen
        known = chosen.envelope if chosen is not None else base
        if not all(value.quorum(attempt.accepted) for value in (new, base, known)):
            return
        self._attempt = None
        self._nacks = self._timeouts = 0
        self.last_majority_at = now
        if self._learner.learn(attempt.ballot, attempt.raw, outbox):
            self._learner.tell_all(outbox)
        assert self._batch is not None
        if self._finds_itself_in(new) or (new.ver > 0 and not self._batch.functions):
            self._finish(new, outbox)
            self._forming = False
        # If not, this round committed the base, or version 1, and the batch is still to come.
        self._begin(now, outbox)

    def _abandon(self, now: float) -> None:
        # Its ballot is never used again: the value may have been stored somewhere, and to
        # propose another one under the same ballot would undo what may have been chosen.
        self._attempt = None
        spread_s = self._draw() * 0.02 * 2.0 ** min(self._nacks + self._timeouts, 10)
        self._retry_at = now + min(BACKOFF_S_MAX, self._rank * 0.05 + spread_s)

    # The batch, and what it makes of a base.

    def _derive(self, base: Envelope) -> Envelope:
        """The value to propose; `base` itself if there is nothing to add to it."""
        if base.ver == 0:
            # Whoever comes first forms the map; its batch follows in the next round.
            return self._applied(base, [self._form])[0]
        batch = self._batch
        assert batch is not None
        if not batch.proposed:
            self._fill(batch)
        if not batch.functions or self._finds_itself_in(base):
            return base
        new, results = self._applied(base, batch.functions)
        mine = Done(self.me.inc, batch.number, results)
        return replace(new, done={**base.done, self.me.node: mine})

    def _fill(self, batch: _Batch) -> None:
        count = 0
        while self._queue:
            count += len(self._queue[0][1])
            if count > RESULTS_MAX:
                break
            batch.requests.append(self._queue.popleft())
        batch.proposed = True

    def _applied(
        self, base: Envelope, functions: Sequence[Function]
    ) -> tuple[Envelope, tuple[str, ...]]:
        value = decode_map(base.map)
        results = []
        for function in functions:
            after, result = function.apply(value)
            map_bytes = len(encode_map(after))
            if map_bytes > MAP_BYTES_MAX and after is not value:
                result = f"refused: the map would have {map_bytes} bytes, of {MAP_BYTES_MAX}"
                after = value
            value = after
            results.append(result)
        new = replace(base, ver=base.ver + 1, base_cfg=(base.cfg, base.prev), map=encode_map(value))
        return new, tuple(results)

    def _finds_itself_in(self, envelope: Envelope) -> bool:
        mine = envelope.done.get(self.me.node)
        return (
            mine is not None
            and self._batch is not None
            and (mine.proposer_inc, mine.batch) == (self.me.inc, self._batch.number)
        )

    def _finish(self, envelope: Envelope, outbox: list[Effect]) -> None:
        batch = self._batch
        assert batch is not None
        self._batch = None
        results = envelope.done[self.me.node].results if batch.functions else ()
        for request, functions in batch.requests:
            mine, results = results[: len(functions)], results[len(functions) :]
            outbox.append(Changed(request, envelope.ver, mine))
        assert not results, "a result for each function"
