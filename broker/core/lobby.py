"""The clients that are connected: HELLO, heartbeats, the topology, and who is silent.

A client converges on the newest topology whatever it does: it is pushed when the map
changes, and sent with any answer to a client that showed that it knows less.
"""

from __future__ import annotations

from collections.abc import Iterator

from broker.core.connection import Connection, State
from broker.core.events import Effect
from broker.core.limits import Limits, Timing
from broker.core.topology import NOTHING_KNOWN, here, is_older
from replication.core.identity import Incarnation
from tanist.wire.control import VERSION, ClientLimits, Error, Hello, Topology, Ver, Welcome
from tanist.wire.frames import FRAME_BYTES_MAX, MESSAGE_BYTES_MAX

CLIENT_HEARTBEAT_MS = 1000


class Lobby:
    """All connections of one node."""

    def __init__(self, *, me: Incarnation, limits: Limits, timing: Timing) -> None:
        self._me = me
        self._limits = limits
        self._silence_s = timing.client_silence_ms / 1000
        self._connections: dict[int, Connection] = {}
        self._next_sweep = 0.0
        self.topology: Topology = NOTHING_KNOWN

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._connections.values()))

    def get(self, number: int) -> Connection | None:
        return self._connections.get(number)

    def opened(self, number: int, now: float, outbox: list[Effect]) -> None:
        connection = Connection(number, opened_at=now, heard_at=now)
        self._connections[number] = connection
        if len(self._connections) > self._limits.connections_max:
            most = self._limits.connections_max
            sentence = f"this node serves {most} connections at most: try another node"
            connection.end(
                Error(code="limit", sentence=sentence, retryable=True, ends="connection"), outbox
            )

    def lost(self, number: int) -> Connection | None:
        connection = self._connections.pop(number, None)
        if connection is not None:
            connection.state = State.CLOSING
        return connection

    def hello(self, connection: Connection, hello: Hello, outbox: list[Effect]) -> None:
        if not hello.versions[0] <= VERSION <= hello.versions[1]:
            low, high = hello.versions
            sentence = f"this node speaks version {VERSION} of the protocol, not {low} to {high}"
            error = Error(
                req=hello.req,
                code="version",
                sentence=sentence,
                value=str(hello.versions),
                ends="connection",
            )
            connection.end(error, outbox)
            return
        connection.state = State.WELCOME
        connection.reader.bytes_max = FRAME_BYTES_MAX
        connection.session = bytes.fromhex(hello.session)
        connection.dial = hello.dial
        connection.client = hello.client
        newer = is_older(hello.topology, self.topology)
        connection.known = (self.topology.ver, self.topology.hash)
        welcome = Welcome(
            req=hello.req,
            node=self._me.node,
            inc=self._me.inc,
            version=VERSION,
            limits=ClientLimits(
                frame_bytes_max=FRAME_BYTES_MAX,
                message_bytes_max=MESSAGE_BYTES_MAX,
                channels_max=self._limits.channels_max,
            ),
            heartbeat_ms=CLIENT_HEARTBEAT_MS,
            here=here(self.topology, self._me.node),
            known=self.topology if newer else None,
        )
        connection.say(welcome, outbox)

    def shown(self, connection: Connection, known: Ver | None, outbox: list[Effect]) -> None:
        """A frame showed which topology the client has."""
        if known is None:
            return
        connection.known = known
        self._update(connection, outbox)

    def changed(self, topology: Topology, outbox: list[Effect]) -> None:
        """There is a newer topology: push it."""
        self.topology = topology
        for connection in self._connections.values():
            self._update(connection, outbox)

    def _update(self, connection: Connection, outbox: list[Effect]) -> None:
        if connection.state is State.WELCOME and is_older(connection.known, self.topology):
            connection.known = (self.topology.ver, self.topology.hash)
            connection.say(self.topology, outbox)

    def wake(self, now: float, outbox: list[Effect]) -> None:
        """Close those that are silent, or never said HELLO."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + self._silence_s / 6
        for connection in self._connections.values():
            if connection.state is State.CONNECTED:
                if now >= connection.opened_at + self._limits.before_welcome_s:
                    sentence = f"no HELLO within {self._limits.before_welcome_s} s"
                    connection.end(
                        Error(code="limit", sentence=sentence, ends="connection"), outbox
                    )
            elif now >= connection.heard_at + self._silence_s:
                # Closed without a word: who is silent does not read it either.
                connection.close(outbox)

    def next_deadline(self) -> float | None:
        return self._next_sweep if self._connections else None
