"""Publishing to a queue, from asyncio.

`post` is a plain call and costs a fraction of a microsecond; batches form by themselves and
leave at the end of the loop's turn. `send` waits for the confirm of one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import orjson

from tanist.core.producer import FLAGS_DEFAULT, Confirmed, Outgoing, ProducerCore
from tanist.errors import Error, LocalProtocolError
from tanist.wire.batch import LANE_DEFAULT, flags_of

if TYPE_CHECKING:
    from tanist.client import Client


Body = bytes | bytearray | memoryview
"""What is not `bytes` is copied when it is posted."""


class _WindowFull:
    __slots__ = ("_producer",)

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def __await__(self) -> Generator[object, None, None]:
        yield from self._producer.ready().__await__()


class Outcome:
    """What became of a batch: one future for all who wait for it."""

    __slots__ = ("error", "future", "result")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        self.result: Confirmed | None = None
        self.error: Error | None = None

    def decide(self, result: Confirmed | None, error: Error | None) -> None:
        self.result, self.error = result, error
        if not self.future.done():
            self.future.set_result(None)

    async def wait(self) -> Confirmed:
        """The confirm. Raises what came instead. Cancelling one who waits disturbs no other."""
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        while self.result is None and self.error is None:
            future = self.future
            try:
                await future
            except asyncio.CancelledError:
                ours = task is None or task.cancelling() > cancelled_before
                if ours or not future.cancelled():
                    raise
                # Another one who waits was cancelled, and the shared future with it. A shield
                # for each would cost more than the rest of `send`.
                if self.future is future:
                    self.future = asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error.with_traceback(None)
        assert self.result is not None
        return self.result


class Producer:
    """Publishes to one queue. Made by `Client.producer`.

    Its messages keep their order. All of them go to one post office: the one of the node by
    which the client entered, or the queue's only one.
    """

    def __init__(self, client: Client, core: ProducerCore) -> None:
        self._client = client
        self._core = core
        self._loop = asyncio.get_running_loop()
        # What `post` returns while there is room. To await a future that is done takes no turn
        # of the loop, and is cheaper than any object of our own.
        self._in_the_window: asyncio.Future[None] = self._loop.create_future()
        self._in_the_window.set_result(None)

    @property
    def queue(self) -> str:
        return self._core.queue

    @property
    def id(self) -> str:
        return self._core.id

    @property
    def sid(self) -> int:
        """The post office that it publishes to."""
        return self._core.office

    @property
    def unanswered(self) -> int:
        """Messages posted and neither confirmed nor refused."""
        return self._core.unanswered

    def post(
        self,
        body: Body,
        properties: Mapping[str, object] | None = None,
        *,
        persistent: bool = True,
        priority: int = LANE_DEFAULT,
    ) -> Awaitable[None]:
        """Publish a message, without waiting for anything.

        The result may be awaited: that waits for room, if the window of messages posted and
        not confirmed is full, and else takes no time. A loop that posts more than the window
        holds must await; at twice the window `post` raises `OverloadedError` instead of
        growing without bound. Whether all went well is what `flush` tells.

        Raises `LocalProtocolError` for a message that is too large, and whatever ended the
        producer (`QueueNotFound`, `ClosedError`).
        """
        core = self._core
        # While the open batch has room: a third of what `core.post` costs.
        if (
            type(body) is bytes
            and (left := core.room - len(body)) > 0
            and properties is None
            and persistent
            and priority == LANE_DEFAULT
        ):
            core.room = left - 1
            core.append(body)
            return self._in_the_window
        flags = as_flags(persistent=persistent, priority=priority)
        return self.post_encoded(as_body(body), as_properties(properties), flags)

    def post_encoded(self, body: bytes, properties: bytes, flags: int) -> Awaitable[None]:
        """`post`, with properties as a JSON object (empty: none) and the flags of a batch."""
        self._core.post(body, properties, flags)
        self._client.turn()
        return _WindowFull(self) if self._core.full else self._in_the_window

    async def ready(self) -> None:
        """Wait until the window has room."""
        core = self._core
        if core.error is not None:
            raise core.error
        if core.full:
            token: asyncio.Future[None] = self._loop.create_future()
            core.wait_for_room(token, self._loop.time())
            self._client.turn()
            await token

    async def send(
        self,
        body: Body,
        properties: Mapping[str, object] | None = None,
        *,
        persistent: bool = True,
        priority: int = LANE_DEFAULT,
    ) -> Confirmed:
        """Publish a message and wait until it is safe; the result says on how many copies.

        If this is cancelled, by a time-out for instance, or raises `FailoverTimeout`, the
        message stays in doubt: it may be stored, now or later, since the client goes on
        trying. `flush` waits for that; a second `send` would be a second message.

        Raises `RefusedError` if the owner would not take it: it is stored nowhere then.
        """
        if self._core.full:
            await self.ready()
        self.post(body, properties, persistent=persistent, priority=priority)
        return await self._outcome(self._core.open_batch()).wait()

    async def send_many(
        self,
        bodies: Iterable[Body],
        properties: Mapping[str, object] | None = None,
        *,
        persistent: bool = True,
        priority: int = LANE_DEFAULT,
    ) -> Confirmed:
        """Publish messages and wait until all are safe. The result is that of the batch with
        the fewest copies. In doubt stays what `send` says; the first refusal is raised."""
        outcomes: dict[Outcome, None] = {}
        for body in bodies:
            if self._core.full:
                await self.ready()
            self.post(body, properties, persistent=persistent, priority=priority)
            outcomes[self._outcome(self._core.open_batch())] = None
        if not outcomes:
            raise LocalProtocolError("send_many was given no messages")
        return min([await outcome.wait() for outcome in outcomes])

    def _outcome(self, batch: Outgoing) -> Outcome:
        if batch.token is None:
            batch.token = Outcome(self._loop.create_future())
        assert isinstance(batch.token, Outcome)
        return batch.token

    async def flush(self) -> None:
        """Wait until everything posted until now is safe.

        Raises the first refusal since the last flush, if there was one, and `FailoverTimeout`
        if no owner answers: what is in doubt then is kept, and the next `flush` waits for it.
        """
        token: asyncio.Future[None] = self._loop.create_future()
        self._core.flush(token, self._loop.time())
        self._client.turn()
        await token

    async def close(self) -> None:
        """Close at once. What is not confirmed by then stays in doubt: `flush` before."""
        self._client.close_channels(self._core)

    async def __aenter__(self) -> Producer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._core.error is None:
                await self.flush()
        finally:
            await self.close()


def as_body(body: Body) -> bytes:
    """The body as bytes; raises `LocalProtocolError` for what is none of these."""
    if isinstance(body, bytes):
        return body
    if not isinstance(body, bytearray | memoryview):
        raise LocalProtocolError(
            f"a body is bytes, not {type(body).__name__}: encode text, for instance with .encode()"
        )
    return bytes(body)


def as_flags(*, persistent: bool, priority: int) -> int:
    """The flags of a batch for messages of this kind."""
    if persistent and priority == LANE_DEFAULT:
        return FLAGS_DEFAULT
    return flags_of(persistent=persistent, lane=priority)


def as_properties(properties: Mapping[str, object] | None) -> bytes:
    """Properties as a JSON object, empty for none."""
    if not properties:
        return b""
    try:
        return orjson.dumps(dict(properties))
    except TypeError as error:
        raise LocalProtocolError(f"properties must be JSON: {error}") from error
