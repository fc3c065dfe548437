"""The register's events and effects: what its shell tells it, and what it must do then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from replication.core.clustermap import ClusterMap
from replication.core.register_messages import RegisterMessage


@dataclass(frozen=True, slots=True)
class FromPeer:
    """A message came from the node of that name (never from this one)."""

    node: str
    message: RegisterMessage


@dataclass(frozen=True, slots=True)
class Persisted:
    """The blob of `Persist(…, token)`, or a later one, is on disk."""

    token: int


@dataclass(frozen=True, slots=True)
class Wake:
    """It is `next_deadline()`, or later."""


Event = FromPeer | Persisted | Wake


@dataclass(frozen=True, slots=True)
class Committed:
    """One value that a majority agreed on."""

    ver: int
    cluster_id: str
    map: ClusterMap


@dataclass(frozen=True, slots=True)
class Send:
    """To the node of that name (never to this one). It may be lost."""

    node: str
    message: RegisterMessage


@dataclass(frozen=True, slots=True)
class Persist:
    """Write `blob` and answer with `Persisted(token)`; after an error never answer again.

    A later blob holds all that an earlier one did: of several that wait, only the last one
    needs to be written.
    """

    blob: bytes
    token: int


@dataclass(frozen=True, slots=True)
class Learned:
    """A newer value is known to be committed. `ver` grows from one to the next."""

    value: Committed


@dataclass(frozen=True, slots=True)
class Changed:
    """A request's outcome is known: one result for each of its functions.

    Attributes:
        ver: Of a committed value that shows the outcome.
    """

    request: int
    ver: int
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """For the log."""

    level: Literal["debug", "info", "warning"]
    text: str
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fatal:
    """This node cannot go on. The sentence is for the operator."""

    sentence: str


Effect = Send | Persist | Learned | Changed | Note | Fatal
