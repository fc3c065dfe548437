"""What applications did and saw, and what may never be found in it.

Theory of operation
-------------------
Every message is unique, (producer, n), and stands in its own body. All clients of a run, simulated
or real, write down what they asked for and what they were told, with times of one monotonic
clock. When all faults are over and the queues are drained, `check` compares:

    lost          confirmed, and no consumer ever acknowledged it: it is nowhere
    unexpected    handed to a consumer, and never posted, or refused for good
    duplicated    handed out again without the flag; or twice under one delivery number; or stored
                  twice; or handed out again although who held it was there all the time
    reordered     to a queue's only consumer, unflagged, against the order of its producer
    resurrected   handed out under a later delivery number than that of a good acknowledgement
    taken         acknowledged well under a delivery number that was over, while a later holder
                  had not acknowledged it
    two owners    posted after a confirm of epoch e+1, and confirmed in epoch e
    stuck         still in a queue at the end, or a call that was never answered

Copies of one message are ordered by delivery number, not by arrival: a client that was out of
touch may read an old one late. What was posted and never answered may or may not have happened;
both are right, and the checker counts them.

Rules
-----
1. A violation names its message and everything that is known of it.
2. Messages of a stream that was LOST are excused, and nobody else's.
3. A run in which nothing was in doubt, in flight or repeated proves nothing: see `Counts`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec


class Message(NamedTuple):
    """Who posted it, and as which one."""

    producer: str
    n: int

    def __str__(self) -> str:
        return f"{self.producer}#{self.n}"


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One line of a history. `at`: seconds on a clock that is the same for all."""

    at: float


class Posted(Event, frozen=True, kw_only=True):
    """An application posts a message; the call begins."""

    message: Message
    queue: str


class Confirmed(Event, frozen=True, kw_only=True):
    """…and is told that it is safe. `epoch`: 0 if the client does not say."""

    message: Message
    sid: int
    gen: int
    epoch: int = 0
    copies: int = 0


class Refused(Event, frozen=True, kw_only=True):
    """…or that it was not taken, and never will be."""

    message: Message


class Handed(Event, frozen=True, kw_only=True):
    """A message was given to an application."""

    message: Message
    queue: str
    client: str
    consumer: str
    sid: int
    gen: int
    part: int
    offset: int
    number: int
    """Of the delivery."""
    redelivered: bool


class Consumes(Event, frozen=True, kw_only=True):
    """A consumer asks for messages of a queue, whether it is ever given one or not."""

    queue: str
    consumer: str


class Settled(Event, frozen=True, kw_only=True):
    """An application acknowledges a message, or gives it back; the call begins."""

    message: Message
    consumer: str
    sid: int
    gen: int
    number: int
    acked: bool


class Answered(Event, frozen=True, kw_only=True):
    """…and is told what became of it. `good`: done, now or before; else it was not his."""

    message: Message
    consumer: str
    sid: int
    gen: int
    number: int
    acked: bool
    good: bool


class Gone(Event, frozen=True, kw_only=True):
    """A client died, closed, or may have been out of touch for longer than its grace: what it
    held may be given to others. With `consumer`, only what that consumer of it held."""

    client: str
    consumer: str = ""


class StreamLost(Event, frozen=True, kw_only=True):
    """All copies of this life of a stream are gone, and the cluster says so."""

    sid: int
    gen: int


class PassedOver(Event, frozen=True, kw_only=True):
    """No copy could read these messages for a while, and a node said so: readers got what comes
    after them, and may get them later."""

    queue: str
    sid: int
    first: int
    end: int


class Left(Event, frozen=True, kw_only=True):
    """What a queue still holds at the end, of one post office."""

    queue: str
    sid: int
    ready: int
    in_flight: int


class Unanswered(Event, frozen=True, kw_only=True):
    """A call that is still waiting at the end, when nothing stands in its way any more."""

    what: str


Recorded = (
    Posted
    | Confirmed
    | Refused
    | Handed
    | Consumes
    | Settled
    | Answered
    | Gone
    | StreamLost
    | PassedOver
    | Left
    | Unanswered
)


@dataclass(frozen=True, slots=True)
class Violation:
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(slots=True)
class Counts:
    """What was there to be violated."""

    posted: int = 0
    confirmed: int = 0
    refused: int = 0
    handed: int = 0
    acked: int = 0
    returned: int = 0
    redelivered: int = 0
    """Handed out with the flag."""
    recovered: int = 0
    """Never confirmed, and handed out all the same."""
    in_doubt: int = 0
    """Never answered and never seen again."""
    excused: int = 0
    """Confirmed, and gone with a stream that was LOST."""
    not_yours: int = 0
    """Acknowledgements that came too late."""

    def vacuous(self) -> list[str]:
        """What must have happened for the run to have tested anything, and did not."""
        needed = ("posted", "confirmed", "handed", "acked")
        return [name for name in needed if not getattr(self, name)]

    def add(self, other: Counts) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class Verdict:
    violations: list[Violation] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def found(self, kind: str, text: str) -> None:
        self.violations.append(Violation(kind, text))

    def kinds(self) -> set[str]:
        return {violation.kind for violation in self.violations}


@dataclass(slots=True)
class _Life:
    """All that is known of one message."""

    posted: Posted | None = None
    confirmed: Confirmed | None = None
    refused: Refused | None = None
    handed: list[Handed] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)

    def __str__(self) -> str:
        known: list[Event] = [e for e in (self.posted, self.confirmed, self.refused) if e]
        known += [*self.handed, *self.settled, *self.answered]
        return "; ".join(_short(e) for e in sorted(known, key=lambda e: e.at))


def check(events: Iterable[Recorded]) -> Verdict:
    """What is wrong with this history, and how much there was to go wrong."""
    verdict = Verdict()
    lives: dict[Message, _Life] = defaultdict(_Life)
    gone: dict[tuple[str, str], list[float]] = defaultdict(list)
    lost: set[tuple[int, int]] = set()
    passed_over: list[PassedOver] = []
    consumers: dict[str, set[str]] = defaultdict(set)
    ordered = sorted(events, key=lambda event: event.at)
    for event in ordered:
        match event:
            case Posted():
                assert lives[event.message].posted is None, f"{event.message} was posted twice"
                lives[event.message].posted = event
            case Confirmed():
                lives[event.message].confirmed = event
            case Refused():
                lives[event.message].refused = event
            case Handed():
                lives[event.message].handed.append(event)
                consumers[event.queue].add(event.consumer)
            case Consumes():
                consumers[event.queue].add(event.consumer)
            case Settled():
                lives[event.message].settled.append(event)
            case Answered():
                lives[event.message].answered.append(event)
            case Gone():
                gone[event.client, event.consumer].append(event.at)
            case StreamLost():
                lost.add((event.sid, event.gen))
            case PassedOver():
                passed_over.append(event)
            case Left():
                if event.ready or event.in_flight:
                    verdict.found("stuck", _short(event))
            case Unanswered():
                verdict.found("stuck", event.what)
    for message, life in lives.items():
        _count(life, verdict.counts)
        _check_lost(message, life, lives, lost, verdict)
        _check_unexpected(message, life, lost, verdict)
        _check_copies(message, life, gone, verdict)
        _check_resurrected(message, life, verdict)
    _check_order(ordered, consumers, passed_over, verdict)
    _check_owners(ordered, lives, verdict)
    return verdict


def _count(life: _Life, counts: Counts) -> None:
    counts.posted += life.posted is not None
    counts.confirmed += life.confirmed is not None
    counts.refused += life.refused is not None
    counts.handed += len(life.handed)
    counts.redelivered += sum(handed.redelivered for handed in life.handed)
    counts.acked += sum(settled.acked for settled in life.settled)
    counts.returned += sum(not settled.acked for settled in life.settled)
    counts.not_yours += sum(not answered.good for answered in life.answered)
    if life.confirmed is None and life.refused is None:
        counts.recovered += bool(life.handed)
        counts.in_doubt += not life.handed


def _check_lost(
    message: Message,
    life: _Life,
    lives: dict[Message, _Life],
    lost: set[tuple[int, int]],
    verdict: Verdict,
) -> None:
    # A message that a consumer was given and never acknowledged must be somewhere, and at
    # the end all queues are empty.
    if life.confirmed is None or any(settled.acked for settled in life.settled):
        return
    if (life.confirmed.sid, life.confirmed.gen) in lost:
        verdict.counts.excused += 1
        return
    verdict.found("lost", f"{message} ({_place(message, lives)} of its producer's): {life}")


def _place(message: Message, lives: dict[Message, _Life]) -> str:
    """Where in its producer's sequence: a loss in the middle is the worst to explain."""
    seen = [m.n for m, life in lives.items() if m.producer == message.producer and life.handed]
    if not seen or message.n > max(seen):
        return "at the end"
    return "at the beginning" if message.n < min(seen) else "in the middle"


def _check_unexpected(
    message: Message, life: _Life, lost: set[tuple[int, int]], verdict: Verdict
) -> None:
    if life.handed and life.posted is None:
        verdict.found("unexpected", f"{message} was never posted: {life}")
    # What was in doubt when its stream was lost is repeated to the next life of it, which may
    # refuse it; that says nothing of the life before.
    elif life.refused and any((copy.sid, copy.gen) not in lost for copy in life.handed):
        verdict.found("unexpected", f"{message} was refused: {life}")


def _check_copies(
    message: Message, life: _Life, gone: dict[tuple[str, str], list[float]], verdict: Verdict
) -> None:
    copies = sorted(life.handed, key=lambda handed: (handed.sid, handed.gen, handed.number))
    for earlier, later in pairwise(copies):
        if earlier.sid != later.sid:
            verdict.found("duplicated", f"{message} was stored in two post offices: {life}")
        elif earlier.gen != later.gen:
            # In doubt when its stream was lost, and repeated to the next life of it.
            if not later.redelivered:
                verdict.found("duplicated", f"{message} again, unflagged, in a new gen: {life}")
        elif (earlier.part, earlier.offset) != (later.part, later.offset):
            verdict.found("duplicated", f"{message} was stored twice: {life}")
        elif earlier.number == later.number:
            verdict.found("duplicated", f"{message} twice under one number: {life}")
        elif not later.redelivered:
            verdict.found("duplicated", f"{message} again, unflagged: {life}")
        elif not _gave_up(earlier, life, gone):
            verdict.found(
                "duplicated", f"{message} again, and {earlier.client} had it all the time: {life}"
            )


def _gave_up(copy: Handed, life: _Life, gone: dict[tuple[str, str], list[float]]) -> bool:
    """Whether its holder gave this copy back, or could not be reached."""
    returned = any(
        not settled.acked
        and (settled.sid, settled.gen, settled.number) == (copy.sid, copy.gen, copy.number)
        for settled in life.settled
    )
    # It may have been gone while the copy was on its way to it, and reads it later.
    since = 0.0 if life.posted is None else life.posted.at
    ends = (*gone.get((copy.client, ""), ()), *gone.get((copy.client, copy.consumer), ()))
    return returned or any(at >= since for at in ends)


def _check_resurrected(message: Message, life: _Life, verdict: Verdict) -> None:
    for answer in life.answered:
        if not answer.acked or not answer.good:
            continue
        later = [handed for handed in life.handed if _is_later(handed, answer)]
        # Who asks again about what another one acknowledged is told that it is done, too;
        # but it must have been acknowledged by then.
        done = any(
            settled.acked and settled.at < answer.at and _is_later(settled, answer)
            for settled in life.settled
        )
        for handed in later:
            if handed.at > answer.at:
                verdict.found("resurrected", f"{message} under {handed.number}: {life}")
            elif not done:
                verdict.found(
                    "taken",
                    f"{message} from {handed.client} by a late ack of {answer.number}: {life}",
                )


def _is_later(copy: Handed | Settled, answer: Answered) -> bool:
    """Whether this is a later delivery of the message, in the same life of its stream."""
    return (copy.sid, copy.gen) == (answer.sid, answer.gen) and copy.number > answer.number


def _check_order(
    ordered: Sequence[Recorded],
    consumers: dict[str, set[str]],
    passed_over: list[PassedOver],
    verdict: Verdict,
) -> None:
    last: dict[tuple[str, str, int, int], Handed] = {}
    for event in ordered:
        if not isinstance(event, Handed) or event.redelivered or len(consumers[event.queue]) > 1:
            continue
        if any(_is_in(event, passed) for passed in passed_over):
            continue
        key = (event.queue, event.message.producer, event.sid, event.gen)
        before = last.get(key)
        if before is not None and before.message.n > event.message.n:
            verdict.found("reordered", f"{event.message} after {before.message}: {_short(event)}")
        last[key] = event


def _is_in(copy: Handed, passed: PassedOver) -> bool:
    place = (copy.queue, copy.sid)
    return place == (passed.queue, passed.sid) and passed.first <= copy.offset < passed.end


def _check_owners(
    ordered: Sequence[Recorded], lives: dict[Message, _Life], verdict: Verdict
) -> None:
    # When a confirm of each epoch was first told, by stream.
    first: dict[int, dict[int, float]] = defaultdict(dict)
    for event in ordered:
        if isinstance(event, Confirmed) and event.epoch:
            first[event.sid].setdefault(event.epoch, event.at)
    for message, life in lives.items():
        confirmed, posted = life.confirmed, life.posted
        if confirmed is None or posted is None or not confirmed.epoch:
            continue
        for epoch, at in first[confirmed.sid].items():
            if epoch > confirmed.epoch and posted.at > at:
                verdict.found(
                    "two owners", f"{message} was posted after a confirm of epoch {epoch}: {life}"
                )


def _short(event: Event) -> str:
    fields = msgspec.structs.asdict(event)
    fields.pop("message", None)
    at = fields.pop("at")
    told = " ".join(f"{name}={value}" for name, value in fields.items())
    return f"{at:.4f} {type(event).__name__} {told}".rstrip()
