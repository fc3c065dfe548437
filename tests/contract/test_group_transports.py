"""What every group transport keeps, so that tests in memory speak for the real ones."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from itertools import count

import pytest
import uvloop

from replication.groups.memory import Bus, MemoryGroup
from replication.groups.tcp import TcpGroup
from replication.groups.transport import GroupTransport

PREFIX = b"cluster8"
WAIT_S = 10.0


class Node:
    """One end of the group, and what was read there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.frames: list[bytes] = []
        self.deaf = False
        self.group: GroupTransport

    def read(self) -> None:
        drained = self.deaf
        while not drained:
            frames, drained = self.group.read(1000)
            self.frames += frames


class Group:
    """Makes nodes of one kind of transport."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._bus = Bus()
        self._numbers = count()
        self.nodes: list[Node] = []

    def node(self, *, frames_max: int = 1000) -> Node:
        if self._kind == "memory":
            node = Node(f"place {next(self._numbers)}")
            node.group = MemoryGroup(
                self._bus, node.address, prefix=PREFIX, frames_max=frames_max, on_ready=node.read
            )
        else:
            node = Node(free_address())
            node.group = TcpGroup(
                node.address, prefix=PREFIX, frames_max=frames_max, on_ready=node.read
            )
        self.nodes.append(node)
        return node

    def follow(self, follower: Node, followed: Node) -> None:
        follower.group.join(followed.address, followed.address)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(params=["memory", "tcp"])
def kind(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


def with_group(kind: str, test: Callable[[Group], Awaitable[None]]) -> None:
    async def run() -> None:
        group = Group(kind)
        try:
            await test(group)
        finally:
            for node in group.nodes:
                node.group.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_frame_reaches_all_who_follow_whole_and_in_one_piece(kind: str) -> None:
    async def test(group: Group) -> None:
        # Given two nodes that follow a third
        owner, one, two = group.node(), group.node(), group.node()
        group.follow(one, owner)
        group.follow(two, owner)
        await until(lambda: owner.group.health().followers == 2)

        # When it publishes a frame in parts
        owner.group.publish((PREFIX, memoryview(b"header"), b"x" * 200_000))
        await until(lambda: len(one.frames) == 1 and len(two.frames) == 1)

        # Then each has it as one object, and the publisher does not
        whole = PREFIX + b"header" + b"x" * 200_000
        assert one.frames == two.frames == [whole]
        assert owner.frames == []

    with_group(kind, test)


def test_frames_of_another_cluster_do_not_come(kind: str) -> None:
    async def test(group: Group) -> None:
        # Given a follower
        owner, follower = group.node(), group.node()
        group.follow(follower, owner)
        await until(lambda: owner.group.health().followers == 1)

        # When a frame with another prefix is published, and then one with ours
        owner.group.publish((b"cluster9", b"theirs"))
        owner.group.publish((PREFIX, b"ours"))
        await until(lambda: len(follower.frames) > 0)

        # Then only ours has come
        assert follower.frames == [PREFIX + b"ours"]

    with_group(kind, test)


def test_who_has_left_gets_nothing_more_and_can_come_back(kind: str) -> None:
    async def test(group: Group) -> None:
        # Given a follower that has left
        owner, follower = group.node(), group.node()
        group.follow(follower, owner)
        await until(lambda: owner.group.health().followers == 1)
        follower.group.leave(owner.address)
        await until(lambda: owner.group.health().followers == 0)
        owner.group.publish((PREFIX, b"missed"))

        # When it joins again
        group.follow(follower, owner)
        await until(lambda: owner.group.health().followers == 1)
        owner.group.publish((PREFIX, b"seen"))
        await until(lambda: len(follower.frames) > 0)

        # Then it has what was published since
        assert follower.frames == [PREFIX + b"seen"]

    with_group(kind, test)


def test_a_node_that_moved_is_followed_to_its_new_address(kind: str) -> None:
    async def test(group: Group) -> None:
        # Given a follower of a node that starts again elsewhere
        old, new, follower = group.node(), group.node(), group.node()
        follower.group.join("owner", old.address)
        await until(lambda: old.group.health().followers == 1)

        # When it is told of the new address
        follower.group.join("owner", new.address)
        await until(lambda: new.group.health().followers == 1)
        await until(lambda: old.group.health().followers == 0)
        old.group.publish((PREFIX, b"from the old one"))
        new.group.publish((PREFIX, b"from the new one"))
        await until(lambda: len(follower.frames) > 0)

        # Then it hears the new one only
        assert follower.frames == [PREFIX + b"from the new one"]

    with_group(kind, test)


def test_nobody_waits_for_a_follower_that_does_not_read(kind: str) -> None:
    async def test(group: Group) -> None:
        # Given one follower that reads, and one that does not and has room for few frames
        owner, reader, deaf = group.node(), group.node(), group.node(frames_max=2)
        group.follow(reader, owner)
        group.follow(deaf, owner)
        await until(lambda: owner.group.health().followers == 2)
        deaf.deaf = True

        # When more is published than fits into all that lies between
        for number in range(500):
            owner.group.publish((PREFIX, b"%d " % number, b"x" * 50_000))
            if number % 20 == 0:
                await until(lambda n=number: len(reader.frames) > n)  # type: ignore[misc]

        # Then the one that reads has it all, and the other one lost some for itself
        await until(lambda: len(reader.frames) == 500)
        deaf.deaf = False
        deaf.read()
        assert 0 < len(deaf.frames) < 500

    with_group(kind, test)


def test_a_read_is_bounded_and_says_whether_more_waits(kind: str) -> None:
    async def test(group: Group) -> None:
        # Given a follower that left ten frames lying
        owner, follower = group.node(), group.node()
        group.follow(follower, owner)
        await until(lambda: owner.group.health().followers == 1)
        follower.deaf = True
        for number in range(10):
            owner.group.publish((PREFIX, b"%d" % number))

        # When it reads in small pieces
        received: list[bytes] = []
        sizes: set[int] = set()
        async with asyncio.timeout(WAIT_S):
            while len(received) < 10:
                frames, _ = follower.group.read(1)
                sizes.add(len(frames))
                received += frames
                await asyncio.sleep(0)

        # Then no piece was larger than asked for, and the end is seen
        assert sizes <= {0, 1}
        assert follower.group.read(1) == ([], True)

    with_group(kind, test)


def test_an_address_that_is_taken_is_an_error_of_the_system() -> None:
    async def test(group: Group) -> None:
        # Given a node at an address
        first = group.node()

        # When another one wants the same
        with pytest.raises(OSError, match="in use") as caught:
            TcpGroup(first.address, prefix=PREFIX, frames_max=1, on_ready=first.read)

        # Then the error says which
        assert caught.value.errno is not None

    with_group("tcp", test)
