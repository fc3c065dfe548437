"""Something that must be asked of the node that serves a stream, wherever that is by then.

    WAITING ── a link to the owner, or to anybody ──▶ ASKED ── final answer ──▶ DONE
       ▲                                                │                        │
       └── MOVED, RETRY, a retryable error, link lost ──┘    (channels) ended ───┘

Declaring a queue is an errand; so is opening a channel, which may be DONE and WAITING many
times in its life. `Router` sends errands on their way. An errand that has had no owner's
word for `failover_timeout_s` is told so.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from tanist.core.backoff import Backoff
from tanist.core.events import Effect
from tanist.core.settings import HOPS_MAX
from tanist.errors import Error
from tanist.wire.control import Answer, Request

if TYPE_CHECKING:
    from tanist.core.link import Link
    from tanist.core.router import Router


class Stage(Enum):
    WAITING = "waiting"
    ASKED = "asked"
    DONE = "done"
    OVER = "over"


class Errand:
    """Base of all errands.

    Attributes:
        sid: The stream whose owner is asked; None: any node can answer.
        needs_channel: Whether its request opens one.
        since: When an owner's word was last had, while it is looked for; None: one is there,
            or nobody waits any more.
        given_up: It took too long, and was told so; it is tried on.
    """

    needs_channel = False

    def __init__(self, sid: int | None, draw: Callable[[], float], now: float) -> None:
        self.sid = sid
        self.stage = Stage.WAITING
        self.since: float | None = now
        self.given_up = False
        self.not_before = now
        self.link: Link | None = None
        self.req = 0
        self.asked_often = 0
        self.avoid: set[str] = set()
        """Nodes that said since the last pause that they are not the owner."""
        self.hops = 0
        self.backoff = Backoff(draw)
        self.router: Router | None = None

    # For `Router`

    def request(self, link: Link) -> tuple[Request, int]:
        """The request, and the channel that it is for (0: none)."""
        raise NotImplementedError

    def answered(self, answer: Answer, now: float, outbox: list[Effect]) -> None:
        """The final answer came, and it is neither an error nor a hint where to go."""
        raise NotImplementedError

    def refused(self, error: Error, now: float, outbox: list[Effect]) -> None:
        """The final answer is no."""
        raise NotImplementedError

    def gave_up(self, error: Error, now: float, outbox: list[Effect]) -> None:
        """No owner answered in time."""
        raise NotImplementedError

    def waits(self, why: str, *, held: bool, now: float, outbox: list[Effect]) -> None:
        """WAIT came."""
        if held:
            # An owner is there: it waits for copies, and so do we, for as long as it takes.
            self.since = None

    def detach(self) -> None:
        """Its request or channel, if there is one, means nothing any more."""
        link, self.link = self.link, None
        if link is not None:
            link.errands.pop(self.req, None)
        self.req = 0

    # How it goes on

    def wait(self, now: float, pause_s: float = 0.0) -> None:
        """Look for a link again, after a pause."""
        self.detach()
        self.stage = Stage.WAITING
        self.not_before = now + pause_s
        if self.since is None and not self.given_up:
            self.since = now
        if self.router is not None:
            self.router.add(self)

    def park(self) -> None:
        """Until `wait` is called, nothing is asked."""
        self.detach()
        self.stage = Stage.OVER
        self.since = None

    def pause(self, now: float) -> None:
        """Nobody could help: ask everybody again, in a while."""
        self.avoid.clear()
        self.hops = 0
        self.wait(now, self.backoff.next_s())

    def hop(self, now: float, away_from: str) -> None:
        """That node sent us elsewhere."""
        self.hops += 1
        if self.hops > HOPS_MAX:
            self.pause(now)
        else:
            self.avoid.add(away_from)
            self.wait(now)

    def done(self) -> None:
        self.detach()
        self.stage = Stage.DONE
        self.arrived()

    def arrived(self) -> None:
        """An owner has answered."""
        self.since = None
        self.given_up = False
        self.hops = 0
        self.avoid.clear()
        self.backoff.reset()
