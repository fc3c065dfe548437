"""Channels of the two kinds: producers, and consumers' legs."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from broker.core.connection import Channel, Connection
from broker.core.events import Effect
from tanist.wire.control import Error


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
    window_bytes: int = 0
    """How far ahead of what it used it may be let; the faster it uses that up, the farther."""
    granted_at: float = -inf
    dry_since: float | None = None
    """It has no credit since then, as there is none to give."""
    parked: int = 0
    """Batches that came on credit and wait for room."""

    @property
    def has_credit(self) -> bool:
        """Left in both: then one whole batch may come, even if it goes beyond."""
        return self.used_messages < self.granted_messages and self.used_bytes < self.granted_bytes

    @property
    def unused_bytes(self) -> int:
        """Of its credit. A batch may be larger than what was left."""
        return max(0, self.granted_bytes - self.used_bytes)


@dataclass(slots=True, eq=False)
class ConsumerChannel(Channel):
    """One consumer's leg to one post office."""

    leg: int = 0
    consumer: bytes = b""
    automatic: bool = False
    unsent: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Deliveries that are planned and have not left: (first offset, end) by number."""
    parked_bytes: int = 0
    """Of what its client said that waits until the stream has room again."""

    @property
    def holder(self) -> tuple[bytes, bytes]:
        """Whose deliveries these are, across connections: (session, consumer)."""
        return (self.connection.session, self.consumer)


def makes_way(
    before: Channel, connection: Connection, number: int, req: int, outbox: list[Effect]
) -> bool:
    """The same producer or consumer is opened again: whether the older channel must end for it.

    The one of the two that loses is told. A newer connection of the session wins, since what
    comes late by an older one is from before.
    """
    newer = before.connection.session == connection.session and (
        before.connection.dial > connection.dial
    )
    sentence = "the same producer or consumer was opened by a newer connection"
    error = channel_error(req if newer else 0, "replaced", sentence, str(number))
    if newer:
        connection.say(error, outbox, number)
    else:
        before.say(error, outbox)
    return not newer


def channel_error(req: int, code: str, sentence: str, value: str) -> Error:
    """An ERROR that ends the channel it is said on."""
    return Error(req=req, code=code, sentence=sentence, value=value, ends="channel")
