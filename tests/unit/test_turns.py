"""Whose turn it is to propose when a node has died."""

from __future__ import annotations

from replication.core.clustermap import ClusterMap, NodeEntry, NodeState
from replication.core.identity import Incarnation
from replication.core.turns import TURN_S, Turns

A, B, C, D = (Incarnation(name, n) for n, name in enumerate("abcd", start=1))
FOUR = ClusterMap(
    nodes={who.node: NodeEntry(proc_inc=who.inc, state=NodeState.UP) for who in (A, B, C, D)}
)


def since(me: Incarnation, *, dead: tuple[Incarnation, ...]) -> float:
    """How long `me` waits after all of these died at 10 s."""
    turns = Turns(me)
    for who in dead:
        turns.died(who, FOUR, lambda life: life in dead, 10.0)
    return turns.since - 10.0


def test_survivors_go_one_after_the_other_beginning_after_the_dead_node() -> None:
    # Given b, dead
    # When the three others look when it is their turn
    waits = [since(me, dead=(B,)) for me in (C, D, A)]

    # Then c goes at once, and then d, and then a
    assert [round(wait / TURN_S) for wait in waits] == [0, 1, 2]


def test_the_dead_have_no_turn() -> None:
    # Given b and c, dead
    # When the two others look
    waits = [since(me, dead=(B, C)) for me in (D, A)]

    # Then d goes at once, though c would have been before it, and a next
    assert [round(wait / TURN_S) for wait in waits] == [0, 1]
