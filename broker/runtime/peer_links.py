"""The links to the other nodes: one listener, and dials."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Final

from broker.core.events import DialFailed, Event, PeerData, PeerLost, PeerOpened
from broker.runtime.connection import Connection

DIAL_S_MAX: Final = 1.0
"""A dial without an answer has failed then."""


class PeerLinks:
    """The links of one node, dialed by either side.

    Args:
        bound: A socket that has the address; `open` makes it listen.
        feed: Takes what happens.
    """

    def __init__(self, bound: socket.socket, feed: Callable[[Event], None]) -> None:
        self._socket = bound
        self._feed = feed
        self._numbers = count(1)  # Never used again: a late effect hits nobody.
        self._server: asyncio.Server | None = None
        self.connections: dict[int, Connection] = {}

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(partial(self._opened, None), self._received, self._lost),
            sock=self._socket,
            backlog=512,
        )

    async def dial(self, node: str, address: str) -> None:
        """Ends in `PeerOpened` or `DialFailed`."""
        try:
            async with asyncio.timeout(DIAL_S_MAX):
                dialed = await _connected(address)
                await asyncio.get_running_loop().create_connection(
                    lambda: Connection(partial(self._opened, node), self._received, self._lost),
                    sock=dialed,
                )
        except ConnectionRefusedError:
            self._feed(DialFailed(node, refused=True))
        except OSError:  # A time-out is one, too.
            self._feed(DialFailed(node, refused=False))

    def close(self) -> None:
        """The last act of a node: whoever dials from now on has the proof that it is gone."""
        if self._server is not None:
            self._server.close()
        self._socket.close()
        for connection in tuple(self.connections.values()):
            connection.abort()

    def _opened(self, dialed: str | None, connection: Connection) -> int:
        number = next(self._numbers)
        self.connections[number] = connection
        self._feed(PeerOpened(number, dialed))
        return number

    def _received(self, number: int, data: bytes) -> None:
        self._feed(PeerData(number, data))

    def _lost(self, number: int) -> None:
        del self.connections[number]
        self._feed(PeerLost(number))


async def _connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    dialed = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        dialed.setblocking(False)
        await asyncio.get_running_loop().sock_connect(dialed, (host, int(port)))
        if dialed.getsockname() == dialed.getpeername():
            # Where nobody listens, the kernel may give a dial that very port as its own,
            # and then it reaches itself. That would pass for a sign of life.
            raise ConnectionRefusedError(f"{address} is our own end")
    except BaseException:
        dialed.close()
        raise
    return dialed
