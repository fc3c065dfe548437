"""The fake cluster behind real sockets on loopback, for tests of the shells."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from typing import cast

from tests.unit.fake_node import FakeCluster, FakeConnection, FakeNode


class FakeServer:
    """Listens for each node of a cluster on a port of its own. Use it in `async with`."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.numbers = count(1)
        self._servers: list[asyncio.Server] = []
        self._served: list[_Served] = []

    @property
    def url(self) -> str:
        return "tanist://" + ",".join(node.locator for node in self.cluster.nodes.values())

    async def __aenter__(self) -> FakeServer:
        loop = asyncio.get_running_loop()
        for node in self.cluster.nodes.values():
            server = await loop.create_server(partial(self._serve, node), "127.0.0.1", 0)
            node.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)
        return self

    async def __aexit__(self, *error: object) -> None:
        for server in self._servers:
            server.close()
        for served in self._served:
            served.transport.close()
        await asyncio.sleep(0)

    def _serve(self, node: FakeNode) -> _Served:
        served = _Served(self, node)
        self._served.append(served)
        return served

    def spread(self) -> None:
        """Write what nodes have to say, and hang up where they did."""
        for served in self._served:
            data = served.connection.take()
            if data and not served.transport.is_closing():
                served.transport.write(data)
            if served.connection.closed:
                served.transport.close()


class _Served(asyncio.Protocol):
    transport: asyncio.Transport
    connection: FakeConnection

    def __init__(self, server: FakeServer, node: FakeNode) -> None:
        self._server = server
        self._node = node

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.connection = self._node.accept(next(self._server.numbers))
        if not self._node.alive:
            self.connection.closed = True
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._node.receive(self.connection, data)
        self._server.spread()

    def connection_lost(self, error: Exception | None) -> None:
        self._node.lost(self.connection)
