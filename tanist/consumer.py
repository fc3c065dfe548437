"""Consuming from a queue, from asyncio.

Messages come by `async for` or `fetch`. `ack` and `requeue` are plain calls: what one turn
of the loop settles leaves at its end, as ranges.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final

from tanist.core.consumer import ConsumerCore
from tanist.core.leg import Stale
from tanist.errors import ClosedError, Error, LocalProtocolError
from tanist.message import Message
from tanist.wire.hot import Cause

if TYPE_CHECKING:
    from tanist.client import Client

DRAIN_S_MAX: Final = 0.5
"""How much longer than its time-out `fetch` waits for what is on its way."""
CLOSE_S_MAX: Final = 1.0
"""How long `close` waits for the answers to acks."""


class Consumer:
    """Takes messages of one queue from all post offices. Made by `Client.consumer`.

    Several tasks may take from one consumer; each message goes to one of them.
    """

    def __init__(self, client: Client, core: ConsumerCore) -> None:
        self._client = client
        self._core = core
        self._auto_ack = core.auto_ack
        self._loop = asyncio.get_running_loop()
        # Taken from the core and not handed out, the next one last: `pop` is the cheapest.
        self._ready: list[Message] = []
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def queue(self) -> str:
        return self._core.queue

    @property
    def id(self) -> str:
        return self._core.id

    @property
    def held(self) -> int:
        """Messages that are here and neither acked nor requeued, handed out or not."""
        return self._core.held

    # Taking messages

    def __aiter__(self) -> Consumer:
        return self

    async def __anext__(self) -> Message:
        """The next message. Raises `FailoverTimeout` if a part has had no owner for too long;
        iteration may go on after that. Ends when the consumer is closed."""
        ready = self._ready
        while not ready:
            try:
                await self._fill()
            except ClosedError:
                raise StopAsyncIteration from None
        message = ready.pop()
        if self._auto_ack:
            self.ack(message)
        return message

    async def fetch(self, count: int, timeout: float | None = None) -> list[Message]:
        """Up to `count` messages: as soon as there are so many, or when `timeout` seconds are
        over. After a time-out nothing more is sent to this consumer until the next call."""
        got: list[Message] = []
        try:
            async with asyncio.timeout(timeout) as limit:
                await self._collect(got, count)
        except TimeoutError:
            if not limit.expired():
                raise
            await self._drained()
            self._collect_ready(got, count)
        except BaseException:
            # Not handed out: the next one who asks gets them.
            self._ready.extend(reversed(got))
            raise
        if self._auto_ack:
            self.ack_many(got)
        return got

    async def take_ready(self, count_max: int) -> list[Message]:
        """At least one message, and what else is there; none of them is acked by this."""
        while not self._ready:
            await self._fill()
        got: list[Message] = []
        self._collect_ready(got, count_max)
        return got

    async def _collect(self, got: list[Message], count: int) -> None:
        while True:
            self._collect_ready(got, count)
            if len(got) >= count:
                return
            await self._fill()

    def _collect_ready(self, got: list[Message], count: int) -> None:
        while len(got) < count and (self._ready or self._take()):
            got.append(self._ready.pop())

    async def _drained(self) -> None:
        """Call back all credit, and wait for what was planned before."""
        token: asyncio.Future[None] = self._loop.create_future()
        self._core.drain(token)
        self._client.turn()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S_MAX):
                await token

    def _take(self) -> bool:
        """Whether the core had a run, which is ready now."""
        run = self._core.take()
        if run is None:
            return False
        ready = self._ready
        for first, end in reversed(list(run.held)):
            ready.extend([Message(run, index) for index in range(end - 1, first - 1, -1)])
        return True

    async def _fill(self) -> None:
        """Wait until something is ready. It may be gone again, if another task
        was faster."""
        error = self._core.take_error()
        if error is not None:
            raise error
        if self._take():
            return
        self._core.want()
        self._client.turn()
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if not waiter.done() or waiter.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)

    # For the client

    def wake(self) -> None:
        """There is something to take, or to raise."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def drop(self) -> None:
        """Forget what is ready and not held any more."""
        self._ready[:] = [m for m in self._ready if m._index in m._run.held]

    # Settling messages

    def ack(self, message: Message) -> None:
        """This message is done with. Leaves at the end of the turn."""
        core = self._core
        try:
            run, index = message._run, message._index
        except AttributeError:
            raise _not_a_message(message) from None
        # In order of delivery, as nearly always, an ack is two comparisons and a sum.
        if run is core.ack_run and index == core.ack_end:
            core.ack_end = index + 1
            return
        self.check(message)
        core.ack(run, index)
        self._client.turn()

    def ack_many(self, messages: Iterable[Message]) -> None:
        """All of these are done with. If one cannot be acked, those before it are."""
        for message in messages:
            self.ack(message)

    def requeue(self, message: Message, *, failed: bool = False) -> None:
        """Give the message back to its place in the queue.

        With `failed` it counts as an attempt; without, it was not worked on.
        """
        self.check(message)
        self._core.requeue(message._run, message._index, Cause.FAILED if failed else Cause.RETURNED)
        self._client.turn()

    def check(self, message: Message) -> None:
        """Raises if this cannot be acked or requeued here, whoever holds it by now."""
        if not isinstance(message, Message):
            raise _not_a_message(message)
        if message._run.leg.consumer is not self._core:
            raise LocalProtocolError(f"message {message.id} is another consumer's")

    def processing(self, message: Message) -> Processing:
        """`async with consumer.processing(message):` acks it at the end, and requeues it if an
        exception goes through: as failed, or, if the task is cancelled, as not worked on."""
        return Processing(self, message)

    async def flush(self) -> list[Stale]:
        """Wait until all acks and requeues until now are answered.

        Returns those since the last flush that had no effect, because the message was not
        ours any more: another consumer may have it, or may have had it.
        """
        token: asyncio.Future[list[Stale]] = self._loop.create_future()
        self._core.flush(token)
        self._client.turn()
        return await token

    async def close(self) -> None:
        """Send what is settled, return the rest to the queue, and end iteration."""
        if self._core.error is None:
            with contextlib.suppress(Error, TimeoutError):
                async with asyncio.timeout(CLOSE_S_MAX):
                    await self.flush()
        self._ready.clear()
        self._client.close_channels(self._core)

    async def __aenter__(self) -> Consumer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _not_a_message(value: object) -> TypeError:
    return TypeError(f"only a message can be acked or requeued, not {type(value).__name__}")


class Processing:
    """One message while it is worked on."""

    __slots__ = ("_consumer", "_message")

    def __init__(self, consumer: Consumer, message: Message) -> None:
        self._consumer = consumer
        self._message = message

    async def __aenter__(self) -> Message:
        return self._message

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._consumer.ack(self._message)
        else:
            self._consumer.requeue(self._message, failed=issubclass(kind, Exception))
