"""The same client without asyncio, for programs that block and for threads.

    with tanist.blocking.connect("tanist://127.0.0.1") as client:
        with client.producer("orders") as producer:
            producer.send(b"hello")

Each client runs an event loop in a background thread of its own; every call hands its work
over to it and waits for the result. All calls may be made from any thread, but not from
a listener, which runs in the background thread itself.

A process that was forked has no such thread: there every call raises `ClosedError`. Connect
in the child.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeVar

import tanist.client
from tanist.client import Listener, QueueStat
from tanist.consumer import Consumer as AsyncConsumer
from tanist.core.leg import Stale
from tanist.core.producer import FLAGS_DEFAULT, Confirmed, check_size
from tanist.errors import ClosedError, Error, LocalProtocolError
from tanist.message import Message
from tanist.producer import Body, Producer as AsyncProducer, as_body, as_flags, as_properties
from tanist.wire.batch import LANE_DEFAULT
from tanist.wire.control import QueueInfo

T = TypeVar("T")

HANDED_OVER_MAX: Final = 4096
"""Messages that `post` collects for the background thread before it waits for it."""
HANDED_OVER_BYTES_MAX: Final = 1 << 20
"""The same in bytes."""
TAKEN_MAX: Final = 1000
"""Messages that are brought over from the background thread at once."""


def connect(
    url: str,
    *,
    name: str = "tanist-python",
    failover_timeout_s: float = 30.0,
    window_messages: int = 100_000,
    window_bytes: int = 8 << 20,
    listener: Listener | None = None,
) -> Client:
    """Enter a cluster. The arguments are those of `tanist.connect`; the client is connected
    when this returns. Close it, or use it in `with`."""
    thread = _LoopThread()
    try:
        client = tanist.client.connect(
            url,
            name=name,
            failover_timeout_s=failover_timeout_s,
            window_messages=window_messages,
            window_bytes=window_bytes,
            listener=listener,
        )
        thread.call(client.__aenter__())
    except BaseException:
        thread.stop()
        raise
    return Client(client, thread)


class _LoopThread:
    """The background thread, and the way into it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tanist", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def check(self) -> None:
        """Raises if calls are not possible here."""
        if os.getpid() != self._pid:
            raise ClosedError("this client belongs to the parent process: connect in this one")
        if self._loop.is_closed() or not self._thread.is_alive():
            raise ClosedError("the client is closed")

    def call(self, work: Coroutine[object, object, T]) -> T:
        """Have the background thread do this, and wait for the result."""
        try:
            self.check()
            if threading.current_thread() is self._thread:
                raise LocalProtocolError(
                    "a listener runs in the client's own thread: it cannot wait for the client"
                )
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise ClosedError("the client was closed meanwhile") from error
        except BaseException:
            future.cancel()  # An interrupt, while we wait: the work is not wanted any more.
            raise

    def soon(self, work: Callable[[], object]) -> None:
        """Have the background thread do this, without waiting."""
        self.check()
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError as error:
            raise ClosedError("the client is closed") from error

    def stop(self) -> None:
        """End the thread. Whatever waits for it is told that the client was closed."""
        if os.getpid() != self._pid or self._loop.is_closed():
            return

        def cancel_all() -> None:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.call_soon(self._loop.stop)

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(cancel_all)
        if threading.current_thread() is not self._thread:
            self._thread.join()


class Client:
    """A session with a cluster. Made by `connect`."""

    def __init__(self, client: tanist.client.Client, thread: _LoopThread) -> None:
        self._client = client
        self._thread = thread

    def __enter__(self) -> Client:
        self._thread.check()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session, as `tanist.Client.close` does. Closing twice does no harm."""
        try:
            self._thread.check()
        except ClosedError:
            if os.getpid() != self._thread._pid:
                raise
            return
        try:
            self._thread.call(self._client.close())
        finally:
            self._thread.stop()

    def declare(
        self,
        queue: str,
        *,
        spread: Literal["every", "one"] = "every",
        when_full: Literal["hold", "refuse"] = "hold",
        bytes_max: int = 0,
        at: int = 0,
    ) -> QueueInfo:
        """See `tanist.Client.declare`."""
        return self._thread.call(
            self._client.declare(
                queue, spread=spread, when_full=when_full, bytes_max=bytes_max, at=at
            )
        )

    def delete(self, queue: str) -> None:
        """See `tanist.Client.delete`."""
        self._thread.call(self._client.delete(queue))

    def describe(self, queue: str) -> QueueInfo:
        """See `tanist.Client.describe`."""
        return self._thread.call(self._client.describe(queue))

    def queues(self) -> list[QueueInfo]:
        """See `tanist.Client.queues`."""
        return self._thread.call(self._client.queues())

    def stat(self, queue: str) -> QueueStat:
        """See `tanist.Client.stat`."""
        return self._thread.call(self._client.stat(queue))

    def purge(self, queue: str) -> int:
        """See `tanist.Client.purge`."""
        return self._thread.call(self._client.purge(queue))

    def skip_lost(self, queue: str) -> int:
        """See `tanist.Client.skip_lost`."""
        return self._thread.call(self._client.skip_lost(queue))

    def status(self) -> dict[str, object]:
        """See `tanist.Client.status`."""
        return self._thread.call(self._client.status())

    def queue_status(self, after: str = "") -> dict[str, object]:
        """See `tanist.Client.queue_status`."""
        return self._thread.call(self._client.queue_status(after))

    def declare_lost(self, sid: int, gen: int) -> None:
        """See `tanist.Client.declare_lost`."""
        self._thread.call(self._client.declare_lost(sid, gen))

    @property
    def node(self) -> str:
        """The node by which this client is in the cluster; empty while it is not."""
        self._thread.check()
        return self._client.node

    @property
    def topology(self) -> dict[int, str]:
        """The owner's name of each stream, as far as it is known. 0 is the catalog."""
        self._thread.check()
        return self._client.topology

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` told of events, in the background thread; returns a function that
        ends it. See `tanist.Client.listen`."""

        async def listened() -> Callable[[], None]:
            return self._client.listen(listener)

        stop = self._thread.call(listened())
        return lambda: self._thread.soon(stop)

    def producer(self, queue: str) -> Producer:
        """Publish to a queue. Raises `QueueNotFound`; never makes one."""

        async def opened() -> AsyncProducer:
            return await self._client.producer(queue)

        return Producer(self._thread.call(opened()), self._thread)

    def consumer(
        self,
        queue: str,
        *,
        prefetch: int | None = None,
        prefetch_bytes: int | None = None,
        auto_ack: bool = False,
    ) -> Consumer:
        """Consume from a queue; see `tanist.Client.consumer`. Raises `QueueNotFound`."""

        async def opened() -> AsyncConsumer:
            # Messages are handed to the application on this side: so they are acked from here.
            return await self._client.consumer(
                queue, prefetch=prefetch, prefetch_bytes=prefetch_bytes
            )

        return Consumer(self._thread.call(opened()), self._thread, auto_ack=auto_ack)


class _HandOver:
    """Things that are done in the background thread in the order in which they came.

    To wake the other thread costs some ten microseconds, so it is done once for all that
    comes until it is awake.
    """

    def __init__(self, thread: _LoopThread, do: Callable[[list[Any]], Coroutine[Any, Any, None]]):
        # Any: items are of the one kind that `do` takes, and coroutines send nothing.
        self._thread = thread
        self._do = do
        self._items: list[Any] = []
        self._lock = threading.Lock()
        self._order = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._error: Error | None = None

    def put(self, item: object) -> int:
        """Returns how many wait. Raises what went wrong with earlier ones."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        with self._lock:
            self._items.append(item)
            waiting = len(self._items)
        if waiting == 1:
            self._thread.soon(self._start)
        return waiting

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._in_background())

    async def _in_background(self) -> None:
        try:
            await self.all()
        except Error as error:
            self._error = error

    async def all(self) -> None:
        """Do all that was put. In the background thread."""
        async with self._order:
            while True:
                with self._lock:
                    items, self._items = self._items, []
                if not items:
                    return
                await self._do(items)


class Producer:
    """Publishes to one queue. Made by `Client.producer`."""

    def __init__(self, producer: AsyncProducer, thread: _LoopThread) -> None:
        self._producer = producer
        self._thread = thread
        self._hand_over = _HandOver(thread, self._post_all)
        self._bytes = 0

    @property
    def queue(self) -> str:
        return self._producer.queue

    @property
    def sid(self) -> int:
        """The post office that it publishes to."""
        return self._producer.sid

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    def post(
        self,
        body: Body,
        properties: Mapping[str, object] | None = None,
        *,
        persistent: bool = True,
        priority: int = LANE_DEFAULT,
    ) -> None:
        """Publish a message. Waits only while the window is full. Whether all went well is
        what `flush` tells; what ended the producer is raised by a later call."""
        self._thread.check()
        encoded = as_properties(properties)
        plain = as_body(body)
        self._bytes += check_size(plain, encoded)
        item = (plain, encoded, as_flags(persistent=persistent, priority=priority))
        waiting = self._hand_over.put(item)
        if waiting >= HANDED_OVER_MAX or self._bytes >= HANDED_OVER_BYTES_MAX:
            self._thread.call(self._hand_over.all())

    async def _post_all(self, items: list[tuple[bytes, bytes, int]]) -> None:
        self._bytes = 0
        post = self._producer.post
        for body, properties, flags in items:
            if properties or flags != FLAGS_DEFAULT:
                await self._producer.post_encoded(body, properties, flags)
            else:
                await post(body)

    def send(
        self,
        body: Body,
        properties: Mapping[str, object] | None = None,
        *,
        persistent: bool = True,
        priority: int = LANE_DEFAULT,
    ) -> Confirmed:
        """Publish a message and wait until it is safe. What `tanist.Producer.send` says about
        doubt holds here, too."""

        async def sent() -> Confirmed:
            await self._hand_over.all()
            return await self._producer.send(
                body, properties, persistent=persistent, priority=priority
            )

        return self._thread.call(sent())

    def send_many(
        self,
        bodies: Iterable[Body],
        properties: Mapping[str, object] | None = None,
        *,
        persistent: bool = True,
        priority: int = LANE_DEFAULT,
    ) -> Confirmed:
        """Publish messages and wait until all are safe. See `tanist.Producer.send_many`."""
        all_bodies = list(bodies)  # The iterable is the caller's: it runs in his thread.

        async def sent() -> Confirmed:
            await self._hand_over.all()
            return await self._producer.send_many(
                all_bodies, properties, persistent=persistent, priority=priority
            )

        return self._thread.call(sent())

    def flush(self) -> None:
        """Wait until everything posted until now is safe. See `tanist.Producer.flush`."""

        async def flushed() -> None:
            await self._hand_over.all()
            await self._producer.flush()

        self._thread.call(flushed())

    def close(self) -> None:
        """Close at once. What is not confirmed by then stays in doubt: `flush` before."""
        self._thread.call(self._producer.close())


class Consumer:
    """Takes messages of one queue. Made by `Client.consumer`. Several threads may share it."""

    def __init__(self, consumer: AsyncConsumer, thread: _LoopThread, *, auto_ack: bool) -> None:
        self._consumer = consumer
        self._thread = thread
        self._auto_ack = auto_ack
        self._taken: deque[Message] = deque()
        self._hand_over = _HandOver(thread, self._settle_all)

    @property
    def queue(self) -> str:
        return self._consumer.queue

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        """The next message. Ends when the consumer is closed."""
        self._thread.check()
        while (message := self._next_taken()) is None:
            try:
                more = self._thread.call(self._consumer.take_ready(TAKEN_MAX))
            except ClosedError:
                raise StopIteration from None
            self._taken.extend(more)
        if self._auto_ack:
            self.ack(message)
        return message

    def _next_taken(self) -> Message | None:
        """The next one that was brought over and is still ours."""
        while self._taken:
            try:
                message = self._taken.popleft()
            except IndexError:
                break  # Another thread was faster.
            if message._index in message._run.held:
                return message
        return None

    def fetch(self, count: int, timeout: float | None = None) -> list[Message]:
        """Up to `count` messages: as soon as there are so many, or when `timeout` seconds are
        over. See `tanist.Consumer.fetch`."""
        self._thread.check()
        got: list[Message] = []
        while len(got) < count and (message := self._next_taken()) is not None:
            got.append(message)
        if len(got) < count:
            got += self._thread.call(self._consumer.fetch(count - len(got), timeout))
        if self._auto_ack:
            self.ack_many(got)
        return got

    def ack(self, message: Message) -> None:
        """This message is done with. Does not wait."""
        # Here, where the caller hears of it: over there it would end the batch that it is in.
        self._consumer.check(message)
        self._hand_over.put((message, None))

    def ack_many(self, messages: Iterable[Message]) -> None:
        """All of these are done with. If one cannot be acked, those before it are."""
        for message in messages:
            self.ack(message)

    def requeue(self, message: Message, *, failed: bool = False) -> None:
        """Give the message back to its place in the queue. See `tanist.Consumer.requeue`."""
        self._consumer.check(message)
        self._hand_over.put((message, failed))

    async def _settle_all(self, items: list[tuple[Message, bool | None]]) -> None:
        for message, failed in items:
            if failed is None:
                self._consumer.ack(message)
            else:
                self._consumer.requeue(message, failed=failed)

    @contextlib.contextmanager
    def processing(self, message: Message) -> Iterator[Message]:
        """`with consumer.processing(message):` acks it at the end, and requeues it if an
        exception goes through: as failed, or, after an interrupt, as not worked on."""
        try:
            yield message
        except BaseException as error:
            self.requeue(message, failed=isinstance(error, Exception))
            raise
        self.ack(message)

    def flush(self) -> list[Stale]:
        """Wait until all acks and requeues until now are answered; returns those that had no
        effect. See `tanist.Consumer.flush`."""

        async def flushed() -> list[Stale]:
            await self._hand_over.all()
            return await self._consumer.flush()

        return self._thread.call(flushed())

    def close(self) -> None:
        """Send what is settled, return the rest to the queue, and end iteration."""

        async def closed() -> None:
            await self._hand_over.all()
            await self._consumer.close()

        self._thread.call(closed())
