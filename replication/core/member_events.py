"""How a member is set up, and its news for the layer above."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from replication.core import stream_events as stream_says
from replication.core.caretaker import Presence
from replication.core.clustermap import Settings
from replication.core.identity import Incarnation
from replication.core.stream_limits import StreamLimits


class MemberSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one member."""

    cluster: str
    expected: tuple[str, ...]
    addresses: dict[str, str]
    """Where the expected nodes listen for each other, by name."""

    presence: Presence
    settings: Settings
    heartbeat_s: float = 0.1
    stream_limits: StreamLimits


@dataclass(frozen=True, slots=True)
class MapLearned:
    """A newer cluster map is committed; `member.map` is it."""

    ver: int


@dataclass(frozen=True, slots=True)
class ReleasedFound:
    """The answer to `ask_released`."""

    req: int
    gen: int
    seq: int
    owned: bool


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A node says this to us as the owner of a stream, for the layer above."""

    who: Incarnation
    sid: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class SaidAside:
    """The holder of another copy of a stream says this, for the layer above."""

    who: Incarnation
    sid: int
    gen: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Vouched:
    """What became of `declare_lost`."""

    token: int
    result: str
    """`changes.DONE`, or why it was refused."""


News = MapLearned | Vouched | Forwarded | ReleasedFound | SaidAside | stream_says.News
