"""Changes of the map that somebody must see to."""

from __future__ import annotations

from msgspec.structs import replace

from replication.core.caretaker import TURN_S, Caretaker, Presence
from replication.core.changes import (
    Create,
    DeclareLost,
    Disown,
    Function,
    NodeUp,
    SetDown,
    SetUp,
)
from replication.core.clustermap import EMPTY_MAP, ClusterMap, NodeEntry, NodeState, StreamEntry
from replication.core.events import DialFailed, PeerData, PeerLost, PeerOpened
from replication.core.identity import Incarnation
from replication.core.links import Links
from replication.core.peer_messages import PeerHello, peer_frame

A, B, C = Incarnation("a", 1), Incarnation("b", 2), Incarnation("c", 3)
PRESENCE = Presence("127.0.0.1:1", "127.0.0.1:2", ("127.0.0.1:3",))


def formed(*, down: tuple[Incarnation, ...] = ()) -> ClusterMap:
    """a, b and c with their post offices and a catalog, all of which a owns."""
    entry = StreamEntry(home=None, gen=1, epoch=1, owner=A, isr=(A,))
    return ClusterMap(
        nodes={
            who.node: NodeEntry(
                proc_inc=who.inc, state=NodeState.DOWN if who in down else NodeState.UP
            )
            for who in (A, B, C)
        },
        streams={
            0: entry,
            **{n: replace(entry, home=who.node) for n, who in enumerate((A, B, C), start=1)},
        },
        next_sid=4,
    )


def links_with(me: Incarnation, *, dead: Incarnation) -> Links:
    """Linked to `dead` once, and then to nobody who listens there."""
    links = Links(me=me, cluster="t", settings="s", heartbeat_s=0.1)
    links.meet(dead.node, "127.0.0.1:1", 0.0, [])
    links.handle(DialFailed(dead.node, refused=True), 0.0, [])
    links.handle(PeerOpened(1, None), 0.0, [])
    hello = b"".join(peer_frame(PeerHello("t", "s", "", dead, (1, 1))))
    links.handle(PeerData(1, hello), 0.0, [])
    links.handle(PeerLost(1), 0.0, [])
    links.handle(DialFailed(dead.node, refused=True), 0.0, [])
    return links


def sound(sid: int) -> bool:
    """Of no stream is the copy void."""
    return False


def no_links(me: Incarnation) -> Links:
    return Links(me=me, cluster="t", settings="s", heartbeat_s=0.1)


def test_a_node_enters_itself_its_post_office_and_the_catalog_in_one_change() -> None:
    # Given a cluster without any stream
    caretaker = Caretaker(me=A, presence=PRESENCE)

    # When the node comes up
    functions = caretaker.wake(EMPTY_MAP, no_links(A), sound, 0.0)

    # Then it proposes all three
    assert functions == [
        NodeUp(
            me=A,
            peers=PRESENCE.peers,
            group=PRESENCE.group,
            locators=PRESENCE.locators,
        ),
        Create(home="a", me=A),
        Create(home=None, me=A),
    ]


def test_a_node_that_comes_back_takes_nothing_with_it() -> None:
    # Given a cluster that knows an earlier life of the node
    caretaker = Caretaker(me=Incarnation("b", 77), presence=PRESENCE)

    # When it comes up
    functions = caretaker.wake(formed(), no_links(Incarnation("b", 77)), sound, 0.0)

    # Then it only says that it is there
    assert [type(function) for function in functions] == [NodeUp]


def looks_twice(me: Incarnation, *, after_s: float) -> list[Function]:
    """What `me` proposes so long after it noticed that c is dead."""
    caretaker = Caretaker(me=me, presence=PRESENCE)
    links = links_with(me, dead=C)
    assert caretaker.wake(formed(), links, sound, 0.0) == []
    return caretaker.wake(formed(), links, sound, after_s)


def test_the_lowest_node_that_is_up_declares_a_dead_one_down() -> None:
    # Given c, dead, and a and b, who both know
    # When both look again a second later, so that a takeover is not disturbed
    of_a = looks_twice(A, after_s=TURN_S)
    of_b = looks_twice(B, after_s=TURN_S)

    # Then a proposes it and b does not, for now
    assert of_a == [SetDown(who=C)]
    assert of_b == []


def test_the_next_node_sees_to_it_when_the_lowest_does_not() -> None:
    # Given c, dead, and b, who has known for a while
    # When it looks again
    functions = looks_twice(B, after_s=2 * TURN_S)

    # Then it proposes it
    assert functions == [SetDown(who=C)]


def test_a_node_that_finds_itself_down_says_that_it_is_up() -> None:
    # Given a map in which b is down
    value = formed(down=(B,))

    # When b looks
    functions = Caretaker(me=B, presence=PRESENCE).wake(value, no_links(B), sound, 0.0)

    # Then it corrects that
    assert functions == [SetUp(who=B)]


def test_a_stream_is_lost_when_every_life_that_held_it_is_over() -> None:
    # Given all of a's streams held by a former life of a, which is up again
    value = formed()
    former = Incarnation("a", 0)
    value = replace(
        value,
        streams={
            sid: replace(stream, owner=former, isr=(former,))
            for sid, stream in value.streams.items()
        },
    )

    # When a and b look
    of_a = Caretaker(me=A, presence=PRESENCE).wake(value, no_links(A), sound, 0.0)
    of_b = Caretaker(me=B, presence=PRESENCE).wake(value, no_links(B), sound, 0.0)

    # Then the home declares its own, and the lowest node the catalog, which has none
    assert of_a == [DeclareLost(sid=sid, gen=1, me=A) for sid in (0, 1)]
    assert of_b == [DeclareLost(sid=2, gen=1, me=B)]


def test_a_stream_is_not_lost_while_a_node_that_held_it_is_not_back() -> None:
    # Given streams that a former life of c held as well, and c is down
    value = formed(down=(C,))
    former = (Incarnation("a", 0), Incarnation("c", 0))
    value = replace(
        value,
        streams={
            sid: replace(stream, owner=former[0], isr=former)
            for sid, stream in value.streams.items()
        },
    )

    # When a looks, for as long as it likes
    functions = Caretaker(me=A, presence=PRESENCE).wake(value, no_links(A), sound, 100.0)

    # Then it waits for c, which may come back with its memory
    assert not any(isinstance(function, DeclareLost) for function in functions)


def test_a_node_lets_go_of_its_void_copies_when_their_owner_is_gone() -> None:
    # Given b, in sync with all that a owns, and its copies of 1 and 2 are void
    up, down = formed(), formed(down=(A,))
    streams = {sid: replace(stream, isr=(A, B)) for sid, stream in up.streams.items()}
    up, down = replace(up, streams=streams), replace(down, streams=streams)

    def void(sid: int) -> bool:
        return sid in (1, 2)

    # When it looks, while a is up, and while it is not
    of_b_before = Caretaker(me=B, presence=PRESENCE).wake(up, no_links(B), void, 0.0)
    of_b = Caretaker(me=B, presence=PRESENCE).wake(down, no_links(B), void, 0.0)
    of_c = Caretaker(me=C, presence=PRESENCE).wake(down, no_links(C), void, 0.0)

    # Then it gives up these two, which nobody could let go of any more; c holds none
    assert of_b_before == of_c == []
    assert of_b == [Disown(sid=sid, epoch=1, me=B) for sid in (1, 2)]


def test_a_later_process_under_our_name_is_noticed() -> None:
    # Given a node that the map shows up
    caretaker = Caretaker(me=A, presence=PRESENCE)
    value = formed()
    caretaker.wake(value, no_links(A), sound, 0.0)
    newer = replace(value, nodes={**value.nodes, "a": replace(value.nodes["a"], proc_inc=9)})

    # When the map shows another one in its place
    replaced_before = caretaker.learned(value)
    replaced = caretaker.learned(newer)

    # Then it knows by whom it was replaced
    assert replaced_before is None
    assert replaced == Incarnation("a", 9)
