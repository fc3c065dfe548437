"""What the client's core is told, and what it says must be done.

Connections are numbers that the core gives and never uses again, so that a late event or
effect hits nobody. What an application asks for are calls on the core's objects; they take
effect with the next event, `Wake` if there is no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tanist.errors import Error
from tanist.events import ClientEvent
from tanist.wire.batch import Part

if TYPE_CHECKING:
    from tanist.core.consumer import ConsumerCore


@dataclass(frozen=True, slots=True)
class Opened:
    """A dialed connection is there."""

    connection: int


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dialed connection will not be there."""

    connection: int
    why: str


@dataclass(slots=True)
class Received:
    """Bytes of a node, as they came."""

    connection: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone, whoever closed it."""

    connection: int
    why: str


@dataclass(frozen=True, slots=True)
class Wake:
    """The deadline has come, or calls were made that wait to take effect."""


Event = Opened | DialFailed | Received | Lost | Wake


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect, and say `Opened` or `DialFailed`."""

    connection: int
    host: str
    port: int


@dataclass(slots=True)
class Write:
    """Bytes for a node: the parts one after the other."""

    connection: int
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Hangup:
    """Close after what was written before. Nothing more is told about this connection."""

    connection: int


@dataclass(slots=True)
class Deliverable:
    """Messages can be taken from a consumer that was empty, or it has an error to raise."""

    consumer: ConsumerCore


@dataclass(slots=True)
class Dropped:
    """Some of what was taken from a consumer and not handed out is not ours any more."""

    consumer: ConsumerCore


@dataclass(slots=True)
class Resolve:
    """What `token` stood for is decided: `error` if there is one, else `result`."""

    token: object
    result: object = None
    error: Error | None = None


@dataclass(slots=True)
class Tell:
    """For the application's listeners."""

    event: ClientEvent


Effect = Dial | Write | Hangup | Deliverable | Dropped | Resolve | Tell
