"""The shell of a node, around a core that does as the test says."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop

from broker.core.events import (
    READ_BYTES_MAX,
    ClientClose,
    ClientData,
    ClientLost,
    ClientOpened,
    ClientWrite,
    Dial,
    DialFailed,
    DiskDone,
    DiskJobs,
    Effect,
    Event,
    Exit,
    GroupData,
    GroupDrained,
    GroupJoin,
    GroupPublish,
    ListenForClients,
    PeerClose,
    PeerData,
    PeerLost,
    PeerOpened,
    PeerWrite,
    Persist,
    Persisted,
    PersistFailed,
    Stop,
    Wake,
)
from broker.core.limits import Limits
from broker.runtime.client_listener import ClientListener
from broker.runtime.connection import bound_socket
from broker.runtime.logs import Form, Logs
from broker.runtime.page_io import PageIo
from broker.runtime.peer_links import PeerLinks
from broker.runtime.shell import EXIT_BUG, Roads, Shell, clock
from broker.runtime.store import Store
from paging.disk import Done, RemoveBook, WritePage, Written
from paging.files import PageFiles
from paging.pagefile import LIFE_BYTES, BlockImage, Book, PageKey
from replication.groups.memory import Bus, MemoryGroup
from tanist.wire.batch import seal

WAIT_S = 10.0

E = TypeVar("E")


class ScriptedCore:
    """Writes down what it is told, and answers as `answer` says."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.turns: list[list[Event]] = [[]]
        self.answer: Callable[[Event], list[Effect]] = lambda event: []
        self.deadline: float | None = None

    def handle(self, event: Event, now: float, outbox: list[Effect]) -> None:
        if isinstance(event, Wake):
            self.deadline = None
        self.events.append(event)
        self.turns[-1].append(event)
        outbox += self.answer(event)

    def end_turn(self, now: float, outbox: list[Effect]) -> None:
        self.turns.append([])

    def next_deadline(self) -> float | None:
        return self.deadline

    def saw(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


class Node:
    """A shell on loopback with a core of the test's."""

    def __init__(
        self,
        bus: Bus,
        logs: Logs,
        limits: Limits,
        write: Callable[[bytes], None],
        files: PageFiles,
    ) -> None:
        self.core = ScriptedCore()
        self.shell = Shell(self.core, logs, limits)
        clients, peers = bound_socket("127.0.0.1", 0), bound_socket("127.0.0.1", 0)
        self.client_address = clients.getsockname()
        self.peer_address = f"127.0.0.1:{peers.getsockname()[1]}"
        group = MemoryGroup(
            bus, self.peer_address, prefix=b"", frames_max=100, on_ready=self.shell.group_ready
        )
        self.roads = Roads(
            clients=ClientListener(clients, self.shell.feed),
            peers=PeerLinks(peers, self.shell.feed_peer),
            group=group,
            store=Store(write, self.shell.feed),
            pages=PageIo(files, lambda done: self.shell.feed(DiskDone(done))),
        )
        self.ended = asyncio.ensure_future(self.shell.run(self.roads))
        self._writers: list[asyncio.StreamWriter] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.001)

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client, once the node listens."""
        self.do(ListenForClients())
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    reader, writer = await asyncio.open_connection(*self.client_address)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.001)
                else:
                    self._writers.append(writer)
                    return reader, writer

    async def close(self) -> None:
        if not self.ended.done():
            self.core.answer = lambda event: [Exit(0, "the test is over")]
            self.shell.feed(Stop())
        await self.ended
        for writer in self._writers:
            writer.close()

    def do(self, *effects: Effect) -> None:
        """Have the core say this, as its answer to something that means nothing."""
        before = self.core.answer
        self.core.answer = lambda event: list(effects)
        self.shell.feed(Persisted(0))
        self.core.answer = before


class World:
    """What a test needs to start nodes, and what is stopped after it."""

    def __init__(self, log: Path) -> None:
        self.bus = Bus()
        self.log = log
        self._log_file = os.open(log, os.O_WRONLY | os.O_CREAT)
        self.logs = Logs("n1", form=Form.JSON, descriptor=self._log_file)
        self.nodes: list[Node] = []

    def node(
        self, limits: Limits | None = None, write: Callable[[bytes], None] = lambda blob: None
    ) -> Node:
        files = PageFiles(self.log.parent, bytes([len(self.nodes)]) * LIFE_BYTES)
        node = Node(self.bus, self.logs, limits or Limits(), write, files)
        self.nodes.append(node)
        return node

    async def close(self) -> None:
        for node in self.nodes:
            await node.close()
        self.logs.close()
        os.close(self._log_file)


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop


@pytest.fixture
def run(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> Callable[[Callable[[World], Awaitable[None]]], World]:
    """Runs a test on either loop. Returns the world as it was at the end."""

    def run(test: Callable[[World], Awaitable[None]]) -> World:
        worlds: list[World] = []

        async def whole() -> None:
            world = World(tmp_path / "log")
            worlds.append(world)
            try:
                await test(world)
            finally:
                await world.close()

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(whole())
        return worlds[0]

    return run


Run = Callable[[Callable[[World], Awaitable[None]]], World]


def test_what_comes_in_one_turn_is_answered_in_one_write(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a client
        node = world.node()
        reader, _ = await node.client()
        await node.until(lambda: len(node.core.saw(ClientOpened)) == 1)
        number = node.core.saw(ClientOpened)[0].connection
        turns = len(node.core.turns)

        # When two events of one turn have something to say to it
        node.do(ClientWrite(number, (b"one ", memoryview(b"two "))))
        node.do(ClientWrite(number, (b"three",)))
        answer = await reader.read(100)

        # Then it comes in one piece, after one end of a turn
        assert answer == b"one two three"
        assert len(node.core.turns) == turns + 1

    run(test)


def test_what_is_due_goes_first_in_a_turn(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a core whose deadline passes while the loop is busy
        node = world.node()
        await node.until(lambda: len(node.core.turns) > 1)
        node.core.deadline = clock() + 0.001
        node.do()
        await asyncio.sleep(0)
        while node.core.deadline > clock():
            pass

        # When something comes
        node.do()
        await asyncio.sleep(0)

        # Then the core was woken before it was told of that
        assert [type(event) for event in node.core.events[-2:]] == [Wake, Persisted]

    run(test)


def test_the_core_is_woken_at_its_deadline_once(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a core with a deadline
        node = world.node()
        await node.until(lambda: len(node.core.turns) > 1)
        wakes = len(node.core.saw(Wake))
        node.core.deadline = due = clock() + 0.02
        woken_at: list[float] = []

        def answer(event: Event) -> list[Effect]:
            woken_at.append(clock())
            return []

        node.core.answer = answer

        # When nothing happens
        node.shell.feed(Persisted(0))
        await node.until(lambda: len(node.core.saw(Wake)) == wakes + 1)

        # Then it is woken when that has come, not before
        assert woken_at[-1] >= due

    run(test)


def test_clients_are_refused_until_the_core_wants_them(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a node that has just started
        node = world.node()
        await node.until(lambda: len(node.core.turns) > 1)

        # When a client comes, before and after the core has said so
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*node.client_address)
        _, writer = await node.client()
        writer.write(b"hello")
        await node.until(lambda: len(node.core.saw(ClientData)) == 1)
        writer.close()
        await node.until(lambda: len(node.core.saw(ClientLost)) == 1)

        # Then only the second one is known
        assert node.core.saw(ClientData) == [ClientData(1, b"hello")]
        assert node.core.saw(ClientLost) == [ClientLost(1)]

    run(test)


def test_one_socket_is_read_for_a_bounded_time_in_each_turn(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a client with a lot to say
        node = world.node()
        _, writer = await node.client()
        await node.until(lambda: len(node.core.saw(ClientOpened)) == 1)
        size = 8 << 20

        # When it says it all at once
        writer.write(bytes(size))
        await node.until(lambda: sum(len(e.data) for e in node.core.saw(ClientData)) == size)

        # Then each turn took a bounded part of it
        def read_in(turn: list[Event]) -> int:
            return sum(len(event.data) for event in turn if isinstance(event, ClientData))

        assert max(map(read_in, node.core.turns)) <= READ_BYTES_MAX

    run(test)


def test_a_client_that_takes_nothing_is_cut_at_the_limit(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a client that does not read
        node = world.node(Limits(unsent_bytes_max=100_000))
        await node.client()
        deaf = socket.create_connection(node.client_address)
        await node.until(lambda: len(node.core.saw(ClientOpened)) == 2)

        # When more is written to it than kernel and limit can hold
        while not node.core.saw(ClientLost):
            node.do(ClientWrite(2, (bytes(1 << 20),)))
            await asyncio.sleep(0)

        # Then it is gone, and the other client is not
        assert node.core.saw(ClientLost) == [ClientLost(2)]
        deaf.close()

    world = run(test)
    assert "does not take what is written to it" in world.log.read_text()


def test_a_connection_is_closed_after_what_was_written_before(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a client
        node = world.node()
        reader, _ = await node.client()
        await node.until(lambda: len(node.core.saw(ClientOpened)) == 1)

        # When the core says goodbye and closes
        node.do(ClientClose(1), ClientWrite(1, (b"bye" * 100_000,)))
        everything = await reader.read()

        # Then the client has all of it
        assert everything == b"bye" * 100_000

    run(test)


def test_two_nodes_talk_over_a_link_that_one_dialed(run: Run) -> None:
    async def test(world: World) -> None:
        # Given two nodes
        one, two = world.node(), world.node()
        await two.until(lambda: len(two.core.turns) > 1)

        # When one dials the other, they talk, and it closes
        one.do(Dial("two", two.peer_address))
        await one.until(lambda: len(one.core.saw(PeerOpened)) == 1)
        await two.until(lambda: len(two.core.saw(PeerOpened)) == 1)
        one.do(PeerWrite(1, (b"to ", b"two")))
        two.do(PeerWrite(1, (b"to one",)))
        await one.until(lambda: len(one.core.saw(PeerData)) == 1)
        await two.until(lambda: len(two.core.saw(PeerData)) == 1)
        one.do(PeerClose(1))
        await one.until(lambda: len(one.core.saw(PeerLost)) == 1)
        await two.until(lambda: len(two.core.saw(PeerLost)) == 1)

        # Then only the one that dialed knows to whom
        assert one.core.saw(PeerOpened) == [PeerOpened(1, dialed="two")]
        assert two.core.saw(PeerOpened) == [PeerOpened(1, dialed=None)]
        assert one.core.saw(PeerData) == [PeerData(1, b"to one")]
        assert two.core.saw(PeerData) == [PeerData(1, b"to two")]

    run(test)


def test_a_dial_where_nobody_listens_is_refused(run: Run) -> None:
    async def test(world: World) -> None:
        # Given an address that somebody has, and nobody listens at
        node = world.node()
        silent = bound_socket("127.0.0.1", 0)

        # When the node dials it
        node.do(Dial("gone", f"127.0.0.1:{silent.getsockname()[1]}"))
        await node.until(lambda: len(node.core.saw(DialFailed)) == 1)

        # Then that is known to be a refusal
        assert node.core.saw(DialFailed) == [DialFailed("gone", refused=True)]
        silent.close()

    run(test)


def test_a_dial_that_nobody_answers_is_no_refusal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        # Given a listener whose queue is full
        node = world.node()
        monkeypatch.setattr("broker.runtime.peer_links.DIAL_S_MAX", 0.05)
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))

        # When the node dials it
        node.do(Dial("stuck", f"127.0.0.1:{port}"))
        await node.until(lambda: len(node.core.saw(DialFailed)) == 1)

        # Then nothing is said about its being dead
        assert node.core.saw(DialFailed) == [DialFailed("stuck", refused=False)]
        for one in (full, *waiting):
            one.close()

    run(test)


def test_the_group_is_read_until_it_is_empty_and_the_core_is_told_so(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a node that follows another
        one, two = world.node(), world.node()
        two.do(GroupJoin("one", one.peer_address))
        await two.until(lambda: one.roads.group.health().followers == 1)

        # When more is published than is read in one turn
        frame = bytes(READ_BYTES_MAX // 2)
        one.do(*(GroupPublish((b"%d" % number, frame)) for number in range(5)))
        await two.until(lambda: len(two.core.saw(GroupData)) == 5)
        await two.until(lambda: isinstance(two.core.events[-1], GroupDrained))

        # Then it came in order, over several turns, and emptiness is told at the end only
        assert [event.data for event in two.core.saw(GroupData)] == [
            b"%d" % number + frame for number in range(5)
        ]
        group = [type(e) for e in two.core.events if isinstance(e, GroupData | GroupDrained)]
        assert group[:6] == [GroupData] * 5 + [GroupDrained]
        assert max(sum(isinstance(e, GroupData) for e in turn) for turn in two.core.turns) == 2

    run(test)


def test_after_a_peer_spoke_the_core_knows_whether_the_group_is_empty(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a link
        one, two = world.node(), world.node()
        await two.until(lambda: len(two.core.turns) > 1)
        one.do(Dial("two", two.peer_address))
        await one.until(lambda: len(one.core.saw(PeerOpened)) == 1)
        drained = len(two.core.saw(GroupDrained))

        # When the peer says something, and the group nothing
        one.do(PeerWrite(1, (b"tick",)))
        await two.until(lambda: len(two.core.saw(PeerData)) == 1)
        await two.until(lambda: len(two.core.saw(GroupDrained)) > drained)

        # Then the core is told in the same turn, after what the peer said
        turn = next(turn for turn in two.core.turns if PeerData(1, b"tick") in turn)
        assert isinstance(turn[-1], GroupDrained)

    run(test)


def test_of_blobs_that_wait_for_the_disk_the_last_one_is_written(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a disk that is slow with the first blob
        written: list[bytes] = []
        go_on = threading.Event()

        def write(blob: bytes) -> None:
            go_on.wait(WAIT_S)
            written.append(blob)

        node = world.node(write=write)
        node.do(Persist(b"one", 1))
        await asyncio.sleep(0.01)

        # When more come meanwhile
        node.do(Persist(b"two", 2), Persist(b"three", 3))
        await asyncio.sleep(0)
        go_on.set()
        await node.until(lambda: Persisted(3) in node.core.events)

        # Then the last one stands for those before it
        assert written in ([b"one", b"three"], [b"three"])

    run(test)


def test_after_an_error_of_the_disk_nothing_is_written_any_more(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a disk that fails once
        calls: list[bytes] = []

        def write(blob: bytes) -> None:
            calls.append(blob)
            raise OSError(28, "No space left on device")

        node = world.node(write=write)
        node.do(Persist(b"one", 1))
        await node.until(lambda: len(node.core.saw(PersistFailed)) == 1)

        # When the core wants more to be written
        node.do(Persist(b"two", 2))
        await asyncio.sleep(0.02)

        # Then that is not tried, and not answered
        assert calls == [b"one"]
        assert "No space left" in node.core.saw(PersistFailed)[0].sentence
        assert Persisted(2) not in node.core.events

    run(test)


def test_a_core_with_a_bug_ends_the_node_and_says_nothing_more(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a client, and a core that breaks on what it says
        node = world.node()
        reader, writer = await node.client()
        await node.until(lambda: len(node.core.saw(ClientOpened)) == 1)

        def answer(event: Event) -> list[Effect]:
            if isinstance(event, ClientData):
                raise AssertionError("the core is wrong")
            return []

        node.core.answer = answer

        # When the client says it, in a turn in which something else was answered
        node.do(ClientWrite(1, (b"an answer",)))
        node.shell.feed(ClientData(1, b"poison"))

        # Then the node ends with the code of a bug, and nothing of that turn has left
        assert await node.ended == EXIT_BUG
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()

    world = run(test)
    assert "the core is wrong" in world.log.read_text()


def test_at_the_end_clients_get_what_was_written_to_them(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a client
        node = world.node()
        reader, _ = await node.client()
        await node.until(lambda: len(node.core.saw(ClientOpened)) == 1)

        # When the core ends the node with a last word
        node.do(ClientWrite(1, (b"goodbye" * 10_000,)), Exit(0, "because"))
        everything = await reader.read()

        # Then the client has it, and the code is the core's
        assert everything == b"goodbye" * 10_000
        assert await node.ended == 0

    run(test)


def test_who_asks_twice_to_stop_is_not_kept_waiting(run: Run) -> None:
    async def test(world: World) -> None:
        # Given a core that does not answer
        node = world.node()
        await node.until(lambda: len(node.core.turns) > 1)

        # When it is to stop, and again
        node.shell.stop()
        node.shell.stop()

        # Then the node ends
        assert await node.ended == 1
        assert node.core.saw(Stop) == [Stop()]

    run(test)


def test_jobs_for_the_disk_are_done_in_threads_and_answered(
    run: Callable[[Callable[[World], Awaitable[None]]], World],
) -> None:
    # Given a node, and a page with one batch
    key = PageKey(Book(1, 1, 1, 1), first=0, version=1)
    one = seal([b"a"], [], flags=0, first_n=1, time_ms=1)

    async def scene(world: World) -> None:
        node = world.node()

        # When its core has a page written
        node.do(DiskJobs([WritePage(key, 1, [BlockImage(0, one, None)])]))
        await node.until(lambda: bool(node.core.saw(DiskDone)))

        # Then it is told when it is done
        done: list[Done] = node.core.saw(DiskDone)[0].done
        assert [type(answer) for answer in done] == [Written]
        assert list(world.log.parent.glob("pages/*/*/*.page"))
        node.do(DiskJobs([RemoveBook(key.book)]))

    world = run(scene)

    # And when the node has ended nothing is left
    assert not list(world.log.parent.glob("pages/*"))
