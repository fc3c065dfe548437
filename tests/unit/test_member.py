"""One node among nodes: what it does before it takes part, and what its parts make it do."""

from __future__ import annotations

from replication.core.caretaker import Presence
from replication.core.changes import DONE, Create, Expand, Function, NodeUp, SetDown
from replication.core.clustermap import Settings
from replication.core.events import (
    Dial,
    DialFailed,
    Exit,
    Level,
    Log,
    PeerData,
    PeerEffect,
    PeerOpened,
    Persist,
    Persisted,
    Wake,
)
from replication.core.identity import Incarnation
from replication.core.member import Member, MemberSettings, Vouched
from replication.core.peer_messages import PeerHello, peer_frame
from replication.core.stream import Role, StreamLimits
from tests.unit.stream_setup import Lines

ADDRESS = "127.0.0.1:1"
FIRST, SECOND = Incarnation("n", 1), Incarnation("n", 2)
TURNS = 40


class Node:
    """The only member of a cluster of one, and its disk."""

    def __init__(self, me: Incarnation, saved: bytes | None = None) -> None:
        self.now = 0.0
        self.saved = saved
        self.member = Member(
            MemberSettings(
                cluster="test",
                expected=("n",),
                addresses={"n": ADDRESS},
                presence=Presence(ADDRESS, "", ()),
                settings=Settings(),
                stream_limits=StreamLimits(),
            ),
            me=me,
            acceptor_inc=7,
            saved=saved,
            draw=lambda: 0.5,
            make=lambda _, gen: Lines(gen),
            free_bytes=lambda: 1 << 30,
        )
        self.said: list[PeerEffect] = []
        self.outbox: list[PeerEffect] = []
        self.member.start(self.now, self.outbox)

    def run(self) -> None:
        """Some turns, in which the disk works and nobody else says anything."""
        for _ in range(TURNS):
            self.member.end_turn(self.now, self.outbox)
            effects, self.outbox = self.outbox, []
            self.said += effects
            for effect in effects:
                if isinstance(effect, Persist):
                    self.saved = effect.blob
                    self.member.handle(Persisted(effect.token), self.now, self.outbox)
            self.now += 0.05
            self.member.handle(Wake(), self.now, self.outbox)

    def hears(self, link: int, dialed: str | None, who: Incarnation) -> None:
        """A link is up, and the other end says HELLO."""
        hello = PeerHello("test", "other", "", who, (1, 1))
        self.member.handle(PeerOpened(link, dialed), self.now, self.outbox)
        data = b"".join(peer_frame(hello))
        self.member.handle(PeerData(link, data), self.now, self.outbox)

    def proposes(self, *functions: Function) -> None:
        """What another node would, if there were one."""
        for function in functions:
            self.member._proposals.from_above(1, function)
        self.run()

    @property
    def entered(self) -> bool:
        value = self.member.map
        return value is not None and value.nodes["n"].proc_inc == self.member.me.inc

    @property
    def exits(self) -> list[str]:
        return [effect.sentence for effect in self.said if isinstance(effect, Exit)]


def test_what_the_operator_vouches_for_is_answered_by_the_register() -> None:
    # Given a node that owns stream 1
    node = Node(FIRST)
    node.run()
    node.member.take_news()

    # When it is told to declare that lost, and a stream that is not there
    node.member.declare_lost(5, 1, 1)
    node.member.declare_lost(6, 7, 1)
    node.run()

    # Then each is refused, by its token, and the stream goes on
    vouched = [news for news in node.member.take_news() if isinstance(news, Vouched)]
    assert vouched == [
        Vouched(5, "refused: n.1 may still hold stream 1"),
        Vouched(6, "refused: there is no stream 7"),
    ]
    assert node.member.owns(1)


def test_a_void_copy_needs_no_restart_for_its_stream_to_be_given_up() -> None:
    # Given a stream of x, whose only other copy is void
    node = Node(FIRST)
    node.run()
    x = Incarnation("x", 5)
    node.proposes(NodeUp(me=x), Create(home="x", me=x))
    node.member.streams[2].copy.void = "for this test"
    node.proposes(Expand(sid=2, epoch=1, me=x, joiner=FIRST, base=(x,)))

    # When x goes down, and the operator vouches for it that it does not come back
    node.proposes(SetDown(who=x))
    assert node.member.map is not None
    holders = node.member.map.streams[2].isr
    node.member.declare_lost(5, 2, 1)
    node.run()

    # Then the void copy was let go before, and the stream goes on here, empty
    assert holders == (x,)
    assert Vouched(5, DONE) in node.member.take_news()
    assert node.member.owns(2)
    assert node.member.streams[2].role is Role.OWNER


def restarted() -> Node:
    """The second process of a node, with the file of the first one, as far as it gets alone."""
    first = Node(FIRST)
    first.run()
    assert first.entered
    second = Node(SECOND, first.saved)
    second.run()
    return second


def test_a_node_that_starts_asks_for_its_namesake_before_it_enters() -> None:
    # Given a node that ran before
    # When it is started again
    node = restarted()

    # Then it dials the address of its own name, and is not in the map before that is answered
    assert Dial("n", ADDRESS) in node.said
    assert not node.entered


def test_a_node_whose_former_process_is_gone_enters() -> None:
    # Given a node that asks for its namesake
    node = restarted()

    # When nobody listens there
    node.member.handle(DialFailed("n", refused=True), node.now, node.outbox)
    node.run()

    # Then it takes its place
    assert node.entered
    assert node.exits == []


def test_a_node_whose_namesake_lives_ends_and_says_why() -> None:
    # Given a node that asks for its namesake
    node = restarted()

    # When that answers
    node.hears(1, "n", FIRST)
    node.run()

    # Then the newer process ends
    assert ["another process runs as node n" in sentence for sentence in node.exits] == [True]


def test_a_node_that_is_in_the_map_is_not_ended_by_a_namesake_that_asks() -> None:
    # Given a node at work
    node = Node(FIRST)
    node.run()

    # When a process that was started under its name says HELLO
    node.hears(1, None, SECOND)
    node.run()

    # Then that is a warning, and no reason to end
    assert node.exits == []
    warnings = [e for e in node.said if isinstance(e, Log) and e.level is Level.WARNING]
    assert any("under this node's name" in log.event for log in warnings)
