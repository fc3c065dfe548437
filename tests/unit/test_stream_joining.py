from __future__ import annotations

from replication.core.history import Entry
from replication.core.messages import Aligned, Invite, Join, NewEpoch, Receipt
from replication.core.stream import Role, StreamLimits
from replication.core.stream_events import (
    Distrust,
    Fatal,
    FromPeer,
    Joined,
    Lost,
    MapChanged,
    Note,
    Promoted,
)
from tests.unit.stream_setup import (
    CLUSTER8,
    SID,
    A,
    B,
    C,
    Cluster,
    a_map,
    a_stream,
    check_all,
    moved,
)


def test_a_stream_begins_with_its_owner_and_grows_to_those_wanted() -> None:
    cluster = Cluster(a_map(A), A, B, C)
    cluster.run(0.1)

    cluster.append(A, b"one")
    cluster.run(0.1)

    assert cluster.entry.isr == (A, B, C)
    assert cluster[A].copies == 3
    check_all(cluster)


def test_a_newcomer_gets_all_from_the_first_op_on_if_it_is_kept() -> None:
    cluster = Cluster(a_map(A, nodes="ab"), A)
    for number in range(50):
        cluster.append(A, b"%d" % number)
        cluster.run(0.002)

    cluster.add(B)
    cluster.run(1.5)

    assert cluster.entry.isr == (A, B)
    assert len(cluster.lines(B)) == 50
    check_all(cluster)


def test_a_newcomer_waits_for_transfer_if_the_beginning_is_not_kept() -> None:
    # Given an owner that has forgotten its first ops
    limits = StreamLimits(repair_bytes=2_000)
    cluster = Cluster(a_map(A, nodes="ab"), A, limits=limits)
    for _ in range(20):
        cluster.append(A, bytes(500))
        cluster.run(0.12)

    # When somebody with nothing joins
    cluster.add(B, limits)
    cluster.run(3.0)

    # Then it says what it waits for, gives no receipts, and is not taken in
    assert cluster[B].role is Role.WAITING_FOR_TRANSFER
    assert "keeps ops from" in cluster[B].why
    assert not [m for who, _, m in cluster.sent if who == B and isinstance(m, Receipt)]
    assert cluster.entry.isr == (A,)
    cluster.append(A, b"goes on")
    cluster.run(0.1)
    assert cluster.released(A)[-1] == b"goes on"


def test_who_takes_over_adopts_the_tail_and_the_others_follow() -> None:
    # Given three copies; the owner dies with ops that nobody knows to be committed
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.append(A, b"one", b"two")
    cluster.deaf.add(A)
    assert cluster[B].applied == 0

    # When B takes over
    cluster.learn(moved(cluster.value, B, (B, C)))
    cluster.run(0.2)

    # Then it has them, without any effect, and goes on
    promoted = [e for e in cluster.said_by(B, Promoted) if isinstance(e, Promoted)]
    assert [p.adopted for p in promoted] == [2]
    assert cluster.released(B) == []
    cluster.append(B, b"three")
    cluster.run(0.2)
    assert cluster.released(B) == [b"three"]
    assert cluster.lines(C) == [b"one", b"two", b"three"]
    check_all(cluster)


def test_nothing_leaves_in_a_new_epoch_before_all_of_need_follow_it() -> None:
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.append(A, b"one")
    cluster.run(0.2)
    cluster.deaf.update((A, C))

    cluster.learn(moved(cluster.value, B, (B, C)))
    cluster[B].answer("an answer")
    cluster.seal(B)
    cluster.run(0.1)
    alone = cluster.released(B)
    cluster.deaf.remove(C)
    cluster.run(0.5)

    assert alone == []
    assert cluster.released(B) == ["an answer"]


def test_what_the_owner_before_may_have_released_counts_as_released() -> None:
    # Given ops that the old owner has released
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.append(A, b"one", b"two")
    cluster.run(0.2)
    assert cluster.released(A) == [b"one", b"two"]

    # When B takes over, and can release nothing itself yet
    cluster.deaf.update((A, C))
    cluster.learn(moved(cluster.value, B, (B, C)))
    cluster.append(B, b"three")

    # Then it says of these, and of none of its own, that they may have been
    assert cluster[B].release == 0
    assert cluster[B].perhaps_released == 2


def test_a_tail_that_the_new_owner_does_not_have_is_cut() -> None:
    # Given C, which holds ops that B never got
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.append(A, b"one")
    cluster.run(0.2)
    cluster.deaf.add(B)
    cluster.append(A, b"two", b"three")
    cluster.deaf.add(A)
    cluster.deaf.remove(B)
    assert cluster[C].log_end == 4

    # When B takes over and goes on
    cluster.learn(moved(cluster.value, B, (B, C)))
    cluster.append(B, b"four")
    cluster.run(0.3)

    # Then C has taken back its tail
    assert cluster[C].counts["cut"] == 2
    assert cluster.lines(C) == [b"one", b"four"]
    check_all(cluster)


def test_a_deposed_owner_with_nothing_of_its_own_goes_on_by_ops() -> None:
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.append(A, b"one")
    cluster.run(0.2)

    cluster.learn(moved(cluster.value, B, (A, B, C)))
    cluster.append(B, b"two")
    cluster.run(0.3)

    assert cluster[A].role is Role.SHADOW
    assert cluster[A].counts["refills"] == 0
    assert cluster.lines(A) == [b"one", b"two"]
    check_all(cluster)


def test_a_deposed_owner_that_applied_more_is_filled_anew_and_its_old_copy_stays_until_then() -> (
    None
):
    # Given A, which applied an op that nobody else has, and is still in sync
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.append(A, b"one")
    cluster.run(0.2)
    cluster.deaf.add(A)
    cluster.append(A, b"nobody has this")
    cluster.learn(moved(cluster.value, B, (A, B, C)))
    cluster.append(B, b"two", b"three")

    # When it hears of it
    old = cluster[A].machine
    cluster.deaf.clear()
    cluster.learn()
    cluster.run(1.0)

    # Then its state was replaced, not repaired, and it gave no receipt before
    assert cluster[A].counts["refilled"] == 1
    assert cluster[A].machine is not old
    assert cluster.lines(A) == [b"one", b"two", b"three"]
    receipts = [
        m.contig
        for who, _, m in cluster.sent
        if who == A and isinstance(m, Receipt) and m.epoch == 2
    ]
    assert min(receipts) == 3
    check_all(cluster)


def test_a_copy_that_is_being_filled_is_elected_with_what_it_had() -> None:
    # Given A, deposed, with more applied than B has; it hears B's greeting, and none of its ops
    cluster = Cluster(a_map(A, B), A, B, group_works=False)
    cluster.run(0.2)
    cluster.append(A, b"one")
    cluster.run(0.2)
    cluster.deaf.add(A)
    cluster.append(A, b"two")
    cluster.learn(moved(cluster.value, B, (A, B)))
    greeting = [m for _, to, m in cluster.sent if to == A and isinstance(m, NewEpoch)][-1]
    cluster.deaf = {B}
    cluster.learn()
    cluster.give(A, FromPeer(B, greeting))
    assert cluster[A].role is Role.WAITING_FOR_TRANSFER

    # When B dies and A takes over
    cluster.learn(moved(cluster.value, A, (A,)))

    # Then it has all that was ever released, and its own op
    assert cluster[A].role is Role.OWNER
    assert cluster.lines(A) == [b"one", b"two"]
    cluster[A].check()


def test_a_void_copy_that_is_elected_ends_its_node() -> None:
    cluster = Cluster(a_map(A, B), A, B)
    cluster.run(0.2)
    cluster[B].copy.void = "for this test"

    cluster.learn(moved(cluster.value, B, (A, B)))

    assert cluster[B].role is Role.VOID
    assert len(cluster.said_by(B, Fatal)) == 1
    assert cluster.said_by(B, Promoted) == []


def test_a_greeting_that_comes_twice_cuts_nothing() -> None:
    # Given a copy that follows, and got ops since
    cluster = Cluster(a_map(A, B), A, B)
    greeting = next(m for _, to, m in cluster.sent if to == B and isinstance(m, NewEpoch))
    cluster.run(0.2)
    cluster.append(A, b"one", b"two")
    cluster.run(0.2)
    cluster.sent.clear()

    # When the first greeting comes again
    cluster.give(B, FromPeer(A, greeting))
    cluster.carry()

    # Then it says what it has
    assert cluster[B].log_end == 3
    assert [m.contig for _, _, m in cluster.sent if isinstance(m, Aligned)] == [2]
    assert cluster[B].epoch == 1


def test_a_new_gen_begins_with_nothing_and_is_said_aloud() -> None:
    cluster = Cluster(a_map(A, B), A, B)
    cluster.run(0.2)
    cluster.append(A, b"one")
    cluster.run(0.2)

    cluster.learn(a_map(B, owner=B, gen=2, epoch=2))
    cluster.append(B, b"two")
    cluster.run(0.3)

    assert cluster[B].gen == 2
    assert cluster.lines(B) == [b"two"]
    assert cluster.lines(A) == [b"two"]
    assert len(cluster.said_by(A, Lost)) == 1
    assert len(cluster.said_by(B, Lost)) == 1


def test_a_node_that_begins_late_in_the_life_of_a_stream_has_lost_nothing() -> None:
    cluster = Cluster(a_map(A, gen=3, epoch=7), A, B)
    cluster.run(0.2)

    assert cluster.said_by(B, Lost) == []
    assert cluster.said_by(A, Lost) == []


def test_a_second_owner_of_one_epoch_is_not_believed() -> None:
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    history = cluster[A].copy.history

    claim = NewEpoch(CLUSTER8, SID, 1, 1, C.inc, history, 1, 0, 1)
    cluster.give(B, FromPeer(C, claim))
    cluster.give(A, FromPeer(C, claim))
    cluster.carry()

    assert [e.member for e in cluster.said_by(A, Distrust) if isinstance(e, Distrust)] == [C]
    assert [e.member for e in cluster.said_by(B, Distrust) if isinstance(e, Distrust)] == [C]
    cluster.append(A, b"one")
    cluster.run(0.2)
    assert cluster.lines(B) == [b"one"]


def test_who_the_map_does_not_show_as_the_owner_is_not_followed_even_by_a_copy_without_one() -> (
    None
):
    # Given a copy that follows nobody yet, and a map that shows A as the owner
    cluster = Cluster(a_map(A, B, C), B)

    # When C greets it, and invites it, in the same epoch
    owner = a_stream(A)
    owner.handle(MapChanged(a_map(A, B, C), 1), 1.0, [])
    history = owner.copy.history
    cluster.give(B, FromPeer(C, NewEpoch(CLUSTER8, SID, 1, 1, C.inc, history, 1, 0, 1)))
    cluster.give(B, FromPeer(C, Invite(CLUSTER8, SID, 1, 1, C.inc)))
    cluster.carry()

    # Then it is neither followed nor told what is here
    assert cluster[B].epoch == 0
    assert [m for who, _, m in cluster.sent if who == B] == []
    assert [e.member for e in cluster.said_by(B, Distrust) if isinstance(e, Distrust)] == [C, C]


def test_who_was_followed_before_the_map_showed_the_epoch_is_left_if_it_is_anothers() -> None:
    # Given a copy that was greeted in epoch 2 by C, before it learned of that epoch
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    history = (*cluster[A].copy.history, Entry(2, 1, 0))
    cluster.deaf.update((A, C))
    cluster.give(B, FromPeer(C, NewEpoch(CLUSTER8, SID, 1, 2, C.inc, history, 1, 0, 1)))
    followed = cluster[B].epoch

    # When the map shows that epoch, and that it is A's again
    cluster.deaf.remove(A)
    cluster.learn(moved(cluster.value, A, (A, B)))
    cluster.append(A, b"one")
    cluster.run(0.3)

    # Then C is not followed any more, and A is, and is not taken for the one that lied
    assert followed == 2
    assert [e.member for e in cluster.said_by(B, Distrust) if isinstance(e, Distrust)] == [C]
    assert cluster.lines(B) == [b"one"]
    check_all(cluster)


def test_a_history_that_no_owner_can_have_is_not_followed() -> None:
    cluster = Cluster(a_map(A, B), B)

    cluster.give(B, FromPeer(A, NewEpoch(CLUSTER8, SID, 1, 1, A.inc, (), 5, 0, 1)))
    cluster.carry()

    assert cluster[B].epoch == 0
    assert len(cluster.said_by(B, Distrust)) == 1


def test_who_follows_says_so_to_the_layer_above() -> None:
    cluster = Cluster(a_map(A, B), A, B)

    assert [e.epoch for e in cluster.said_by(B, Joined) if isinstance(e, Joined)] == [1]


def test_a_joiner_offers_what_it_holds() -> None:
    cluster = Cluster(a_map(A), A, B)

    joins = [m for who, _, m in cluster.sent if who == B and isinstance(m, Join)]

    assert [(m.log_end, m.applied, m.why) for m in joins] == [(1, 0, "")]


def test_a_stream_that_nobody_told_anything_needs_no_timer() -> None:
    stream = a_stream(A)

    assert stream.role is Role.NONE
    assert stream.next_deadline() is None
    stream.check()


def test_a_copy_that_cannot_follow_is_in_the_log_once() -> None:
    # Given a newcomer that waits for transfer, and an owner that forgets more and more
    limits = StreamLimits(repair_bytes=2_000)
    cluster = Cluster(a_map(A, nodes="ab"), A, limits=limits)
    for _ in range(20):
        cluster.append(A, bytes(500))
        cluster.run(0.12)
    cluster.add(B, limits)

    # When it is asked again and again
    for _ in range(20):
        cluster.append(A, bytes(500))
        cluster.run(0.3)

    # Then each side says so once
    for who in (A, B):
        notes = [e.event for e in cluster.said_by(who, Note) if isinstance(e, Note)]
        assert len([event for event in notes if "held" not in event]) == 1
