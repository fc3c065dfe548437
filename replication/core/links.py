"""The links to the other nodes: who dials, who is at the other end, and who is alive.

Theory of operation
-------------------
There is one link for each pair of nodes. A node that starts dials all others once; later
the one with the smaller name redials, after 100 ms, then doubling up to 1 s. Each side says
HELLO first, which binds the link to an incarnation; nothing else is read before.

Two facts come from here, and the decisions of others rest on them:

*Died*: the link of an incarnation closed **and** a dial after that was refused. Either side
dials once for that proof. A stranger who answers proves nothing, and neither does a time-out.

*Life*: a heartbeat of the peer echoes the number of one of ours. The moment when that one
was *sent* is the last moment at which the link is known to have worked in both directions.
A node that can send but not receive does not look alive by what it sends.

Rules
-----
1. Two links between the same two incarnations: that dialed by the smaller name is kept, or
   the newer one if both were dialed from the same side. So both sides choose the same one.
2. A node that answers under our own name is reported, never linked. A node that starts asks
   for one, at the address where its name was last known.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from replication.core.events import (
    Dial,
    DialFailed,
    Level,
    Log,
    PeerClose,
    PeerData,
    PeerEffect,
    PeerLost,
    PeerOpened,
    PeerWrite,
)
from replication.core.identity import Incarnation
from replication.core.peer_messages import (
    PEER_FRAME_BYTES_MAX,
    PEER_VERSION,
    Heartbeat,
    PeerHello,
    PeerVerb,
    peer_frame,
    read_peer_message,
)
from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Part
from tanist.wire.frames import Frame, FrameReader

REDIAL_S: Final = 0.1
PROVE_AGAIN_S: Final = 0.01
"""After a link was lost: a process that is just dying may still seem to listen, and what is
dialed then proves nothing. The next dial comes so soon, later ones after twice the time."""
REDIAL_S_MAX: Final = 1.0
HELLO_S_MAX: Final = 2.0
"""A link that is not bound by then is closed."""
LINK_SILENCE_S_MAX: Final = 3.0
"""A link that showed no life in both directions for so long is closed and dialed anew."""
_HEARTBEATS_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class LinkUp:
    who: Incarnation
    hello: PeerHello


@dataclass(frozen=True, slots=True)
class LinkDown:
    who: Incarnation


@dataclass(frozen=True, slots=True)
class Died:
    """Proven: this process is over."""

    who: Incarnation


@dataclass(slots=True)
class FromLink:
    """A frame of a bound link, other than HELLO and HEARTBEAT."""

    who: Incarnation
    verb: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class VerSeen:
    """A heartbeat told of this version of the cluster map."""

    node: str
    ver: int


@dataclass(frozen=True, slots=True)
class Namesake:
    """Another process answers under our own name."""

    who: Incarnation


LinkNews = LinkUp | LinkDown | Died | FromLink | VerSeen | Namesake


@dataclass(slots=True)
class _Link:
    number: int
    dialed: bool
    opened_at: float
    reader: FrameReader = field(default_factory=lambda: FrameReader(PEER_FRAME_BYTES_MAX))
    who: Incarnation | None = None
    echo: int = 0
    sent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_HEARTBEATS_KEPT))


@dataclass(slots=True)
class _Peer:
    """A node by name: the link to it, or how we try to get one."""

    address: str
    link: int | None = None
    dialing: bool = False
    redial_at: float | None = None
    pause_s: float = REDIAL_S
    last: Incarnation | None = None
    """Whom the last link was bound to."""
    proves: Incarnation | None = None
    """Whose death it proves if the dial that is under way is refused: his link was lost before
    it began."""


class Links:
    """The links of one node.

    Args:
        heartbeat_s: How often a heartbeat goes out on each link.
    """

    def __init__(self, *, me: Incarnation, cluster: str, settings: str, heartbeat_s: float) -> None:
        self._me = me
        self._cluster = cluster
        self._settings = settings
        self._heartbeat_s = heartbeat_s
        self._peers: dict[str, _Peer] = {}
        self._links: dict[int, _Link] = {}
        self._life_at: dict[Incarnation, float] = {}
        self._dead: set[Incarnation] = set()
        self._beat_at: float | None = None
        self._beats = 0
        self._own_dial = False
        self._own_link: int | None = None
        self.lateness_s = 0.0
        """How late the last heartbeats left: the lag of our own loop."""
        self.cluster_id = ""
        self.ver = 0

    # Facts

    def linked(self, who: Incarnation) -> bool:
        peer = self._peers.get(who.node)
        return peer is not None and peer.link is not None and self._links[peer.link].who == who

    def linked_as(self, node: str) -> Incarnation | None:
        """The incarnation that the link to this node is bound to."""
        peer = self._peers.get(node)
        return self._links[peer.link].who if peer is not None and peer.link is not None else None

    def is_dead(self, who: Incarnation) -> bool:
        return who in self._dead

    def life_at(self, who: Incarnation, now: float) -> float:
        """When this incarnation last showed life; `now` if it was never asked for before."""
        return self._life_at.setdefault(who, now)

    @property
    def asks_for_namesake(self) -> bool:
        """Whether `ask_for_namesake` has not been answered yet."""
        return self._own_dial or self._own_link is not None

    # What may be told

    def ask_for_namesake(self, address: str, outbox: list[PeerEffect]) -> None:
        """Find out whether another process lives under our own name, at this address.

        It is dialed once: who does not answer is no obstacle, since a process of that name
        that is gone, or whose machine is, is what a restart is for.
        """
        assert not self.asks_for_namesake
        self._own_dial = True
        outbox.append(Dial(self._me.node, address))

    def meet(self, node: str, address: str, now: float, outbox: list[PeerEffect]) -> None:
        """There is such a node, at this address. Dials it once, at the first time."""
        if node == self._me.node:
            return
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = _Peer(address)
            self._dial(node, peer, outbox)
        elif address and peer.address != address:
            peer.address = address
            peer.pause_s = REDIAL_S
        if self._beat_at is None:
            self._beat_at = now

    def forget(self, who: Incarnation) -> None:
        """A later life of this node is in the map."""
        self._dead.discard(who)
        self._life_at.pop(who, None)

    def close(self, who: Incarnation, now: float, outbox: list[PeerEffect]) -> list[LinkNews]:
        """What this peer says is not to be trusted: close its link, if it has one."""
        news: list[LinkNews] = []
        peer = self._peers.get(who.node)
        if peer is not None and peer.link is not None and self._links[peer.link].who == who:
            outbox.append(PeerClose(peer.link))
            self._lost(peer.link, now, outbox, news)
        return news

    def write(self, who: Incarnation, frame: tuple[Part, ...]) -> PeerWrite | None:
        """The write that carries this frame to `who`; None if there is no link to it now."""
        peer = self._peers.get(who.node)
        if peer is None or peer.link is None or self._links[peer.link].who != who:
            return None
        return PeerWrite(peer.link, frame)

    def handle(
        self,
        event: PeerOpened | PeerData | PeerLost | DialFailed,
        now: float,
        outbox: list[PeerEffect],
    ) -> list[LinkNews]:
        news: list[LinkNews] = []
        match event:
            case PeerData():
                self._received(event, now, outbox, news)
            case PeerOpened():
                self._opened(event, now, outbox)
            case PeerLost():
                self._lost(event.link, now, outbox, news)
            case DialFailed():
                self._dial_failed(event, now, news)
        return news

    def wake(self, now: float, outbox: list[PeerEffect]) -> list[LinkNews]:
        """Heartbeats first, then what is overdue."""
        news: list[LinkNews] = []
        if self._beat_at is not None and now >= self._beat_at:
            self.lateness_s = now - self._beat_at
            self._beat_at = now + self._heartbeat_s
            self._beats += 1
            for link in self._links.values():
                if link.who is not None:
                    link.sent.append((self._beats, now))
                    beat = peer_frame(Heartbeat(self._beats, link.echo, self.ver))
                    outbox.append(PeerWrite(link.number, beat))
        for link in list(self._links.values()):
            if self._overdue(link, now):
                outbox.append(PeerClose(link.number))
                self._lost(link.number, now, outbox, news)
        for node, peer in self._peers.items():
            if peer.redial_at is not None and now >= peer.redial_at:
                self._dial(node, peer, outbox)
        return news

    def next_deadline(self) -> float | None:
        deadlines = [peer.redial_at for peer in self._peers.values() if peer.redial_at is not None]
        if self._beat_at is not None:
            deadlines.append(self._beat_at)
        return min(deadlines, default=None)

    # Links

    def _dial(self, node: str, peer: _Peer, outbox: list[PeerEffect]) -> None:
        peer.redial_at = None
        if peer.dialing or peer.link is not None or not peer.address:
            return
        peer.dialing = True
        peer.proves = peer.last
        outbox.append(Dial(node, peer.address))

    def _opened(self, event: PeerOpened, now: float, outbox: list[PeerEffect]) -> None:
        if event.dialed == self._me.node:
            self._own_dial, self._own_link = False, event.link
        elif event.dialed is not None:
            self._peers[event.dialed].dialing = False
        self._links[event.link] = _Link(event.link, event.dialed is not None, now)
        hello = PeerHello(
            self._cluster,
            self._settings,
            self.cluster_id,
            self._me,
            (PEER_VERSION, PEER_VERSION),
        )
        outbox.append(PeerWrite(event.link, peer_frame(hello)))

    def _dial_failed(self, event: DialFailed, now: float, news: list[LinkNews]) -> None:
        if event.node == self._me.node:
            self._own_dial = False
            return
        peer = self._peers[event.node]
        peer.dialing = False
        if peer.link is not None:
            return
        unproven = peer.last is not None and peer.last not in self._dead
        if event.refused and peer.last is not None and unproven and peer.proves == peer.last:
            self._dead.add(peer.last)
            news.append(Died(peer.last))
            unproven = False
        if self._me.node < event.node or not event.refused or unproven:
            peer.redial_at = now + peer.pause_s
            peer.pause_s = min(2 * peer.pause_s, REDIAL_S_MAX)

    def _lost(
        self, number: int, now: float, outbox: list[PeerEffect], news: list[LinkNews]
    ) -> None:
        link = self._links.pop(number, None)
        if number == self._own_link:
            self._own_link = None
            return
        if link is None or link.who is None:
            if link is not None and link.dialed:
                self._redial_unbound(now)
            return
        peer = self._peers[link.who.node]
        if peer.link != number:
            return
        peer.link = None
        news.append(LinkDown(link.who))
        # At once: if nobody listens there any more, that is the proof of a death.
        peer.pause_s = PROVE_AGAIN_S
        self._dial(link.who.node, peer, outbox)

    def _drop(self, link: _Link, outbox: list[PeerEffect]) -> None:
        """Close a link that is not to be bound."""
        outbox.append(PeerClose(link.number))
        del self._links[link.number]
        if link.number == self._own_link:
            self._own_link = None

    def _redial_unbound(self, now: float) -> None:
        # A dialed link that closed before it was bound names nobody: try all who lack one.
        for node, peer in self._peers.items():
            unproven = peer.last is not None and peer.last not in self._dead
            if peer.link is None and not peer.dialing and (unproven or self._me.node < node):
                peer.redial_at = peer.redial_at or now + peer.pause_s
                peer.pause_s = min(2 * peer.pause_s, REDIAL_S_MAX)

    def _overdue(self, link: _Link, now: float) -> bool:
        if link.who is None:
            return now >= link.opened_at + HELLO_S_MAX
        alive_at = max(link.opened_at, self._life_at.get(link.who, 0.0))
        return now >= alive_at + LINK_SILENCE_S_MAX

    # Frames

    def _received(
        self, event: PeerData, now: float, outbox: list[PeerEffect], news: list[LinkNews]
    ) -> None:
        link = self._links.get(event.link)
        if link is None:
            return
        try:
            for frame in link.reader.feed(event.data):
                self._frame(link, frame, now, outbox, news)
                if event.link not in self._links:
                    return
        except RemoteProtocolError as error:
            outbox.append(
                Log(
                    Level.WARNING,
                    "a peer broke the protocol: its link is closed",
                    {"peer": str(link.who), "why": str(error)},
                )
            )
            outbox.append(PeerClose(event.link))
            self._lost(event.link, now, outbox, news)

    def _frame(
        self,
        link: _Link,
        frame: Frame,
        now: float,
        outbox: list[PeerEffect],
        news: list[LinkNews],
    ) -> None:
        if link.who is not None and frame.verb not in (PeerVerb.HELLO, PeerVerb.HEARTBEAT):
            news.append(FromLink(link.who, frame.verb, frame.payload))
            return
        message = read_peer_message(frame.verb, frame.payload)
        match message:
            case PeerHello() if link.who is None:
                self._hello(link, message, now, outbox, news)
            case Heartbeat() if link.who is not None:
                self._heartbeat(link, link.who, message)
                news.append(VerSeen(link.who.node, message.ver))
            case _:
                raise RemoteProtocolError(
                    f"a peer frame of type {frame.verb} came out of turn", code="bad_state"
                )

    def _hello(
        self,
        link: _Link,
        hello: PeerHello,
        now: float,
        outbox: list[PeerEffect],
        news: list[LinkNews],
    ) -> None:
        who = hello.me
        if who.node == self._me.node and hello.cluster == self._cluster:
            if who != self._me:
                news.append(Namesake(who))
            self._drop(link, outbox)
            return
        self._check_hello(hello)
        if link.number == self._own_link:
            # Our name was known at this address once, and another node lives there now.
            self._drop(link, outbox)
            return
        peer = self._peers.setdefault(who.node, _Peer(""))
        if peer.link is not None:
            old = self._links[peer.link]
            same_side = old.dialed == link.dialed
            mine_is_kept = self._me.node < who.node
            if old.who == who and not same_side and old.dialed == mine_is_kept:
                self._drop(link, outbox)
                return
            outbox.append(PeerClose(old.number))
            del self._links[old.number]
            if old.who is not None and old.who != who:
                news.append(LinkDown(old.who))
        link.who = peer.last = who
        peer.link = link.number
        peer.pause_s = REDIAL_S
        peer.redial_at = None
        # A dial that was refused and yet led to nothing: the process lives after all.
        self._dead.discard(who)
        self._life_at[who] = now
        news.append(LinkUp(who, hello))

    def _check_hello(self, hello: PeerHello) -> None:
        if hello.cluster != self._cluster:
            raise RemoteProtocolError(
                f"{hello.me} belongs to cluster {hello.cluster!r}, and this node to"
                f" {self._cluster!r}: one of the two has a wrong address",
                value=hello.cluster,
            )
        if hello.settings != self._settings:
            raise RemoteProtocolError(
                f"{hello.me} was given other expected nodes or settings that must agree:"
                " compare [cluster] and [timing] of the two files",
                value=hello.settings,
            )
        if not hello.versions[0] <= PEER_VERSION <= hello.versions[1]:
            raise RemoteProtocolError(
                f"{hello.me} speaks versions {hello.versions}, and this node {PEER_VERSION}",
                code="version",
                value=str(hello.versions),
            )
        if self.cluster_id and hello.cluster_id and hello.cluster_id != self.cluster_id:
            raise RemoteProtocolError(
                f"{hello.me} is of another founding of cluster {hello.cluster!r}: its data"
                " directory belongs elsewhere",
                value=hello.cluster_id,
            )

    def _heartbeat(self, link: _Link, who: Incarnation, beat: Heartbeat) -> None:
        link.echo = beat.number
        while link.sent and link.sent[0][0] <= beat.echo:
            _, sent_at = link.sent.popleft()
            self._life_at[who] = max(self._life_at.get(who, 0.0), sent_at)
