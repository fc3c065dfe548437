"""Channels: what a client opened for one post office, in one gen and epoch.

An object is one instance of a channel. Its number is free again when it is closed, so an
effect that is due later names the object, and looks whether it is still open.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.core.connection import Connection
from broker.core.events import ClientWrite, Effect
from tanist.wire.batch import Part
from tanist.wire.control import Message, QueueInfo, control_frame
from tanist.wire.frames import Verb, frame


@dataclass(slots=True, eq=False)
class Channel:
    """What producers and consumers have in common."""

    connection: Connection
    number: int
    sid: int
    queue: QueueInfo
    open: bool = True
    answered: bool = False
    """OPENED has left: before that the client would not know what a frame here is about."""
    waits: bool = False
    """It was told that the stream is held."""

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


@dataclass(slots=True, eq=False)
class ProducerChannel(Channel):
    """One producer at one post office."""

    producer: bytes = b""
    epoch: int = 0
    """Of the producer."""
    used_messages: int = 0
    used_bytes: int = 0
    granted_messages: int = 0
    granted_bytes: int = 0
    parked: int = 0
    """Batches that came on credit and wait for room."""

    @property
    def has_credit(self) -> bool:
        """Left in both: then one whole batch may come, even if it goes beyond."""
        return self.used_messages < self.granted_messages and self.used_bytes < self.granted_bytes


@dataclass(slots=True, eq=False)
class ConsumerChannel(Channel):
    """One consumer's leg to one post office."""

    leg: int = 0
    consumer: bytes = b""
    automatic: bool = False
    unsent: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Deliveries that are planned and have not left: (first offset, end) by number."""

    @property
    def holder(self) -> tuple[bytes, bytes]:
        """Whose deliveries these are, across connections: (session, consumer)."""
        return (self.connection.session, self.consumer)
