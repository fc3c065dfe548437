"""What carries one node's core: it feeds events, and does what the core says.

Theory of operation
-------------------
Whatever one turn of the loop reads (from clients, peers, the group, the disk, the timer) is
fed to the core at once, and answered together when the turn ends:

    sockets, timer ──▶ feed ──▶ core.handle        each as it comes
    end of turn    ──▶ the group is read, core.end_turn
                   ──▶ one write for each connection, frames for the group, blobs for the disk

A core with a bug must not go on: what it would do next is unknown, and a peer holds all that
it holds. The node ends, and says so; nothing of that turn is carried out.

Rules
-----
1. No event is fed while effects are carried out, and no core but this one is called.
2. What is due goes first: a turn that begins after the core's deadline begins with `Wake`.
3. The group is read after every turn in which a peer spoke, so that the core knows whether
   what the peer told of is really missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import ceil
from typing import Final, Protocol, assert_never

from broker.core.events import (
    READ_BYTES_MAX,
    ClientClose,
    ClientWrite,
    Dial,
    DiskJobs,
    Effect,
    Event,
    Exit,
    GroupData,
    GroupDrained,
    GroupJoin,
    GroupLeave,
    GroupPublish,
    Level,
    ListenForClients,
    Log,
    PeerClose,
    PeerWrite,
    Persist,
    Stop,
    Wake,
)
from broker.core.limits import Limits
from broker.runtime.client_listener import ClientListener
from broker.runtime.collector import Collector
from broker.runtime.connection import Connection
from broker.runtime.logs import Logs
from broker.runtime.page_io import PageIo
from broker.runtime.peer_links import PeerLinks
from broker.runtime.store import Store
from replication.groups.transport import GroupTransport
from tanist.wire.batch import Part

EXIT_BUG: Final = 70
"""Exit code after a bug of our own."""

FLUSH_S_MAX: Final = 1.0
"""When the node ends, clients have so long to take what was written to them."""

STOP_S_MAX: Final = 10.0
"""A core that was told to stop has so long to say that it has."""


class Core(Protocol):
    """What a shell can carry."""

    def handle(self, event: Event, now: float, outbox: list[Effect]) -> None: ...
    def end_turn(self, now: float, outbox: list[Effect]) -> None: ...
    def next_deadline(self) -> float | None: ...


def clock() -> float:
    """Seconds that go on in suspend: a node that slept must see that it did."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Roads:
    """All by which a node reaches the world. Each is made with the shell's `feed…` methods."""

    clients: ClientListener
    peers: PeerLinks
    group: GroupTransport
    store: Store
    pages: PageIo


class Shell:
    """Feeds one core and does what it says. Owns its connections and its only timer."""

    def __init__(self, core: Core, logs: Logs, limits: Limits) -> None:
        self._core = core
        self._logs = logs
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._collector = Collector()
        self._outbox: list[Effect] = []
        self._in_turn = False
        self._idle = True
        self._group_waits = False
        self._stopping = False
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._dials: set[asyncio.Task[None]] = set()
        self._roads: Roads
        self._tasks: asyncio.TaskGroup

    async def run(self, roads: Roads) -> int:
        """Until the core ends the node, or breaks. Returns the exit code."""
        self._roads = roads
        async with asyncio.TaskGroup() as self._tasks:
            await roads.peers.open()
            self._collector.start(clock())
            self.feed(Wake())
            code = await self._ended
            roads.clients.close()
            if code != EXIT_BUG:
                await self._flush()
            for connection in tuple(roads.clients.connections.values()):
                connection.abort()
            for dial in self._dials:
                dial.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._logs.write(Level.INFO, "the node has ended", {"exit_code": code})
            self._logs.write(Level.DEBUG, "group", asdict(roads.group.health()))
            roads.group.close()
            roads.peers.close()
            if not await roads.pages.close():
                self._logs.write(Level.WARNING, "pages are left, and removed at the next start")
            self._collector.stop()
            return code

    # What the roads and the operator say

    def feed(self, event: Event) -> None:
        """Takes what happens to clients and to the disk."""
        if self._ended.done():
            return
        now = clock()
        self._idle = False
        try:
            self._begin_turn(now)
            self._core.handle(event, now, self._outbox)
        except Exception as error:
            self.broke(error)

    def feed_peer(self, event: Event) -> None:
        """Takes what happens to links."""
        self._group_waits = True
        self.feed(event)

    def group_ready(self) -> None:
        """Frames of the group may be waiting."""
        if self._ended.done():
            return
        self._group_waits = True
        self._idle = False
        try:
            self._begin_turn(clock())
        except Exception as error:
            self.broke(error)

    def stop(self) -> None:
        """The operator wants the node to end. Said twice: at once."""
        if self._stopping:
            self._end(1)
        self._stopping = True
        self._loop.call_later(STOP_S_MAX, self._end, 1)
        self.feed(Stop())

    def broke(self, error: BaseException) -> None:
        """We have a bug: end, and do nothing more of what the core says."""
        if not self._ended.done():
            self._logs.error("this node has a bug and ends; please report the stack below", error)
            self._outbox.clear()
            self._end(EXIT_BUG)

    # One turn

    def _begin_turn(self, now: float) -> None:
        if self._in_turn:
            return
        self._in_turn = True
        self._loop.call_soon(self._end_turn)
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            self._core.handle(Wake(), now, self._outbox)

    def _wake(self) -> None:
        self._timer = None
        try:
            self._begin_turn(clock())
        except Exception as error:
            self.broke(error)

    def _end_turn(self) -> None:
        self._in_turn = False
        if self._ended.done():
            return
        try:
            now = clock()
            if self._group_waits:
                self._read_group(now)
            self._core.end_turn(now, self._outbox)
            if self._outbox:
                effects, self._outbox = self._outbox, []
                self._carry_out(effects)
            self._set_timer(self._core.next_deadline())
            self._collector.turn(now, idle=self._idle)
            self._idle = True
        except Exception as error:
            self.broke(error)

    def _read_group(self, now: float) -> None:
        frames, drained = self._roads.group.read(READ_BYTES_MAX)
        for frame in frames:
            self._core.handle(GroupData(frame), now, self._outbox)
        self._group_waits = not drained
        if drained:
            self._core.handle(GroupDrained(), now, self._outbox)
        else:
            # The others get their turn before the rest is read.
            self._loop.call_soon(self.group_ready)

    def _set_timer(self, deadline: float | None) -> None:
        if deadline == self._deadline and deadline is not None and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._deadline = deadline
        if deadline is not None:
            # Up to the next millisecond: uvloop rounds, and a timer that fires too early
            # finds nothing to do and is set again.
            delay_ms = max(0, ceil((deadline - clock()) * 1000))
            self._timer = self._loop.call_later(delay_ms / 1000, self._wake)

    # Effects

    def _carry_out(self, effects: list[Effect]) -> None:
        roads = self._roads
        for_clients: dict[int, list[Part]] = {}
        for_peers: dict[int, list[Part]] = {}
        closing: list[Connection | None] = []
        for effect in effects:
            match effect:
                case ClientWrite():
                    for_clients.setdefault(effect.connection, []).extend(effect.parts)
                case PeerWrite():
                    for_peers.setdefault(effect.link, []).extend(effect.parts)
                case GroupPublish():
                    roads.group.publish(effect.parts)
                case Persist():
                    roads.store.persist(effect)
                case DiskJobs():
                    for job in effect.jobs:
                        roads.pages.submit(job)
                case ClientClose():
                    closing.append(roads.clients.connections.get(effect.connection))
                case PeerClose():
                    closing.append(roads.peers.connections.get(effect.link))
                case Dial():
                    dial = self._tasks.create_task(roads.peers.dial(effect.node, effect.address))
                    self._dials.add(dial)
                    dial.add_done_callback(self._dials.discard)
                case GroupJoin():
                    roads.group.join(effect.node, effect.address)
                case GroupLeave():
                    roads.group.leave(effect.node)
                case ListenForClients():
                    self._tasks.create_task(self._listen())
                case Log():
                    self._logs.write(effect.level, effect.event, effect.fields)
                case Exit():
                    level = Level.INFO if effect.code == 0 else Level.ERROR
                    self._logs.write(level, effect.sentence)
                    self._end(effect.code)
                case _:
                    assert_never(effect)
        _write(for_clients, roads.clients.connections)
        _write(for_peers, roads.peers.connections)
        self._cut_the_deaf(for_clients, roads.clients.connections, self._limits.unsent_bytes_max)
        self._cut_the_deaf(for_peers, roads.peers.connections, self._limits.window_bytes)
        for connection in closing:
            if connection is not None:
                connection.close()

    async def _listen(self) -> None:
        await self._roads.clients.open()
        self._logs.write(Level.INFO, "serves clients", {"at": self._roads.clients.address})

    def _cut_the_deaf(
        self, written: Iterable[int], connections: dict[int, Connection], bytes_max: int
    ) -> None:
        for number in written:
            connection = connections.get(number)
            if connection is not None and connection.unsent_bytes > bytes_max:
                self._logs.write(
                    Level.WARNING,
                    "a connection does not take what is written to it, and is closed",
                    {"peer": connection.peer, "unsent_bytes": connection.unsent_bytes},
                )
                connection.abort()

    # The end

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    async def _flush(self) -> None:
        """Let clients take what was written to them."""
        open_ = self._roads.clients.connections
        for connection in tuple(open_.values()):
            connection.close()
        until = self._loop.time() + FLUSH_S_MAX
        while open_ and self._loop.time() < until:
            await asyncio.sleep(0.01)


def _write(parts: dict[int, list[Part]], connections: dict[int, Connection]) -> None:
    for number, ready in parts.items():
        connection = connections.get(number)
        if connection is not None:
            connection.write(ready)
