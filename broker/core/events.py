"""What a node's core is told, and what it says must be done.

The shell (`broker.runtime`) turns sockets, files and time into the events, and carries
out the effects; the simulator does both on simulated time. Connections and links are
numbers that are never used again, so that a late effect hits nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from replication.core.events import (
    Dial as Dial,
)
from replication.core.events import (
    DialFailed as DialFailed,
)
from replication.core.events import (
    Exit as Exit,
)
from replication.core.events import (
    GroupData as GroupData,
)
from replication.core.events import (
    GroupDrained as GroupDrained,
)
from replication.core.events import (
    GroupJoin as GroupJoin,
)
from replication.core.events import (
    GroupLeave as GroupLeave,
)
from replication.core.events import (
    GroupPublish as GroupPublish,
)
from replication.core.events import (
    Level as Level,
)
from replication.core.events import (
    Log as Log,
)
from replication.core.events import (
    PeerClose as PeerClose,
)
from replication.core.events import (
    PeerData as PeerData,
)
from replication.core.events import (
    PeerEffect as PeerEffect,
)
from replication.core.events import (
    PeerEvent as PeerEvent,
)
from replication.core.events import (
    PeerLost as PeerLost,
)
from replication.core.events import (
    PeerOpened as PeerOpened,
)
from replication.core.events import (
    PeerWrite as PeerWrite,
)
from replication.core.events import (
    Persist as Persist,
)
from replication.core.events import (
    Persisted as Persisted,
)
from replication.core.events import (
    PersistFailed as PersistFailed,
)
from replication.core.events import (
    Wake as Wake,
)
from tanist.wire.batch import Part


@dataclass(frozen=True, slots=True)
class ClientOpened:
    """A client connected."""

    connection: int


@dataclass(slots=True)
class ClientData:
    """Bytes of a client, as they came."""

    connection: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ClientLost:
    """The connection is gone, whoever closed it."""

    connection: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The operator wants the node to end."""


Event = PeerEvent | ClientOpened | ClientData | ClientLost | Stop


@dataclass(slots=True)
class ClientWrite:
    """Bytes for a client: the parts one after the other."""

    connection: int
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class ClientClose:
    """Close after what was written before."""

    connection: int


@dataclass(frozen=True, slots=True)
class ListenForClients:
    """Open the client listener: the map shows this node up, and the catalog has an owner."""


Effect = PeerEffect | ClientWrite | ClientClose | ListenForClients

READ_BYTES_MAX: Final = 256 << 10
"""Read from one socket in one turn of the loop; the rest waits for the next turn."""
