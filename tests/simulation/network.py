"""A network, its clock and its disks, all simulated and all from one seed.

Everything that happens is a callable in one queue, ordered by simulated time; there is no other
clock and no other chance in a simulation, so a seed is a schedule. A world (a whole system under
test) asks the network to deliver, to wait and to write, and makes faults by cutting links and
crashing nodes:

    send      one message by itself: it may be lost, repeated, late, and overtake others
    stream    a connection: in order, nothing lost; what a cut holds back comes when it heals,
              and what was under way when an end crashed never comes
    after     a timer; `owner` makes it die with that node's life
    Disk      completes writes later; a crash loses what was not complete, or keeps it
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

Action = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad it is. Each seed draws its own; fixed rates never visit some of it."""

    loss: float
    repeat: float
    delay_s: float
    """Scale of the delays; their tail is heavy."""

    disk_s: float
    """Scale of the time that a write takes."""

    @staticmethod
    def draw(chance: random.Random) -> Weather:
        return Weather(
            loss=chance.choice((0.0, 0.05, 0.3)),
            repeat=chance.choice((0.0, 0.1, 0.3)),
            delay_s=chance.choice((0.001, 0.01, 0.1, 0.5)),
            disk_s=chance.choice((0.0005, 0.01, 0.3)),
        )


WRITE_S_MAX = 10.0
"""A write that takes longer is taken for an error: see `Disk.broken`."""

FAIR = Weather(loss=0.0, repeat=0.0, delay_s=0.001, disk_s=0.001)


class Network:
    """Delivers callables in simulated time.

    Attributes:
        now: Seconds since the beginning.
        chance: The only source of chance, for the world too.
        weather: Drawn from the seed; a world sets `FAIR` when all shall heal.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.weather = Weather.draw(self.chance)
        self.now = 0.0
        self.events = 0
        self._queue: list[tuple[float, int, Action]] = []
        self._count = 0
        self._lives: dict[str, int] = {}
        self._cut: set[tuple[str, str]] = set()
        self._streams: dict[tuple[str, str], deque[tuple[int, int, Action]]] = {}
        self._arrived_at: dict[tuple[str, str], float] = {}

    # Time.

    def after(self, delay_s: float, action: Action, *, owner: str | None = None) -> None:
        if owner is not None:
            action = self._while_alive(owner, action)
        # The counter makes equal moments comparable and keeps runs identical.
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, action))

    def run(self, *, until: float, watch: Action | None = None) -> None:
        """Let everything happen that is due; `watch` is called after each event."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            self.events += 1
            action()
            if watch is not None:
                watch()
        self.now = until  # Also when nothing happened last: the next run starts here.

    # Messages.

    def send(self, source: str, target: str, deliver: Action) -> None:
        """One message by itself."""
        if (source, target) in self._cut or self.chance.random() < self.weather.loss:
            return
        copies = 2 if self.chance.random() < self.weather.repeat else 1
        for _ in range(copies):
            self.after(self._delay_s(), deliver)

    def stream(self, source: str, target: str, deliver: Action) -> None:
        """The next message on the connection between these two, in this direction."""
        way = (source, target)
        lives = (self.life(source), self.life(target))
        self._streams.setdefault(way, deque()).append((*lives, deliver))
        at = max(self.now + self._delay_s(), self._arrived_at.get(way, 0.0))
        self._arrived_at[way] = at
        self.after(at - self.now, partial(self._arrive, way))

    def _arrive(self, way: tuple[str, str]) -> None:
        held = self._streams[way]
        if way in self._cut or not held:
            return  # `heal` lets everything that waits arrive at once.
        source_life, target_life, deliver = held.popleft()
        if (source_life, target_life) == (self.life(way[0]), self.life(way[1])):
            deliver()

    def _delay_s(self) -> float:
        # Heavy tail: some frames come when nobody expects them any more.
        return self.weather.delay_s * self.chance.paretovariate(1.5)

    # Faults.

    def cut(self, source: str, target: str) -> None:
        """From now on nothing gets from `source` to `target`; the other way is another cut."""
        self._cut.add((source, target))

    def heal(self) -> None:
        """Mend all links. What streams hold back arrives at once, in order."""
        mended, self._cut = self._cut, set()
        for way in sorted(mended):
            for _ in range(len(self._streams.get(way, ()))):
                self.after(0.0, partial(self._arrive, way))

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    def life(self, node: str) -> int:
        return self._lives.get(node, 0)

    def crash(self, node: str) -> None:
        """End this life: its timers, its writes, and what its connections carried."""
        self._lives[node] = self.life(node) + 1

    def _while_alive(self, node: str, action: Action) -> Action:
        life = self.life(node)

        def if_alive() -> None:
            if self.life(node) == life:
                action()

        return if_alive


class Disk:
    """What one node has written. Of the writes that a crash interrupts, the oldest ones may
    have become durable, and the others are lost.

    Attributes:
        durable: What a restart will find; None: no file.
        broken: Until the next crash writes fail, which here means that they never complete.
    """

    def __init__(self, network: Network, node: str) -> None:
        self.durable: bytes | None = None
        self.broken = False
        self._network = network
        self._node = node
        self._pending: deque[bytes] = deque()
        self._free_at = 0.0

    def write(self, blob: bytes, done: Action) -> None:
        """Call `done` once `blob` is durable. Writes complete in order."""
        self._pending.append(blob)
        took_s = self._network.weather.disk_s * self._network.chance.paretovariate(1.5)
        took_s = min(took_s, WRITE_S_MAX)
        self._free_at = max(self._free_at, self._network.now) + took_s
        self._network.after(
            self._free_at - self._network.now, lambda: self._complete(done), owner=self._node
        )

    def crash(self) -> None:
        """The node crashed (tell the network as well)."""
        survive = self._network.chance.randint(0, len(self._pending))
        if survive and not self.broken:
            self.durable = self._pending[survive - 1]
        self._pending.clear()
        self._free_at = 0.0
        self.broken = False

    def _complete(self, done: Action) -> None:
        if self.broken:
            return
        self.durable = self._pending.popleft()
        done()
