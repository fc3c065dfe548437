"""Where clients connect, and their connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from itertools import count

from broker.core.events import ClientData, ClientLost, ClientOpened, Event
from broker.runtime.connection import Connection


class ClientListener:
    """The clients of one node.

    Args:
        bound: A socket that has the address. It refuses connections until `open`.
        feed: Takes what happens.
    """

    def __init__(self, bound: socket.socket, feed: Callable[[Event], None]) -> None:
        self._socket = bound
        self._feed = feed
        self._numbers = count(1)  # Never used again: a late effect hits nobody.
        self._server: asyncio.Server | None = None
        self.connections: dict[int, Connection] = {}
        host, port = bound.getsockname()[:2]
        self.address = f"{host}:{port}"

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._opened, self._received, self._lost),
            sock=self._socket,
            backlog=512,
        )

    def close(self) -> None:
        """Take no more clients. Those that are connected stay."""
        if self._server is not None:
            self._server.close()
        self._socket.close()

    def _opened(self, connection: Connection) -> int:
        number = next(self._numbers)
        self.connections[number] = connection
        self._feed(ClientOpened(number))
        return number

    def _received(self, number: int, data: bytes) -> None:
        self._feed(ClientData(number, data))

    def _lost(self, number: int) -> None:
        del self.connections[number]
        self._feed(ClientLost(number))
