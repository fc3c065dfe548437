"""The group over TCP: every node publishes on one XPUB socket and reads from one SUB socket.

Theory of operation
-------------------
libzmq has its own thread for the network. It tells us that frames wait through a file
descriptor which is *edge*-triggered: it becomes readable once, and any call on the socket may
take the edge away. Hence whoever was woken reads until there is nothing more, and whoever did
something else with the reading socket looks again.

A slow follower must not hold up the others. So a full pipe drops frames, for that follower
only, and repair serves it over its peer link. libzmq counts messages, not bytes: the limit is
a stream's window in whole segments.

One frame is one message of one part: its prefix must stand in the first part, since the
filter looks no further. Sent as header and body it would save nothing. Measured with 62 KB in
four pieces, one sender and two receivers on two cores, CPU of the calling thread: as one part
4.7 µs to send and 9.6 to read, as two 6.3 and 9.7, the join at each end included.

Rules
-----
1. Both sockets belong to the thread of the loop.
2. Never wait for the descriptor to become writable: it never says so.
3. A node that is dead is seen by its peer link, never here: a SUB socket sees only silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from replication.core.events import Part
from replication.groups.transport import GroupHealth

FRAME_BYTES_MAX: Final = 4 << 20
"""A follower disconnects from whoever sends a larger frame. A segment is cut at 64 KiB; only
one with a record larger than that, at most a client's frame, comes near."""

RECONNECT_MS: Final = 100
"""Between two attempts to reach a node that is not there."""


class TcpGroup:
    """One node's end of the group. See `GroupTransport`. Needs a running loop.

    Args:
        address: "host:port" to publish at. Raises `OSError` if it cannot be had.
        prefix: Frames that begin otherwise are not even sent to this node.
        frames_max: Frames that may wait, at each end, for one follower.
        on_ready: Called by the loop when frames may be waiting.
    """

    def __init__(
        self, address: str, *, prefix: bytes, frames_max: int, on_ready: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_ready = on_ready
        self._addresses: dict[str, str] = {}
        self._followers = 0
        self._published = self._received = self._dropped = 0
        # A context of its own, so that no other user of libzmq shares the thread.
        self._context = zmq.Context(io_threads=1)
        self._out = self._context.socket(zmq.XPUB)
        self._in = self._context.socket(zmq.SUB)
        for socket in (self._out, self._in):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, frames_max)
            socket.setsockopt(zmq.RCVHWM, frames_max)
        # Every subscription and its end is told, not only the first and last of equal ones.
        self._out.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._in.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._in.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        self._in.setsockopt(zmq.SUBSCRIBE, prefix)
        try:
            self._out.bind(f"tcp://{address}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(error.errno, error.strerror) from error
        # The loop wants the number: given the socket, uvloop would look for its fileno().
        self._out_fd = int(self._out.getsockopt(zmq.FD))
        self._in_fd = int(self._in.getsockopt(zmq.FD))
        self._loop.add_reader(self._out_fd, self._read_subscriptions)
        self._loop.add_reader(self._in_fd, on_ready)

    def publish(self, parts: Sequence[Part]) -> None:
        self._published += 1
        try:
            self._out.send(b"".join(parts), zmq.NOBLOCK)
        except zmq.Again:
            self._dropped += 1

    def join(self, node: str, address: str) -> None:
        if self._addresses.get(node) == address:
            return
        self.leave(node)
        self._addresses[node] = address
        self._in.connect(f"tcp://{address}")
        self._loop.call_soon(self._look_again)

    def leave(self, node: str) -> None:
        address = self._addresses.pop(node, None)
        if address is not None:
            self._in.disconnect(f"tcp://{address}")
            self._loop.call_soon(self._look_again)

    def read(self, bytes_max: int) -> tuple[list[bytes], bool]:
        frames: list[bytes] = []
        size = 0
        drained = False
        try:
            while size < bytes_max:
                frame = self._in.recv(zmq.NOBLOCK)
                frames.append(frame)
                size += len(frame)
        except zmq.Again:
            drained = True
        self._received += len(frames)
        return frames, drained

    def health(self) -> GroupHealth:
        self._read_subscriptions()
        return GroupHealth(self._followers, self._published, self._received, self._dropped)

    def close(self) -> None:
        if self._context.closed:
            return
        self._loop.remove_reader(self._out_fd)
        self._loop.remove_reader(self._in_fd)
        self._context.destroy(linger=0)

    def _look_again(self) -> None:
        # A call on the socket may have taken the edge that would have woken us.
        if not self._context.closed and int(self._in.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._on_ready()

    def _read_subscriptions(self) -> None:
        # They must be taken out, or they would pile up. A send may take the edge away; then
        # the next one, or `health`, finds them.
        try:
            while True:
                message = self._out.recv(zmq.NOBLOCK)
                self._followers += 1 if message[:1] == b"\x01" else -1
        except zmq.Again:
            pass
