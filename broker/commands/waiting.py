"""Why a command waits, for the person who sees nothing happen.

What the nodes tell a producer or a consumer comes as events; other requests are told nothing,
so the nodes are asked for their status.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import tanist
from broker.commands.survey import ask_all, put_together
from broker.commands.terminal import say
from tanist.events import ClientEvent, FailoverStarted, Held, Refused, Resumed

QUIET_S: Final = 1.0
"""Without progress for so long, a person begins to wonder."""


@dataclass(slots=True)
class Waiting:
    """Kept up to date by a command while it works."""

    progress: int = 0
    """Anything that grows while all is well."""
    expecting: bool = True
    """Whether silence means that something is late. Not so for who waits for messages."""
    refused: int = 0
    """Messages that an owner would not take."""
    _heard: str = ""
    _said: set[str] = field(default_factory=set)

    def hear(self, event: ClientEvent) -> None:
        """The client's listener."""
        match event:
            case Held():
                self._heard = f"{_place(event.sid)} is held: {event.why.removeprefix('held: ')}"
            case FailoverStarted():
                self._heard = f"{_place(event.sid)} has no owner now; it was {event.owner}"
            case Resumed():
                self._heard = ""
            case Refused():
                self.refused += event.messages
            case _:
                pass

    async def watch(self, client: tanist.Client) -> None:
        """Say each reason once, for as long as this is not cancelled."""
        while True:
            before = self.progress
            await asyncio.sleep(QUIET_S)
            if self.progress != before:
                self._heard = ""
                continue
            reasons = [self._heard] if self._heard else []
            if self.expecting and not reasons:
                reasons = await _asked(client)
            if self.progress != before:
                continue
            for reason in reasons:
                if reason not in self._said:
                    self._said.add(reason)
                    say(f"waiting: {reason}; see tanist status")


async def _asked(client: tanist.Client) -> list[str]:
    """What is held, by the word of all nodes that answer."""
    try:
        streams = put_together(await ask_all(client))["streams"]
    except tanist.Error:
        return ["the cluster does not answer"]
    held = [
        f"{_place(int(sid))} is held: {warning.partition(': ')[2]}"
        for sid, stream in streams.items()
        for warning in stream["warnings"]
        if warning.startswith("HELD")
    ]
    return held or ["the cluster has not answered yet"]


def _place(sid: int) -> str:
    return f"post office {sid}" if sid else "the catalog of queues"
