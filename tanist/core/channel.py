"""What a producer and a consumer's leg have in common: a channel to the owner of one post office.

A channel is opened for one (sid, gen, epoch). When it ends, for whatever reason but our own
wish, the same object opens another one, at whoever is the owner by then: it is an errand
that may be done many times. Everything that still comes under an old number is dropped,
because the number is nobody's any more.
"""

from __future__ import annotations

from collections.abc import Callable

from tanist.core.errand import Errand, Stage
from tanist.core.events import Effect, Tell
from tanist.core.link import Link, State
from tanist.errors import Error
from tanist.events import Failed, FailoverStarted, Held, Role
from tanist.wire import control
from tanist.wire.frames import Frame


class Channel(Errand):
    """Base of both.

    Attributes:
        gen, epoch: Of the stream, when it was last opened; 0: never.
        owner: The node that it was last open at.
        stalled: It was told that the owner waits for copies.
        fails_over: It was open, is not now, and the application was told.
    """

    needs_channel = True
    role: Role

    def __init__(self, sid: int, queue: str, draw: Callable[[], float], now: float) -> None:
        super().__init__(sid, draw, now)
        self.queue = queue
        self.number = 0
        self.gen = 0
        self.epoch = 0
        self.owner = ""
        self.fails_over = False
        self.stalled = False

    @property
    def office(self) -> int:
        """The sid, which every channel has."""
        assert self.sid is not None
        return self.sid

    @property
    def is_open(self) -> bool:
        return self.stage is Stage.DONE

    # For the core

    def frame(self, received: Frame, now: float, outbox: list[Effect]) -> None:
        """A frame on this channel."""
        raise NotImplementedError

    def closed(self, now: float) -> None:
        """The channel is gone; called once each time, before another one is looked for."""
        raise NotImplementedError

    def interrupted(self, now: float, outbox: list[Effect]) -> None:
        """The channel, or the request for one, is gone, or belongs to an epoch that is over."""
        if self.stage is Stage.DONE:
            self.since = now
            if not self.fails_over:
                self.fails_over = True
                outbox.append(
                    Tell(FailoverStarted(self.office, self.queue, self.role, self.owner, now))
                )
            self.closed(now)
        self.hops = 0
        self.wait(now)

    def reopened(self, now: float) -> None:
        """The channel ended, and another one at the same owner may be had at once."""
        self.closed(now)
        self.since = now
        self.wait(now)

    def waits(self, why: str, *, held: bool, now: float, outbox: list[Effect]) -> None:
        super().waits(why, held=held, now=now, outbox=outbox)
        if held and not self.stalled:
            self.stalled = True
            outbox.append(Tell(Held(self.office, why, now)))

    def tell_failed(self, error: Error, now: float, outbox: list[Effect]) -> None:
        outbox.append(Tell(Failed(self.office, self.queue, self.role, error, now)))

    # The number

    def take_number(self, link: Link) -> int:
        self.number = link.next_channel()
        link.channels[self.number] = self
        return self.number

    def detach(self) -> None:
        link = self.link
        if link is not None and link.channels.get(self.number) is self:
            del link.channels[self.number]
        self.number = 0
        super().detach()

    def opened(self, answer: control.Opened) -> None:
        """The channel is there: from now on frames come and go."""
        assert self.link is not None
        self.link.errands.pop(self.req, None)
        self.stage = Stage.DONE
        self.owner = self.link.node
        self.gen, self.epoch = answer.gen, answer.epoch
        self.stalled = False
        self.arrived()

    def close(self, outbox: list[Effect]) -> None:
        """By our own wish. Nothing is waited for."""
        link = self.link
        if link is not None and self.number and link.state is State.OPEN:
            link.ask(control.Close(req=0), link.told, outbox, self.number)
        self.detach()
        self.stage = Stage.OVER
