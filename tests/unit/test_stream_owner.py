from __future__ import annotations

import pytest
from msgspec.structs import replace

from replication.core.changes import DONE, Expand, SetCopies, Shrink, ShrinkWhy
from replication.core.clustermap import CATALOG_SID, NodeState
from replication.core.messages import Receipt, Segments, Tick
from replication.core.stream import ApplyFailed, Role, StreamLimits
from replication.core.stream_events import (
    Dead,
    Deposed,
    Distrust,
    Effect,
    Fatal,
    FromPeer,
    MapChanged,
    Outcome,
    Promoted,
    Wake,
)
from tests.unit.stream_setup import (
    CLUSTER8,
    SID,
    A,
    B,
    C,
    Cluster,
    Line,
    a_map,
    a_stream,
    check_all,
    moved,
)


def test_with_one_copy_an_effect_leaves_in_the_next_turn_and_not_at_once() -> None:
    # Given a stream that one node has alone
    cluster = Cluster(a_map(A, nodes="a", failover_peers=0), A)

    # When an op is appended and the turn ends
    cluster.append(A, b"one")

    # Then nobody who appends can have relied on its effect yet
    assert cluster.released(A) == []
    assert cluster[A].next_deadline() == cluster.now
    cluster.run(0.001)
    assert cluster.released(A) == [b"one"]


def test_an_effect_leaves_when_all_of_the_in_sync_set_hold_its_op() -> None:
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.deaf.add(C)

    cluster.append(A, b"one")
    cluster.run(0.05)
    held_by_two = cluster.released(A)
    cluster.deaf.clear()
    cluster.run(0.2)

    assert held_by_two == []
    assert cluster.released(A) == [b"one"]
    check_all(cluster)


def test_an_answer_without_an_op_waits_for_the_last_op() -> None:
    # Given an op that nobody else holds yet
    cluster = Cluster(a_map(A, B), A, B)
    cluster.run(0.2)
    cluster.deaf.add(B)
    cluster.append(A, b"one")

    # When something is answered that rests on it
    cluster[A].answer("two")
    cluster.seal(A)
    cluster.run(0.05)
    before = cluster.released(A)

    # Then it leaves after it, in order
    cluster.deaf.clear()
    cluster.run(0.2)
    assert before == []
    assert cluster.released(A) == [b"one", "two"]


def test_an_answer_leaves_at_once_where_all_is_released() -> None:
    cluster = Cluster(a_map(A, B), A, B)
    cluster[A].answer("empty log")
    cluster.seal(A)
    cluster.append(A, b"one")
    cluster.run(0.05)
    before = cluster.released(A)

    cluster[A].answer("nothing in doubt")
    cluster.seal(A)

    assert before == ["empty log", b"one"]
    assert cluster.released(A) == [*before, "nothing in doubt"]


def test_a_turn_of_small_ops_is_one_segment_and_a_long_one_is_cut() -> None:
    cluster = Cluster(a_map(A, B), A, B, limits=StreamLimits(segment_bytes=1_000))
    cluster.run(0.2)

    cluster.append(A, b"one", b"two")
    short = [m for _, _, m in cluster.sent if isinstance(m, Segments)]
    cluster.append(A, *[bytes(300)] * 10)

    assert [m.segments[0].count for m in short] == [2]
    assert cluster[B].log_end == 13
    assert cluster[B].copy.log.from_(3, 1 << 20)[0].count == 3


def test_a_small_segment_of_an_idle_stream_goes_over_the_links() -> None:
    cluster = Cluster(a_map(A, B), A, B, group_works=False)
    cluster.run(0.2)

    cluster.append(A, b"one")

    assert cluster[B].log_end == 2


def test_a_small_segment_goes_by_the_group_while_something_is_in_flight() -> None:
    cluster = Cluster(a_map(A, B), A, B, group_works=False)
    cluster.run(0.2)
    cluster.deaf.add(B)
    cluster.append(A, b"one")
    cluster.deaf.clear()

    cluster.append(A, b"two")

    assert cluster[B].log_end == 1, "it went by the group, which does not work here"
    cluster.run(0.3)
    assert cluster[B].log_end == 3


def test_release_asks_the_smallest_set_that_the_register_may_hold() -> None:
    # Given a change that takes C out, of which A does not know whether it was made, while C
    # still gives receipts
    cluster = Cluster(a_map(A, C, min_copies=2), A, B, C)
    cluster.run(0.3)
    assert cluster.entry.isr == (A, B, C)
    cluster.register_answers = False
    cluster.give(A, Dead(B))
    cluster.carry()
    assert [type(f) for f in cluster.proposed[-1:]] == [Shrink]

    # When an op is held by all of need, but one of the two possible sets is smaller
    cluster.append(A, b"one")
    cluster.run(0.05)

    # Then two copies are counted, not three
    assert cluster[A].need == (A, B, C)
    assert cluster.released(A) == [b"one"]
    assert cluster[A].copies == 2


def test_a_stream_with_too_few_copies_commits_and_does_not_release() -> None:
    # Given one copy where two are asked for
    cluster = Cluster(a_map(A, min_copies=2), A, B, C, deaf=(B, C))
    cluster.append(A, b"one")
    cluster.run(0.5)

    # Then it is held, and takes no publishes
    held = cluster[A].held
    assert held is not None
    assert held.why == "1 of at least 2 copies in sync: b is not in sync, c is not in sync"
    assert cluster[A].commit == 1
    assert cluster[A].release == 0
    assert cluster[A].room() == 0
    assert cluster.released(A) == []

    # And goes on by itself when somebody comes
    cluster.deaf.clear()
    cluster.run(1.5)
    assert cluster[A].held is None
    assert cluster.released(A) == [b"one"]
    assert cluster[A].copies >= 2
    check_all(cluster)


def test_who_does_not_answer_is_named_while_no_majority_lets_it_go() -> None:
    # Given three copies in sync, and a register that does not answer
    cluster = Cluster(a_map(A, B, C, min_copies=2), A, B, C)
    cluster.run(0.3)
    cluster.register_answers = False

    # When both others are gone, and something is published
    cluster.deaf |= {B, C}
    cluster.give(A, Dead(B))
    cluster.give(A, Dead(C))
    cluster.append(A, b"one")
    cluster.run(20.0)

    # Then the reason names both, and no incarnation
    held = cluster[A].held
    assert held is not None
    assert "b does not answer, c does not answer" in held.why


def test_with_solo_a_lone_owner_goes_on_and_says_how_many_copies_there_are() -> None:
    cluster = Cluster(a_map(A, min_copies=2, solo=True), A, B, C, deaf=(B, C))

    cluster.append(A, b"one")
    cluster.run(0.05)

    assert cluster.released(A) == [b"one"]
    assert cluster[A].copies == 1
    assert cluster[A].held is None


def test_while_held_any_live_broker_is_taken_in_wanted_or_not() -> None:
    # Given one failover peer, B, which never answers
    cluster = Cluster(a_map(A, min_copies=2, failover_peers=1), A, B, C, deaf=(B,))

    cluster.run(1.5)

    assert cluster.entry.isr == (A, C)
    assert cluster[A].held is None


def test_a_joiner_is_waited_for_before_it_is_proposed_and_until_the_outcome() -> None:
    # Given a register that does not answer, and a joiner that has caught up
    cluster = Cluster(a_map(A, nodes="ab", failover_peers=1), A)
    cluster.register_answers = False
    cluster.add(B)
    cluster.run(2.0)
    assert [f.joiner for f in cluster.proposed if isinstance(f, Expand)] == [B]

    # When it does not hold the next op
    cluster.deaf.add(B)
    cluster.append(A, b"one")
    cluster.run(1.5)
    unknown = cluster.released(A)
    cluster.deaf.clear()
    cluster.run(0.3)

    # Then that is not released, although the map that is known does not name it
    assert cluster.entry.isr == (A,)
    assert cluster[A].need == (A, B)
    assert unknown == []
    assert cluster.released(A) == [b"one"]


def test_a_member_is_waited_for_until_the_register_says_that_it_is_gone() -> None:
    # Given a member that is proven dead, and a register that does not answer
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.register_answers = False
    cluster.deaf.add(C)
    cluster.give(A, Dead(C))
    cluster.append(A, b"one")
    cluster.run(0.5)
    unknown = cluster.released(A)

    # When it answers at last
    cluster.answer()
    cluster.run(0.01)

    # Then the op is released, and not before
    assert unknown == []
    assert cluster.entry.isr == (A, B)
    assert cluster.released(A) == [b"one"]


def test_a_silent_member_leaves_only_where_enough_copies_stay() -> None:
    # Given two copies where two are asked for, and no third node
    cluster = Cluster(a_map(A, B, min_copies=2, nodes="ab"), A, B)
    cluster.run(0.2)
    cluster.deaf.add(B)
    cluster.append(A, b"one")

    # When one of them is silent for long
    cluster.run(8.0)

    # Then nothing is proposed, and the stream is held until it speaks again
    assert [f for f in cluster.proposed if isinstance(f, Shrink)] == []
    held = cluster[A].held
    assert held is not None
    assert "silent" in held.why
    cluster.deaf.clear()
    cluster.run(0.3)
    assert cluster[A].held is None
    assert cluster.released(A) == [b"one"]


def test_a_silent_member_is_expelled_and_rejoins_after_its_quarantine() -> None:
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.deaf.add(C)
    cluster.append(A, b"one")

    cluster.run(1.2)
    expelled = cluster.entry
    cluster.deaf.clear()
    cluster.run(10.0)
    in_quarantine = cluster.entry.isr
    cluster.run(25.0)

    assert expelled.isr == (A, B)
    assert expelled.shed == (C,)
    assert in_quarantine == (A, B)
    assert cluster.entry.isr == (A, B, C)
    check_all(cluster)


def test_an_owner_that_stood_still_does_not_blame_the_others() -> None:
    # Given three copies in sync
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    before = len(cluster.proposed)

    # When the owner's process is stopped for a minute
    cluster.now += 60.0
    cluster.give(A, Wake())
    cluster.carry()

    # Then it has not heard them, and does not hold it against them
    assert cluster.proposed[before:] == []


def test_a_member_beyond_those_wanted_leaves_when_all_of_these_are_in() -> None:
    # Given C in sync, where one peer is wanted, and that is B
    cluster = Cluster(a_map(A, C, failover_peers=1), A, B, C)

    cluster.run(0.5)

    assert cluster.entry.isr == (A, B)
    assert isinstance(cluster.proposed[-1], Shrink)
    assert cluster.proposed[-1].why is ShrinkWhy.SURPLUS


def test_nobody_is_surplus_while_another_member_fails() -> None:
    cluster = Cluster(a_map(A, B, C, failover_peers=1, min_copies=2), A, B, C)
    cluster.deaf.add(B)
    cluster.append(A, b"one")

    cluster.run(3.0)

    assert cluster.entry.isr == (A, C), "C stands in for B, although B is the one wanted"
    assert cluster.released(A) == [b"one"]


def test_an_owner_adapts_min_copies_to_the_number_of_brokers() -> None:
    value = replace(a_map(A, B), settings=replace(a_map(A).settings, min_copies=None))

    cluster = Cluster(value, A, B, C)
    cluster.run(0.3)

    assert [f.min_copies for f in cluster.proposed if isinstance(f, SetCopies)] == [2]
    assert cluster.entry.min_copies == 2


def test_a_higher_min_copies_counts_as_soon_as_it_is_proposed() -> None:
    value = replace(a_map(A, nodes="ab"), settings=replace(a_map(A).settings, min_copies=2))
    stream, outbox = a_stream(A), list[Effect]()

    stream.handle(MapChanged(value, 1), 1.0, outbox)
    stream.append(Line(b"one"))
    stream.answer("one")
    stream.seal(1.0, outbox)
    stream.handle(Wake(), 1.01, outbox)

    assert stream.commit == 1
    assert stream.release == 0


def test_the_window_ends_room_for_publishes_and_not_for_the_rest() -> None:
    # Given a window of 10,000 bytes, and a member that holds nothing yet
    limits = StreamLimits(window_bytes=10_000)
    cluster = Cluster(a_map(A, B), A, B, limits=limits)
    cluster.run(0.2)
    cluster.deaf.add(B)

    # When nine tenths of it are in flight
    cluster.append(A, bytes(9_000))

    # Then publishes find no room, an ack does not ask, and receipts make room again
    assert cluster[A].room() == 0
    cluster.append(A, b"ack")
    cluster.deaf.clear()
    cluster.run(0.3)
    assert cluster[A].room() == 9_000


def test_the_window_counts_ops_too() -> None:
    cluster = Cluster(a_map(A, B), A, B, limits=StreamLimits(window_ops=10))
    cluster.run(0.2)
    cluster.deaf.add(B)

    cluster.append(A, *[b"x"] * 9)

    assert cluster[A].room() == 0


def test_a_member_that_has_no_memory_left_ends_room() -> None:
    cluster = Cluster(a_map(A, B), A, B)
    cluster.run(0.2)
    before = cluster[A].room()

    last = Receipt(CLUSTER8, SID, 1, 1, B.inc, 1 << 40, 0, 0, 0, 100)
    cluster.give(A, FromPeer(B, last))

    assert before > 1 << 20
    assert cluster[A].room() == 90


def test_there_is_no_room_before_all_follow_the_epoch() -> None:
    cluster = Cluster(a_map(A, B), A)

    assert cluster[A].room() == 0


def test_a_receipt_beyond_the_log_ends_the_link_of_who_sent_it() -> None:
    cluster = Cluster(a_map(A, B), A, B)
    cluster.run(0.2)

    cluster.give(A, FromPeer(B, Receipt(CLUSTER8, SID, 1, 1, B.inc, 999, 0, 50, 0, 0)))
    cluster.carry()

    assert [e.member for e in cluster.said_by(A, Distrust) if isinstance(e, Distrust)] == [B]
    assert cluster[A].commit == 0


def test_of_receipts_that_overtook_each_other_the_highest_counts() -> None:
    cluster = Cluster(a_map(A, B), A, B)
    cluster.run(0.2)
    cluster.append(A, b"one", b"two")
    cluster.run(0.05)

    cluster.give(A, FromPeer(B, Receipt(CLUSTER8, SID, 1, 1, B.inc, 1, 0, 0, 0, 0)))

    assert cluster[A].commit == 2
    assert cluster[A].room() > 0


@pytest.mark.parametrize(
    ("epoch", "inc"), [(2, B.inc), (4, B.inc), (3, B.inc + 100)], ids=["old", "new", "inc"]
)
def test_receipts_of_other_epochs_and_lives_do_not_count(epoch: int, inc: int) -> None:
    cluster = Cluster(a_map(A, B, epoch=3), A, B)
    cluster.run(0.2)
    cluster.deaf.add(B)
    cluster.append(A, b"one")
    cluster.run(0.05)

    stranger = Receipt(CLUSTER8, SID, 1, epoch, inc, 999, 0, 1, 1, 1 << 20)
    cluster.give(A, FromPeer(B, stranger))
    cluster.carry()

    assert cluster[A].commit == 0
    assert cluster.released(A) == []


def test_a_delivery_may_leave_only_while_all_of_need_follow() -> None:
    # Given a stream in good health
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.5)
    assert cluster[A].may_deliver(cluster.now)

    # When C, which may have taken over by now, answers no tick for half the grace
    cluster.register_answers = False
    cluster.deaf.add(C)
    cluster.run(4.0)
    early = cluster[A].may_deliver(cluster.now)
    cluster.run(2.0)

    # Then nothing is delivered, until it does
    assert early
    assert not cluster[A].may_deliver(cluster.now)
    cluster.deaf.clear()
    cluster.run(0.3)
    assert cluster[A].may_deliver(cluster.now)


def test_a_receipt_that_lay_in_a_socket_for_long_does_not_open_the_fence() -> None:
    # Given an op whose receipt, and whose tick's answer, B sent at once
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.5)
    ticks = [m for who, _, m in cluster.sent if who == A and isinstance(m, Tick)]
    cluster.append(A, b"one")

    # When A's process stands still, reads them a minute later, and releases the op by them
    cluster.now += 60.0
    for who in (B, C):
        answer = Receipt(CLUSTER8, SID, 1, 1, who.inc, 999, ticks[-1].number, 1, 0, 1 << 30)
        cluster.give(A, FromPeer(who, answer))

    # Then a delivery of it may not leave: somebody else may have made it long ago
    assert cluster[A].release == 1
    assert not cluster[A].may_deliver(cluster.now)


def test_who_follows_the_greeting_has_answered_tick_zero() -> None:
    cluster = Cluster(a_map(A, B), A, B)

    assert cluster[A].may_deliver(cluster.now)
    assert not cluster[B].may_deliver(cluster.now)


def test_an_owner_tells_since_when_it_is_not_heard() -> None:
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.5)
    at = cluster.now
    cluster.register_answers = False
    cluster.deaf.add(B)
    cluster.run(1.0)
    since = cluster[A].unanswered_since()
    cluster.give(A, Dead(B))

    assert since is not None
    assert at - 0.2 < since <= at
    assert cluster[A].unanswered_since() != since, "the dead are not missed"


def test_a_poisoned_op_ends_the_ownership_before_it_is_sent() -> None:
    # Given an op that is released, and one that is not
    cluster = Cluster(a_map(A, B), A, B)
    cluster.run(0.2)
    cluster.append(A, b"one")
    cluster.run(0.05)
    cluster[A].append(Line(b"two"))
    cluster[A].answer("two")

    # When the next one cannot be applied
    with pytest.raises(ApplyFailed):
        cluster[A].append(Line(b"poison"))
    with pytest.raises(ApplyFailed):
        cluster[A].append(Line(b"three"))
    cluster.seal(A)
    cluster.run(0.3)

    # Then the node must end, nobody has heard of this turn, and what was released stays so
    assert len(cluster.said_by(A, Fatal)) == 1
    assert cluster[B].log_end == 2
    assert cluster.released(A) == [b"one"]


def test_a_higher_epoch_drops_the_effects_before_anything_else() -> None:
    cluster = Cluster(a_map(A, B), A, B)
    cluster.run(0.2)
    cluster.deaf.add(B)
    cluster.append(A, b"one")

    cluster.learn(moved(cluster.value, B, (A, B)))

    assert cluster[A].role is Role.SHADOW
    assert cluster.released(A) == []
    assert [e.epoch for e in cluster.said_by(A, Deposed) if isinstance(e, Deposed)] == [1]


def test_a_map_that_says_so_late_makes_no_owner() -> None:
    # Given A, which follows B in epoch 2, of which it heard from B itself
    cluster = Cluster(a_map(A, B), A, B)
    cluster.run(0.2)
    cluster.deaf.add(A)
    cluster.learn(moved(cluster.value, B, (A, B)))
    cluster.deaf.clear()
    cluster.run(0.3)
    assert cluster[A].epoch == 2

    # When an older map is learned now, in which it is the owner itself
    cluster.give(A, MapChanged(a_map(A, B), 999))
    cluster.carry()

    # Then it is not
    assert cluster[A].role is not Role.OWNER
    assert len(cluster.said_by(A, Promoted)) == 1


def test_the_catalog_is_followed_by_all_and_in_sync_with_those_wanted() -> None:
    # Given the catalog with one failover peer, which is B by the order of names
    value = a_map(A, sid=CATALOG_SID, failover_peers=1)
    cluster = Cluster(value, A, B, C)
    cluster.run(0.3)

    # When something is declared
    cluster.append(A, b"queue")
    cluster.run(0.3)

    # Then C has it as well, and knows that it may be told
    assert cluster.entry.isr == (A, B)
    assert cluster[A].joiners == (C,)
    assert cluster[C].role is Role.JOINER
    assert cluster.lines(C) == [b"queue"]
    assert cluster[C].heard_release == cluster[C].applied == 1


def test_a_change_of_an_earlier_ownership_changes_nothing() -> None:
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)

    cluster.give(A, Outcome(12345, cluster.ver, DONE))

    assert cluster[A].need == (A, B, C)


def test_a_node_that_is_down_is_not_invited() -> None:
    value = a_map(A, min_copies=1)
    nodes = {**value.nodes, "b": replace(value.nodes["b"], state=NodeState.DOWN)}
    cluster = Cluster(replace(value, nodes=nodes), A, B, C)

    cluster.run(0.5)

    assert cluster.entry.isr == (A, C)
    assert [f.joiner for f in cluster.proposed if isinstance(f, Expand)] == [C]
    assert {to for who, to, _ in cluster.sent if who == A} == {C}


def test_a_stream_is_full_when_the_whole_window_waits_for_others() -> None:
    # Given an owner that nobody follows any more, with a window of ten ops
    cluster = Cluster(a_map(A, B), A, B, limits=StreamLimits(window_ops=10))
    cluster.run(0.2)
    cluster.deaf.add(B)

    # When it goes on appending what needs no room
    room, full = [], []
    for _ in range(10):
        cluster.append(A, b"one")
        room.append(cluster[A].room() > 0)
        full.append(cluster[A].full())

    # Then publishes stop first, and at the end all else should
    assert room == [True] * 8 + [False] * 2
    assert full == [False] * 9 + [True]
    cluster.deaf.clear()
    cluster.run(0.5)
    assert not cluster[A].full()


def test_a_stream_is_full_by_bytes_too() -> None:
    # Given an owner that nobody follows any more, with a small window
    cluster = Cluster(a_map(A, B), A, B, limits=StreamLimits(window_bytes=1_000))
    cluster.run(0.2)
    cluster.deaf.add(B)

    # When it appends as much
    cluster.append(A, bytes(950))
    nearly = cluster[A].full()
    cluster.append(A, bytes(50))

    # Then it is full
    assert not nearly
    assert cluster[A].full()


def test_a_stream_is_full_when_many_answers_wait_that_append_nothing() -> None:
    # Given an owner with too few copies: ops commit, and nothing leaves
    cluster = Cluster(a_map(A, min_copies=2), A, limits=StreamLimits(window_ops=10))
    cluster.append(A, b"one")

    # When it is asked again and again
    for _ in range(9):
        before = cluster[A].full()
        cluster[A].answer("known already")
    cluster.seal(A)
    cluster.run(0.1)

    # Then it is full, though all it has is committed
    assert not before
    assert cluster[A].commit == 1
    assert cluster[A].full()


def test_an_owner_whose_memory_was_full_has_room_again_without_a_further_op() -> None:
    # Given an owner alone whose memory the last op filled
    cluster = Cluster(a_map(A, nodes="a", failover_peers=0), A)
    free = 0
    seat = cluster[A]._seat
    object.__setattr__(seat, "free_bytes", lambda: free)
    cluster.append(A, b"the last one")
    cluster.run(0.2)
    assert cluster[A].room() == 0

    # When pages go to files, and nobody says anything
    free = 1 << 20
    cluster.run(1.0)

    # Then there is room, or its publishers would wait for ever
    assert cluster[A].room() > 0
