"""What a node's core is told, and what it says must be done.

The shell (`broker.runtime`) turns sockets, files and time into the events, and carries
out the effects; the simulator does both on simulated time. Connections and links are
numbers that are never used again, so that a late effect hits nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paging.disk import Done, Job
from replication.core.events import (
    Dial as Dial,
    DialFailed as DialFailed,
    Exit as Exit,
    GroupData as GroupData,
    GroupDrained as GroupDrained,
    GroupJoin as GroupJoin,
    GroupLeave as GroupLeave,
    GroupPublish as GroupPublish,
    Level as Level,
    Log as Log,
    PeerClose as PeerClose,
    PeerData as PeerData,
    PeerEffect as PeerEffect,
    PeerEvent as PeerEvent,
    PeerLost as PeerLost,
    PeerOpened as PeerOpened,
    PeerWrite as PeerWrite,
    Persist as Persist,
    Persisted as Persisted,
    PersistFailed as PersistFailed,
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


@dataclass(slots=True)
class DiskDone:
    """What became of jobs for the disk with pages."""

    done: list[Done]


Event = PeerEvent | ClientOpened | ClientData | ClientLost | DiskDone | Stop


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


@dataclass(slots=True)
class DiskJobs:
    """Jobs for the disk with pages, none of which the node waits for."""

    jobs: list[Job]


Effect = PeerEffect | ClientWrite | ClientClose | ListenForClients | DiskJobs

READ_BYTES_MAX: Final = 256 << 10
"""Read from one socket in one turn of the loop; the rest waits for the next turn."""
