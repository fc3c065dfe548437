"""Finds a node for each errand, and follows where the nodes send it.

The owner that we know of is asked first. While it cannot be reached, any other node is: it
answers MOVED or WAIT, and never guesses. A node that said that it is not the owner is not
asked again before a pause.
"""

from __future__ import annotations

from tanist.core.errand import Errand, Stage
from tanist.core.events import Effect
from tanist.core.link import Link, State
from tanist.core.links import Links
from tanist.core.settings import BACKOFF_S
from tanist.core.topology import KnownTopology
from tanist.errors import Error, FailoverTimeout, RefusedError
from tanist.wire.control import Moved


class Router:
    """All errands of a client that are not done."""

    def __init__(self, links: Links, topology: KnownTopology, *, failover_timeout_s: float) -> None:
        self._links = links
        self._topology = topology
        self._timeout_s = failover_timeout_s
        self._restless: dict[Errand, None] = {}
        self._pumped_at = 0.0

    @property
    def busy(self) -> bool:
        """There are errands that are not done."""
        return bool(self._restless)

    def add(self, errand: Errand) -> None:
        """It is WAITING (again)."""
        errand.router = self
        self._restless[errand] = None

    def remove(self, errand: Errand) -> None:
        """It is over, whatever comes of it."""
        errand.detach()
        errand.stage = Stage.OVER
        self._restless.pop(errand, None)

    def end(self, error: Error, now: float, outbox: list[Effect]) -> None:
        """The client is closed: nothing is looked for any more."""
        for errand in list(self._restless):
            if errand.stage in (Stage.WAITING, Stage.ASKED):
                errand.refused(error, now, outbox)
            self.remove(errand)

    def moved(self, errand: Errand, moved: Moved, now: float) -> None:
        """The answer is that another node owns the stream."""
        assert errand.link is not None
        node = errand.link.node
        # An owner that we know to be deposed by now is no news; neither is "somebody else".
        self._topology.moved(moved)
        errand.hop(now, away_from=node)

    def topology_changed(self) -> None:
        """Who waits to try again need not wait."""
        for errand in self._restless:
            if errand.stage is Stage.WAITING:
                errand.not_before = 0.0
                errand.avoid.clear()

    def pump(self, now: float, outbox: list[Effect]) -> None:
        """Send what can be sent; give up what has waited for too long."""
        self._pumped_at = now
        for errand in list(self._restless):
            if errand.since is not None and now >= errand.since + self._timeout_s:
                self._give_up(errand, now, outbox)
            if errand.stage is Stage.WAITING and now >= errand.not_before:
                link = self._link_for(errand, now, outbox)
                if link is not None:
                    self._send(errand, link, now, outbox)
            if errand.stage in (Stage.DONE, Stage.OVER):
                del self._restless[errand]

    def _send(self, errand: Errand, link: Link, now: float, outbox: list[Effect]) -> None:
        if errand.needs_channel and not link.takes_channel:
            sentence = (
                f"{link.node} allows {link.channels_max} channels a connection: use another client"
            )
            errand.refused(RefusedError(sentence, code="limit"), now, outbox)
            return
        request, channel = errand.request(link)
        errand.asked_often += 1
        errand.req = link.ask(request, self._topology.ver, outbox, channel)
        errand.link = link
        errand.stage = Stage.ASKED
        link.errands[errand.req] = errand

    def _give_up(self, errand: Errand, now: float, outbox: list[Effect]) -> None:
        what = "no node" if errand.sid is None else f"no owner of stream {errand.sid}"
        error = FailoverTimeout(
            f"{what} answered for {self._timeout_s:g} s (last: {self._links.last_error})"
        )
        errand.since = None
        errand.given_up = True
        errand.gave_up(error, now, outbox)

    def _link_for(self, errand: Errand, now: float, outbox: list[Effect]) -> Link | None:
        place = self._topology.place(errand.sid) if errand.sid is not None else None
        if place is not None and place.locators:
            link = self._links.at(place)
            if link is not None:
                # Not open yet: its welcome, or its end, brings us here again.
                return link if link.state is State.OPEN else None
            if self._links.dial_one(place.locators, now, outbox):
                return None
        for link in self._links.open_links():
            if link.node not in errand.avoid:
                return link
        if self._links.promising(now):
            return None
        others = [
            locator
            for locator in self._links.everywhere()
            if self._topology.node_at(locator) not in errand.avoid
        ]
        if not self._links.dial_one(others, now, outbox) and not self._links.opening:
            self._wait_for_anybody(errand, now)
        return None

    def _wait_for_anybody(self, errand: Errand, now: float) -> None:
        if self._links.open_links():
            # Everybody was asked, and the owner cannot be reached.
            errand.pause(now)
        else:
            earliest = self._links.earliest_dial(self._links.everywhere()) or now
            errand.avoid.clear()
            errand.not_before = max(earliest, now + BACKOFF_S / 2)

    def next_deadline(self) -> float | None:
        deadline: float | None = None
        for errand in self._restless:
            if errand.since is not None:
                at = errand.since + self._timeout_s
                deadline = at if deadline is None else min(deadline, at)
            # One that could go but has no link waits for that, not for the clock.
            if errand.stage is Stage.WAITING and errand.not_before > self._pumped_at:
                at = errand.not_before
                deadline = at if deadline is None else min(deadline, at)
        return deadline
