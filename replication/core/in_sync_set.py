"""The in-sync set of one ownership: whom the owner waits for, takes in, and lets go.

    expand   a joiner that caught up ─▶ put into need ─▶ has all that was ever released? ─▶
             propose ─▶ in the map
    shrink   propose ─▶ go on waiting for it until the map shows that it is gone

At most one change of the set is under way. A change of unknown outcome stays under way; the
register's guards make a late commit of it harmless.

*Held*: release waits for copies. Then any live broker is taken as a joiner, and publishes are
not admitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from replication.core.backup import Backup
from replication.core.backups import Backups
from replication.core.changes import DONE, Expand, SetCopies, Shrink, ShrinkWhy
from replication.core.clustermap import (
    CATALOG_SID,
    ClusterMap,
    NodeState,
    OnTooFewCopies,
    StreamEntry,
    brokers,
    default_min_copies,
    incarnation,
    superseded,
    wanted,
)
from replication.core.events import Level
from replication.core.growing_log import GrowingLog
from replication.core.identity import Incarnation
from replication.core.release import Release
from replication.core.seat import Seat
from replication.core.stream_events import Effect, Note, Propose


class Held(NamedTuple):
    """Release waits for copies."""

    why: str
    since: float


@dataclass(frozen=True, slots=True)
class _Pending:
    """A change that was proposed, and whose outcome is not known."""

    function: Expand | Shrink | SetCopies
    proposed_at: float
    isr: tuple[Incarnation, ...] | None
    """What the in-sync set may be by it; None: it leaves it as it is."""


class InSyncSet:
    """See the module docstring.

    Attributes:
        value: The map in which this ownership goes on.
        waited_for: need, without this node.
        candidate: A joiner that is waited for, and not proposed yet.
        copies: The smallest in-sync set that the register may hold.
        held: Set while release waits for copies.
    """

    def __init__(
        self,
        seat: Seat,
        *,
        epoch: int,
        value: ClusterMap,
        tokens: Iterator[int],
        backups: Backups,
        # What the machine is does not matter here.
        growing: GrowingLog[Any, Any],
        release: Release,
        now: float,
    ) -> None:
        self.value = value
        self.waited_for: list[Backup] = []
        self.candidate: Backup | None = None
        self.copies = 0
        self.held: Held | None = None
        self._seat = seat
        self._sid = seat.sid
        self._limits = seat.limits
        self._epoch = epoch
        self._tokens = tokens
        self._backups = backups
        self._growing = growing
        self._log = growing.log
        self._release = release
        self._min_copies = 1
        self._candidate_since = now
        self._quarantine: dict[Incarnation, float] = {}
        self._pending: dict[int, _Pending] = {}
        self._before: Incarnation | None = None
        self._began_at = now

    def begin(self, before: Incarnation | None, now: float) -> None:
        """`before` owned the stream until now.

        It was replaced for its silence, so it is missed from the beginning if it is still in
        sync, and there are too few copies without it: before it were silent for as long
        again, it might have taken over in turn.
        """
        self._before, self._began_at = before, now
        self.map_changed(self.value, now)

    def map_changed(self, value: ClusterMap, now: float) -> None:
        self.value = value
        for who in self.entry.isr:
            if who != self._seat.me:
                self._backups.meet(who, now)
        self.renew(now)

    def outcome(self, token: int, result: str, now: float) -> bool:
        """What became of a change. False: it is none of this ownership."""
        pending = self._pending.pop(token, None)
        if pending is None:
            return False
        function = pending.function
        if result == DONE:
            if isinstance(function, Shrink) and function.why in (ShrinkWhy.SLOW, ShrinkWhy.SILENT):
                self._quarantine[function.member] = now + self._limits.quarantine_s
                self._seat.counts["expelled"] += 1
            elif isinstance(function, Expand):
                self._seat.counts["expanded"] += 1
        else:
            self._seat.counts["change refused"] += 1
            if isinstance(function, Expand):
                joiner = self._backups.get(function.joiner)
                if joiner is not None:
                    joiner.later_at = now + self._limits.expand_s
        self.renew(now)
        return True

    # Facts

    @property
    def entry(self) -> StreamEntry:
        return self.value.streams[self._sid]

    @property
    def silence_s(self) -> float:
        return self.value.settings.silence_ms / 1000

    @property
    def need(self) -> tuple[Incarnation, ...]:
        return tuple(sorted((self._seat.me, *(backup.who for backup in self.waited_for))))

    @property
    def joiners(self) -> tuple[Incarnation, ...]:
        need = self.need
        return tuple(sorted(backup.who for backup in self._backups if backup.who not in need))

    def enough(self) -> bool:
        """Whether there are copies enough for release to follow commit."""
        return (
            self.copies >= self._min_copies
            or self.value.settings.on_too_few_copies is OnTooFewCopies.SOLO
        )

    def targets(self) -> tuple[Incarnation, ...]:
        """Who shall hold a copy and is not in sync, in order of succession."""
        value, entry = self.value, self.entry
        nodes = wanted(value, self._sid)
        if self.held is not None or self._sid == CATALOG_SID:
            nodes += [
                node
                for node in brokers(value)
                if node not in nodes and value.nodes[node].state is NodeState.UP
            ]
        lives = [incarnation(value, node) for node in nodes]
        return tuple(who for who in lives if who != self._seat.me and who not in entry.isr)

    def renew(self, now: float) -> None:
        """Whom to wait for, and how many copies there are at the least."""
        entry = self.entry
        sets = [entry.isr, *(p.isr for p in self._pending.values() if p.isr is not None)]
        members = {who for isr in sets for who in isr if who != self._seat.me}
        if self.candidate is not None:
            members.add(self.candidate.who)
        self.waited_for = [self._backups[who] for who in sorted(members)]
        self.copies = min(map(len, sets))
        self._min_copies = max(
            entry.min_copies,
            *(
                p.function.min_copies
                for p in self._pending.values()
                if isinstance(p.function, SetCopies)
            ),
            1,
        )
        self._note_progress(now)

    # What is to be changed

    def review(self, now: float, outbox: list[Effect]) -> None:
        """Look at the members: whom to let go, and whether release waits for copies."""
        self._note_progress(now)
        stuck = self._shrink(now, outbox)
        self._set_held(stuck, now, outbox)
        self._adapt_copies(now, outbox)

    def expand(self, now: float, outbox: list[Effect]) -> bool:
        """Choose a joiner, propose it once it has all, or let go of one that does not come.

        Says whether one was let go, so that commit does not wait for it any more.
        """
        candidate = self.candidate
        if self._isr_change_pending():
            if candidate is not None and now >= self._candidate_since + self._limits.expand_s:
                # Nobody knows when that change is decided: it must not hold up commit for long.
                self._give_up(candidate, now)
                return True
            return False
        if candidate is None:
            candidate = self._choose(now)
            if candidate is None:
                return False
            # From here on commit waits for it, so that it cannot fall behind what is
            # released between the proposal and its outcome.
            self.candidate, self._candidate_since = candidate, now
            self.renew(now)
        if candidate.aligned and self._has_all(candidate):
            self.candidate = None
            isr = self.entry.isr
            function = Expand(
                sid=self._sid,
                epoch=self._epoch,
                me=self._seat.me,
                joiner=candidate.who,
                base=isr,
            )
            self._propose(function, tuple(sorted((*isr, candidate.who))), now, outbox)
        elif (
            candidate.dead
            or not candidate.aligned
            or now >= self._candidate_since + self._limits.expand_s
        ):
            self._give_up(candidate, now)
            return True
        return False

    def _give_up(self, candidate: Backup, now: float) -> None:
        self._seat.counts["expand given up"] += 1
        candidate.later_at = now + self._limits.expand_s
        self.candidate = None
        self.renew(now)

    def _has_all(self, candidate: Backup) -> bool:
        """Whether it has every op that was ever released, in whatever epoch."""
        # After a takeover commit lags behind what the former owner released, but all of that
        # is below the log's end as of the promotion.
        return candidate.receipt >= max(self._release.commit, self._growing.promoted_end - 1)

    def _choose(self, now: float) -> Backup | None:
        """A joiner that may be taken in: near to the log's end, wanted or needed."""
        names = wanted(self.value, self._sid)
        for who in self.targets():
            backup = self._backups.get(who)
            if (
                backup is not None
                and backup.aligned
                and backup.first_end is not None
                and backup.receipt >= backup.first_end - 1
                and self._log.bytes_from(backup.receipt + 1) <= self._limits.expand_bytes_max
                and (who.node in names or self.held is not None)
                and not backup.dead
                and now >= backup.later_at
                and self._backups.silent_s(backup, now) < self.silence_s
                and not self._quarantined(who, now)
            ):
                return backup
        return None

    def _quarantined(self, who: Incarnation, now: float) -> bool:
        if len(self.entry.isr) < self._min_copies:
            return False
        return now < self._quarantine.get(who, float("-inf"))

    def _shrink(self, now: float, outbox: list[Effect]) -> str:
        """Let go whom the guard lets go. Says whom commit has to wait for all the same."""
        outstanding = self._outstanding()
        stuck = ""
        for who, why in self._leavers(outstanding, now):
            function = self._without(who, why)
            if function.apply(self.value)[1] != DONE:
                if outstanding and why is not ShrinkWhy.SURPLUS:
                    stuck = f"{who} is {why}, and too few copies would stay without it"
            elif not self._isr_change_pending() and (self.held is None or self.candidate is None):
                # One change at a time; and with too few copies a joiner comes first.
                isr = tuple(member for member in self.entry.isr if member != who)
                self._propose(function, isr, now, outbox)
        missed = self._missed()
        if (
            missed is not None
            and outstanding
            and not stuck
            and self._without(missed, ShrinkWhy.SLOW).apply(self.value)[1] != DONE
        ):
            stuck = f"{missed} was replaced, and too few copies would stay without it"
        for pending in self._pending.values():
            if (
                outstanding
                and isinstance(pending.function, Shrink)
                and now >= pending.proposed_at + self._limits.expand_s
            ):
                stuck = f"no majority of the voting nodes answers{self._missing(now)}"
        return stuck

    def _without(self, who: Incarnation, why: ShrinkWhy) -> Shrink:
        return Shrink(
            sid=self._sid,
            epoch=self._epoch,
            me=self._seat.me,
            member=who,
            base=self.entry.isr,
            why=why,
        )

    def _missed(self) -> Incarnation | None:
        """The owner before this one, until it is heard, if it is in sync."""
        before = self._before
        if before is None or before not in self.entry.isr:
            return None
        return before if self._backups[before].heard_at <= self._began_at else None

    def _leavers(self, outstanding: bool, now: float) -> list[tuple[Incarnation, ShrinkWhy]]:
        """The members that should leave the in-sync set, and why."""
        value, in_sync = self.value, self.entry.isr
        members = [backup for backup in self.waited_for if backup.who in in_sync]
        found = [
            (backup.who, why)
            for backup in members
            if (why := self._fault(backup, outstanding, now)) is not None
        ]
        names = wanted(value, self._sid)
        # Nobody is too many while another member fails: it may be needed in its place.
        if found or self.held is not None:
            return found
        if not all(incarnation(value, node) in in_sync for node in names):
            return found
        return [
            (backup.who, ShrinkWhy.SURPLUS) for backup in members if backup.who.node not in names
        ]

    def _fault(self, backup: Backup, outstanding: bool, now: float) -> ShrinkWhy | None:
        if backup.dead or superseded(self.value, backup.who):
            return ShrinkWhy.DEAD
        if backup.void:
            return ShrinkWhy.VOID
        silent_s = self._backups.silent_s(backup, now)
        if silent_s >= self._limits.long_silent_s:
            return ShrinkWhy.SILENT
        stalled_s = now - max(backup.progress_at, self._backups.listening_since)
        if silent_s >= self.silence_s or (outstanding and stalled_s >= self._limits.stalled_s):
            return ShrinkWhy.SLOW
        return None

    def _set_held(self, stuck: str, now: float, outbox: list[Effect]) -> None:
        why = stuck
        if not self.enough():
            why = f"{self.copies} of at least {self._min_copies} copies in sync{self._missing(now)}"
        if not why:
            if self.held is not None:
                outbox.append(
                    Note(
                        Level.INFO,
                        "a stream is not held any more",
                        {"sid": self._sid, "seconds": round(now - self.held.since, 3)},
                    )
                )
            self.held = None
        elif self.held is None:
            self._seat.counts["held"] += 1
            self.held = Held(why, now)
            outbox.append(Note(Level.WARNING, "a stream is held", {"sid": self._sid, "why": why}))
        elif self.held.why != why:
            self.held = Held(why, self.held.since)

    def _missing(self, now: float) -> str:
        """Who could have a copy and has none in sync, or does not answer, for the operator."""
        value, in_sync = self.value, {who.node for who in self.entry.isr}
        silent = {
            backup.who.node
            for backup in self.waited_for
            if backup.dead or self._backups.silent_s(backup, now) >= self.silence_s
        }
        missing: list[str] = []
        for node in brokers(value):
            state = value.nodes[node].state
            if node in silent:
                missing.append(f"{node} does not answer")
            elif node not in in_sync:
                up = state is NodeState.UP
                missing.append(f"{node} is not in sync" if up else f"{node} is {state}")
        return f": {', '.join(missing)}" if missing else ""

    def _adapt_copies(self, now: float, outbox: list[Effect]) -> None:
        right = default_min_copies(self.value)
        if right == self.entry.min_copies or any(
            isinstance(pending.function, SetCopies) for pending in self._pending.values()
        ):
            return
        function = SetCopies(sid=self._sid, epoch=self._epoch, me=self._seat.me, min_copies=right)
        self._propose(function, None, now, outbox)

    def _propose(
        self,
        function: Expand | Shrink | SetCopies,
        isr: tuple[Incarnation, ...] | None,
        now: float,
        outbox: list[Effect],
    ) -> None:
        token = next(self._tokens)
        self._pending[token] = _Pending(function, now, isr)
        outbox.append(Propose(function, token))
        self.renew(now)

    def _isr_change_pending(self) -> bool:
        return any(pending.isr is not None for pending in self._pending.values())

    def _outstanding(self) -> bool:
        return self._release.commit < self._growing.sealed_end - 1

    def _note_progress(self, now: float) -> None:
        # Who has all that there is makes progress by that.
        for backup in self.waited_for:
            if backup.receipt >= self._growing.sealed_end - 1:
                backup.progress_at = now

    def check(self) -> None:
        """Verify every invariant. For tests and simulation."""
        for backup in self.waited_for:
            assert backup is self._backups[backup.who]
            assert backup.receipt < self._growing.sealed_end
            assert (
                backup is self.candidate
                or backup.receipt >= self._release.commit
                or not backup.aligned
            )
        for who in self.entry.isr:
            assert who == self._seat.me or self._backups[who] in self.waited_for
        assert sum(p.isr is not None for p in self._pending.values()) <= 1
