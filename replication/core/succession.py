"""Who takes over from an owner that is gone, and when.

Theory of operation
-------------------
Only the register decides an ownership, and its guard lets nobody in who is not in sync. What
stands here makes that happen soon and seldom in vain:

*Dead or superseded*: at once. *Silent*: the link to the owner's node has shown no life in both
directions for `silence_s`. Then all other members of the in-sync sets are asked whether they
hear it. One yes ends the attempt, and they are asked again each `silence_s`. It goes ahead
when all have said no, after 2 s without a yes from anybody, or when this has gone on for 10 s.

Candidates go in order of succession after the dead node's name, 0.1 s apart, so that as a
rule one of them proposes, and takes all streams of the dead owner in one change.

Rules
-----
1. A node whose own loop was late does not trust what it did not hear in that time.
2. A void copy does not stand for election.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from replication.core.changes import Takeover, TakeoverWhy
from replication.core.clustermap import ClusterMap, is_live, order, superseded
from replication.core.identity import Incarnation
from replication.core.links import Links

RANK_S: Final = 0.1
"""Between one candidate's turn and the next one's. A takeover takes two rounds with a write to
disk in each, some 25 ms on an ordinary one; a second proposal meanwhile only disturbs it."""
ASKED_S_MAX: Final = 2.0
"""A silent owner of whom nobody says that he hears it is replaced after this."""
SUSPECTED_S_MAX: Final = 10.0
"""A silent owner is replaced after this, whoever hears it: had it a majority, it would have let
go of those whom it does not hear, and they would not be in sync any more."""
PROPOSE_AGAIN_S: Final = 0.2
"""After a proposal that changed nothing."""


@dataclass(slots=True)
class _Suspicion:
    """Of one owner: since when, and what others say."""

    since: float
    asked_at: float | None = None
    asked_first_at: float | None = None
    deaf: set[Incarnation] = field(default_factory=set)
    """Those that said that they do not hear it either."""
    agreed_at: float | None = None
    """When it was clear that it must be replaced; the ranks count from here."""
    why: TakeoverWhy = TakeoverWhy.SILENT
    again_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """To be sent to `member`: do you hear `who`?"""

    member: Incarnation
    who: Incarnation


class Succession:
    """The takeovers that one node proposes.

    Args:
        silence_s: An owner that was quiet for so long is suspected.
    """

    def __init__(self, *, me: Incarnation, silence_s: float) -> None:
        self._me = me
        self._silence_s = silence_s
        self._suspicions: dict[Incarnation, _Suspicion] = {}
        self._distrust_until = 0.0
        self._due_at: float | None = None

    def late(self, now: float) -> None:
        """Our own loop was late: do not believe in silence for one interval."""
        self._distrust_until = now + self._silence_s

    def heard(self, member: Incarnation, who: Incarnation, heard: bool, now: float) -> None:
        """`member` answered a `Question`."""
        suspicion = self._suspicions.get(who)
        if suspicion is None:
            return
        if heard:
            suspicion.deaf.clear()
            suspicion.asked_first_at = None
            suspicion.asked_at = now
        else:
            suspicion.deaf.add(member)

    def wake(
        self, value: ClusterMap, links: Links, void: Callable[[int], bool], now: float
    ) -> tuple[list[Takeover], list[Question]]:
        """What to propose now, and whom to ask."""
        takeovers: list[Takeover] = []
        questions: list[Question] = []
        self._due_at = None
        owned = self._owned_by_others(value, void)
        for gone in self._suspicions.keys() - owned.keys():
            del self._suspicions[gone]
        for owner, sids in owned.items():
            suspicion = self._suspect(value, links, owner, now)
            if suspicion is None:
                continue
            if suspicion.agreed_at is None:
                self._ask(value, links, owner, sids, suspicion, now, questions)
            if suspicion.agreed_at is None:
                continue
            turns = {
                sid: max(
                    suspicion.again_at,
                    suspicion.agreed_at + RANK_S * self._rank(value, links, owner, sid),
                )
                for sid in sids
            }
            due = [sid for sid in sids if now >= turns[sid]]
            later = [at for at in turns.values() if now < at]
            if later:
                self._due_at = min(*later, self._due_at or later[0])
            if due:
                suspicion.again_at = now + PROPOSE_AGAIN_S
                takeovers.append(
                    Takeover(
                        streams=tuple((sid, value.streams[sid].epoch) for sid in due),
                        me=self._me,
                        old=owner,
                        why=suspicion.why,
                    )
                )
        return takeovers, questions

    def next_deadline(self) -> float | None:
        """When the next candidate's turn is ours; heartbeats wake us for all the rest."""
        return self._due_at

    def _owned_by_others(
        self, value: ClusterMap, void: Callable[[int], bool]
    ) -> dict[Incarnation, list[int]]:
        owned: dict[Incarnation, list[int]] = {}
        for sid, stream in sorted(value.streams.items()):
            if stream.owner != self._me and self._me in stream.isr and not void(sid):
                owned.setdefault(stream.owner, []).append(sid)
        return owned

    def _suspect(
        self, value: ClusterMap, links: Links, owner: Incarnation, now: float
    ) -> _Suspicion | None:
        why: TakeoverWhy | None = None
        if superseded(value, owner):
            why = TakeoverWhy.SUPERSEDED
        elif links.is_dead(owner):
            why = TakeoverWhy.DEAD
        elif now >= links.life_at(owner, now) + self._silence_s and now >= self._distrust_until:
            why = TakeoverWhy.SILENT
        if why is None:
            self._suspicions.pop(owner, None)
            return None
        suspicion = self._suspicions.setdefault(owner, _Suspicion(since=now))
        if why is not TakeoverWhy.SILENT and suspicion.why is TakeoverWhy.SILENT:
            # What was a suspicion is a fact now.
            suspicion.why = why
            suspicion.agreed_at = suspicion.agreed_at or now
        return suspicion

    def _ask(
        self,
        value: ClusterMap,
        links: Links,
        owner: Incarnation,
        sids: Iterable[int],
        suspicion: _Suspicion,
        now: float,
        questions: list[Question],
    ) -> None:
        members = {m for sid in sids for m in value.streams[sid].isr} - {owner, self._me}
        others = sorted(m for m in members if is_live(value, m) and not links.is_dead(m))
        nobody_hears_it = suspicion.deaf.issuperset(others)
        waited = (
            suspicion.asked_first_at is not None and now >= suspicion.asked_first_at + ASKED_S_MAX
        )
        overdue = now >= suspicion.since + SUSPECTED_S_MAX
        asked = suspicion.asked_at is not None
        if not others or (asked and nobody_hears_it) or waited or overdue:
            suspicion.agreed_at = now
            return
        if suspicion.asked_at is None or now >= suspicion.asked_at + self._silence_s:
            suspicion.asked_at = now
            suspicion.asked_first_at = suspicion.asked_first_at or now
            questions.extend(Question(member, owner) for member in others)

    def _rank(self, value: ClusterMap, links: Links, owner: Incarnation, sid: int) -> int:
        members = {
            m.node: m
            for m in value.streams[sid].isr
            if m != owner and is_live(value, m) and not links.is_dead(m)
        }
        # After the dead node's own name, also for what it had adopted: so all that it
        # owned goes to one heir, in one change.
        candidates = [node for node in order(value, owner.node) if node in members]
        return candidates.index(self._me.node) if self._me.node in candidates else 0
