"""The client's shell on asyncio: sockets, tasks and the clock around `ClientCore`.

It decides nothing. What happens in one turn of the loop is answered at its end, with one
write for each connection. It runs on plain asyncio and on uvloop alike.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Generic, Literal, TypeVar, assert_never, cast

import orjson

from tanist.consumer import Consumer
from tanist.core.client import ClientCore
from tanist.core.consumer import ConsumerCore
from tanist.core.declaration import U32_END, check_name, check_number, declaration
from tanist.core.events import (
    Deliverable,
    Dial,
    DialFailed,
    Dropped,
    Effect,
    Event,
    Hangup,
    Lost,
    Opened,
    Received,
    Resolve,
    Tell,
    Wake,
    Write,
)
from tanist.core.producer import Confirmed, ProducerCore
from tanist.core.settings import ClientSettings
from tanist.errors import ClosedError, ConfigError, Error
from tanist.events import ClientEvent
from tanist.producer import Outcome, Producer
from tanist.url import parse_url
from tanist.wire import control
from tanist.wire.batch import Part
from tanist.wire.limits import CLIENT_NAME_CHARACTERS_MAX, NUMBER_END

logger = logging.getLogger("tanist")

Listener = Callable[[ClientEvent], Awaitable[None] | None]
T = TypeVar("T", bound=Producer | Consumer)

LISTENER_S_MAX: Final = 5.0
"""A listener that takes longer over one event is interrupted."""
EVENTS_MAX: Final = 1000
"""Kept for a listener that is slow; older ones are dropped first."""
CLOSE_S_MAX: Final = 2.0
"""`close` waits for no longer, whatever the nodes do."""


@dataclass(frozen=True, slots=True)
class QueueStat:
    """A queue's numbers, summed over its parts.

    Attributes:
        consumers: The most that any part has: a consumer has a leg to each.
        parts: By post office.
        lost: Of those that are ready: no copy can read them any more.
    """

    ready: int
    in_flight: int
    bytes: int
    consumers: int
    parts: dict[int, control.PartStat]
    lost: int = 0

    @property
    def paging(self) -> control.Paging:
        """Where the pages of all parts are, each at its owner. Other copies are not counted."""
        places = [part.paging for part in self.parts.values()]
        names = control.Paging.__struct_fields__
        return control.Paging(**{name: sum(getattr(at, name) for at in places) for name in names})


def connect(
    url: str,
    *,
    name: str = "tanist-python",
    failover_timeout_s: float = 30.0,
    window_messages: int = 100_000,
    window_bytes: int = 8 << 20,
    listener: Listener | None = None,
) -> Client:
    """A client of the cluster at `tanist://host:port,host:port`.

    Use it as `async with connect(…) as client`, or `client = await connect(…)` and close it.
    Any one node of the cluster is enough to enter; the others are learned from it.

    Args:
        url: Nodes to enter by. The port is 7472 if it is left out.
        name: Shown in the nodes' logs. At most 255 characters.
        failover_timeout_s: Calls wait for so long while no owner answers; then they raise
            `FailoverTimeout`.
        window_messages: Posted and not confirmed, per producer, before `post` says to wait.
        window_bytes: The same in bytes.
        listener: Told of `tanist.events`. A plain function or a coroutine function.
    """
    if failover_timeout_s <= 0 or window_messages < 1 or window_bytes < 1:
        raise ConfigError("time-outs and windows are above zero")
    if len(name) > CLIENT_NAME_CHARACTERS_MAX:
        raise ConfigError(
            f"the client's name has {len(name)} characters, "
            f"and at most {CLIENT_NAME_CHARACTERS_MAX} are possible"
        )
    settings = ClientSettings(
        name=name,
        failover_timeout_s=failover_timeout_s,
        window_messages=window_messages,
        window_bytes=window_bytes,
    )
    return Client(parse_url(url), settings, listener)


class Client:
    """A session with a cluster. Made by `connect`; all its calls belong to one event loop."""

    def __init__(
        self, locators: list[str], settings: ClientSettings, listener: Listener | None = None
    ) -> None:
        self._locators = locators
        self._settings = settings
        self._listeners: list[_Telling] = []
        self._first_listener = listener
        self._loop: asyncio.AbstractEventLoop
        self._core: ClientCore | None = None
        self._transports: dict[int, asyncio.Transport] = {}
        self._dials: dict[int, asyncio.Task[None]] = {}
        self._consumers: dict[ConsumerCore, Consumer] = {}
        self._outbox: list[Effect] = []
        self._writes: dict[int, list[Part]] = {}
        self._hangups: list[int] = []
        self._turn_ends = False
        self._timer: asyncio.TimerHandle | None = None

    # Beginning and end

    async def __aenter__(self) -> Client:
        return await self._start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[object, None, Client]:
        return self._start().__await__()

    async def _start(self) -> Client:
        if self._core is not None:
            raise ClosedError("a client is started once: call connect() again")
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._core = ClientCore(
            self._locators,
            session=uuid.uuid4().hex,
            settings=self._settings,
            wall_offset_s=time.time() - now,
            draw=random.random,
            now=now,
        )
        if self._first_listener is not None:
            self.listen(self._first_listener)
        token: asyncio.Future[None] = self._loop.create_future()
        self._core.enter(token, now)
        self.turn()
        try:
            await token
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """End the session. Always completes within two seconds, also during a failover.

        What is held by its consumers returns to the queues at once. What its producers have
        not confirmed stays in doubt: `flush` before.
        """
        core = self._core
        if core is None:
            return
        token: asyncio.Future[None] = self._loop.create_future()
        core.close(token, self._loop.time(), self._outbox)
        self.turn()
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await token
        except TimeoutError:
            logger.warning("closing took longer than %g s: connections are dropped", CLOSE_S_MAX)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Whatever is left goes."""
        for transport in self._transports.values():
            transport.close()
        self._transports.clear()
        for dial in self._dials.values():
            dial.cancel()
        for telling in self._listeners:
            telling.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Queues

    async def declare(
        self,
        queue: str,
        *,
        spread: Literal["every", "one"] = "every",
        when_full: Literal["hold", "refuse"] = "hold",
        bytes_max: int = 0,
        at: int = 0,
    ) -> control.QueueInfo:
        """Make the queue, if there is none of this name.

        Args:
            spread: `every`: it may have a part in every post office. `one`: in one only,
                which gives all its messages one order.
            when_full: `hold`: producers wait. `refuse`: they get `OverloadedError`.
            bytes_max: Of one part; 0: as the nodes are configured.
            at: The post office of a queue with spread one; 0: where this client entered.

        Raises `QueueExistsDifferently` if the name is taken by a queue with other settings, and
        `ConfigError`, before anything is sent, for arguments that no queue can have.
        """
        request = declaration(queue, spread=spread, when_full=when_full, bytes_max=bytes_max, at=at)
        info = await self._ask(lambda core, token, now: core.declare(token, request, now))
        return cast(control.QueueInfo, info)

    async def delete(self, queue: str) -> None:
        """Delete the queue with all its messages. Raises `QueueNotFound`."""
        check_name(queue)
        await self._ask(lambda core, token, now: core.delete(token, queue, now))

    async def describe(self, queue: str) -> control.QueueInfo:
        """What the queue is. Raises `QueueNotFound`."""
        check_name(queue)
        info = await self._ask(lambda core, token, now: core.describe(token, queue, now))
        return cast(control.QueueInfo, info)

    async def queues(self) -> list[control.QueueInfo]:
        """All queues of the cluster, by name."""
        done = await self._page_of_queues("")
        queues = done.queues or []
        while done.go_on_after:
            done = await self._page_of_queues(done.go_on_after)
            queues += done.queues or []
        return queues

    async def _page_of_queues(self, after: str) -> control.Done:
        done = await self._ask(lambda core, token, now: core.list_queues(token, now, after=after))
        return cast(control.Done, done)

    async def stat(self, queue: str) -> QueueStat:
        """How many messages the queue has, and where. Raises `QueueNotFound`."""
        info = await self.describe(queue)
        parts = await self._of_all_parts(
            info, lambda core, token, sid, now: core.stat(token, info, sid, now)
        )
        stats = {sid: done.stat for sid, done in parts.items() if done.stat is not None}
        return QueueStat(
            ready=sum(stat.ready for stat in stats.values()),
            in_flight=sum(stat.in_flight for stat in stats.values()),
            bytes=sum(stat.bytes for stat in stats.values()),
            consumers=max((stat.consumers for stat in stats.values()), default=0),
            parts=stats,
            lost=sum(stat.lost for stat in stats.values()),
        )

    async def purge(self, queue: str) -> int:
        """Remove the messages that wait in the queue; returns how many. Raises
        `QueueNotFound`."""
        info = await self.describe(queue)
        parts = await self._of_all_parts(
            info, lambda core, token, sid, now: core.purge(token, info, sid, now)
        )
        return sum(done.purged or 0 for done in parts.values())

    async def skip_lost(self, queue: str) -> int:
        """Give up the messages that no copy can read any more; returns how many. Raises
        `QueueNotFound`."""
        info = await self.describe(queue)
        parts = await self._of_all_parts(
            info, lambda core, token, sid, now: core.purge(token, info, sid, now, lost=True)
        )
        return sum(done.purged or 0 for done in parts.values())

    async def status(self) -> dict[str, object]:
        """The cluster, as the node by which this client entered sees it."""
        done = await self._ask(lambda core, token, now: core.status(token, now))
        return _document(done)

    async def queue_status(self, after: str = "") -> dict[str, object]:
        """A page of what the node that answers has of each queue: `queues`, by name, and
        `go_on_after`, with which the next page is asked for; it is empty on the last one."""
        return _document(
            await self._ask(lambda core, token, now: core.queue_status(token, now, after=after))
        )

    async def declare_lost(self, sid: int, gen: int) -> None:
        """Give up this life of a stream: it goes on empty, in the next gen.

        For an operator who knows that no process which held a copy, and counts as down, comes
        back with it. Raises `RefusedError` as long as a node that counts as up may have one.
        """
        check_number("sid", sid, U32_END)
        check_number("gen", gen, NUMBER_END)
        await self._ask(lambda core, token, now: core.declare_lost(token, sid, gen, now))

    @property
    def node(self) -> str:
        """The node by which this client is in the cluster; empty while it is not."""
        return self._running().entry

    @property
    def topology(self) -> dict[int, str]:
        """The owner's name of each stream, as far as it is known. 0 is the catalog."""
        known = self._running().topology
        places = {sid: known.place(sid) for sid in (0, *known.offices)}
        return {sid: place.node for sid, place in places.items() if place is not None}

    # Producers and consumers

    def producer(self, queue: str) -> Opening[Producer]:
        """Publish to a queue: `async with client.producer(queue) as producer`, or
        `producer = await client.producer(queue)`. Raises `QueueNotFound`; never makes one."""
        check_name(queue)
        return Opening(self._open_producer(queue))

    async def _open_producer(self, queue: str) -> Producer:
        opened = await self._ask(
            lambda core, token, now: core.open_producer(
                token, queue, producer=uuid.uuid4().hex, now=now
            ),
            unwanted=self._close_unwanted,
        )
        return Producer(self, cast(ProducerCore, opened))

    def consumer(
        self,
        queue: str,
        *,
        prefetch: int | None = None,
        prefetch_bytes: int | None = None,
        auto_ack: bool = False,
    ) -> Opening[Consumer]:
        """Consume from a queue: `async with client.consumer(queue) as consumer`, or
        `consumer = await client.consumer(queue)`. Raises `QueueNotFound`.

        Args:
            prefetch: Messages that are sent ahead of what is acked, over all post offices;
                4,096 if it is left out.
            prefetch_bytes: The same in bytes, 8 MiB; one message may go beyond.
            auto_ack: Messages are acked as they are handed to the application.
        """
        check_name(queue)
        if prefetch is None:
            prefetch = self._settings.prefetch_messages
        if prefetch_bytes is None:
            prefetch_bytes = self._settings.prefetch_bytes
        if prefetch < 1 or prefetch_bytes < 1:
            raise ConfigError("prefetch and prefetch_bytes are at least 1")
        return Opening(self._open_consumer(queue, prefetch, prefetch_bytes, auto_ack))

    async def _open_consumer(
        self, queue: str, prefetch: int, prefetch_bytes: int, auto_ack: bool
    ) -> Consumer:
        opened = await self._ask(
            lambda core, token, now: core.open_consumer(
                token,
                queue,
                consumer=uuid.uuid4().hex,
                prefetch_messages=prefetch,
                prefetch_bytes=prefetch_bytes,
                auto_ack=auto_ack,
                now=now,
            ),
            unwanted=self._close_unwanted,
        )
        core = cast(ConsumerCore, opened)
        consumer = self._consumers[core] = Consumer(self, core)
        return consumer

    def close_channels(self, core: ProducerCore | ConsumerCore) -> None:
        """Close a producer or a consumer. For those."""
        running = self._running()
        running.close_channels(core, self._loop.time(), self._outbox)
        if isinstance(core, ConsumerCore):
            consumer = self._consumers.pop(core, None)
            if consumer is not None:
                consumer.wake()
        self.turn()

    def _close_unwanted(self, result: object) -> None:
        """It was opened for somebody who was cancelled meanwhile."""
        assert isinstance(result, ProducerCore | ConsumerCore)
        self.close_channels(result)

    # Listeners

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` told of events, in order; returns a function that ends it.

        One that raises is logged, one that hangs is interrupted; nobody else notices.
        """
        telling = _Telling(listener, self._loop)
        self._listeners.append(telling)

        def stop() -> None:
            telling.stop()
            if telling in self._listeners:
                self._listeners.remove(telling)

        return stop

    # Asking the core

    def _running(self) -> ClientCore:
        if self._core is None:
            raise ClosedError("the client is not started: use `async with` or `await`")
        return self._core

    async def _ask(
        self,
        ask: Callable[[ClientCore, object, float], None],
        *,
        unwanted: Callable[[object], None] | None = None,
    ) -> object:
        core = self._running()
        token = _Question(self._loop.create_future(), unwanted)
        ask(core, token, self._loop.time())
        self.turn()
        return await token.future

    async def _of_all_parts(
        self,
        info: control.QueueInfo,
        ask: Callable[[ClientCore, object, int, float], None],
    ) -> dict[int, control.Done]:
        core = self._running()
        tokens: dict[int, _Question] = {}
        for sid in core.offices_of(info):
            tokens[sid] = token = _Question(self._loop.create_future(), None)
            ask(core, token, sid, self._loop.time())
        self.turn()
        # Together: if several fail, somebody has looked at each.
        answers = await asyncio.gather(*(token.future for token in tokens.values()))
        return dict(zip(tokens, cast("list[control.Done]", answers), strict=True))

    # Turns of the loop

    def turn(self) -> None:
        """Calls were made on the core: have them take effect at the end of this turn."""
        if not self._turn_ends:
            self._turn_ends = True
            self._loop.call_soon(self._end_turn)

    def _feed(self, event: Event) -> None:
        if self._core is None:
            return
        try:
            self._core.handle(event, self._loop.time(), self._outbox)
            self._carry_out()
        except Exception:
            self._end_with_a_bug(self._core)
        self.turn()

    def _end_turn(self) -> None:
        self._turn_ends = False
        core = self._core
        assert core is not None
        try:
            if core.has_work:
                core.handle(Wake(), self._loop.time(), self._outbox)
            while self._outbox:  # To be closed, some leave effects without an event.
                self._carry_out()
        except Exception:
            self._end_with_a_bug(core)
        if self._writes:
            writes, self._writes = self._writes, {}
            for connection, parts in writes.items():
                transport = self._transports.get(connection)
                if transport is not None:
                    # Not `writelines`: it joins as well, and on some loops writes each part.
                    transport.write(b"".join(parts))
        if self._hangups:
            hangups, self._hangups = self._hangups, []
            for connection in hangups:
                self._hang_up(connection)
        self._set_timer(core)

    def _end_with_a_bug(self, core: ClientCore) -> None:
        """The core broke one of its own rules: nothing that it says can be relied on.

        Without this the loop would log it, and whoever waits would wait for ever.
        """
        logger.exception("a bug in the client: it is closed")
        if not core.closed:
            core.close(None, self._loop.time(), self._outbox)
            while self._outbox:
                self._carry_out()
        self._abandon()

    def _carry_out(self) -> None:
        """Do what the core says, except to write and to hang up, which is for the turn's end.

        Whoever is woken by it runs before that, so that what he then posts or acks leaves
        in the same write.
        """
        effects, self._outbox = self._outbox, []
        for effect in effects:
            match effect:
                case Write():
                    self._writes.setdefault(effect.connection, []).extend(effect.parts)
                case Resolve():
                    _resolve(effect)
                case Deliverable():
                    if (consumer := self._consumers.get(effect.consumer)) is not None:
                        consumer.wake()
                case Dropped():
                    if (consumer := self._consumers.get(effect.consumer)) is not None:
                        consumer.drop()
                case Dial():
                    self._dial(effect)
                case Hangup():
                    self._hangups.append(effect.connection)
                case Tell():
                    for telling in self._listeners:
                        telling.tell(effect.event)
                case _:
                    assert_never(effect)

    def _set_timer(self, core: ClientCore) -> None:
        deadline = core.next_deadline()
        timer = self._timer
        if timer is not None:
            # One that fires too early costs a turn; to set it anew each turn costs more.
            if deadline is None or deadline < timer.when():
                timer.cancel()
            else:
                return
        self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._feed(Wake())

    # Connections

    def _dial(self, dial: Dial) -> None:
        task = self._loop.create_task(self._connect(dial))
        self._dials[dial.connection] = task
        task.add_done_callback(lambda _: self._dials.pop(dial.connection, None))

    async def _connect(self, dial: Dial) -> None:
        try:
            await self._loop.create_connection(
                lambda: _Connection(self, dial.connection), dial.host, dial.port
            )
        except OSError as error:
            self._feed(DialFailed(dial.connection, str(error)))

    def _hang_up(self, connection: int) -> None:
        dial = self._dials.get(connection)
        if dial is not None:
            dial.cancel()
        transport = self._transports.pop(connection, None)
        if transport is not None:
            transport.close()

    def connected(self, connection: int, transport: asyncio.Transport) -> None:
        self._transports[connection] = transport
        self._feed(Opened(connection))

    def received(self, connection: int, data: bytes) -> None:
        self._feed(Received(connection, data))

    def lost(self, connection: int, why: str) -> None:
        if self._transports.pop(connection, None) is not None:
            self._feed(Lost(connection, why))


class Opening(Generic[T]):
    """A producer or a consumer that is being opened: await it, or use it in `async with`."""

    def __init__(self, opening: Coroutine[object, object, T]) -> None:
        self._opening = opening
        self._opened: T | None = None

    def __await__(self) -> Generator[object, None, T]:
        return self._opening.__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._opening
        return self._opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._opened is not None:
            await self._opened.__aexit__(kind, error, traceback)


class _Connection(asyncio.Protocol):
    """One socket. It decides nothing."""

    def __init__(self, client: Client, connection: int) -> None:
        self._client = client
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client.connected(self._connection, cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._client.received(self._connection, data)

    def connection_lost(self, error: Exception | None) -> None:
        # At EOF asyncio closes the transport and comes here: one way out for both.
        why = str(error) if error is not None else "closed by the node"
        self._client.lost(self._connection, why)


class _Question:
    """A token of the core that somebody awaits."""

    __slots__ = ("future", "unwanted")

    def __init__(
        self, future: asyncio.Future[object], unwanted: Callable[[object], None] | None
    ) -> None:
        self.future = future
        self.unwanted = unwanted

    def decide(self, result: object, error: Error | None) -> None:
        if not self.future.done():
            _decide(self.future, result, error)
        elif error is None and self.unwanted is not None:
            self.unwanted(result)


def _resolve(effect: Resolve) -> None:
    token = effect.token
    if isinstance(token, Outcome):
        token.decide(cast("Confirmed | None", effect.result), effect.error)
    elif isinstance(token, _Question):
        token.decide(effect.result, effect.error)
    elif token is not None:
        assert isinstance(token, asyncio.Future)
        if not token.done():
            _decide(token, effect.result, effect.error)


def _document(done: object) -> dict[str, object]:
    """The status in an answer."""
    status = bytes(cast(control.Done, done).status) or b"{}"
    return cast("dict[str, object]", orjson.loads(status))


def _decide(future: asyncio.Future[object], result: object, error: Error | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class _Telling:
    """One listener, with a task and a queue of its own."""

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self._listener = listener
        self._events: deque[ClientEvent] = deque(maxlen=EVENTS_MAX)
        self._some = asyncio.Event()
        self._task = loop.create_task(self._run())

    def tell(self, event: ClientEvent) -> None:
        self._events.append(event)
        self._some.set()

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._events:
                await self._tell(self._events.popleft())

    async def _tell(self, event: ClientEvent) -> None:
        try:
            result = self._listener(event)
            if inspect.isawaitable(result):
                async with asyncio.timeout(LISTENER_S_MAX):
                    await result
        except TimeoutError:
            logger.warning("a listener took longer than %g s over %r", LISTENER_S_MAX, event)
        except Exception:
            # Whatever it is, it is the listener's own affair.
            logger.exception("a listener failed on %r", event)
