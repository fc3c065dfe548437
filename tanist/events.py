"""What an application is told about its connection to the cluster.

    ConnectionLost ─▶ FailoverStarted ─▶ Resumed
                                      ├▶ Lost, then Resumed     the content is gone
                                      └▶ Failed                 no owner in time; tried on
    Held                               the owner waits for copies or room; nothing is wrong here

None of these needs an answer: the client follows by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tanist.errors import Error

Role = Literal["producer", "consumer"]


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """A connection to a node ended and was not closed by this side's wish."""

    node: str
    why: str
    at: float


@dataclass(frozen=True, slots=True)
class FailoverStarted:
    """A producer, or a consumer's leg, has no owner to talk to and looks for it."""

    sid: int
    queue: str
    role: Role
    owner: str
    """The node that was the owner until now."""
    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """It goes on, with what was in doubt repeated and what is held kept."""

    sid: int
    queue: str
    role: Role
    old_owner: str
    new_owner: str
    gen: int
    epoch: int
    in_doubt: int
    """Producer: messages sent and not confirmed. Consumer: acks and requeues not answered."""
    held: int
    """Consumer: messages that the client had and keeps."""
    at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """No owner was found in time, or the queue is gone. `error` is what calls raise."""

    sid: int
    queue: str
    role: Role
    error: Error
    at: float


@dataclass(frozen=True, slots=True)
class Held:
    """The owner is there and waits, and so does this client, for as long as it takes.

    For enough copies: nothing is confirmed or delivered. Or, a producer only, for room: its
    queue, or the memory of a node that has a copy of it, is full.
    """

    sid: int
    why: str
    at: float


@dataclass(frozen=True, slots=True)
class Lost:
    """All copies of a post office were lost: it begins a new life, empty.

    What a producer had in doubt is repeated there, marked as such. What a consumer holds
    is still handed out; its acks have no effect any more.
    """

    sid: int
    queue: str
    role: Role
    gen: int
    """The new life."""
    in_doubt: int
    at: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The owner would not take these messages. They are stored nowhere."""

    sid: int
    queue: str
    messages: int
    error: Error
    at: float


ClientEvent = ConnectionLost | FailoverStarted | Resumed | Failed | Held | Lost | Refused
