"""The changes of the cluster map: what each does, and what its guard refuses."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from replication.core.changes import (
    DONE,
    Create,
    DeclareLost,
    Disown,
    Expand,
    Form,
    Function,
    NodeUp,
    SetCopies,
    SetDown,
    SetUp,
    Shrink,
    ShrinkWhy,
    Takeover,
    TakeoverWhy,
)
from replication.core.clustermap import (
    EMPTY_MAP,
    ClusterMap,
    NodeEntry,
    NodeState,
    OnTooFewCopies,
    Settings,
    StreamEntry,
    superseded,
)
from replication.core.identity import Incarnation

A, B, C, D = (Incarnation(name, 1) for name in "abcd")
A2, B2 = Incarnation("a", 2), Incarnation("b", 2)
SOLO = Settings(on_too_few_copies=OnTooFewCopies.SOLO)
EPOCH = 4


def a_map(
    *isr: Incarnation,
    shed: tuple[Incarnation, ...] = (),
    min_copies: int = 2,
    settings: Settings | None = None,
    lives: dict[str, int] | None = None,
    down: str = "",
) -> ClusterMap:
    """Nodes a to d, and stream 1, whose home and owner is a, in gen 2 and epoch 4."""
    return ClusterMap(
        settings=settings or Settings(),
        nodes={
            name: NodeEntry(
                proc_inc=(lives or {}).get(name, 1),
                state=NodeState.DOWN if name in down else NodeState.UP,
            )
            for name in "abcd"
        },
        streams={
            1: StreamEntry(
                home="a",
                gen=2,
                epoch=EPOCH,
                owner=A,
                isr=isr or (A, B, C),
                shed=shed,
                min_copies=min_copies,
            )
        },
        next_sid=2,
    )


def done(value: ClusterMap, function: Function) -> ClusterMap:
    after, result = function.apply(value)
    assert result == DONE
    return after


def refusal(value: ClusterMap, function: Function) -> str:
    """Why it was refused. The map must be the very same one then."""
    after, result = function.apply(value)
    assert after is value
    assert result.startswith("refused: ")
    return result


# Nodes.


def test_a_cluster_is_formed_of_nodes_that_are_down_and_only_once() -> None:
    form = Form(settings=SOLO, nodes={"a": NodeEntry(zone="z", state=NodeState.UP, proc_inc=3)})

    formed = done(EMPTY_MAP, form)

    assert formed.settings == SOLO
    assert formed.nodes == {"a": NodeEntry(zone="z", state=NodeState.DOWN, proc_inc=0)}
    assert "formed already, of a" in refusal(formed, form)


def test_a_new_life_supersedes_the_former_ones_everywhere_but_as_an_owner() -> None:
    # Given a stream that a owns, with b in sync, and another copy of b's outside
    value = a_map(A, B, C, shed=(Incarnation("b", 0), D))

    # When b comes up anew, it is in no set any more
    after = done(value, NodeUp(me=B2, peers="h:1", locators=("h:2",)))
    assert after.streams[1].isr == (A, C)
    assert after.streams[1].shed == (D,)
    assert after.nodes["b"] == NodeEntry(
        peers="h:1", locators=("h:2",), proc_inc=2, state=NodeState.UP
    )

    # When a does, it stays the owner until somebody takes over
    after = done(value, NodeUp(me=A2))
    assert after.streams[1].isr == (A, B, C)
    assert after.streams[1].owner == A


def test_a_life_comes_up_once_and_a_former_one_never_again() -> None:
    assert "a.1 came up before" in refusal(a_map(), NodeUp(me=A))
    assert "older than a.2" in refusal(a_map(lives={"a": 2}), NodeUp(me=A))


def test_only_the_latest_life_goes_down_or_up() -> None:
    value = a_map()
    fallen = done(value, SetDown(who=B))

    assert fallen.nodes["b"].state is NodeState.DOWN
    assert done(fallen, SetUp(who=B)) == value
    assert "b is b.1 now, not b.2" in refusal(value, SetDown(who=B2))
    assert "b is b.1 now, not b.2" in refusal(fallen, SetUp(who=B2))
    assert "no node x" in refusal(value, SetDown(who=Incarnation("x", 1)))


def test_to_be_alive_does_not_end_a_drain() -> None:
    value = a_map()
    draining = replace(value.nodes["b"], state=NodeState.DRAIN)
    value = replace(value, nodes={**value.nodes, "b": draining})

    assert done(value, SetUp(who=B)) == value


# Streams begin.


def test_a_node_creates_its_post_office_and_anybody_the_catalog() -> None:
    value = done(a_map(), Create(home="b", me=B))
    value = done(value, Create(home=None, me=C))

    office, catalog = value.streams[2], value.streams[0]
    assert office == StreamEntry(home="b", gen=1, epoch=1, owner=B, isr=(B,), min_copies=2)
    assert catalog == StreamEntry(home=None, gen=1, epoch=1, owner=C, isr=(C,), min_copies=2)
    assert value.next_sid == 3


def test_there_is_one_post_office_per_name_and_one_catalog() -> None:
    value = done(a_map(), Create(home=None, me=A))

    assert "a has a stream already" in refusal(value, Create(home="a", me=A))
    assert "the catalog has a stream already" in refusal(value, Create(home=None, me=B))
    assert "only b itself" in refusal(value, Create(home="b", me=C))
    assert "b.2 does not count as up" in refusal(value, Create(home="b", me=B2))


def test_a_witness_creates_nothing() -> None:
    value = done(a_map(), NodeUp(me=B2, broker=False))

    assert "b is a witness" in refusal(value, Create(home="b", me=B2))


# The in-sync set.


def expand(joiner: Incarnation = D) -> Expand:
    return Expand(sid=1, epoch=EPOCH, me=A, joiner=joiner, base=(A, B, C))


def shrink(
    member: Incarnation = C,
    why: ShrinkWhy = ShrinkWhy.SLOW,
    base: tuple[Incarnation, ...] = (A, B, C),
) -> Shrink:
    return Shrink(sid=1, epoch=EPOCH, me=A, member=member, base=base, why=why)


def test_the_owner_takes_a_joiner_in_which_is_no_longer_shed() -> None:
    after = done(a_map(shed=(D,)), expand())

    assert after.streams[1].isr == (A, B, C, D)
    assert after.streams[1].shed == ()


@pytest.mark.parametrize("function", [expand(), shrink()], ids=["expand", "shrink"])
def test_only_the_owner_in_this_epoch_and_with_this_set_changes_it(
    function: Expand | Shrink,
) -> None:
    value = a_map()

    assert "no stream 7" in refusal(value, replace(function, sid=7))
    assert "epoch 4, not 3" in refusal(value, replace(function, epoch=3))
    assert "belongs to a.1, not b.1" in refusal(value, replace(function, me=B))
    others = replace(function, base=(A, B))
    assert "are a.1, b.1, c.1, not a.1, b.1" in refusal(value, others)


def test_a_joiner_that_restarted_meanwhile_is_refused() -> None:
    value = a_map(lives={"d": 2})

    assert "d is d.2 now, not d.1" in refusal(value, expand())


@pytest.mark.parametrize(
    ("isr", "min_copies", "why", "allowed"),
    [
        ((A, B, C), 2, ShrinkWhy.SLOW, True),
        ((A, B, C), 3, ShrinkWhy.SLOW, False),
        ((A, C), 1, ShrinkWhy.SLOW, False),  # Never down to one on a suspicion.
        ((A, C), 1, ShrinkWhy.SURPLUS, False),
        ((A, C), 1, ShrinkWhy.SILENT, True),
        ((A, C), 2, ShrinkWhy.SILENT, False),
        ((A, C), 2, ShrinkWhy.DEAD, True),
        ((A, C), 2, ShrinkWhy.VOID, True),
    ],
)
def test_a_member_that_may_be_alive_leaves_only_if_copies_enough_stay(
    isr: tuple[Incarnation, ...], min_copies: int, why: ShrinkWhy, allowed: bool
) -> None:
    value = a_map(*isr, min_copies=min_copies)
    function = shrink(why=why, base=isr)

    if allowed:
        assert C not in done(value, function).streams[1].isr
    else:
        assert f"min_copies is {min_copies}" in refusal(value, function)


def test_who_leaves_alive_is_shed_and_the_dead_and_the_wrong_are_not() -> None:
    assert done(a_map(), shrink(why=ShrinkWhy.SLOW)).streams[1].shed == (C,)
    assert done(a_map(), shrink(why=ShrinkWhy.DEAD)).streams[1].shed == ()
    assert done(a_map(), shrink(why=ShrinkWhy.VOID)).streams[1].shed == ()
    superseded_map = a_map(lives={"c": 2})
    assert done(superseded_map, shrink(why=ShrinkWhy.SLOW)).streams[1].shed == ()


def test_a_superseded_member_may_leave_whatever_stays() -> None:
    value = a_map(A, C, lives={"c": 2})

    assert done(value, shrink(base=(A, C))).streams[1].isr == (A,)


def test_with_solo_the_owner_may_stay_alone() -> None:
    value = a_map(A, C, settings=SOLO)

    assert done(value, shrink(base=(A, C))).streams[1].isr == (A,)


def test_nobody_leaves_who_is_not_in_and_the_owner_never_does() -> None:
    assert "d.1 is not in sync" in refusal(a_map(), shrink(D))
    assert "a.1 owns stream 1" in refusal(a_map(), shrink(A, ShrinkWhy.DEAD))


def test_the_owner_adapts_min_copies_within_what_there_can_be() -> None:
    def copies(count: int, me: Incarnation = A) -> SetCopies:
        return SetCopies(sid=1, epoch=EPOCH, me=me, min_copies=count)

    assert done(a_map(), copies(3)).streams[1].min_copies == 3
    assert "4 is not within 1 and 3" in refusal(a_map(), copies(4))
    assert "0 is not within 1 and 3" in refusal(a_map(), copies(0))
    assert "belongs to a.1" in refusal(a_map(), copies(2, B))


# Ownership.


def takeover(
    why: TakeoverWhy = TakeoverWhy.DEAD,
    me: Incarnation = B,
    old: Incarnation = A,
    streams: tuple[tuple[int, int], ...] = ((1, EPOCH),),
) -> Takeover:
    return Takeover(streams=streams, me=me, old=old, why=why)


def test_a_takeover_begins_a_new_epoch_without_the_dead_owner() -> None:
    after = done(a_map(), takeover())

    stream = after.streams[1]
    assert (stream.epoch, stream.owner, stream.isr, stream.shed) == (EPOCH + 1, B, (B, C), ())
    assert stream.gen == 2
    assert after.nodes["a"].state is NodeState.DOWN


def test_a_dead_owner_that_is_up_anew_is_not_set_down() -> None:
    value = a_map(lives={"a": 2})

    assert done(value, takeover()).nodes["a"].state is NodeState.UP
    assert done(value, takeover(TakeoverWhy.SUPERSEDED)).streams[1].isr == (B, C)


def test_a_silent_owner_leaves_only_if_copies_enough_stay_and_is_shed_then() -> None:
    enough = done(a_map(A, B, C), takeover(TakeoverWhy.SILENT))
    too_few = done(a_map(A, B), takeover(TakeoverWhy.SILENT))
    solo = done(a_map(A, B, settings=SOLO), takeover(TakeoverWhy.SILENT))

    assert (enough.streams[1].isr, enough.streams[1].shed) == ((B, C), (A,))
    # Thrown out, it would be lost with the next death, though it holds everything.
    assert (too_few.streams[1].isr, too_few.streams[1].shed) == ((A, B), ())
    assert (solo.streams[1].isr, solo.streams[1].shed) == ((B,), (A,))
    assert all(m.nodes["a"].state is NodeState.UP for m in (enough, too_few, solo))


def test_a_takeover_removes_every_superseded_member() -> None:
    value = a_map(A, B, C, lives={"c": 2})

    assert done(value, takeover(TakeoverWhy.SILENT)).streams[1].isr == (A, B)


def test_only_a_live_member_takes_over_and_only_from_the_owner_it_names() -> None:
    assert "d.1 is not in sync" in refusal(a_map(), takeover(me=D))
    assert "b.1 does not count as up" in refusal(a_map(lives={"b": 2}), takeover())
    assert "b.1 does not count as up" in refusal(a_map(down="b"), takeover())
    assert "epoch 4, not 3" in refusal(a_map(), takeover(streams=((1, 3),)))
    assert "belongs to a.1, not c.1" in refusal(a_map(), takeover(old=C))
    assert "from itself" in refusal(a_map(), takeover(me=A))
    assert "latest life" in refusal(a_map(), takeover(TakeoverWhy.SUPERSEDED))


def test_a_takeover_of_several_streams_is_all_or_nothing() -> None:
    value = a_map()
    office = StreamEntry(home="d", gen=1, epoch=9, owner=A, isr=(A, C))
    value = replace(value, streams={**value.streams, 2: office}, next_sid=3)

    both = ((1, EPOCH), (2, 9))
    assert "b.1 is not in sync with stream 2" in refusal(value, takeover(streams=both))
    after = done(value, takeover(me=C, streams=both))
    assert [stream.owner for stream in after.streams.values()] == [C, C]


# Loss.


def lost(me: Incarnation = B, *, gen: int = 2, vouched: bool = False) -> DeclareLost:
    return DeclareLost(sid=1, gen=gen, me=me, vouched=vouched)


def test_a_stream_of_which_no_copy_is_left_begins_anew_at_home() -> None:
    value = a_map(A, B, shed=(C,), lives={"a": 2, "b": 2, "c": 2})

    stream = done(value, lost(D)).streams[1]

    assert (stream.gen, stream.epoch, stream.owner) == (3, EPOCH + 1, A2)
    assert (stream.isr, stream.shed) == ((A2,), ())


def test_nothing_is_lost_while_somebody_may_hold_it() -> None:
    all_but_shed = a_map(A, B, shed=(C,), lives={"a": 2, "b": 2})
    all_but_one = a_map(A, B, lives={"a": 2})
    not_back = a_map(A, B, lives={"a": 2, "b": 2}, down="b")

    assert "c.1 may still hold" in refusal(all_but_shed, lost(D))
    assert "b.1 may still hold" in refusal(all_but_one, lost(D))
    assert "b held stream 1 and is not up" in refusal(not_back, lost(D))
    assert "gen 2, not 1" in refusal(not_back, lost(D, gen=1))
    assert "no stream 7" in refusal(not_back, DeclareLost(sid=7, gen=1, me=D))


def test_the_operator_vouches_for_the_dead_but_not_against_the_living() -> None:
    dead = a_map(A, B, shed=(C,), down="abc")

    stream = done(dead, lost(D, vouched=True)).streams[1]

    assert (stream.owner, stream.isr) == (D, (D,))
    living = a_map(A, B, down="a")
    assert "b.1 may still hold" in refusal(living, lost(D, vouched=True))


def test_who_holds_a_void_copy_leaves_a_stream_whose_owner_is_gone() -> None:
    disown = Disown(sid=1, epoch=EPOCH, me=B)
    dead = a_map(A, B, shed=(C,), down="a")
    anew = a_map(A, C, shed=(B,), lives={"a": 2})

    assert done(dead, disown).streams[1].isr == (A,)
    stream = done(anew, disown).streams[1]

    assert (stream.isr, stream.shed, stream.epoch) == ((A, C), (), EPOCH)
    assert "a.1 owns stream 1 and counts as up" in refusal(a_map(A, B), disown)
    assert "epoch 4, not 3" in refusal(dead, replace(disown, epoch=3))
    assert "d.1 does not count as a holder" in refusal(dead, replace(disown, me=D))
    assert "a.1 owns stream 1 and cannot leave it" in refusal(dead, replace(disown, me=A))
    assert "no stream 7" in refusal(dead, replace(disown, sid=7))


def test_a_void_copy_that_was_let_go_does_not_keep_a_stream_from_being_lost() -> None:
    # Given that the owner is dead, or came back with nothing, and the other copy is void
    dead, anew = a_map(A, B, down="a"), a_map(A, B, lives={"a": 2})
    assert "b.1 may still hold" in refusal(dead, lost(D, vouched=True))
    assert "b.1 may still hold" in refusal(anew, lost(A2))

    # When its node says so
    disown = Disown(sid=1, epoch=EPOCH, me=B)
    dead, anew = done(dead, disown), done(anew, disown)

    # Then the operator's word is enough for the former, and the latter needs none
    assert done(dead, lost(D, vouched=True)).streams[1].isr == (D,)
    assert done(anew, lost(A2)).streams[1].isr == (A2,)


# All of them.

INCARNATIONS = st.builds(Incarnation, st.sampled_from("abc"), st.integers(1, 3))
SIDS = st.integers(0, 3)
EPOCHS = st.integers(1, 6)
BASES = st.lists(INCARNATIONS, max_size=3).map(tuple)
FUNCTIONS: st.SearchStrategy[Function] = st.one_of(
    st.builds(NodeUp, me=INCARNATIONS),
    st.builds(SetDown, who=INCARNATIONS),
    st.builds(SetUp, who=INCARNATIONS),
    st.builds(Create, home=st.sampled_from(["a", "b", "c", None]), me=INCARNATIONS),
    st.builds(
        Takeover,
        streams=st.lists(st.tuples(SIDS, EPOCHS), min_size=1, max_size=2).map(tuple),
        me=INCARNATIONS,
        old=INCARNATIONS,
        why=st.sampled_from(TakeoverWhy),
    ),
    st.builds(Disown, sid=SIDS, epoch=EPOCHS, me=INCARNATIONS),
    st.builds(DeclareLost, sid=SIDS, gen=st.integers(1, 3), me=INCARNATIONS, vouched=st.booleans()),
)
OWNERS_FUNCTIONS = st.tuples(SIDS, INCARNATIONS, st.sampled_from(ShrinkWhy), st.integers(0, 4))


@given(st.lists(st.one_of(FUNCTIONS, OWNERS_FUNCTIONS), max_size=40))
def test_whatever_is_proposed_in_whatever_order_the_map_stays_sound(
    proposals: list[Function | tuple[int, Incarnation, ShrinkWhy, int]],
) -> None:
    value = done(EMPTY_MAP, Form(settings=Settings(), nodes={n: NodeEntry() for n in "abc"}))

    for proposal in proposals:
        for function in _functions(value, proposal):
            before, (value, result) = value, function.apply(value)

            value.check()
            assert result == DONE or value is before
            for sid, stream in before.streams.items():
                _check_step(stream, value.streams[sid], value)


def _functions(
    value: ClusterMap, proposal: Function | tuple[int, Incarnation, ShrinkWhy, int]
) -> list[Function]:
    if not isinstance(proposal, tuple):
        return [proposal]
    # What an owner proposes fits the map mostly; drawn blindly it never would.
    sid, other, why, count = proposal
    if sid not in value.streams:
        return []
    stream = value.streams[sid]
    epoch, me, base = stream.epoch, stream.owner, stream.isr
    return [
        SetCopies(sid=sid, epoch=epoch, me=me, min_copies=count),
        Expand(sid=sid, epoch=epoch, me=me, joiner=other, base=base),
        Shrink(sid=sid, epoch=epoch, me=me, member=other, base=base, why=why),
    ]


def _check_step(before: StreamEntry, after: StreamEntry, value: ClusterMap) -> None:
    assert after.home == before.home
    assert after.gen >= before.gen
    assert after.epoch >= before.epoch
    if (after.gen, after.epoch) == (before.gen, before.epoch):
        assert after.owner == before.owner
    if after.gen == before.gen and after.owner != before.owner:
        assert after.owner in before.isr, "only a member takes over"
    if after.gen > before.gen:
        assert all(
            superseded(value, who) or value.nodes[who.node].state is NodeState.DOWN
            for who in before.isr
        )
