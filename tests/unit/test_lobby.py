"""Clients that are connected: HELLO, the topology, and silence."""

from __future__ import annotations

from broker.core.connection import Connection, State
from broker.core.events import ClientClose, ClientWrite, Effect
from broker.core.limits import Limits, Timing
from broker.core.lobby import Lobby
from broker.core.topology import here, is_older, topology_of
from replication.core.clustermap import ClusterMap, NodeEntry, NodeState, StreamEntry
from replication.core.identity import Incarnation
from tanist.wire.control import Error, Hello, Message, Topology, Welcome, read_control
from tanist.wire.frames import FRAME_BYTES_MAX, FrameReader

A, B = Incarnation("a", 1), Incarnation("b", 2)


def map_of(*, owner_of_b: Incarnation = B, epoch: int = 1) -> ClusterMap:
    """a and b, each with a post office (1 and 2); the catalog is a's."""

    def stream(home: str | None, owner: Incarnation, epoch: int = 1) -> StreamEntry:
        return StreamEntry(home=home, gen=1, epoch=epoch, owner=owner, isr=(owner,))

    return ClusterMap(
        nodes={
            who.node: NodeEntry(
                proc_inc=who.inc, state=NodeState.UP, locators=(f"127.0.0.1:{who.inc}",)
            )
            for who in (A, B)
        },
        streams={0: stream(None, A), 1: stream("a", A), 2: stream("b", owner_of_b, epoch)},
        next_sid=3,
    )


def lobby(limits: Limits | None = None) -> Lobby:
    lobby = Lobby(me=A, limits=limits or Limits(), timing=Timing())
    lobby.changed(topology_of(map_of(), 5), [])
    return lobby


def hello(topology: tuple[int, str] | None = None, versions: tuple[int, int] = (1, 1)) -> Hello:
    return Hello(req=1, versions=versions, client="t", session="0" * 32, dial=3, topology=topology)


def said(outbox: list[Effect], connection: int = 1) -> list[Message]:
    """What was written to a connection."""
    reader = FrameReader(FRAME_BYTES_MAX)
    return [
        read_control(frame)
        for effect in outbox
        if isinstance(effect, ClientWrite) and effect.connection == connection
        for frame in reader.feed(b"".join(effect.parts))
    ]


def connected(lobby: Lobby, number: int = 1, now: float = 0.0) -> Connection:
    lobby.opened(number, now, [])
    connection = lobby.get(number)
    assert connection is not None
    return connection


def test_a_client_that_knows_nothing_is_told_the_topology_with_its_welcome() -> None:
    # Given a node, and a client that is connected
    rooms = lobby()
    connection = connected(rooms)

    # When it says HELLO without a topology
    outbox: list[Effect] = []
    rooms.hello(connection, hello(), outbox)

    # Then it is told everything, and where its producers publish
    [welcome] = said(outbox)
    assert isinstance(welcome, Welcome)
    assert welcome.known == rooms.topology
    assert welcome.here == 1
    assert connection.state is State.WELCOME


def test_a_client_that_is_up_to_date_is_told_nothing() -> None:
    # Given a client that has the newest topology
    rooms = lobby()
    connection = connected(rooms)

    # When it says HELLO with it, and shows it again
    outbox: list[Effect] = []
    known = (rooms.topology.ver, rooms.topology.hash)
    rooms.hello(connection, hello(known), outbox)
    rooms.shown(connection, known, outbox)

    # Then no byte of it is sent
    [welcome] = said(outbox)
    assert isinstance(welcome, Welcome)
    assert welcome.known is None


def test_a_change_is_pushed_to_all_who_know_less() -> None:
    # Given two clients that are welcome, and one that has not said HELLO
    rooms = lobby()
    for number in (1, 2):
        rooms.hello(connected(rooms, number), hello(), [])
    connected(rooms, 3)

    # When the map changes
    outbox: list[Effect] = []
    rooms.changed(topology_of(map_of(owner_of_b=A, epoch=2), 6), outbox)

    # Then both are told, and the third is not
    assert [type(message) for message in said(outbox, 1)] == [Topology]
    assert [type(message) for message in said(outbox, 2)] == [Topology]
    assert said(outbox, 3) == []


def test_an_idle_client_converges_by_what_it_shows() -> None:
    # Given a client whose push was lost with an older connection
    rooms = lobby()
    connection = connected(rooms)
    rooms.hello(connection, hello(), [])

    # When its heartbeat shows an older topology
    outbox: list[Effect] = []
    rooms.shown(connection, (4, "older"), outbox)

    # Then it is told
    assert said(outbox) == [rooms.topology]


def test_equal_versions_with_another_hash_are_not_equal() -> None:
    # Given a topology
    topology = topology_of(map_of(), 5)

    # When it is compared with what clients show
    answers = [
        is_older(known, topology)
        for known in ((5, topology.hash), (5, "other"), (6, "newer"), (4, topology.hash), None)
    ]

    # Then only the same hash of the same version, or a later version, is up to date
    assert answers == [False, True, False, True, True]


def test_an_unknown_version_is_refused_with_those_that_are_known() -> None:
    # Given a client that is connected
    rooms = lobby()
    connection = connected(rooms)

    # When it speaks another version of the protocol
    outbox: list[Effect] = []
    rooms.hello(connection, hello(versions=(2, 3)), outbox)

    # Then it is told, and closed
    [error] = said(outbox)
    assert isinstance(error, Error)
    assert error.code == "version"
    assert ClientClose(1) in outbox


def test_one_connection_too_many_is_closed_with_a_word() -> None:
    # Given a node that serves one connection
    rooms = lobby(Limits(connections_max=1))
    connected(rooms, 1)

    # When a second one comes
    outbox: list[Effect] = []
    rooms.opened(2, 0.0, outbox)

    # Then it is told to try elsewhere, and closed; the first one stays
    [error] = said(outbox, 2)
    assert isinstance(error, Error)
    assert error.code == "limit"
    assert error.retryable
    assert ClientClose(2) in outbox


def test_who_does_not_say_hello_in_time_is_closed() -> None:
    # Given a client that is connected since 0 s
    rooms = lobby()
    connected(rooms)

    # When its time is nearly over, and over
    early: list[Effect] = []
    late: list[Effect] = []
    rooms.wake(4.9, early)
    rooms.wake(6.0, late)

    # Then it is closed in the end
    assert early == []
    assert ClientClose(1) in late


def test_a_silent_client_is_closed() -> None:
    # Given a welcome client that was last heard at 1 s
    rooms = lobby()
    connection = connected(rooms)
    rooms.hello(connection, hello(), [])
    connection.heard_at = 1.0

    # When the node looks
    early: list[Effect] = []
    late: list[Effect] = []
    rooms.wake(3.9, early)
    rooms.wake(4.5, late)

    # Then it is closed after its silence
    assert early == []
    assert late == [ClientClose(1)]


def test_producers_go_to_the_nodes_own_post_office_if_it_owns_it() -> None:
    # Given a, which owns its own post office and later b's too; and b, which then owns none
    before = topology_of(map_of(), 5)
    after = topology_of(map_of(owner_of_b=A, epoch=2), 6)

    # When each says where its producers publish
    answers = [here(before, "a"), here(before, "b"), here(after, "a"), here(after, "b")]

    # Then it is its own, else what it owns, else the lowest of all
    assert answers == [1, 2, 1, 1]
