"""Applications that write down what they did and saw, so that it can be checked afterwards.

A producer posts bursts of numbered messages without waiting for the ones before; a consumer
holds what it gets for a while before it acks, so that there is always something in doubt and
in flight when a node dies. Rates are bounded: the history of a run must fit into memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import tanist
from tanist.events import ClientEvent, Resumed
from tests.simulation.history import (
    Answered,
    Confirmed,
    Handed,
    Left,
    Message,
    Posted,
    Recorded,
    Settled,
    Unanswered,
)

BODY_BYTES: Final = 100
BURST_MESSAGES: Final = 20
BURST_EVERY_S: Final = 0.005
BURSTS_OPEN_MAX: Final = 200
HELD_PER_OFFICE: Final = 40
"""A consumer holds so many of each post office before it acks the oldest of them, so that it
still holds some of a dead owner's when the next one serves."""
FLUSH_EVERY_S: Final = 0.05
DRAIN_S_MAX: Final = 60.0


def body_of(message: Message) -> bytes:
    return f"{message.producer}:{message.n}".encode().ljust(BODY_BYTES)


def message_of(body: bytes) -> Message:
    producer, n = body.decode().strip().rsplit(":", 1)
    return Message(producer, int(n))


@dataclass
class Gap:
    """Of one part: the silence around a change of its owner, as its consumers saw it."""

    last_at: float = 0.0
    epoch: int = 0
    gaps: list[tuple[int, float, float]] = field(default_factory=list)
    """(new epoch, when its first frame was read, seconds since the last one of the old)."""

    def saw(self, epoch: int, at: float) -> None:
        if epoch > self.epoch and self.epoch:
            self.gaps.append((epoch, at, at - self.last_at))
        if epoch >= self.epoch:
            self.epoch, self.last_at = epoch, max(self.last_at, at)


class History:
    """What all applications of a run recorded."""

    def __init__(self) -> None:
        self.events: list[Recorded] = []
        self.resumed: list[Resumed] = []
        self.first_confirms: dict[int, list[tuple[float, float]]] = {}
        """By post office: (posted, confirmed) of each burst."""
        self.gaps: dict[int, Gap] = {}

    def hear(self, event: ClientEvent) -> None:
        if isinstance(event, Resumed):
            self.resumed.append(event)

    def confirm_gap_s(self, sid: int, since: float) -> float | None:
        """From `since` to the first confirm of what was posted after it."""
        later = [done for posted, done in self.first_confirms.get(sid, []) if posted >= since]
        return min(later) - since if later else None

    def frame_gap_s(self, sid: int, since: float) -> float | None:
        """From the last frame of the old epoch to the first one of the new."""
        found = [gap for _, at, gap in self.gaps.get(sid, Gap()).gaps if at >= since]
        return found[0] if found else None


class SteadyProducer:
    """Posts bursts until it is told to stop."""

    def __init__(self, name: str, producer: tanist.Producer, history: History) -> None:
        self.name = name
        self.producer = producer
        self._history = history
        self._next_n = 0
        self._unconfirmed = 0
        self._open: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def unconfirmed(self) -> int:
        """Messages."""
        return self._unconfirmed

    def burst(self, count: int = BURST_MESSAGES) -> None:
        """Post some messages now, and record when they are confirmed."""
        messages = [Message(self.name, self._next_n + i) for i in range(count)]
        self._next_n += count
        self._unconfirmed += count
        at = time.monotonic()
        queue = self.producer.queue
        self._history.events += [Posted(at=at, message=m, queue=queue) for m in messages]
        task = asyncio.create_task(self._confirm(messages, at))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _confirm(self, messages: list[Message], posted_at: float) -> None:
        try:
            done = await self.producer.send_many([body_of(m) for m in messages])
        except tanist.ClosedError:
            # The run ended early. If it did not, this burst was not answered as it must be.
            self._stopped = True
            self._unanswered()
            return
        self._unconfirmed -= len(messages)
        now = time.monotonic()
        history = self._history
        history.first_confirms.setdefault(done.sid, []).append((posted_at, now))
        history.events += [
            Confirmed(
                at=now, message=m, sid=done.sid, gen=done.gen, epoch=done.epoch, copies=done.copies
            )
            for m in messages
        ]

    async def run(self) -> None:
        while not self._stopped:
            if len(self._open) < BURSTS_OPEN_MAX:
                self.burst()
            await asyncio.sleep(BURST_EVERY_S)

    async def finish(self) -> None:
        self._stopped = True
        if self._open:
            _, late = await asyncio.wait(self._open, timeout=DRAIN_S_MAX)
            for _ in late:
                self._unanswered()

    def _unanswered(self) -> None:
        what = f"a burst of {self.name}"
        self._history.events.append(Unanswered(at=time.monotonic(), what=what))


class HoldingConsumer:
    """Takes messages, holds them for a while, and acks them."""

    def __init__(
        self,
        name: str,
        consumer: tanist.Consumer,
        history: History,
        tell: Callable[[Recorded], None] | None = None,
    ) -> None:
        self.name = name
        self.consumer = consumer
        self._tell = tell or history.events.append
        self._history = history
        self._held: dict[int, deque[tuple[Message, tanist.Message]]] = {}
        self._unanswered: list[tuple[Settled, str]] = []
        self._draining = False
        self.handed = 0

    def held_of(self, sid: int) -> int:
        return len(self._held.get(sid, ()))

    async def run(self) -> None:
        flushing = asyncio.create_task(self._flush_often())
        try:
            async for message in self.consumer:
                held = self._take(message)
                while len(held) > (0 if self._draining else HELD_PER_OFFICE):
                    self._ack(held)
        finally:
            flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await flushing

    def _take(self, message: tanist.Message) -> deque[tuple[Message, tanist.Message]]:
        unique = message_of(message.body)
        sid, gen, part, offset = map(int, message.id.split("."))
        self.handed += 1
        self._history.gaps.setdefault(sid, Gap()).saw(message.epoch, message.received_at)
        self._tell(
            Handed(
                at=time.monotonic(),
                message=unique,
                queue=self.consumer.queue,
                client=self.name,
                consumer=self.name,
                sid=sid,
                gen=gen,
                part=part,
                offset=offset,
                number=message.delivery,
                redelivered=message.redelivered,
            )
        )
        held = self._held.setdefault(sid, deque())
        held.append((unique, message))
        return held

    def _ack(self, held: deque[tuple[Message, tanist.Message]]) -> None:
        unique, message = held.popleft()
        settled = Settled(
            at=time.monotonic(),
            message=unique,
            consumer=self.name,
            sid=message.sid,
            gen=message.gen,
            number=message.delivery,
            acked=True,
        )
        self.consumer.ack(message)
        self._tell(settled)
        self._unanswered.append((settled, message.id))

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await self.flush()

    async def flush(self) -> None:
        """Record what became of all acks until now."""
        settled, self._unanswered = self._unanswered, []
        stale = {id_ for run in await self.consumer.flush() for id_ in run.ids}
        for one, id_ in settled:
            self._tell(
                Answered(
                    at=time.monotonic(),
                    message=one.message,
                    consumer=one.consumer,
                    sid=one.sid,
                    gen=one.gen,
                    number=one.number,
                    acked=True,
                    good=id_ not in stale,
                )
            )

    def drain(self) -> None:
        """From now on nothing is held."""
        self._draining = True
        for held in self._held.values():
            while held:
                self._ack(held)


async def left_over(client: tanist.Client, queue: str) -> list[Left]:
    """What a queue still holds, by post office."""
    stat = await client.stat(queue)
    return [
        Left(at=time.monotonic(), queue=queue, sid=sid, ready=part.ready, in_flight=part.in_flight)
        for sid, part in stat.parts.items()
    ]
