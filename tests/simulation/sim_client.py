"""An application in a simulated process: the client's core that runs in production, and work.

It posts messages that are unique, (its name, n), takes messages, keeps some for a while, gives
some back, and writes down what it did and saw (`history.py`). A process that dies and is
started anew is another client: another name in the history, another session, other ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, assert_never

from tanist.core.client import ClientCore
from tanist.core.consumer import ConsumerCore
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
from tanist.core.leg import Stale
from tanist.core.producer import Confirmed as SafelyStored, ProducerCore
from tanist.core.run import Run
from tanist.core.settings import ClientSettings
from tanist.errors import ClosedError, Error, FailoverTimeout, OverloadedError, QueueNotFound
from tanist.events import Resumed
from tanist.wire.control import Declare
from tanist.wire.hot import Cause
from tests.simulation import history
from tests.simulation.faults import Climate
from tests.simulation.network import Network
from tests.simulation.pipes import Pipes, Socket
from tests.simulation.sim_node import SPINS_MAX

FLUSH_S: Final = 0.3
RETRY_S: Final = 0.3
QUESTION_S: Final = 1.0
"""Between two questions: how a queue stands, which there are, how the node is."""
HOLD_S: Final = 1.0
"""How long a message is kept, on average, that is not acknowledged at once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one application does."""

    declares: tuple[Declare, ...]
    posts_to: tuple[str, ...]
    """A producer for each."""
    takes_from: tuple[str, ...]
    """A consumer for each."""
    automatic: bool
    prefetch: int
    work_s: float
    """Between two messages of a consumer; 0: as they come."""
    failover_timeout_s: float


@dataclass(frozen=True, slots=True)
class _Entered:
    pass


@dataclass(frozen=True, slots=True)
class _Declared:
    request: Declare


@dataclass(frozen=True, slots=True)
class _ProducerOpened:
    queue: str


@dataclass(frozen=True, slots=True)
class _ConsumerOpened:
    queue: str


@dataclass(frozen=True, slots=True)
class _Closed:
    pass


@dataclass(slots=True, eq=False)
class _Question:
    what: str


@dataclass(slots=True, eq=False)
class _Batch:
    messages: list[history.Message]

    def __repr__(self) -> str:
        return f"{len(self.messages)} messages"


@dataclass(slots=True, eq=False)
class _Flush:
    worker: _Worker
    acks: list[history.Settled]

    def __repr__(self) -> str:
        return f"flush of {len(self.acks)} acks of {self.worker.queue}"


_Token = (
    _Entered | _Declared | _ProducerOpened | _ConsumerOpened | _Closed | _Question | _Batch | _Flush
)


@dataclass(slots=True, eq=False)
class _Worker:
    """One consumer, as the application uses it."""

    core: ConsumerCore
    queue: str
    taken: deque[tuple[Run, int]] = field(default_factory=deque)
    kept: int = 0
    acks: list[history.Settled] = field(default_factory=list)
    """Not yet known to have arrived."""
    placed: dict[tuple[int, int, int, int], list[history.Settled]] = field(default_factory=dict)
    """The same by place: (sid, gen, part, offset)."""
    stale: set[tuple[int, int, int, int]] = field(default_factory=set)
    busy: bool = False
    flushes: int = 0


@dataclass(slots=True, eq=False)
class _Process:
    """One life of a client."""

    name: str
    core: ClientCore
    clock_s: float
    sockets: dict[int, Socket] = field(default_factory=dict)
    inbox: list[Event] = field(default_factory=list)
    outbox: list[Effect] = field(default_factory=list)
    turn_is_due: bool = False
    wakes_at: float | None = None
    spins: int = 0
    """Turns in a row at whose end another one was overdue."""
    producers: dict[str, ProducerCore] = field(default_factory=dict)
    workers: list[_Worker] = field(default_factory=list)
    calls: dict[_Token, float] = field(default_factory=dict)
    """Those that wait, and since when."""
    next_n: int = 1


class SimClient:
    """A place with a client on it.

    Args:
        tell: Takes events of the history.
        may_post: Whether there are not too many messages about.
        broke: Takes what must never happen.
        draw_id: Makes 128 bits as hexadecimal digits.
        lost_catalog: Whether queues may have gone with a catalog that was LOST.
    """

    def __init__(
        self,
        place: str,
        plan: Plan,
        *,
        locators: list[str],
        climate: Climate,
        network: Network,
        pipes: Pipes,
        tell: Callable[[history.Recorded], None],
        may_post: Callable[[], bool],
        broke: Callable[[str, Exception], None],
        draw_id: Callable[[], str],
        lost_catalog: Callable[[], bool],
    ) -> None:
        self.place = place
        self.plan = plan
        self.frozen = False
        self.quiet = False
        """Post nothing, keep nothing, give nothing back: what there is shall be drained."""
        self.resumed_held = 0
        self.resumed_in_doubt = 0
        self.sessions: dict[bytes, str] = {}
        """The names of all lives, by session."""
        self._locators = locators
        self._climate = climate
        self._network = network
        self._pipes = pipes
        self._chance = network.chance
        self._tell = tell
        self._may_post = may_post
        self._broke = broke
        self._draw_id = draw_id
        self._lost_catalog = lost_catalog
        self._lives = 0
        self._extra: set[str] = set()
        self._process: _Process | None = None

    @property
    def name(self) -> str:
        """In the history. It changes with each life."""
        return f"{self.place}.{self._lives}"

    # Faults

    def start(self) -> None:
        if self._process is not None:
            if not self._process.core.closed:
                return
            self.kill()  # It was about to end by itself.
        self._lives += 1
        clock_s = self._chance.uniform(0.0, 10_000.0)
        now = self._network.now + clock_s
        session = self._draw_id()
        self.sessions[bytes.fromhex(session)] = self.name
        core = ClientCore(
            self._locators,
            session=session,
            settings=ClientSettings(
                name=self.name, failover_timeout_s=self.plan.failover_timeout_s
            ),
            wall_offset_s=0.0,
            draw=self._chance.random,
            now=now,
        )
        process = self._process = _Process(self.name, core, clock_s)
        self._ask(_Entered(), process)
        self._later(process, FLUSH_S, self._flush_all)
        self._later(process, QUESTION_S, self._ask_something)
        self._later(process, self._climate.closes_s, self._close_one)
        self._take_turn_soon(process)

    def kill(self) -> None:
        if self._process is None:
            return
        self._tell(history.Gone(at=self._network.now, client=self.name))
        self._process = None
        self.frozen = False
        self._network.crash(self.place)
        self._pipes.kill(self.place)

    def leave(self) -> None:
        """As an orderly application does: what it holds goes back at once."""
        process = self._process
        if process is None or self.frozen or process.core.closed:
            return
        self._tell(history.Gone(at=self._network.now, client=self.name))
        token = _Closed()
        process.calls[token] = self._network.now
        process.core.close(token, self._now(process), process.outbox)
        self._take_turn_soon(process)

    def freeze(self) -> None:
        self.frozen = True

    def go_on(self) -> None:
        self.frozen = False
        if self._process is not None:
            self._process.turn_is_due = False
            self._take_turn_soon(self._process)

    # The end

    def be_quiet(self) -> None:
        self.quiet = True
        process = self._process
        if process is not None:
            self._take_turn_soon(process)

    def take_also(self, queue: str) -> None:
        """A queue that nobody would ask for: its name was given again while its catalog was
        lost, and it is there under another one."""
        process = self._process
        if process is not None and queue not in self._extra:
            self._extra.add(queue)
            self._ask(_ConsumerOpened(queue), process)
            self._take_turn_soon(process)

    def waits_for(self) -> list[str]:
        """The calls and messages that wait for an answer."""
        process = self._process
        if process is None:
            return []
        calls = [f"{self.name}: {token} since {at:.3f}" for token, at in process.calls.items()]
        for queue, producer in process.producers.items():
            if producer.unanswered and not producer.error:
                calls.append(f"{self.name}: {producer.unanswered} messages to {queue}")
        return calls + [
            f"{self.name}: of {worker.queue} {worker.core.held} held, {len(worker.taken)} taken,"
            f" {len(worker.acks)} acks"
            for worker in process.workers
            if worker.core.held or worker.taken or worker.acks
        ]

    def check(self) -> None:
        if self._process is not None:
            self._process.core.check()

    # Events

    def _now(self, process: _Process) -> float:
        return self._network.now + process.clock_s

    def _feed(self, process: _Process, event: Event) -> None:
        if process is self._process:
            process.inbox.append(event)
            self._take_turn_soon(process)

    def _take_turn_soon(self, process: _Process) -> None:
        if not process.turn_is_due:
            process.turn_is_due = True
            self._network.after(0.0, partial(self._turn, process))

    def _turn(self, process: _Process) -> None:
        if process is not self._process or self.frozen:
            return
        process.turn_is_due = False
        events, process.inbox = process.inbox, []
        core, now = process.core, self._now(process)
        try:
            for event in (*events, Wake()):
                core.handle(event, now, process.outbox)
            self._carry_out(process)
            while core.has_work and process is self._process:
                core.handle(Wake(), now, process.outbox)
                self._carry_out(process)
        except Exception as error:
            self._broke(self.name, error)
            self.kill()
            return
        if process is self._process:
            self._set_timer(process)

    def _set_timer(self, process: _Process) -> None:
        deadline = process.core.next_deadline()
        if deadline is None or deadline > self._now(process):
            process.spins = 0
        else:
            process.spins += 1
            if process.spins > SPINS_MAX:
                self._broke(self.name, AssertionError("a deadline is not seen to"))
        if deadline is None or (process.wakes_at is not None and process.wakes_at <= deadline):
            return
        process.wakes_at = deadline
        delay_s = max(0.0, deadline - self._now(process)) + 1e-6
        self._network.after(delay_s, partial(self._wake, process, deadline))

    def _wake(self, process: _Process, deadline: float) -> None:
        if process is self._process and process.wakes_at == deadline:
            process.wakes_at = None
            self._take_turn_soon(process)

    def _later(self, process: _Process, mean_s: float, action: Callable[[_Process], None]) -> None:
        def act() -> None:
            if process is not self._process or process.core.closed:
                return
            if self.frozen:
                self._network.after(0.1, act)
                return
            try:
                action(process)
            except Exception as error:
                self._broke(self.name, error)
            self._take_turn_soon(process)

        self._network.after(self._chance.expovariate(1.0 / mean_s), act)

    # Effects

    def _carry_out(self, process: _Process) -> None:
        effects, process.outbox = process.outbox, []
        writes: dict[int, list[bytes]] = {}
        closing: list[int] = []
        for effect in effects:
            match effect:
                case Write():
                    writes.setdefault(effect.connection, []).extend(map(bytes, effect.parts))
                case Dial():
                    self._dial(process, effect)
                case Hangup():
                    closing.append(effect.connection)
                case Resolve():
                    self._resolved(process, effect)
                case Deliverable():
                    self._deliverable(process, effect.consumer)
                case Dropped():
                    pass  # Looked at before each message is handed out.
                case Tell():
                    if isinstance(effect.event, Resumed):
                        self.resumed_held += effect.event.held
                        self.resumed_in_doubt += effect.event.in_doubt
                case _:
                    assert_never(effect)
        for connection, parts in writes.items():
            if connection in process.sockets:
                process.sockets[connection].write(b"".join(parts))
        for connection in closing:
            socket = process.sockets.pop(connection, None)
            if socket is not None:
                socket.lost = _nobody
                socket.close()

    def _dial(self, process: _Process, dial: Dial) -> None:
        number = dial.connection

        def opened(socket: Socket) -> None:
            if process is not self._process:
                return
            process.sockets[number] = socket
            socket.received = lambda data: self._feed(process, Received(number, data))
            socket.lost = lost
            self._feed(process, Opened(number))

        def lost() -> None:
            process.sockets.pop(number, None)
            self._feed(process, Lost(number, "closed"))

        def failed(refused: bool) -> None:
            why = "refused" if refused else "no answer"
            self._feed(process, DialFailed(number, why))

        self._pipes.dial(self.place, dial.host, dial.port, opened, failed)

    # The application: calls

    def _resolved(self, process: _Process, resolve: Resolve) -> None:
        token, error = resolve.token, resolve.error
        process.calls.pop(token, None)  # type: ignore[call-overload]  # Only ours come back.
        match token:
            case _Batch():
                self._answered(token, resolve)
            case _Flush():
                token.worker.flushes -= 1
                if error is None:
                    self._flushed(token, resolve.result)
            case _Entered():
                self._again(process, error, token, self._entered)
            case _Declared():
                self._again(process, error, token, lambda p: None)
            case _ProducerOpened():
                if isinstance(resolve.result, ProducerCore):
                    process.producers[token.queue] = resolve.result
                    self._later(process, self._climate.post_s, partial(self._post, token.queue))
                else:
                    self._again(process, error, token, lambda p: None)
            case _ConsumerOpened():
                if isinstance(resolve.result, ConsumerCore):
                    self._consumes(process, token.queue, resolve.result)
                else:
                    self._again(process, error, token, lambda p: None)
            case _Closed():
                self._end(process)
            case _Question():
                # A queue may be unknown still, or its post office gone with a lost map.
                if not isinstance(error, FailoverTimeout | QueueNotFound | ClosedError | None):
                    self._broke(self.name, error)
            case _:
                raise AssertionError(token)

    def _end(self, process: _Process) -> None:
        self._process = None
        self._network.crash(self.place)
        self._pipes.kill(self.place)

    def _again(
        self,
        process: _Process,
        error: Error | None,
        token: _Entered | _Declared | _ProducerOpened | _ConsumerOpened,
        then: Callable[[_Process], None],
    ) -> None:
        if error is None:
            then(process)
            return
        if process.core.closed:
            return
        if not isinstance(error, FailoverTimeout | QueueNotFound):
            self._broke(self.name, error)
        self._later(process, RETRY_S, partial(self._ask, token))

    def _entered(self, process: _Process) -> None:
        for request in self.plan.declares:
            self._ask(_Declared(request), process)
        for queue in self.plan.posts_to:
            self._ask(_ProducerOpened(queue), process)
        for queue in self.plan.takes_from:
            self._ask(_ConsumerOpened(queue), process)

    def _ask(self, token: _Token, process: _Process) -> None:
        core, now = process.core, self._now(process)
        process.calls[token] = self._network.now
        match token:
            case _Entered():
                core.enter(token, now)
            case _Declared():
                core.declare(token, token.request, now)
            case _ProducerOpened():
                core.open_producer(token, token.queue, producer=self._draw_id(), now=now)
            case _ConsumerOpened():
                consumer = self._draw_id()
                self._tell(
                    history.Consumes(at=self._network.now, queue=token.queue, consumer=consumer)
                )
                core.open_consumer(
                    token,
                    token.queue,
                    consumer=consumer,
                    prefetch_messages=self.plan.prefetch,
                    prefetch_bytes=1 << 20,
                    auto_ack=self.plan.automatic,
                    now=now,
                )
            case _:
                raise AssertionError(token)

    # The application: posting

    def _post(self, queue: str, process: _Process) -> None:
        producer = process.producers[queue]
        if self.quiet:
            return
        if producer.error is not None:
            self._reopen(process, producer.error, _ProducerOpened(queue))
            return
        self._later(process, self._climate.post_s, partial(self._post, queue))
        if not self._may_post():
            return
        paging = self._climate.paging
        for _ in range(self._chance.randint(1, self._climate.burst)):
            message = history.Message(f"{self.name}-{queue}", process.next_n)
            process.next_n += 1
            self._tell(history.Posted(at=self._network.now, message=message, queue=queue))
            body = f"{message.producer}:{message.n}".rjust(paging.body_bytes if paging else 0)
            batch = producer.post(body.encode())
            if batch.token is None:
                batch.token = _Batch([])
            assert isinstance(batch.token, _Batch)
            batch.token.messages.append(message)

    def _ask_something(self, process: _Process) -> None:
        self._later(process, QUESTION_S, self._ask_something)
        core, now = process.core, self._now(process)
        if self.quiet or not core.here:
            return
        token = _Question(self._chance.choice(("list", "describe", "status", "stat")))
        producers = list(process.producers.values())
        process.calls[token] = self._network.now
        match token.what:
            case "list":
                core.list_queues(token, now)
            case "describe":
                core.describe(token, self.plan.declares[0].queue, now)
            case "stat" if producers:
                office = self._chance.choice(core.topology.offices)
                core.stat(token, producers[0].info, office, now)
            case _:
                core.status(token, now)

    def _close_one(self, process: _Process) -> None:
        """A consumer is closed, and another one opened."""
        self._later(process, self._climate.closes_s, self._close_one)
        if self.quiet or not process.workers:
            return
        worker = self._chance.choice(process.workers)
        process.workers.remove(worker)
        self._gone(worker)
        process.core.close_channels(worker.core, self._now(process), process.outbox)
        self._ask(_ConsumerOpened(worker.queue), process)

    def _gone(self, worker: _Worker) -> None:
        consumer = worker.core.id
        self._tell(history.Gone(at=self._network.now, client=self.name, consumer=consumer))

    def _reopen(
        self, process: _Process, error: Error, token: _ProducerOpened | _ConsumerOpened
    ) -> None:
        # An application may be told so when the catalog was lost, and opens it anew then.
        told = isinstance(error, QueueNotFound | FailoverTimeout)
        if not (told and self._lost_catalog()):
            self._broke(self.name, error)
        for request in self.plan.declares:
            self._ask(_Declared(request), process)
        self._ask(token, process)

    def _answered(self, batch: _Batch, resolve: Resolve) -> None:
        stored = resolve.result
        for message in batch.messages:
            at = self._network.now
            if isinstance(stored, SafelyStored):
                self._tell(
                    history.Confirmed(
                        at=at,
                        message=message,
                        sid=stored.sid,
                        gen=stored.gen,
                        epoch=stored.epoch,
                        copies=stored.copies,
                    )
                )
            elif isinstance(resolve.error, OverloadedError):
                self._tell(history.Refused(at=at, message=message))
        # Any other error leaves them in doubt: they may still come.

    # The application: taking

    def _consumes(self, process: _Process, queue: str, core: ConsumerCore) -> None:
        worker = _Worker(core, queue)
        process.workers.append(worker)
        self._deliverable(process, core)

    def _deliverable(self, process: _Process, core: ConsumerCore) -> None:
        for worker in process.workers:
            if worker.core is core and not worker.busy:
                self._work(process, worker)

    def _work(self, process: _Process, worker: _Worker) -> None:
        """Hand out what there is, at the application's pace."""
        worker.busy = False
        if process is not self._process or worker not in process.workers or process.core.closed:
            return
        error = worker.core.take_error()
        if worker.core.error is not None:
            process.workers.remove(worker)
            self._gone(worker)
            self._reopen(process, worker.core.error, _ConsumerOpened(worker.queue))
            return
        if error is not None and not isinstance(error, FailoverTimeout):
            self._broke(self.name, error)
        while True:
            if not worker.taken:
                run = worker.core.take()
                if run is None:
                    return
                worker.taken.extend((run, i) for first, end in run.held for i in range(first, end))
            while worker.taken:
                run, index = worker.taken.popleft()
                if index not in run.held:
                    continue  # Not ours any more: somebody else gets it.
                self._hand_out(process, worker, run, index)
                if self.plan.work_s and not self.quiet:
                    worker.busy = True
                    self._later(process, self.plan.work_s, lambda p: self._work(p, worker))
                    return

    def _hand_out(self, process: _Process, worker: _Worker, run: Run, index: int) -> None:
        producer, _, n = run.body(index).decode().lstrip().rpartition(":")
        message = history.Message(producer, int(n))
        self._tell(
            history.Handed(
                at=self._network.now,
                message=message,
                queue=worker.queue,
                client=self.name,
                consumer=worker.core.id,
                sid=run.sid,
                gen=run.gen,
                part=run.part,
                offset=run.first + index,
                number=run.number,
                redelivered=run.redelivered,
            )
        )
        if self.quiet or self.plan.automatic:
            self._ack(worker, message, run, index)
            return
        fate = self._chance.random()
        if fate < self._climate.returns:
            self._give_back(worker, message, run, index)
        elif fate < self._climate.returns + self._climate.holds:
            worker.kept += 1
            self._later(process, HOLD_S, lambda p: self._let_go(p, worker, message, run, index))
        else:
            self._ack(worker, message, run, index)

    def _let_go(
        self, process: _Process, worker: _Worker, message: history.Message, run: Run, index: int
    ) -> None:
        worker.kept -= 1
        if worker in process.workers:
            if not self.quiet and self._chance.random() < self._climate.returns:
                self._give_back(worker, message, run, index)
            else:
                self._ack(worker, message, run, index)

    def _ack(self, worker: _Worker, message: history.Message, run: Run, index: int) -> None:
        settled = self._settled(worker, message, run, acked=True)
        place = (run.sid, run.gen, run.part, run.first + index)
        worker.acks.append(settled)
        worker.placed.setdefault(place, []).append(settled)
        worker.core.ack(run, index)

    def _give_back(self, worker: _Worker, message: history.Message, run: Run, index: int) -> None:
        self._settled(worker, message, run, acked=False)
        worker.core.requeue(run, index, self._chance.choice(list(Cause)))

    def _settled(
        self, worker: _Worker, message: history.Message, run: Run, *, acked: bool
    ) -> history.Settled:
        settled = history.Settled(
            at=self._network.now,
            message=message,
            consumer=worker.core.id,
            sid=run.sid,
            gen=run.gen,
            number=run.number,
            acked=acked,
        )
        self._tell(settled)
        return settled

    def _flush_all(self, process: _Process) -> None:
        self._later(process, FLUSH_S, self._flush_all)
        for worker in process.workers:
            if worker.acks and worker.flushes < 3:
                worker.flushes += 1
                acks, worker.acks = worker.acks, []
                flush = _Flush(worker, acks)
                process.calls[flush] = self._network.now
                worker.core.flush(flush)

    def _flushed(self, flush: _Flush, stale: object) -> None:
        worker = flush.worker
        assert isinstance(stale, list)
        for item in stale:
            assert isinstance(item, Stale)
            for offset in range(item.first, item.first + item.count):
                worker.stale.add((item.sid, item.gen, item.part, offset))
        answered = set(map(id, flush.acks))
        for place, settled in list(worker.placed.items()):
            done = [ack for ack in settled if id(ack) in answered]
            if not done:
                continue
            left = [ack for ack in settled if id(ack) not in answered]
            if left:
                worker.placed[place] = left
            else:
                del worker.placed[place]
            if len(settled) > 1:
                continue  # Which of them was stale is not told.
            for ack in done:
                self._tell(
                    history.Answered(
                        at=self._network.now,
                        message=ack.message,
                        consumer=ack.consumer,
                        sid=ack.sid,
                        gen=ack.gen,
                        number=ack.number,
                        acked=True,
                        good=place not in worker.stale,
                    )
                )
            worker.stale.discard(place)


def _nobody() -> None:
    pass
