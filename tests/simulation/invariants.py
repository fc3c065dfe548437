"""What must be true of all nodes together, whatever happens to them.

    RI2   two committed maps of one version are equal
    RI4   the version that a process knows never decreases
    SI1   one owner per stream, gen and epoch
    SI3   an owner changes only with a higher epoch
    SI4   every live member of the in-sync set has all released ops, in the same order
    SI5   what was committed stays as it is
    SI9   whoever becomes owner begins with every op that was ever released
    SI11  equal states wherever the same ops were applied
    SI13  a stream is LOST only if min_copies of those that last held it together have died

SI2 is checked by the map itself, SI6 to SI8 by assertions in the streams. `turn` looks at one
node after each of its turns, and only at what has changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from replication.core.clustermap import ClusterMap, StreamEntry
from replication.core.identity import Incarnation
from replication.core.stream import Role, Stream
from tests.simulation.sim_node import SimNode

# What a stream carries does not matter here.
AnyStream = Stream[Any, Any]
Life = tuple[int, int]
"""(sid, gen)."""


class Violation(AssertionError):
    """Something that must never be. The text says which rule, and the values."""


@dataclass(slots=True)
class _Log:
    """Of one life of a stream: what is known to be committed, and how far it was released."""

    released: int = 0
    chains: dict[int, int] = field(default_factory=dict)
    """The chain below an op number, at committed points."""
    digests: dict[int, bytes] = field(default_factory=dict)
    """Of the state with all ops through this one, at committed points."""
    together: StreamEntry | None = None
    """The last entry of the map with min_copies members in sync."""


class Invariants:
    """Args:
    nodes: All machines.
    lost: Told when a stream was LOST: its sid, and the gen that is over.
    taken: Told when a stream has another owner: its sid.
    """

    def __init__(
        self,
        nodes: dict[str, SimNode],
        lost: Callable[[int, int], None],
        taken: Callable[[int], None],
        chance: random.Random,
    ) -> None:
        self.map: ClusterMap | None = None
        self.ver = 0
        self._nodes = nodes
        self._lost = lost
        self._taken = taken
        self._chance = chance
        self._raw: dict[int, bytes] = {}
        self._vers: dict[Incarnation, int] = {}
        self._owners: dict[tuple[int, int, int], Incarnation] = {}
        self._logs: dict[Life, _Log] = {}
        self._seen: dict[tuple[Incarnation, int], tuple[int, ...]] = {}

    def log(self, sid: int, gen: int) -> _Log:
        return self._logs.setdefault((sid, gen), _Log())

    def turn(self, node: SimNode) -> None:
        core = node.core
        if core is None:
            return
        self._check_map(core.me, node)
        for sid, stream in core.member.streams.items():
            # Nothing else of a copy changes unless one of these does.
            seen = (stream.epoch, stream.log_end, stream.commit, stream.release, self.ver)
            if self._seen.get((core.me, sid)) != seen:
                self._seen[core.me, sid] = seen
                self._check_stream(core.me, sid, stream)

    # The map

    def _check_map(self, me: Incarnation, node: SimNode) -> None:
        core = node.core
        assert core is not None
        chosen = core.member.register.learner.chosen
        if chosen is None:
            return
        ver = core.member.ver
        if ver < self._vers.get(me, 0):
            raise Violation(f"RI4: {me} went back to version {ver} from {self._vers[me]}")
        if ver == self._vers.get(me):
            return
        self._vers[me] = ver
        if self._raw.setdefault(ver, chosen.raw) != chosen.raw:
            raise Violation(f"RI2: {me} has another map of version {ver}")
        if ver > self.ver:
            before, self.map, self.ver = self.map, chosen.map, ver
            for sid, entry in chosen.map.streams.items():
                self._check_entry(sid, before.streams.get(sid) if before else None, entry)

    def _check_entry(self, sid: int, before: StreamEntry | None, entry: StreamEntry) -> None:
        if before is not None:
            if entry.epoch < before.epoch or entry.gen < before.gen:
                raise Violation(f"SI3: stream {sid} went back from {before} to {entry}")
            if entry.owner != before.owner and entry.epoch == before.epoch:
                raise Violation(f"SI3: stream {sid} has another owner in epoch {entry.epoch}")
            if entry.gen > before.gen:
                self._check_lost(sid, before)
                self._lost(sid, before.gen)
            elif entry.epoch > before.epoch:
                self._taken(sid)
        if len(entry.isr) >= entry.min_copies:
            self.log(sid, entry.gen).together = entry
        self._check_members(sid, entry)

    def _check_lost(self, sid: int, before: StreamEntry) -> None:
        log = self.log(sid, before.gen)
        together = log.together
        if not log.released or together is None:
            return
        dead = [who for who in together.isr if not self._lives(who)]
        if len(dead) < together.min_copies:
            raise Violation(
                f"SI13: stream {sid} is LOST though only {dead} of {together.isr} have died"
            )

    def _lives(self, who: Incarnation) -> bool:
        core = self._nodes[who.node].core
        return core is not None and core.me == who

    # Streams

    def _check_stream(self, me: Incarnation, sid: int, stream: AnyStream) -> None:
        log = self.log(sid, stream.gen)
        if stream.role is Role.OWNER:
            self._check_owner(me, sid, stream, log)
        elif stream.epoch:
            # A deposed owner's state may have more than was committed; a follower's has not.
            self._check_committed(me, sid, stream, min(stream.applied, stream.commit), log)
        entry = self.map.streams.get(sid) if self.map is not None else None
        if entry is not None and entry.gen == stream.gen and me in entry.isr:
            self._check_member(me, sid, stream, log)
        if self._chance.random() < 0.02:
            stream.check()

    def _check_owner(self, me: Incarnation, sid: int, stream: AnyStream, log: _Log) -> None:
        key = (sid, stream.gen, stream.epoch)
        if key not in self._owners:
            self._owners[key] = me
            self._check_has_released(f"SI9: {me} begins epoch {stream.epoch}", sid, stream, log)
        elif self._owners[key] != me:
            raise Violation(f"SI1: {me} and {self._owners[key]} own stream {sid} in {key}")
        self._check_committed(me, sid, stream, stream.commit, log)
        if stream.release > log.released:
            log.released = stream.release
            if self.map is not None and sid in self.map.streams:
                self._check_members(sid, self.map.streams[sid])

    def _check_committed(
        self, me: Incarnation, sid: int, stream: AnyStream, seq: int, log: _Log
    ) -> None:
        chain = stream.copy.log.chain_at(seq + 1) if seq < stream.copy.log.end else None
        if chain is not None and log.chains.setdefault(seq + 1, chain) != chain:
            raise Violation(f"SI5: {me} has other ops of stream {sid} below {seq + 1}")
        if seq and stream.applied == seq and self._chance.random() < 0.02:
            self._check_digest(me, sid, stream, log)

    def _check_digest(self, me: Incarnation, sid: int, stream: AnyStream, log: _Log) -> None:
        digest = stream.machine.digest()
        if log.digests.setdefault(stream.applied, digest) != digest:
            raise Violation(f"SI11: {me} has another state of stream {sid} at {stream.applied}")

    def _check_members(self, sid: int, entry: StreamEntry) -> None:
        """Of all that are in sync: after a release, and after a change of the set."""
        log = self.log(sid, entry.gen)
        for who in entry.isr:
            core = self._nodes[who.node].core
            if core is None or core.me != who:
                continue
            stream = core.member.streams.get(sid)
            if stream is None or stream.gen != entry.gen:
                if log.released:
                    raise Violation(f"SI4: {who} is in sync with {sid} and has nothing of it")
                continue
            self._check_member(who, sid, stream, log)

    def _check_member(self, who: Incarnation, sid: int, stream: AnyStream, log: _Log) -> None:
        self._check_has_released(f"SI4: {who} is in sync", sid, stream, log)

    def _check_has_released(self, what: str, sid: int, stream: AnyStream, log: _Log) -> None:
        if stream.copy.log.end <= log.released:
            raise Violation(
                f"{what} with stream {sid} and has ops below {stream.copy.log.end} of"
                f" {log.released} that were released"
            )
        chain = stream.copy.log.chain_at(log.released + 1)
        known = log.chains.get(log.released + 1)
        if chain is not None and known is not None and chain != known:
            raise Violation(f"{what} with stream {sid} and has other ops below {log.released + 1}")

    # The end

    def check_digests(self) -> None:
        """When nothing moves any more: equal states on all that are in sync."""
        assert self.map is not None
        for sid, entry in self.map.streams.items():
            found: dict[int, dict[str, bytes]] = {}  # By how far the states go.
            for who in entry.isr:
                core = self._nodes[who.node].core
                if core is not None and core.me == who and not self._nodes[who.node].stopped:
                    stream = core.member.streams[sid]
                    stream.check()
                    states = found.setdefault(stream.applied, {})
                    states[who.node] = stream.machine.digest()
            for applied, states in found.items():
                if len(set(states.values())) > 1:
                    raise Violation(f"SI11: states of stream {sid} at {applied} differ: {states}")
