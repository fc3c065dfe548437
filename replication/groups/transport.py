"""The contract of a group transport.

A group carries frames from the owner of a stream to all who follow its node. It may lose,
repeat and reorder frames; it may not deliver a piece of one, and it never makes the sender
wait. Order, gaps and repair belong to the stream above it, so the transports need not agree
on anything but this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from replication.core.events import Part


@dataclass(frozen=True, slots=True)
class GroupHealth:
    """What a transport has counted since it was opened."""

    followers: int
    """Nodes that follow this one now, as far as the transport can see."""

    published: int
    received: int

    dropped: int
    """Frames that this side threw away. What the network lost is not known here."""


class GroupTransport(Protocol):
    """One node's end of the group.

    Its maker gives it a function that it calls when frames may be waiting. After that call
    `read` must be called until it says that nothing waits; only then will there be another.
    """

    def publish(self, parts: Sequence[Part]) -> None:
        """Send one frame, the parts one after the other, to all who follow this node."""

    def join(self, node: str, address: str) -> None:
        """Follow a node; at another address than before, if it is followed already."""

    def leave(self, node: str) -> None:
        """Do not follow that node any more. Frames read before may still be on their way."""

    def read(self, bytes_max: int) -> tuple[list[bytes], bool]:
        """The frames that wait, and whether they were all.

        Whole frames, until `bytes_max` is reached or passed.
        """

    def health(self) -> GroupHealth: ...

    def close(self) -> None:
        """Give everything back. What was published and not yet sent may be lost."""
