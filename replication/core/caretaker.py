"""Changes of the map that are nobody's own business, so that somebody must see to them.

A node enters itself, and its post office, when it comes up. Of the others' states the lowest
node that is up takes care, and if it does not, the next one a second later, and so on: an
opinion about who is down, and the declaration that a stream is lost, are proposed once
rather than by everybody. A dead owner is also set down by whoever takes over from it, so
the first one waits for a second with that: its proposal would disturb the takeover.

That a copy is void only its own node knows. It tells the owner; when that is gone it lets go of
the copy itself, so that what is left of the stream may be declared lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from replication.core.changes import (
    Create,
    DeclareLost,
    Disown,
    Function,
    NodeUp,
    SetDown,
    SetUp,
)
from replication.core.clustermap import (
    CATALOG_SID,
    ClusterMap,
    NodeState,
    incarnation,
    is_live,
    superseded,
)
from replication.core.identity import Incarnation
from replication.core.links import Links

TURN_S: Final = 1.0
"""Between the turn of one node and that of the next one."""
SILENT_S_MAX: Final = 30.0
"""A node that was not heard for so long counts as down."""


@dataclass(frozen=True, slots=True)
class Presence:
    """How a node enters itself into the map."""

    peers: str
    group: str
    locators: tuple[str, ...]


class Caretaker:
    """What one node proposes for the good of all.

    Attributes:
        entered: This process stood in the map: from then on its name belongs to it until a
            later process enters.
    """

    def __init__(self, *, me: Incarnation, presence: Presence) -> None:
        self._me = me
        self._presence = presence
        self._since: dict[tuple[str, int], float] = {}
        self._again_at = 0.0
        self.entered = False

    def learned(self, value: ClusterMap) -> Incarnation | None:
        """There is a newer map. Says who came up later under our name, if anybody did.

        Before our own `NodeUp` the map shows an earlier life of ours: that is none.
        """
        entry = value.nodes.get(self._me.node)
        if entry is None or entry.proc_inc == self._me.inc:
            self.entered |= entry is not None
            return None
        return incarnation(value, self._me.node) if self.entered else None

    def wake(
        self, value: ClusterMap, links: Links, void: Callable[[int], bool], now: float
    ) -> list[Function]:
        """What to propose now. At most one round of proposals in a second.

        `void` says of which streams this node's copy is void.
        """
        self.learned(value)
        if now < self._again_at:
            return []
        functions = self._enter(value) if not self.entered else self._care(value, links, void, now)
        if functions:
            self._again_at = now + TURN_S
        return functions

    def _enter(self, value: ClusterMap) -> list[Function]:
        homes = {stream.home for stream in value.streams.values()}
        functions: list[Function] = [
            NodeUp(
                me=self._me,
                peers=self._presence.peers,
                group=self._presence.group,
                locators=self._presence.locators,
            )
        ]
        if self._me.node not in homes:
            functions.append(Create(home=self._me.node, me=self._me))
        if CATALOG_SID not in value.streams:
            functions.append(Create(home=None, me=self._me))
        return functions

    def _care(
        self, value: ClusterMap, links: Links, void: Callable[[int], bool], now: float
    ) -> list[Function]:
        functions: list[Function] = []
        if value.nodes[self._me.node].state is NodeState.DOWN:
            return [SetUp(who=self._me)]
        homes = {stream.home for stream in value.streams.values()}
        if self._me.node not in homes:
            functions.append(Create(home=self._me.node, me=self._me))
        if CATALOG_SID not in value.streams:
            functions.append(Create(home=None, me=self._me))
        wanting: set[tuple[str, int]] = set()
        for name, entry in sorted(value.nodes.items()):
            who = incarnation(value, name)
            if who == self._me or entry.state is not NodeState.UP:
                continue
            silent = now >= links.life_at(who, now) + SILENT_S_MAX
            if links.is_dead(who) or silent:
                wanting.add(("down", who.inc))
                if self._turn(("down", who.inc), value, now, but=name, wait_s=TURN_S):
                    functions.append(SetDown(who=who))
        for sid, stream in sorted(value.streams.items()):
            holders = (*stream.isr, *stream.shed)
            if (
                self._me in holders
                and stream.owner != self._me
                and not is_live(value, stream.owner)
                and void(sid)
            ):
                functions.append(Disown(sid=sid, epoch=stream.epoch, me=self._me))
            if not all(superseded(value, m) for m in holders) or not all(
                value.nodes[m.node].state is NodeState.UP for m in stream.isr
            ):
                continue
            wanting.add(("lost", sid))
            home_is_up = stream.home is not None and value.nodes[stream.home].state is NodeState.UP
            if stream.home == self._me.node or (
                not home_is_up and self._turn(("lost", sid), value, now)
            ):
                functions.append(DeclareLost(sid=sid, gen=stream.gen, me=self._me))
        self._since = {what: at for what, at in self._since.items() if what in wanting}
        return functions

    def _turn(
        self,
        what: tuple[str, int],
        value: ClusterMap,
        now: float,
        *,
        but: str | None = None,
        wait_s: float = 0.0,
    ) -> bool:
        since = self._since.setdefault(what, now)
        up = [
            name
            for name in sorted(value.nodes)
            if name != but and is_live(value, incarnation(value, name))
        ]
        return self._me.node in up and now >= since + wait_s + TURN_S * up.index(self._me.node)
