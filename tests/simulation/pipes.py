"""Connections between places, as TCP makes them: ordered bytes, ends, and faults.

A place is a machine with one process on it: a node, or a client. What a cut holds back is not
lost, it comes when the cut is mended; an end that crashed is noticed when its machine still
stands, and not at all when its power is gone:

    cut           data, ends and dials of one direction wait; a dial fails after a second
    kill          the others read what was on its way, then the end; dials are refused
    power off     what was on its way is gone, nobody is told, dials are not answered; who writes
                  after the machine stands again is told that there is no such connection
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final

from tests.simulation.network import Network

DIAL_S_MAX: Final = 1.0
DELAY_S_MAX: Final = 3.0
"""The tail of delays is heavy, and all that follows on a connection waits behind one."""
SPLIT: Final = 0.05
"""Share of the writes that arrive in two pieces."""

Way = tuple[str, str]
"""(source, target)."""


class Socket:
    """One end of a connection. Set `received` and `lost` before anything can arrive."""

    def __init__(self, pipes: Pipes, place: str) -> None:
        self.place = place
        self.open = True
        self.received: Callable[[bytes], None] = _nobody_reads
        self.lost: Callable[[], None] = _nobody_cares
        self._pipes = pipes
        self._out: _Pipe
        self.peer: Socket

    def write(self, data: bytes) -> None:
        if self.open and data:
            self._pipes.carry(self._out, data)

    def close(self) -> None:
        """After what was written before. Nothing more is read here, and `lost` comes."""
        if self.open:
            self.open = False
            self._pipes.carry(self._out, None)
            self._pipes.network.after(0.0, self.lost)

    def reset(self) -> None:
        """Both ends are told, and what was on its way is lost."""
        for end in (self, self.peer):
            end._out.chunks.clear()
            if end.open:
                end.open = False
                self._pipes.network.after(0.0, end.lost)

    def _arrive(self, data: bytes | None) -> None:
        if self._pipes.is_off(self.place):
            return
        if not self.open:
            self._pipes.say_no(self)
        elif data is None:
            self.open = False
            self.lost()
        else:
            self.received(data)


@dataclass(slots=True, eq=False)
class _Pipe:
    """One direction of a connection."""

    way: Way
    target: Socket
    chunks: deque[tuple[float, bytes | None]] = field(default_factory=deque)
    arrives_at: float = 0.0


class Pipes:
    """All connections, and the cuts between places."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._cuts: set[Way] = set()
        self._off: set[str] = set()
        self._listeners: dict[tuple[str, int], Callable[[Socket], None]] = {}
        self._sockets: dict[str, list[Socket]] = {}
        self._held: dict[Way, dict[_Pipe, None]] = {}
        self._numbers = count(1)

    def new_number(self) -> int:
        """For a connection's end: never used again, on no machine."""
        return next(self._numbers)

    # Faults

    @property
    def cuts(self) -> list[Way]:
        return sorted(self._cuts)

    def cut(self, source: str, target: str) -> None:
        self._cuts.add((source, target))

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cuts

    def mend(self, source: str, target: str) -> None:
        """What was held back arrives at once, in order."""
        self._cuts.discard((source, target))
        for pipe in self._held.pop((source, target), {}):
            self.network.after(0.0, partial(self._flow, pipe))

    def heal(self) -> None:
        for way in self.cuts:
            self.mend(*way)

    def is_off(self, place: str) -> bool:
        return place in self._off

    def kill(self, place: str) -> None:
        """The process is over: its machine says so to everybody."""
        self._forget_listeners(place)
        for socket in self._sockets.pop(place, []):
            if socket.open:
                socket.open = False
                self._lose_some(socket._out)
                self.carry(socket._out, None)

    def power_off(self, place: str) -> None:
        """The machine is gone: nobody says anything."""
        self._off.add(place)
        self._forget_listeners(place)
        for socket in self._sockets.pop(place, []):
            socket.open = False
            socket._out.chunks.clear()

    def power_on(self, place: str) -> None:
        self._off.discard(place)

    def open_at(self, place: str) -> list[Socket]:
        """The open ends of a place."""
        self._sockets[place] = [s for s in self._sockets.get(place, []) if s.open]
        return self._sockets[place]

    # Connections

    def listen(self, place: str, port: int, accept: Callable[[Socket], None]) -> None:
        self._listeners[place, port] = accept

    def dial(
        self,
        source: str,
        target: str,
        port: int,
        opened: Callable[[Socket], None],
        failed: Callable[[bool], None],
    ) -> None:
        """Ends in `opened`, or in `failed`, which is told whether the dial was refused."""
        asks = partial(self._asked, source, target, port, opened, failed)
        self.network.after(self._delay_s(), asks, owner=source)

    def _asked(
        self,
        source: str,
        target: str,
        port: int,
        opened: Callable[[Socket], None],
        failed: Callable[[bool], None],
    ) -> None:
        there_and_back = ((source, target), (target, source))
        if target in self._off or any(way in self._cuts for way in there_and_back):
            self.network.after(DIAL_S_MAX, partial(failed, False), owner=source)
            return
        accept = self._listeners.get((target, port))
        if accept is None:
            self.network.after(self._delay_s(), partial(failed, True), owner=source)
            return
        near, far = Socket(self, source), Socket(self, target)
        for end, other in ((near, far), (far, near)):
            end.peer = other
            end._out = _Pipe((end.place, other.place), other)
            self._sockets.setdefault(end.place, []).append(end)
        # What comes to the dialer arrives behind the answer to its dial.
        far._out.arrives_at = self.network.now + self._delay_s()
        accept(far)
        answer_s = far._out.arrives_at - self.network.now
        self.network.after(answer_s, partial(opened, near), owner=source)

    def carry(self, pipe: _Pipe, data: bytes | None) -> None:
        """The next bytes of a pipe; None is its end."""
        chance = self.network.chance
        pieces: tuple[bytes | None, ...] = (data,)
        if data is not None and len(data) > 1 and chance.random() < SPLIT:
            at = chance.randrange(1, len(data))
            pieces = (data[:at], data[at:])
        for piece in pieces:
            pipe.arrives_at = max(self.network.now + self._delay_s(), pipe.arrives_at)
            pipe.chunks.append((pipe.arrives_at, piece))
            self.network.after(pipe.arrives_at - self.network.now, partial(self._flow, pipe))

    def _flow(self, pipe: _Pipe) -> None:
        while pipe.chunks and pipe.chunks[0][0] <= self.network.now:
            if pipe.way in self._cuts:
                self._held.setdefault(pipe.way, {})[pipe] = None
                return
            _, data = pipe.chunks.popleft()
            pipe.target._arrive(data)

    def say_no(self, end: Socket) -> None:
        """Bytes came to an end that is not there any more: the other one is told."""
        if end.peer.open:
            self.network.after(self._delay_s(), partial(self._no, end))

    def _no(self, end: Socket) -> None:
        if end.peer.open and not self.is_cut(end.place, end.peer.place):
            end.peer.open = False
            end.peer.lost()

    def _lose_some(self, pipe: _Pipe) -> None:
        # A process that is killed with unread bytes makes its machine reset the connection,
        # and then the other side does not read all that was sent.
        if self.network.chance.random() < 0.3:
            keep = self.network.chance.randint(0, len(pipe.chunks))
            while len(pipe.chunks) > keep:
                pipe.chunks.pop()

    def _forget_listeners(self, place: str) -> None:
        for key in [key for key in self._listeners if key[0] == place]:
            del self._listeners[key]

    def _delay_s(self) -> float:
        delay_s = self.network.weather.delay_s * self.network.chance.paretovariate(1.5)
        return min(delay_s, DELAY_S_MAX)


def _nobody_reads(data: bytes) -> None:
    assert not data, "nobody reads at this end"


def _nobody_cares() -> None:
    pass
