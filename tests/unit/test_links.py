"""Who is linked to whom, who is alive, and what proves a death."""

from __future__ import annotations

from replication.core.events import (
    Dial,
    DialFailed,
    PeerClose,
    PeerData,
    PeerEffect,
    PeerLost,
    PeerOpened,
    PeerWrite,
)
from replication.core.identity import Incarnation
from replication.core.links import (
    HELLO_S_MAX,
    LINK_SILENCE_S_MAX,
    PROVE_AGAIN_S,
    REDIAL_S,
    Died,
    FromLink,
    LinkDown,
    LinkNews,
    Links,
    LinkUp,
    Namesake,
)
from replication.core.peer_messages import Ask, Heartbeat, PeerHello, peer_frame

A, B, B2 = Incarnation("a", 1), Incarnation("b", 2), Incarnation("b", 3)
SETTINGS = "same"


def links_of(me: Incarnation = A) -> Links:
    return Links(me=me, cluster="test", settings=SETTINGS, heartbeat_s=0.1)


def hello(who: Incarnation, *, cluster: str = "test", settings: str = SETTINGS) -> bytes:
    return b"".join(peer_frame(PeerHello(cluster, settings, "", who, (1, 1))))


def linked(links: Links, link: int = 1, who: Incarnation = B, now: float = 0.0) -> list[LinkNews]:
    """A link that the other side dialed, and which said who it is."""
    outbox: list[PeerEffect] = []
    links.handle(PeerOpened(link, None), now, outbox)
    return links.handle(PeerData(link, hello(who)), now, outbox)


def test_a_node_is_dialed_once_when_it_is_met() -> None:
    # Given a node that knows nobody
    links = links_of()
    outbox: list[PeerEffect] = []

    # When it hears twice of the same node
    links.meet("b", "127.0.0.1:1", 0.0, outbox)
    links.meet("b", "127.0.0.1:1", 0.0, outbox)

    # Then there is one dial
    assert outbox == [Dial("b", "127.0.0.1:1")]


def test_hello_binds_a_link_to_an_incarnation() -> None:
    # Given a link that came in
    links = links_of()

    # When the other side says who it is
    news = linked(links)

    # Then it is linked under that incarnation and no other
    assert [item.who for item in news if isinstance(item, LinkUp)] == [B]
    assert links.linked(B)
    assert not links.linked(B2)


def test_nothing_is_read_before_hello() -> None:
    # Given a link that has not said who it is
    links = links_of()
    outbox: list[PeerEffect] = []
    links.handle(PeerOpened(1, None), 0.0, outbox)

    # When something else comes first
    news = links.handle(PeerData(1, b"".join(peer_frame(Ask(A)))), 0.0, outbox)

    # Then it is not passed on, and the link is closed
    assert not any(isinstance(item, FromLink) for item in news)
    assert PeerClose(1) in outbox


def test_a_closed_link_and_a_refused_dial_prove_a_death() -> None:
    # Given a linked node
    links = links_of()
    links.meet("b", "127.0.0.1:1", 0.0, [])
    links.handle(DialFailed("b", refused=True), 0.0, [])
    linked(links)
    outbox: list[PeerEffect] = []

    # When its link closes, and nobody listens there any more
    lost = links.handle(PeerLost(1), 1.0, outbox)
    proven = links.handle(DialFailed("b", refused=True), 1.0, outbox)

    # Then the dial was made at once, and it is dead
    assert lost == [LinkDown(B)]
    assert Dial("b", "127.0.0.1:1") in outbox
    assert proven == [Died(B)]
    assert links.is_dead(B)


def test_a_dial_that_times_out_proves_nothing() -> None:
    # Given a node whose link closed
    links = links_of()
    links.meet("b", "127.0.0.1:1", 0.0, [])
    links.handle(DialFailed("b", refused=True), 0.0, [])
    linked(links)
    links.handle(PeerLost(1), 1.0, [])

    # When the dial fails without an answer
    news = links.handle(DialFailed("b", refused=False), 2.0, [])

    # Then nobody is called dead, and it is dialed again a little later
    assert news == []
    assert not links.is_dead(B)
    outbox: list[PeerEffect] = []
    links.wake(2.0 + REDIAL_S, outbox)
    assert Dial("b", "127.0.0.1:1") in outbox


def test_a_proof_that_failed_is_tried_again_soon_by_both_sides() -> None:
    # Given b, the larger name, whose link to a was lost, and whose dial reached a dying process
    links = links_of(B)
    links.meet("a", "127.0.0.1:1", 0.0, [])
    links.handle(DialFailed("a", refused=True), 0.0, [])
    linked(links, who=A)
    links.handle(PeerLost(1), 1.0, [])
    links.handle(PeerOpened(2, "a"), 1.0, [])
    links.handle(PeerLost(2), 1.001, [])

    # When a moment has passed
    outbox: list[PeerEffect] = []
    links.wake(1.001 + PROVE_AGAIN_S, outbox)
    news = links.handle(DialFailed("a", refused=True), 1.02, [])

    # Then it has dialed again, and has its proof
    assert Dial("a", "127.0.0.1:1") in outbox
    assert news == [Died(A)]


def test_a_dead_node_that_speaks_again_is_alive() -> None:
    # Given an incarnation that a refused dial called dead
    links = links_of()
    links.meet("b", "127.0.0.1:1", 0.0, [])
    links.handle(DialFailed("b", refused=True), 0.0, [])
    linked(links)
    links.handle(PeerLost(1), 1.0, [])
    links.handle(DialFailed("b", refused=True), 1.0, [])

    # When it comes by another link
    linked(links, link=2, now=2.0)

    # Then the proof was none
    assert not links.is_dead(B)


def test_only_an_echo_is_a_sign_of_life() -> None:
    # Given a link on which we sent heartbeat 1 at 1 s
    links = links_of()
    links.meet("b", "", 0.0, [])
    linked(links)
    links.wake(1.0, [])

    # When the peer only sends at 2 s, and echoes at 3 s
    links.handle(PeerData(1, b"".join(peer_frame(Heartbeat(9, 0, 0)))), 2.0, [])
    after_sending = links.life_at(B, 2.0)
    links.handle(PeerData(1, b"".join(peer_frame(Heartbeat(10, 1, 0)))), 3.0, [])
    after_echo = links.life_at(B, 3.0)

    # Then its life is as old as the heartbeat that it echoed
    assert after_sending == 0.0
    assert after_echo == 1.0


def test_heartbeats_echo_what_arrived() -> None:
    # Given a peer whose heartbeat 7 arrived
    links = links_of()
    links.meet("b", "", 0.0, [])
    linked(links)
    links.handle(PeerData(1, b"".join(peer_frame(Heartbeat(7, 0, 0)))), 0.0, [])

    # When it is time for ours
    outbox: list[PeerEffect] = []
    links.wake(0.1, outbox)

    # Then it names that number
    assert [b"".join(e.parts) for e in outbox if isinstance(e, PeerWrite)] == [
        b"".join(peer_frame(Heartbeat(1, 7, 0)))
    ]


def test_a_silent_link_is_closed_and_dialed_anew() -> None:
    # Given a link that shows no life
    links = links_of()
    links.meet("b", "127.0.0.1:1", 0.0, [])
    links.handle(DialFailed("b", refused=True), 0.0, [])
    linked(links)

    # When it has been silent for too long
    outbox: list[PeerEffect] = []
    news = links.wake(LINK_SILENCE_S_MAX, outbox)

    # Then it is closed, reported, and dialed
    assert PeerClose(1) in outbox
    assert news == [LinkDown(B)]
    assert Dial("b", "127.0.0.1:1") in outbox


def test_of_two_links_both_sides_keep_the_one_dialed_by_the_smaller_name() -> None:
    # Given a, linked to b by a link that b dialed
    links = links_of(A)
    links.meet("b", "127.0.0.1:1", 0.0, [])
    linked(links, link=1)
    outbox: list[PeerEffect] = []

    # When the link that a dialed says who it is, too
    links.handle(PeerOpened(2, "b"), 0.0, outbox)
    links.handle(PeerData(2, hello(B)), 0.0, outbox)

    # Then a keeps its own
    assert PeerClose(1) in outbox
    assert links.write(B, (b"x",)) == PeerWrite(2, (b"x",))


def test_a_later_link_of_the_larger_name_is_the_one_to_go() -> None:
    # Given a, linked to b by a link that a dialed
    links = links_of(A)
    outbox: list[PeerEffect] = []
    links.meet("b", "127.0.0.1:1", 0.0, outbox)
    links.handle(PeerOpened(1, "b"), 0.0, outbox)
    links.handle(PeerData(1, hello(B)), 0.0, outbox)

    # When b's own dial arrives as well
    linked(links, link=2)

    # Then the first one stays
    assert links.write(B, (b"x",)) == PeerWrite(1, (b"x",))


def test_a_new_incarnation_replaces_the_link_of_the_old_one() -> None:
    # Given a link to an incarnation whose death nobody has noticed yet
    links = links_of()
    linked(links, link=1, who=B)

    # When its successor comes
    news = linked(links, link=2, who=B2)

    # Then the old one is down, and the new one up
    assert news[0] == LinkDown(B)
    assert links.linked(B2)


def test_a_dial_that_began_before_a_link_was_lost_proves_no_death() -> None:
    # Given a node that is dialed before it is up, and which comes up and links itself meanwhile
    links = links_of(A)
    outbox: list[PeerEffect] = []
    links.meet("b", "127.0.0.1:1", 0.0, outbox)
    linked(links, link=1, who=B)

    # When that link is lost, and only then the old dial is told to have been refused
    links.handle(PeerLost(1), 1.0, outbox)
    news = links.handle(DialFailed("b", refused=True), 1.0, outbox)
    dead_at_once = links.is_dead(B)
    outbox.clear()
    news += links.wake(1.0 + PROVE_AGAIN_S, outbox)

    # Then it counts for nothing, and the next dial is the proof
    assert not dead_at_once
    assert not any(isinstance(item, Died) for item in news)
    assert Dial("b", "127.0.0.1:1") in outbox
    news = links.handle(DialFailed("b", refused=True), 1.1, outbox)
    assert [item.who for item in news if isinstance(item, Died)] == [B]


def test_another_process_under_our_name_is_reported_and_not_linked() -> None:
    # Given a node
    links = links_of(A)

    # When somebody says HELLO with its name and another incarnation
    news = linked(links, who=Incarnation("a", 99))

    # Then that is told
    assert news == [Namesake(Incarnation("a", 99))]
    assert links.linked_as("a") is None


def test_a_node_that_asks_for_its_namesake_is_told_who_answers() -> None:
    # Given a node whose name was last known at some address
    links = links_of(A)
    outbox: list[PeerEffect] = []
    links.ask_for_namesake("127.0.0.1:9", outbox)
    asked = outbox.copy()

    # When a process of that name answers there, with whatever settings
    links.handle(PeerOpened(1, "a"), 0.0, outbox)
    asks_until_hello = links.asks_for_namesake
    answer = hello(Incarnation("a", 99), settings="other")
    news = links.handle(PeerData(1, answer), 0.0, outbox)

    # Then it is known
    assert asked == [Dial("a", "127.0.0.1:9")]
    assert asks_until_hello
    assert news == [Namesake(Incarnation("a", 99))]
    assert not links.asks_for_namesake


def test_a_namesake_that_cannot_be_reached_is_none() -> None:
    # Given nodes that ask for theirs
    refused, unreachable, silent, own, stranger = (links_of(A) for _ in range(5))
    outbox: list[PeerEffect] = []
    for links in (refused, unreachable, silent, own, stranger):
        links.ask_for_namesake("127.0.0.1:9", outbox)

    # When nobody listens there, nobody answers, or it is the node itself or another one
    news = refused.handle(DialFailed("a", refused=True), 0.0, outbox)
    news += unreachable.handle(DialFailed("a", refused=False), 0.0, outbox)
    silent.handle(PeerOpened(1, "a"), 0.0, outbox)
    news += silent.wake(HELLO_S_MAX, outbox)
    for links, who in ((own, A), (stranger, B)):
        links.handle(PeerOpened(1, "a"), 0.0, outbox)
        news += links.handle(PeerData(1, hello(who)), 0.0, outbox)

    # Then there is none, and no link either
    assert news == []
    assert not any(
        links.asks_for_namesake for links in (refused, unreachable, silent, own, stranger)
    )
    assert stranger.linked_as("b") is None


def test_a_peer_with_other_settings_is_refused_with_what_to_compare() -> None:
    # Given a link
    links = links_of()
    outbox: list[PeerEffect] = []
    links.handle(PeerOpened(1, None), 0.0, outbox)

    # When the other side was given other settings
    links.handle(PeerData(1, hello(B, settings="other")), 0.0, outbox)

    # Then the link is closed, and the log says what to look at
    assert PeerClose(1) in outbox
    assert any("[cluster]" in str(effect) for effect in outbox)


def test_garbage_closes_its_link_only() -> None:
    # Given two linked peers
    links = links_of()
    linked(links, link=1, who=B)
    linked(links, link=2, who=Incarnation("c", 4))
    outbox: list[PeerEffect] = []

    # When one sends a length beyond all limits
    links.handle(PeerData(1, b"\xff" * 8), 0.0, outbox)

    # Then the other one stays linked
    assert PeerClose(1) in outbox
    assert not links.linked(B)
    assert links.linked(Incarnation("c", 4))
