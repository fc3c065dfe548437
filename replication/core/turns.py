"""Whose turn it is to propose when a node has died.

Every survivor has something to propose then: the heir a takeover, and each owner to let the
dead one out of its in-sync sets. Proposed at the same moment by all, these outbid each other
at the acceptors, and what takes two rounds then takes many. So the survivors go one after the
other, in order of succession after the dead node, which is also the heir's: one change of the
first one is usually decided before the second one's turn.

It is a courtesy and no rule: whoever proposes out of turn costs time, not safety.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from replication.core.clustermap import ClusterMap, incarnation, is_live, order
from replication.core.identity import Incarnation

TURN_S: Final = 0.06
"""For two rounds with a write to disk in each."""


class Turns:
    """When one node may propose."""

    def __init__(self, me: Incarnation) -> None:
        self._me = me
        self.since = 0.0
        """Not before this."""

    def died(
        self,
        who: Incarnation,
        value: ClusterMap,
        is_dead: Callable[[Incarnation], bool],
        now: float,
    ) -> None:
        """A node died: those after it in succession go first."""
        survivors = [
            name
            for name in order(value, who.node)
            if (life := incarnation(value, name)) == self._me
            or (is_live(value, life) and not is_dead(life))
        ]
        if self._me.node in survivors:
            self.since = max(self.since, now + TURN_S * survivors.index(self._me.node))
