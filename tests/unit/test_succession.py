"""Who proposes to take over, and when."""

from __future__ import annotations

from replication.core.changes import TakeoverWhy
from replication.core.clustermap import ClusterMap, NodeEntry, NodeState, StreamEntry
from replication.core.events import DialFailed, PeerData, PeerLost, PeerOpened
from replication.core.identity import Incarnation
from replication.core.links import Links
from replication.core.peer_messages import PeerHello, peer_frame
from replication.core.succession import (
    ASKED_S_MAX,
    RANK_S,
    SUSPECTED_S_MAX,
    Question,
    Succession,
)

A, B, C = Incarnation("a", 1), Incarnation("b", 2), Incarnation("c", 3)
SILENCE_S = 0.9


def three_nodes(**streams: tuple[Incarnation, tuple[Incarnation, ...]]) -> ClusterMap:
    """A map of a, b and c, all up; each stream "s5" is (owner, in-sync set), in epoch 1."""
    return ClusterMap(
        nodes={who.node: NodeEntry(proc_inc=who.inc, state=NodeState.UP) for who in (A, B, C)},
        streams={
            int(name[1:]): StreamEntry(home=owner.node, gen=1, epoch=1, owner=owner, isr=isr)
            for name, (owner, isr) in streams.items()
        },
        next_sid=100,
    )


def links_with(me: Incarnation, *others: Incarnation) -> Links:
    """Linked to all of them since 0 s."""
    links = Links(me=me, cluster="t", settings="s", heartbeat_s=0.1)
    for number, who in enumerate(others):
        links.meet(who.node, "127.0.0.1:1", 0.0, [])
        links.handle(DialFailed(who.node, refused=True), 0.0, [])
        links.handle(PeerOpened(number, None), 0.0, [])
        hello = b"".join(peer_frame(PeerHello("t", "s", "", who, (1, 1))))
        links.handle(PeerData(number, hello), 0.0, [])
    return links


def die(links: Links, number: int, who: Incarnation) -> None:
    links.handle(PeerLost(number), 0.1, [])
    links.handle(DialFailed(who.node, refused=True), 0.1, [])


def never(sid: int) -> bool:
    return False


def test_the_first_in_succession_takes_over_all_streams_of_a_dead_owner_at_once() -> None:
    # Given a, the owner of two streams, dead; and b, next after it
    value = three_nodes(s1=(A, (A, B, C)), s7=(A, (A, B)))
    links = links_with(B, A, C)
    die(links, 0, A)
    succession = Succession(me=B, silence_s=SILENCE_S)

    # When b looks
    takeovers, _ = succession.wake(value, links, never, 0.1)

    # Then it proposes both in one change
    assert [(t.streams, t.old, t.why) for t in takeovers] == [
        (((1, 1), (7, 1)), A, TakeoverWhy.DEAD)
    ]


def test_the_second_waits_for_its_turn() -> None:
    # Given a dead, and c, which comes after b
    value = three_nodes(s1=(A, (A, B, C)))
    links = links_with(C, A, B)
    die(links, 0, A)
    succession = Succession(me=C, silence_s=SILENCE_S)

    # When c looks at once, and in its turn
    at_once, _ = succession.wake(value, links, never, 0.1)
    due_at = succession.next_deadline()
    in_turn, _ = succession.wake(value, links, never, 0.1 + RANK_S)

    # Then it proposes only in its turn
    assert at_once == []
    assert due_at == 0.1 + RANK_S
    assert len(in_turn) == 1


def test_who_is_not_in_sync_does_not_stand() -> None:
    # Given a dead, with a stream that c does not follow
    value = three_nodes(s1=(A, (A, B)))
    links = links_with(C, A, B)
    die(links, 0, A)

    # When c looks, for as long as it likes
    takeovers, questions = Succession(me=C, silence_s=SILENCE_S).wake(value, links, never, 50.0)

    # Then it proposes nothing and asks nobody
    assert (takeovers, questions) == ([], [])


def test_a_void_copy_does_not_stand() -> None:
    # Given a dead, and b, whose copy is wrong
    value = three_nodes(s1=(A, (A, B, C)))
    links = links_with(B, A, C)
    die(links, 0, A)

    # When it looks
    takeovers, _ = Succession(me=B, silence_s=SILENCE_S).wake(value, links, lambda sid: True, 0.1)

    # Then it leaves that to others
    assert takeovers == []


def test_of_a_silent_owner_the_others_are_asked_first() -> None:
    # Given a, silent for long enough, linked still
    value = three_nodes(s1=(A, (A, B, C)))
    links = links_with(B, A, C)
    succession = Succession(me=B, silence_s=SILENCE_S)

    # When b looks, and c says that it does not hear it either
    first, questions = succession.wake(value, links, never, SILENCE_S)
    succession.heard(C, A, False, SILENCE_S)
    then, _ = succession.wake(value, links, never, SILENCE_S)

    # Then it proposes after the answer, and not before
    assert first == []
    assert questions == [Question(C, A)]
    assert [t.why for t in then] == [TakeoverWhy.SILENT]


def test_one_who_hears_the_owner_prevents_it() -> None:
    # Given a, silent to b, and c who hears it
    value = three_nodes(s1=(A, (A, B, C)))
    links = links_with(B, A, C)
    succession = Succession(me=B, silence_s=SILENCE_S)
    succession.wake(value, links, never, SILENCE_S)
    succession.heard(C, A, True, SILENCE_S)

    # When b looks again, soon and after one more interval
    soon, questions_soon = succession.wake(value, links, never, SILENCE_S + 0.1)
    later, questions_later = succession.wake(value, links, never, 2 * SILENCE_S)

    # Then it asks again, and proposes nothing
    assert (soon, questions_soon) == ([], [])
    assert later == []
    assert questions_later == [Question(C, A)]


def test_an_owner_that_only_some_hear_is_replaced_if_it_cannot_let_go_of_the_others() -> None:
    # Given a, silent to b, and c who hears it all the time; they are four, so that a and c are
    # no majority, and a cannot change the in-sync set
    value = three_nodes(s1=(A, (A, B, C)))
    links = links_with(B, A, C)
    succession = Succession(me=B, silence_s=SILENCE_S)
    succession.wake(value, links, never, SILENCE_S)

    # When it has been so for long
    succession.heard(C, A, True, SUSPECTED_S_MAX)
    before, _ = succession.wake(value, links, never, SUSPECTED_S_MAX)
    after, _ = succession.wake(value, links, never, SILENCE_S + SUSPECTED_S_MAX)

    # Then b goes ahead
    assert before == []
    assert [t.why for t in after] == [TakeoverWhy.SILENT]


def test_without_any_answer_it_goes_ahead_after_a_while() -> None:
    # Given a silent, and c who never answers
    value = three_nodes(s1=(A, (A, B, C)))
    links = links_with(B, A, C)
    succession = Succession(me=B, silence_s=SILENCE_S)
    succession.wake(value, links, never, SILENCE_S)

    # When the time for answers is over
    takeovers, _ = succession.wake(value, links, never, SILENCE_S + ASKED_S_MAX)

    # Then it is proposed
    assert [t.why for t in takeovers] == [TakeoverWhy.SILENT]


def test_who_was_late_itself_does_not_believe_in_silence() -> None:
    # Given b, whose own loop was late until just now
    value = three_nodes(s1=(A, (A, B)))
    links = links_with(B, A, C)
    succession = Succession(me=B, silence_s=SILENCE_S)
    succession.late(5.0)

    # When it looks, within one interval and after it
    within, _ = succession.wake(value, links, never, 5.0)
    after, _ = succession.wake(value, links, never, 5.0 + SILENCE_S)

    # Then it waits for that interval
    assert within == []
    assert len(after) == 1


def test_a_suspicion_ends_when_the_owner_is_heard() -> None:
    # Given a, suspected and asked about
    value = three_nodes(s1=(A, (A, B, C)))
    links = links_with(B, A, C)
    succession = Succession(me=B, silence_s=SILENCE_S)
    succession.wake(value, links, never, SILENCE_S)
    succession.heard(C, A, False, SILENCE_S)

    # When it comes by a new link before b looks
    links.handle(PeerOpened(9, None), 1.0, [])
    hello = b"".join(peer_frame(PeerHello("t", "s", "", A, (1, 1))))
    links.handle(PeerData(9, hello), 1.0, [])
    takeovers, _ = succession.wake(value, links, never, 1.0)

    # Then nothing is proposed
    assert takeovers == []
