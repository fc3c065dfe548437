"""A group in one process, for tests: nodes that share a `Bus`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from replication.core.events import Part
from replication.groups.transport import GroupHealth


class Bus:
    """What takes the place of the network: who is where."""

    def __init__(self) -> None:
        self.nodes: dict[str, MemoryGroup] = {}


class MemoryGroup:
    """One node's end of a `Bus`. See `GroupTransport`.

    Args:
        address: Where other nodes of the bus find this one.
        prefix: Frames that begin otherwise are not received.
        frames_max: Frames that may wait unread; one more is dropped.
        on_ready: Called, inside another node's `publish`, when a frame has come.
    """

    def __init__(
        self,
        bus: Bus,
        address: str,
        *,
        prefix: bytes,
        frames_max: int,
        on_ready: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._address = address
        self._prefix = prefix
        self._frames_max = frames_max
        self._on_ready = on_ready
        self._follows: dict[str, str] = {}
        self._waiting: deque[bytes] = deque()
        self._published = self._received = self._dropped = 0
        bus.nodes[address] = self

    def publish(self, parts: Sequence[Part]) -> None:
        self._published += 1
        frame = b"".join(parts)
        for node in tuple(self._bus.nodes.values()):
            if self._address in node._follows.values():
                node._take(frame)

    def join(self, node: str, address: str) -> None:
        self._follows[node] = address

    def leave(self, node: str) -> None:
        self._follows.pop(node, None)

    def read(self, bytes_max: int) -> tuple[list[bytes], bool]:
        frames: list[bytes] = []
        size = 0
        while self._waiting and size < bytes_max:
            frames.append(self._waiting.popleft())
            size += len(frames[-1])
        self._received += len(frames)
        return frames, not self._waiting

    def health(self) -> GroupHealth:
        followers = sum(self._address in n._follows.values() for n in self._bus.nodes.values())
        return GroupHealth(followers, self._published, self._received, self._dropped)

    def close(self) -> None:
        self._bus.nodes.pop(self._address, None)
        self._waiting.clear()

    def _take(self, frame: bytes) -> None:
        if not frame.startswith(self._prefix):
            return
        if len(self._waiting) >= self._frames_max:
            self._dropped += 1
            return
        self._waiting.append(frame)
        self._on_ready()
