"""A node on a simulated machine: the core that runs in production, and a shell without sockets.

It is carried as `broker.runtime.shell` carries it: what comes is collected, one *turn* handles
all of it, `end_turn` follows, and only then are the effects carried out. A turn may also be the
last one, with some of its effects done and others not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, assert_never

from broker.core.events import (
    ClientClose,
    ClientData,
    ClientLost,
    ClientOpened,
    ClientWrite,
    Dial,
    DialFailed,
    DiskDone,
    DiskJobs,
    Effect,
    Event,
    Exit,
    GroupData,
    GroupDrained,
    GroupJoin,
    GroupLeave,
    GroupPublish,
    ListenForClients,
    Log,
    PeerClose,
    PeerData,
    PeerLost,
    PeerOpened,
    PeerWrite,
    Persist,
    Persisted,
    Wake,
)
from broker.core.node import Node
from tanist.wire.batch import Part
from tests.simulation.network import Disk, Network
from tests.simulation.page_disk import DiskHealth, PageDisk
from tests.simulation.pipes import Pipes, Socket

PEER_PORT: Final = 1
CLIENT_PORT: Final = 2
SPINS_MAX: Final = 50
"""A core that asks for yet another turn at once, so often, keeps a processor busy for nothing."""


@dataclass(slots=True)
class Watch:
    """Whom a machine tells what happens on it."""

    turn: Callable[[SimNode], None]
    log: Callable[[SimNode, Log], None]
    ended: Callable[[SimNode, Exit], None]
    broke: Callable[[SimNode, Exception], None]
    wrote: Callable[[SimNode, int, bytes], None]
    """To a client's connection."""


class Group:
    """The group transport: who follows whom. It loses, repeats and reorders."""

    def __init__(self, network: Network, pipes: Pipes) -> None:
        self._network = network
        self._pipes = pipes
        self._followers: dict[str, dict[SimNode, None]] = {}

    def join(self, publisher: str, follower: SimNode) -> None:
        self._followers.setdefault(publisher, {})[follower] = None

    def leave(self, publisher: str, follower: SimNode) -> None:
        self._followers.get(publisher, {}).pop(follower, None)

    def leave_all(self, follower: SimNode) -> None:
        for followers in self._followers.values():
            followers.pop(follower, None)

    def publish(self, source: str, data: bytes) -> None:
        for follower in self._followers.get(source, ()):
            if not self._pipes.is_cut(source, follower.name):
                deliver = partial(follower.feed, GroupData(data))
                self._network.send(source, follower.name, deliver)


@dataclass(slots=True, eq=False)
class _Process:
    """One life of a node."""

    core: Node
    inc: int
    pages: PageDisk
    peers: dict[int, Socket] = field(default_factory=dict)
    clients: dict[int, Socket] = field(default_factory=dict)
    inbox: list[Event] = field(default_factory=list)
    turn_is_due: bool = False
    wakes_at: float | None = None
    spins: int = 0
    """Turns in a row at whose end another one was overdue."""
    last_turn_effects: float | None = None
    """This share of the next turn's effects is carried out, and then the process is killed."""


class SimNode:
    """A machine, with at most one process on it.

    Attributes:
        name: Of the place, and of the node.
        disk: What survives the processes.
        stopped: The process is frozen: what comes waits, and so do its timers.
        health: Of its disk with pages.
        clock_s: What this machine's clock shows at the beginning; nothing may compare two.
    """

    def __init__(
        self,
        name: str,
        *,
        network: Network,
        pipes: Pipes,
        group: Group,
        watch: Watch,
        boot: Callable[[SimNode], tuple[Node, int]],
    ) -> None:
        self.name = name
        self.disk = Disk(network, name)
        self.stopped = False
        self.clock_s = network.chance.uniform(0.0, 10_000.0)
        self.turn_s = 0.0
        self.health = DiskHealth()
        self._network = network
        self._pipes = pipes
        self._group = group
        self._watch = watch
        self._boot = boot
        self._process: _Process | None = None

    @property
    def core(self) -> Node | None:
        """The core of the process that runs here, frozen or not."""
        return self._process.core if self._process is not None else None

    @property
    def pages(self) -> PageDisk | None:
        """The page files of the process that runs here, frozen or not."""
        return self._process.pages if self._process is not None else None

    @property
    def now(self) -> float:
        return self._network.now + self.clock_s

    # Faults

    def start(self) -> None:
        """A new process, on what the disk has."""
        if self._process is not None:
            return
        self._pipes.power_on(self.name)
        core, inc = self._boot(self)
        pages = PageDisk(
            self._network,
            self.name,
            health=self.health,
            answer=lambda done: self.feed(DiskDone([done])),
        )
        process = self._process = _Process(core, inc, pages)
        self._pipes.listen(self.name, PEER_PORT, partial(self._linked, process, None))
        outbox: list[Effect] = []
        core.handle(Wake(), self.now, outbox)
        self._carry_out(process, outbox)
        self._set_timer(process)

    def kill(self, *, power_off: bool = False) -> None:
        """End the process, or the whole machine."""
        self._process = None
        self.stopped = False
        self._group.leave_all(self)
        self._network.crash(self.name)
        self.disk.crash()
        if power_off:
            self._pipes.power_off(self.name)
        else:
            self._pipes.kill(self.name)

    def kill_in_turn(self, share: float | None) -> None:
        """Kill it in its next turn, when this share of what it says is done. None: do not."""
        if self._process is not None:
            self._process.last_turn_effects = share

    def stop(self) -> None:
        """SIGSTOP: its machine goes on, and takes what is sent to it."""
        self.stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        self.stopped = False
        if self._process is not None:
            self._process.turn_is_due = False
            self._take_turn_soon(self._process)

    # What comes

    def feed(self, event: Event) -> None:
        if self._process is not None:
            self._feed(self._process, event)

    def _feed(self, process: _Process, event: Event) -> None:
        if process is self._process:
            process.inbox.append(event)
            self._take_turn_soon(process)

    def _take_turn_soon(self, process: _Process) -> None:
        if not process.turn_is_due:
            process.turn_is_due = True
            delay_s = self.turn_s * self._network.chance.random()
            self._network.after(delay_s, partial(self._turn, process))

    def _linked(self, process: _Process, dialed: str | None, socket: Socket) -> None:
        self._take(
            process,
            socket,
            process.peers,
            lambda number: PeerOpened(number, dialed),
            PeerData,
            PeerLost,
        )

    def _entered(self, process: _Process, socket: Socket) -> None:
        self._take(process, socket, process.clients, ClientOpened, ClientData, ClientLost)

    def _take(
        self,
        process: _Process,
        socket: Socket,
        sockets: dict[int, Socket],
        opened: Callable[[int], Event],
        received: Callable[[int, bytes], Event],
        lost: Callable[[int], Event],
    ) -> None:
        if process is not self._process:
            return
        number = self._pipes.new_number()
        sockets[number] = socket
        socket.received = lambda data: self._feed(process, received(number, data))

        def forget() -> None:
            sockets.pop(number, None)
            self._feed(process, lost(number))

        socket.lost = forget
        self._feed(process, opened(number))

    # Turns

    def _turn(self, process: _Process) -> None:
        if process is not self._process or self.stopped:
            return
        process.turn_is_due = False
        events, process.inbox = process.inbox, []
        now, outbox, core = self.now, list[Effect](), process.core
        try:
            deadline = core.next_deadline()
            if deadline is not None and now >= deadline:
                core.handle(Wake(), now, outbox)
            group = [event for event in events if isinstance(event, GroupData)]
            for event in events:
                if not isinstance(event, GroupData):
                    core.handle(event, now, outbox)
            for frame in group:
                core.handle(frame, now, outbox)
            core.handle(GroupDrained(), now, outbox)
            core.end_turn(now, outbox)
        except Exception as error:
            self._watch.broke(self, error)
            self.kill()
            return
        if process.last_turn_effects is not None:
            self._carry_out(process, _some(outbox, process.last_turn_effects))
            if process is self._process:
                self.kill()
            return
        self._carry_out(process, outbox)
        if process is self._process:
            self._watch.turn(self)
            self._set_timer(process)

    def _set_timer(self, process: _Process) -> None:
        deadline = process.core.next_deadline()
        if deadline is None or deadline > self.now:
            process.spins = 0
        else:
            process.spins += 1
            if process.spins > SPINS_MAX:
                sentence = f"a deadline {self.now - deadline:.6f} s ago is not seen to"
                self._watch.broke(self, AssertionError(sentence))
        if deadline is None or (process.wakes_at is not None and process.wakes_at <= deadline):
            return
        process.wakes_at = deadline
        # As a loop does: never too early, or there would be nothing to do.
        delay_s = max(0.0, deadline - self.now) + 1e-6
        self._network.after(delay_s, partial(self._wake, process, deadline))

    def _wake(self, process: _Process, deadline: float) -> None:
        if process is self._process and process.wakes_at == deadline:
            process.wakes_at = None
            self._take_turn_soon(process)

    # Effects

    def _carry_out(self, process: _Process, effects: list[Effect]) -> None:
        for_clients: dict[int, list[Part]] = {}
        for_peers: dict[int, list[Part]] = {}
        closing: list[Socket | None] = []
        for effect in effects:
            match effect:
                case ClientWrite():
                    for_clients.setdefault(effect.connection, []).extend(effect.parts)
                case PeerWrite():
                    for_peers.setdefault(effect.link, []).extend(effect.parts)
                case GroupPublish():
                    self._group.publish(self.name, b"".join(effect.parts))
                case Persist():
                    done = partial(self._feed, process, Persisted(effect.token))
                    self.disk.write(effect.blob, done)
                case ClientClose():
                    closing.append(process.clients.get(effect.connection))
                case PeerClose():
                    closing.append(process.peers.get(effect.link))
                case DiskJobs():
                    process.pages.do(effect.jobs)
                case Dial():
                    self._dial(process, effect)
                case GroupJoin():
                    self._group.join(effect.node, self)
                case GroupLeave():
                    self._group.leave(effect.node, self)
                case ListenForClients():
                    entered = partial(self._entered, process)
                    self._pipes.listen(self.name, CLIENT_PORT, entered)
                case Log():
                    self._watch.log(self, effect)
                case Exit():
                    self._watch.ended(self, effect)
                    self.kill()
                    return
                case _:
                    assert_never(effect)
        for number, parts in for_clients.items():
            data = b"".join(parts)
            self._watch.wrote(self, number, data)
            if number in process.clients:
                process.clients[number].write(data)
        for number, parts in for_peers.items():
            if number in process.peers:
                process.peers[number].write(b"".join(parts))
        for socket in closing:
            if socket is not None:
                socket.close()

    def _dial(self, process: _Process, effect: Dial) -> None:
        host, _, port = effect.address.rpartition(":")
        self._pipes.dial(
            self.name,
            host,
            int(port),
            opened=partial(self._linked, process, effect.node),
            failed=lambda refused: self._feed(process, DialFailed(effect.node, refused)),
        )


def _some(effects: list[Effect], share: float) -> list[Effect]:
    """What of this a process gets done before it is killed: what comes first, or, as clients
    are written to before peers, what is for them alone."""
    if share < 0.5:
        return [effect for effect in effects if isinstance(effect, ClientWrite)]
    return effects[: int(2 * (share - 0.5) * len(effects))]
