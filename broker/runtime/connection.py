"""One socket of a node. It decides nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final, cast

from tanist.wire.batch import Part

FULL_READ_BYTES: Final = 250_000
"""uvloop reads 256,000 bytes at a time, asyncio 256 KiB, and uvloop reads on at once when it
got as many. So a read of this size is made the last one of its socket in this turn."""

CLOSE_S_MAX: Final = 2.0
"""A connection that is to be closed and does not take what was written to it is cut then."""


class Connection(asyncio.Protocol):
    """A TCP connection, known by a number.

    Nagle's delay and keep-alive are off: heartbeats of the core see more, and sooner.

    Args:
        opened: Called once; gives the number.
        received: Called with the number and bytes as they come.
        lost: Called once with the number, whoever closed it.
    """

    def __init__(
        self,
        opened: Callable[[Connection], int],
        received: Callable[[int, bytes], None],
        lost: Callable[[int], None],
    ) -> None:
        self._opened = opened
        self._received = received
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        self.peer = str(transport.get_extra_info("peername"))
        self._number = self._opened(self)

    def data_received(self, data: bytes) -> None:
        if self._closing is not None:
            return
        if len(data) >= FULL_READ_BYTES:
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)
        self._received(self._number, data)

    def connection_lost(self, error: Exception | None) -> None:
        # At EOF the transport closes itself and comes here: one way out for both.
        if self._closing is not None:
            self._closing.cancel()
        self._lost(self._number)

    @property
    def unsent_bytes(self) -> int:
        """Written, and not yet taken by the other side."""
        return self._transport.get_write_buffer_size()

    def write(self, parts: Sequence[Part]) -> None:
        self._transport.writelines(parts)

    def close(self) -> None:
        """Close after what was written before."""
        if self._closing is None:
            self._transport.close()
            self._closing = self._loop.call_later(CLOSE_S_MAX, self._transport.abort)

    def abort(self) -> None:
        """Close now; what was not sent is lost."""
        self._transport.abort()

    def _read_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that has this address and does not listen yet. Raises `OSError`."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # A node that starts again need not wait for the last connections of its former life.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
