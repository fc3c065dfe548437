"""A producer: batches form, are sealed and sent, and are kept until they are answered.

Theory of operation
-------------------
Messages are collected in an open batch. The turn's end seals it and sends it, if there is
credit; without credit it goes on growing, and behind it others wait.

    post ─▶ open batch ─▶ waiting ── credit: sealed, numbered ──▶ sent ── CONFIRM ──▶ gone
                                                                   │ ▲
                                            channel ended ─────────┴─┘ all sent again, as they are

A producer is bound to one post office. Its messages have numbers: 1, 2, 3… within one
producer epoch. The owner stores each number once, so what is in doubt is simply sent again.

Rules
-----
1. A batch that was sealed is repeated byte for byte while (sid, gen, producer epoch) last.
   OPENED tells which number is expected next: that is no confirm.
2. If the post office lost its content, or forgot this producer, what is in doubt may be
   stored in a life that is over. It is sealed anew, with a flag that says so, in a new
   producer epoch.
3. REFUSED ends the channel. That batch is given back to the application, and what was sent
   behind it is sealed anew from its number on.
4. The window bounds what is posted and not answered, whatever state it is in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from tanist.core.ask import error_of
from tanist.core.channel import Channel
from tanist.core.errand import Stage
from tanist.core.events import Effect, Resolve, Tell, Write
from tanist.core.link import Link
from tanist.core.settings import ClientSettings
from tanist.errors import (
    ClosedError,
    Error,
    FailoverTimeout,
    LocalProtocolError,
    OverloadedError,
    QueueNotFound,
    RefusedError,
    RemoteProtocolError,
)
from tanist.events import Lost, Refused, Resumed
from tanist.wire import control, hot
from tanist.wire.batch import Batch, flags_of, resealed, seal
from tanist.wire.frames import Frame, Verb, frame
from tanist.wire.limits import (
    BODIES_BYTES_MAX,
    COUNT_MAX,
    MESSAGE_BYTES_MAX,
    PROPERTIES_BYTES_MAX,
)

FLAGS_DEFAULT: Final = flags_of(persistent=True)
FIRST_N: Final = 1


class Confirmed(NamedTuple):
    """A message is safe.

    Attributes:
        copies: On how many nodes it is in memory, the owner included.
    """

    copies: int
    sid: int
    gen: int
    epoch: int
    at: float
    """When it was read, in the clock of the client's loop."""


class Outgoing:
    """One batch on its way.

    Attributes:
        order: Grows with each batch of this producer, across epochs.
        token: Resolved when it is answered; the caller's, None if nobody waits for it.
        data: The sealed bytes; empty while it is open or waiting.
    """

    __slots__ = (
        "bodies",
        "bytes",
        "count",
        "data",
        "distinct",
        "first_n",
        "flags",
        "in_doubt",
        "order",
        "properties",
        "token",
    )

    def __init__(self, order: int, flags: int) -> None:
        self.order = order
        self.flags = flags
        self.bodies: list[bytes] = []
        self.properties: list[bytes] = []
        self.distinct: dict[bytes, bytes] = {}
        self.bytes = 0
        self.count = 0
        self.token: object = None
        self.data = b""
        self.first_n = 0
        self.in_doubt = False

    @property
    def end_n(self) -> int:
        return self.first_n + self.count

    def seal(self, first_n: int, time_ms: int) -> None:
        self.first_n = first_n
        self.data = seal(
            self.bodies, self.properties, flags=self.flags, first_n=first_n, time_ms=time_ms
        )
        # The bodies are in the sealed bytes now.
        self.bodies, self.properties, self.distinct = [], [], {}

    def reseal(self, first_n: int, *, in_doubt: bool) -> None:
        self.in_doubt = self.in_doubt or in_doubt
        self.first_n = first_n
        self.data = resealed(Batch.trusted(self.data), first_n=first_n, in_doubt=self.in_doubt)


@dataclass(slots=True)
class _Flush:
    """Resolved when no batch up to `through` is unanswered."""

    through: int
    token: object


class ProducerCore(Channel):
    """One producer, bound to one post office.

    `room` and `append` are for the caller's fast path: a plain message may be appended to the
    open batch without calling `post`, if `room` is more than its length, and is lessened by
    its length and one. It is 0 at the beginning of each turn, so that the first message of a
    turn comes by `post`, which tells that the turn's end has work.

    Args:
        producer: 128 bits as hexadecimal digits, never used before.
        wall_offset_s: What to add to `now` for the time of day.
        missing: Asked when the queue's id is not known; whether another one is looked for.
        changed: Told when the turn's end has work for this producer.
    """

    role = "producer"

    def __init__(
        self,
        *,
        sid: int,
        info: control.QueueInfo,
        producer: str,
        settings: ClientSettings,
        wall_offset_s: float,
        known: Callable[[], control.Known],
        changed: Callable[[ProducerCore], None],
        missing: Callable[[ProducerCore, float], bool],
        opened_token: object,
        draw: Callable[[], float],
        now: float,
    ) -> None:
        super().__init__(sid, info.name, draw, now)
        self.info = info
        self.id = producer
        self._settings = settings
        self._wall_offset_s = wall_offset_s
        self._known = known
        self._changed = changed
        self._missing = missing
        self._opened_token: object = opened_token
        self._epoch = 1
        self._next_n = FIRST_N
        self._order = 0
        self._waiting: deque[Outgoing] = deque()
        self._sent: deque[Outgoing] = deque()
        self._repeat_at = 0
        """How many of `_sent` went out on this channel."""
        self._used_messages = self._used_bytes = 0
        self._credit_messages = self._credit_bytes = 0
        self._unanswered_messages = self._unanswered_bytes = 0
        self._open: Outgoing | None = None
        self._offered = 0
        self.room = 0
        self.append: Callable[[bytes], None] = _no_room
        self._flushes: deque[_Flush] = deque()
        self._wants_room: list[object] = []
        self._refusal: RefusedError | None = None
        self._error: Error | None = None

    # The application's side

    @property
    def error(self) -> Error | None:
        """Why this producer is over, if it is."""
        return self._error

    @property
    def unanswered(self) -> int:
        """Messages posted and neither confirmed nor refused."""
        self._account()
        return self._unanswered_messages

    @property
    def in_doubt(self) -> int:
        """Messages that were sent at least once and not answered."""
        return sum(batch.count for batch in self._sent)

    @property
    def full(self) -> bool:
        """The window is used up: whoever posts should wait for `room`."""
        self._account()
        return (
            self._unanswered_messages >= self._settings.window_messages
            or self._unanswered_bytes >= self._settings.window_bytes
        )

    def post(self, body: bytes, properties: bytes = b"", flags: int = FLAGS_DEFAULT) -> Outgoing:
        """Add a message to the open batch, which is returned.

        Raises `LocalProtocolError` for one that is too large, `OverloadedError` at twice the
        window, and what ended the producer.
        """
        if self._error is not None:
            raise self._error
        size = check_size(body, properties)
        self._account()
        if (
            self._unanswered_messages >= 2 * self._settings.window_messages
            or self._unanswered_bytes >= 2 * self._settings.window_bytes
        ):
            raise OverloadedError(
                f"{self._unanswered_messages} messages are posted and not confirmed: await what"
                " post() returns before the next one",
                retry_after_s=0.1,
            )
        batch = self._open
        if (
            batch is None
            or batch.flags != flags
            or bool(batch.properties) != bool(properties)
            or batch.bytes + size > BODIES_BYTES_MAX
            or batch.count >= COUNT_MAX
        ):
            self._order += 1
            batch = self._open = Outgoing(self._order, flags)
            self._waiting.append(batch)
        batch.bodies.append(body)
        if properties:
            # Equal ones are kept once here as well: they mostly repeat.
            batch.properties.append(batch.distinct.setdefault(properties, properties))
        self._count(batch, 1, size)
        self._offer(batch)
        self._changed(self)
        return batch

    def _offer(self, batch: Outgoing) -> None:
        """Let the fast path add to this batch, as far as it and the window go."""
        settings = self._settings
        if batch.properties or batch.flags != FLAGS_DEFAULT:
            self.room = self._offered = 0
            return
        self.append = batch.bodies.append
        # One number that stays below four limits costs the fast path one comparison. Where it
        # ends early, `post` comes between and offers again. The message that fills the window
        # must come by `post`, which says to wait.
        self.room = self._offered = max(
            0,
            min(
                BODIES_BYTES_MAX - batch.bytes,
                COUNT_MAX - batch.count,
                settings.window_bytes - self._unanswered_bytes,
                settings.window_messages - self._unanswered_messages - 1,
            ),
        )

    def _account(self) -> None:
        """Count what the fast path added."""
        batch = self._open
        if batch is None:
            return
        added = len(batch.bodies) - batch.count
        if added:
            self._count(batch, added, self._offered - self.room - added)
            self._offered = self.room

    def _count(self, batch: Outgoing, messages: int, bytes_: int) -> None:
        batch.count += messages
        batch.bytes += bytes_
        self._unanswered_messages += messages
        self._unanswered_bytes += bytes_

    def open_batch(self) -> Outgoing:
        """The batch that the last message went into. Right after it was posted."""
        assert self._open is not None
        return self._open

    def flush(self, token: object, now: float) -> None:
        """Resolve `token` when all that was posted until now is answered.

        With an error if any of it was refused since the last flush.
        """
        self._flushes.append(_Flush(self._order, token))
        self._asked(now)

    def wait_for_room(self, token: object, now: float) -> None:
        """Resolve `token` when the window has room again."""
        self._wants_room.append(token)
        self._asked(now)

    def _asked(self, now: float) -> None:
        if self.stage in (Stage.WAITING, Stage.ASKED) and self.since is None and not self.stalled:
            # It was given up before; whoever waits now waits a whole while of his own.
            self.since = now
            self.given_up = False
        self._changed(self)

    # The turn's end

    def settle(self, now: float, outbox: list[Effect]) -> None:
        """Send what credit allows, and resolve what is decided."""
        self._account()
        self.room = self._offered = 0
        if self.stage is Stage.DONE:
            self._send(now, outbox)
        if self._flushes:
            self._resolve_flushes(outbox)
        if self._wants_room and (self._error is not None or self._has_room()):
            tokens, self._wants_room = self._wants_room, []
            outbox.extend(Resolve(token, None, self._error) for token in tokens)

    def _has_room(self) -> bool:
        # Not at the first free place: whoever waits shall find enough for a few batches.
        settings = self._settings
        return (
            4 * self._unanswered_messages <= 3 * settings.window_messages
            and 4 * self._unanswered_bytes <= 3 * settings.window_bytes
        )

    def _send(self, now: float, outbox: list[Effect]) -> None:
        link = self.link
        assert link is not None
        sent = self._sent
        while self._used_messages < self._credit_messages and self._used_bytes < self._credit_bytes:
            if self._repeat_at < len(sent):
                batch = sent[self._repeat_at]
            elif self._waiting:
                batch = self._waiting.popleft()
                if batch is self._open:
                    self._open = None
                batch.seal(self._next_n, int((now + self._wall_offset_s) * 1000))
                self._next_n = batch.end_n
                sent.append(batch)
            else:
                break
            self._repeat_at += 1
            self._used_messages += batch.count
            self._used_bytes += len(batch.data)
            parts = frame(Verb.PUBLISH, self.number, batch.data)
            outbox.append(Write(link.connection, parts))

    def _resolve_flushes(self, outbox: list[Effect]) -> None:
        first = self._sent[0] if self._sent else self._waiting[0] if self._waiting else None
        while self._flushes:
            flush = self._flushes[0]
            if self._error is None and first is not None and first.order <= flush.through:
                break
            self._flushes.popleft()
            error = self._error or self._refusal
            self._refusal = None
            outbox.append(Resolve(flush.token, None, error))

    # The channel

    def request(self, link: Link) -> tuple[control.Request, int]:
        number = self.take_number(link)
        lowest = self._sent[0].first_n if self._sent else self._next_n
        request = control.OpenProducer(
            req=0,
            sid=self.office,
            gen=self.gen,
            epoch=self.epoch if self.gen else 0,
            queue_id=self.info.id,
            producer=self.id,
            producer_epoch=self._epoch,
            lowest_n=lowest,
            catalog=self._known(),
        )
        return request, number

    def answered(self, answer: control.Answer, now: float, outbox: list[Effect]) -> None:
        assert isinstance(answer, control.Opened)
        if answer.lost or answer.unknown:
            self._lost(answer, now, outbox)
            return
        old_owner = self.owner
        self.opened(answer)
        self._credit_messages, self._credit_bytes = answer.credit
        self._changed(self)
        if self._opened_token is not None:
            outbox.append(Resolve(self._opened_token, self))
            self._opened_token = None
        if self.fails_over:
            self.fails_over = False
            resumed = Resumed(
                sid=self.office,
                queue=self.queue,
                role=self.role,
                old_owner=old_owner,
                new_owner=self.owner,
                gen=self.gen,
                epoch=self.epoch,
                in_doubt=self.in_doubt,
                held=0,
                at=now,
            )
            outbox.append(Tell(resumed))

    def _lost(self, answer: control.Opened, now: float, outbox: list[Effect]) -> None:
        """Another life of the stream, or one that does not know us: begin anew there."""
        in_doubt = self.in_doubt
        self.new_epoch()
        self.gen, self.epoch = answer.gen, answer.epoch
        outbox.append(Tell(Lost(self.office, self.queue, self.role, answer.gen, in_doubt, now)))
        self.wait(now)
        self._changed(self)

    def new_epoch(self) -> None:
        """Number anew what is in doubt, marked so."""
        self._epoch += 1
        self._renumber(FIRST_N, in_doubt=True)

    def rebind(self, sid: int, now: float) -> None:
        """Its post office exists no more: go to another one."""
        self.sid = sid
        self.gen = self.epoch = 0
        self.new_epoch()
        self.closed(now)
        self.wait(now)
        self._changed(self)

    def _renumber(self, next_n: int, *, in_doubt: bool) -> None:
        for batch in self._sent:
            batch.reseal(next_n, in_doubt=in_doubt)
            next_n = batch.end_n
        self._next_n = next_n
        self._repeat_at = 0

    def closed(self, now: float) -> None:
        self._repeat_at = 0
        self._used_messages = self._used_bytes = 0
        self._credit_messages = self._credit_bytes = 0

    def refused(self, error: Error, now: float, outbox: list[Effect]) -> None:
        """OPEN_PRODUCER was answered with an error that does not pass by itself."""
        if isinstance(error, QueueNotFound) and self._missing(self, now):
            return
        self.fail(error, now, outbox)

    def renamed(self, info: control.QueueInfo, now: float) -> None:
        """The queue has another id since the catalog was put together again."""
        self.info = info
        self.wait(now)

    def gave_up(self, error: Error, now: float, outbox: list[Effect]) -> None:
        self.tell_failed(error, now, outbox)
        if self._opened_token is not None:
            # Nobody has it yet: it never was.
            self.fail(error, now, outbox)
            return
        assert isinstance(error, FailoverTimeout)
        for batch in (*self._sent, *self._waiting):
            if batch.token is not None:
                outbox.append(Resolve(batch.token, None, self._doubt(error, batch)))
                batch.token = None
        flushes, self._flushes = self._flushes, deque()
        tokens = [flush.token for flush in flushes] + self._wants_room
        self._wants_room = []
        outbox.extend(Resolve(token, None, self._doubt(error, None)) for token in tokens)

    def _doubt(self, error: FailoverTimeout, batch: Outgoing | None) -> FailoverTimeout:
        # Those not sent yet will be: they are kept, too.
        in_doubt = batch.count if batch is not None else self.unanswered
        return FailoverTimeout(str(error), in_doubt=in_doubt)

    def fail(self, error: Error, now: float, outbox: list[Effect]) -> None:
        """It is over: everything unanswered gets this error."""
        if self._error is not None:
            return
        self._account()
        self._error = error
        self.stage = Stage.OVER
        self.detach()
        if self._opened_token is not None:
            outbox.append(Resolve(self._opened_token, None, error))
            self._opened_token = None
        elif not isinstance(error, ClosedError):
            self.tell_failed(error, now, outbox)
        outbox.extend(
            Resolve(batch.token, None, error)
            for batch in (*self._sent, *self._waiting)
            if batch.token is not None
        )
        self._sent.clear()
        self._waiting.clear()
        self._open = None
        self._unanswered_messages = self._unanswered_bytes = 0
        self.room = self._offered = 0
        self._changed(self)

    # Frames

    def frame(self, received: Frame, now: float, outbox: list[Effect]) -> None:
        if self.stage is not Stage.DONE:
            return
        match received.verb:
            case Verb.CONFIRM:
                through_n, copies = hot.read_confirm(received.payload)
                self._confirmed(through_n, copies, now, outbox)
            case Verb.CREDIT:
                messages, bytes_ = hot.read_credit(received.payload)
                self._credit_messages = max(self._credit_messages, messages)
                self._credit_bytes = max(self._credit_bytes, bytes_)
            case Verb.REFUSED:
                refused = control.read_control(received)
                assert isinstance(refused, control.Refused)
                self._refused(refused, now, outbox)
            case _:
                raise RemoteProtocolError(
                    f"{Verb(received.verb).name} on a producer's channel",
                    code="bad_state",
                    value=str(received.verb),
                )
        self.stalled = False
        self._changed(self)

    def _confirmed(self, through_n: int, copies: int, now: float, outbox: list[Effect]) -> None:
        if through_n >= self._next_n:
            raise RemoteProtocolError(
                f"message {through_n} is confirmed, and {self._next_n - 1} was the last one",
                code="bad_state",
                value=str(through_n),
            )
        sent = self._sent
        confirmed: Confirmed | None = None
        while sent and sent[0].end_n <= through_n + 1:
            batch = sent.popleft()
            self._answered(batch)
            if batch.token is not None:
                confirmed = confirmed or Confirmed(copies, self.office, self.gen, self.epoch, now)
                outbox.append(Resolve(batch.token, confirmed))

    def _answered(self, batch: Outgoing) -> None:
        self._repeat_at = max(0, self._repeat_at - 1)
        self._unanswered_messages -= batch.count
        self._unanswered_bytes -= batch.bytes

    def _refused(self, refused: control.Refused, now: float, outbox: list[Effect]) -> None:
        index = next(
            (i for i, b in enumerate(self._sent) if b.first_n <= refused.n < b.end_n), None
        )
        if index is None:
            raise RemoteProtocolError(
                f"message {refused.n} is refused, and it is none of those in doubt",
                code="bad_state",
                value=str(refused.n),
            )
        error: RefusedError
        if refused.code == "full":
            error = OverloadedError(refused.sentence, retry_after_s=refused.retry_after_ms / 1000)
        else:
            error = RefusedError(refused.sentence, code=refused.code)
        batches = list(self._sent)
        batch, before, behind = batches[index], batches[:index], batches[index + 1 :]
        self._answered(batch)
        if batch.token is not None:
            outbox.append(Resolve(batch.token, None, error))
        else:
            # Nobody waits for it: whoever flushes is told.
            self._refusal = self._refusal or error
        outbox.append(Tell(Refused(self.office, self.queue, batch.count, error, now)))
        # It consumed no number, and what was sent behind it was dropped unread.
        next_n = batch.first_n
        for late in behind:
            late.reseal(next_n, in_doubt=False)
            next_n = late.end_n
        self._next_n = next_n
        self._sent = deque((*before, *behind))
        self.reopened(now)


def check_size(body: bytes, properties: bytes) -> int:
    """The size of a message. Raises `LocalProtocolError` if it is too large."""
    size = len(body) + len(properties)
    if size > MESSAGE_BYTES_MAX or len(properties) > PROPERTIES_BYTES_MAX:
        raise LocalProtocolError(
            f"a message of {len(body)} bytes with {len(properties)} bytes of properties is"
            f" above the limit ({MESSAGE_BYTES_MAX} in all, {PROPERTIES_BYTES_MAX} of"
            " properties)"
        )
    return size


def _no_room(body: bytes) -> None:
    raise AssertionError("no batch is open")


def channel_error(error: control.Error, queue: str) -> Error | None:
    """Why a channel ended for good; None: it may be opened again."""
    if error.code in ("deleted", "not_found", "fenced", "version"):
        return error_of(error, queue)
    return None
