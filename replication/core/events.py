"""What a member of the cluster is told by its shell, and what it says must be done.

Links are numbers that are never used again, so that a late effect hits nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

Part = bytes | memoryview


@dataclass(frozen=True, slots=True)
class PeerOpened:
    """A link to another node is up. `dialed`: the node this side dialed, else None."""

    link: int
    dialed: str | None


@dataclass(slots=True)
class PeerData:
    """Bytes of a peer, as they came."""

    link: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The link is gone, whoever closed it."""

    link: int


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dial did not lead to a link. `refused`: the host answered that nobody listens there."""

    node: str
    refused: bool


@dataclass(slots=True)
class GroupData:
    """One frame of the group transport, whole."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Persisted:
    """The blob of the `Persist` with this token is on the disk."""

    token: int


@dataclass(frozen=True, slots=True)
class PersistFailed:
    """The disk refused; nothing will be persisted any more."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Wake:
    """`next_deadline()` has come."""


@dataclass(frozen=True, slots=True)
class GroupDrained:
    """The group transport was read until it was empty."""


PeerEvent = (
    PeerOpened
    | PeerData
    | PeerLost
    | DialFailed
    | GroupData
    | GroupDrained
    | Persisted
    | PersistFailed
    | Wake
)


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to a node's peer address; answered by `PeerOpened` or `DialFailed`."""

    node: str
    address: str


@dataclass(slots=True)
class PeerWrite:
    """Bytes for a peer: the parts one after the other."""

    link: int
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class PeerClose:
    """Close after what was written before."""

    link: int


@dataclass(slots=True)
class GroupPublish:
    """One frame for all who follow the stream; it may be lost, repeated and reordered."""

    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class GroupJoin:
    """Follow what `node` publishes, at this address of the group transport."""

    node: str
    address: str


@dataclass(frozen=True, slots=True)
class GroupLeave:
    """Do not follow that node any more."""

    node: str


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the blob to the disk; answered by `Persisted(token)` once it is there."""

    blob: bytes
    token: int


class Level(IntEnum):
    """Of a log line; the numbers are those of `logging`."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the operator: a sentence, and the values in it by name."""

    level: Level
    event: str
    fields: dict[str, object]


@dataclass(frozen=True, slots=True)
class Exit:
    """End the process. `sentence` says why and what to do."""

    code: int
    sentence: str


PeerEffect = (
    Dial | PeerWrite | PeerClose | GroupPublish | GroupJoin | GroupLeave | Persist | Log | Exit
)
