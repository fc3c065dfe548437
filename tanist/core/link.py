"""One connection to a node, as the client sees it.

    DIALING ── Opened ──▶ GREETING ── WELCOME ──▶ OPEN ── lost, silent, an error ──▶ GONE

Requests and channels are only begun on an OPEN link. Whoever holds one that is GONE looks
for another.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from tanist.core.events import Effect, Write
from tanist.wire.control import Message, Request, Ver, control_frame
from tanist.wire.frames import FRAME_BYTES_MAX_BEFORE_WELCOME, FrameReader

if TYPE_CHECKING:
    from tanist.core.channel import Channel
    from tanist.core.errand import Errand

_CHANNEL_NUMBER_MAX = (1 << 16) - 1
_REQ_MAX = (1 << 32) - 1


class State(Enum):
    DIALING = "dialing"
    GREETING = "greeting"
    OPEN = "open"
    GONE = "gone"


class Link:
    """A connection, the requests on it that wait for an answer, and its channels."""

    def __init__(self, connection: int, locator: str, now: float) -> None:
        self.connection = connection
        self.state = State.DIALING
        self.locators = {locator}
        """By which this node was found."""
        self.node = ""
        self.inc = 0
        self.here = 0
        """Where producers that enter by this node publish to."""
        self.channels_max = 0
        self.reader = FrameReader(FRAME_BYTES_MAX_BEFORE_WELCOME)
        self.channels: dict[int, Channel] = {}
        self.errands: dict[int, Errand] = {}
        self.told: Ver | None = None
        """The topology that the node knows us to have."""
        self.begun_at = now
        self.heard_at = now
        self.ping_at = 0.0
        self.heartbeat_s = 1.0
        self._channel = 0
        self._req = 0

    def __repr__(self) -> str:
        return f"<Link {self.connection} {self.node or self.locators} {self.state.value}>"

    @property
    def locator(self) -> str:
        return next(iter(self.locators))

    @property
    def takes_channel(self) -> bool:
        return len(self.channels) < self.channels_max

    def say(self, message: Message, outbox: list[Effect], channel: int = 0) -> None:
        outbox.append(Write(self.connection, control_frame(message, channel)))

    def ask(
        self, request: Request, known: Ver | None, outbox: list[Effect], channel: int = 0
    ) -> int:
        """Send a request under the next number, which is returned."""
        self._req = self._req % _REQ_MAX + 1
        topology = None
        if known != self.told:
            self.told = topology = known
        numbered = msgspec.structs.replace(request, req=self._req, topology=topology)
        self.say(numbered, outbox, channel)
        return self._req

    def next_channel(self) -> int:
        """A number that no channel has. The last one given comes last again, so that what the
        node still says to an old channel is not taken for a new one's."""
        assert self.takes_channel
        while True:
            self._channel = self._channel % _CHANNEL_NUMBER_MAX + 1
            if self._channel not in self.channels:
                return self._channel
