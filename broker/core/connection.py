"""One client's connection as the node sees it, and the channels that are open on it.

    CONNECTED ── HELLO ──▶ WELCOME ── CLOSE, an error, silence ──▶ CLOSING

No verb but HELLO has an effect before WELCOME, and none at all in CLOSING: `ALLOWED` is the
whole rule. What is written to a closing connection still goes out, the last word included.

A channel is an object for each time that it is opened. Its number is free again when it is
closed, so an effect that is due later names the object, and looks whether it is still open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from broker.core.events import ClientClose, ClientWrite, Effect
from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Part
from tanist.wire.control import Error, Message, QueueInfo, Ver, control_frame
from tanist.wire.frames import FRAME_BYTES_MAX_BEFORE_WELCOME, FrameReader, Verb, frame


class State(Enum):
    CONNECTED = "connected"
    WELCOME = "welcome"
    CLOSING = "closing"


_CLIENT_VERBS: Final = frozenset(
    {
        Verb.PING,
        Verb.PONG,
        Verb.CLOSE,
        Verb.DECLARE,
        Verb.DELETE,
        Verb.DESCRIBE,
        Verb.LIST,
        Verb.STAT,
        Verb.PURGE,
        Verb.STATUS,
        Verb.DECLARE_LOST,
        Verb.OPEN_PRODUCER,
        Verb.OPEN_CONSUMER,
        Verb.PUBLISH,
        Verb.ACK,
        Verb.REQUEUE,
        Verb.CREDIT,
    }
)
ALLOWED: Final[dict[State, frozenset[int]]] = {
    State.CONNECTED: frozenset({Verb.HELLO}),
    State.WELCOME: _CLIENT_VERBS,
    State.CLOSING: frozenset(),
}


@dataclass(slots=True, eq=False)
class Connection:
    """A client that is connected."""

    number: int
    opened_at: float
    heard_at: float
    state: State = State.CONNECTED
    reader: FrameReader = field(default_factory=lambda: FrameReader(FRAME_BYTES_MAX_BEFORE_WELCOME))
    session: bytes = b""
    dial: int = 0
    """Grows with each connection of the session."""
    client: str = ""
    known: Ver | None = None
    """The topology that the client has, as far as we know."""
    channels: dict[int, Channel] = field(default_factory=dict)

    def check_allowed(self, verb: int) -> None:
        """Raises `RemoteProtocolError` if this verb means nothing now."""
        if verb not in ALLOWED[self.state]:
            name = Verb(verb).name if verb in Verb.__members__.values() else str(verb)
            raise RemoteProtocolError(
                f"{name} is not for a client to say in state {self.state.value}",
                code="bad_state",
                value=name,
            )

    def say(self, message: Message, outbox: list[Effect], channel: int = 0) -> None:
        """Write a control message."""
        outbox.append(ClientWrite(self.number, control_frame(message, channel)))

    def end(self, error: Error, outbox: list[Effect]) -> None:
        """Say why, and close."""
        if self.state is not State.CLOSING:
            self.say(error, outbox)
            self.close(outbox)

    def close(self, outbox: list[Effect]) -> None:
        """Close after what was written before."""
        if self.state is not State.CLOSING:
            self.state = State.CLOSING
            outbox.append(ClientClose(self.number))


@dataclass(slots=True, eq=False)
class Channel:
    """What a client opened for one post office, in one gen and epoch: the common part of it."""

    connection: Connection
    number: int
    sid: int
    queue: QueueInfo
    open: bool = True
    answered: bool = False
    """OPENED has left: before that the client would not know what a frame here is about."""
    waits: bool = False
    """It was told what it waits for."""

    def write(self, verb: Verb, parts: tuple[Part, ...], outbox: list[Effect]) -> None:
        outbox.append(ClientWrite(self.connection.number, frame(verb, self.number, *parts)))

    def say(self, message: Message, outbox: list[Effect]) -> None:
        parts = control_frame(message, self.number)
        outbox.append(ClientWrite(self.connection.number, parts))

    def close(self) -> None:
        """From here on nothing of this channel leaves, and what still comes is not read."""
        self.open = False
        if self.connection.channels.get(self.number) is self:
            del self.connection.channels[self.number]
