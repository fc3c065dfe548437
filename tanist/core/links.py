"""All connections of a client: dialing, HELLO, heartbeats, silence.

A client enters at a random locator and keeps one connection to each node it has channels
at. Whoever needs a node says so; dialing is begun at most once for each node at a time,
with pauses that double after failures.

Rules
-----
1. `dial` numbers grow over all connections of the session: they are the connection numbers.
   So a node that hears two connections ask for the same thing knows which one is newer.
2. A connection is closed that was silent for `SILENCE_S`. If our own turn was late by that
   much, all are closed, and what was not read is dropped: the node has let others take over
   what we held, and what lies in the socket may be out of date.
3. A node that stopped says nothing, so a client that knows only that one would wait for the
   whole silence. Before that it enters by another one as well, and learns of a takeover.
4. The kernel of a node that stopped still accepts connections, which nobody welcomes. After
   `OVERDUE_S` another node is dialed beside such a one, so that it costs an entering client
   no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tanist.core.backoff import Backoff
from tanist.core.events import Dial, Effect, Hangup
from tanist.core.link import Link, State
from tanist.core.settings import DOUBT_S, OPENING_S_MAX, OVERDUE_S, SILENCE_S, ClientSettings
from tanist.core.topology import KnownTopology, Place
from tanist.url import split_locator
from tanist.wire.control import VERSION, Hello, Ping, Welcome
from tanist.wire.limits import FRAME_BYTES_MAX


class Links:
    """The connections of one session.

    Args:
        locators: Where to enter.
        session: 128 bits as hexadecimal digits; kept over reconnects.
        draw: Uniform in [0, 1).
    """

    def __init__(
        self,
        locators: list[str],
        *,
        session: str,
        settings: ClientSettings,
        topology: KnownTopology,
        draw: Callable[[], float],
    ) -> None:
        assert locators
        self._bootstrap = locators
        self._session = session
        self._settings = settings
        self._topology = topology
        self._draw = draw
        self._links: dict[int, Link] = {}
        self._dialed = 0
        self._backoffs: dict[str, tuple[Backoff, float]] = {}
        """By locator: the pauses, and the end of the current one."""
        self.last_error = "nothing was tried yet"

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def get(self, connection: int) -> Link | None:
        return self._links.get(connection)

    def open_links(self) -> list[Link]:
        """Those that are welcome, the oldest first: that is where the client entered."""
        return [link for link in self._links.values() if link.state is State.OPEN]

    @property
    def opening(self) -> bool:
        """Whether one is being made, however long it takes."""
        return any(link.state is not State.OPEN for link in self._links.values())

    def promising(self, now: float) -> bool:
        """Whether one is being made that may well be welcome in a moment."""
        return any(
            link.state is not State.OPEN and now < link.begun_at + OVERDUE_S
            for link in self._links.values()
        )

    @property
    def entry(self) -> Link | None:
        """The connection by which the client is in the cluster."""
        return next((link for link in self._links.values() if link.state is State.OPEN), None)

    def at(self, place: Place) -> Link | None:
        """The connection to that node, in whatever state it is."""
        for link in self._links.values():
            if place.node and link.node:
                if place.node == link.node:
                    return link
            elif not link.locators.isdisjoint(place.locators):
                return link
        return None

    # Dialing

    def everywhere(self) -> list[str]:
        """All locators that are known: of the topology, and those to enter by."""
        known = [at for locators in self._topology.nodes.values() for at in locators]
        return list(dict.fromkeys((*known, *self._bootstrap)))

    def dial_one(self, locators: Iterable[str], now: float, outbox: list[Effect]) -> bool:
        """Dial one of these at random, if there is one that is not connected or in a pause."""
        ready = [at for at in self._unconnected(locators) if now >= self._pause_end(at)]
        if not ready:
            return False
        locator = ready[int(self._draw() * len(ready))]
        self._dialed += 1
        self._links[self._dialed] = Link(self._dialed, locator, now)
        host, port = split_locator(locator)
        outbox.append(Dial(self._dialed, host, port))
        return True

    def earliest_dial(self, locators: Iterable[str]) -> float | None:
        """When the first of these that is not connected comes out of its pause."""
        return min(map(self._pause_end, self._unconnected(locators)), default=None)

    def _unconnected(self, locators: Iterable[str]) -> list[str]:
        taken = {at for link in self._links.values() for at in link.locators}
        return [at for at in locators if at not in taken]

    def _pause_end(self, locator: str) -> float:
        pause = self._backoffs.get(locator)
        return pause[1] if pause is not None else 0.0

    # What happens to them

    def opened(self, link: Link, now: float, outbox: list[Effect]) -> None:
        link.state = State.GREETING
        link.heard_at = now
        hello = Hello(
            req=0,
            versions=(VERSION, VERSION),
            client=self._settings.name,
            session=self._session,
            dial=link.connection,
        )
        link.ask(hello, self._topology.ver, outbox)

    def welcome(self, link: Link, welcome: Welcome, now: float, outbox: list[Effect]) -> bool:
        """Whether the link is of use. One to a node that we have a link to already is not."""
        link.node, link.inc, link.here = welcome.node, welcome.inc, welcome.here
        link.channels_max = welcome.limits.channels_max
        link.heartbeat_s = max(0.05, welcome.heartbeat_ms / 1000)
        link.ping_at = now + link.heartbeat_s
        link.reader.bytes_max = FRAME_BYTES_MAX
        twin = next(
            (
                other
                for other in self.open_links()
                if (other.node, other.inc) == (link.node, link.inc)
            ),
            None,
        )
        if twin is not None:
            twin.locators |= link.locators
            self.hang_up(link, outbox)
            return False
        link.state = State.OPEN
        return True

    def gone(self, link: Link, why: str, now: float) -> None:
        """It is lost, or could not be made. Its locators get a pause."""
        if link.state is State.OPEN and now - link.begun_at > SILENCE_S:
            for locator in link.locators:
                self._backoffs.pop(locator, None)
        for locator in link.locators:
            backoff = self._backoffs.get(locator, (Backoff(self._draw), 0.0))[0]
            self._backoffs[locator] = (backoff, now + backoff.next_s())
        self.last_error = f"{link.locator}: {why}"
        link.state = State.GONE
        self._links.pop(link.connection, None)

    def hang_up(self, link: Link, outbox: list[Effect]) -> None:
        """Close it from our side."""
        link.state = State.GONE
        if self._links.pop(link.connection, None) is not None:
            outbox.append(Hangup(link.connection))

    # Time

    def in_doubt(self, now: float) -> bool:
        """Whether no connection has been heard of lately, and none is about to be welcome."""
        return not self.promising(now) and all(
            now >= link.heard_at + DOUBT_S for link in self.open_links()
        )

    def silent(self, now: float) -> list[tuple[Link, str]]:
        """Those that must be given up, each with the reason."""
        found: list[tuple[Link, str]] = []
        for link in self._links.values():
            if link.state is not State.OPEN:
                if now >= link.begun_at + OPENING_S_MAX:
                    found.append((link, f"no welcome within {OPENING_S_MAX:g} s"))
            elif now >= link.heard_at + SILENCE_S:
                found.append((link, f"silent for {SILENCE_S:g} s"))
        return found

    def heartbeats(self, now: float, outbox: list[Effect]) -> None:
        for link in self._links.values():
            if link.state is State.OPEN and now >= link.ping_at:
                link.ping_at = now + link.heartbeat_s
                known = self._topology.ver
                topology = known if known != link.told else None
                link.told = known
                link.say(Ping(time_ms=int(now * 1000), topology=topology), outbox)

    def next_deadline(self, now: float) -> float | None:
        deadline: float | None = None
        for link in self._links.values():
            if link.state is State.OPEN:
                at = min(link.ping_at, link.heard_at + SILENCE_S)
                if now < link.heard_at + DOUBT_S:
                    at = min(at, link.heard_at + DOUBT_S)
            else:
                at = link.begun_at + OPENING_S_MAX
                if now < link.begun_at + OVERDUE_S:
                    at = link.begun_at + OVERDUE_S
            if deadline is None or at < deadline:
                deadline = at
        return deadline
