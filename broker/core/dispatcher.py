"""The dispatcher: which message is handed to whom, at one post office that this node owns.

Theory of operation
-------------------
A *leg* is a consumer's channel to this post office. It has *credit*: how many messages and
bytes its client allows, both counted since the channel opened. Deliveries are planned while
the turn's ops are appended, as ops themselves, so that a publish and the delivery of what it
brought ride in one segment.

All of this is volatile. It is built from nothing when the node becomes the owner: legs come
with their channels, and what is in flight is in the replicated state.

Each leg of a queue is in one of these places:

              credit                        credit used up
    told ────────────────▶ robin ──────────────────────────▶ idle
      ▲                    ▲   ▲                              │ │
      │       settlements  │   └──────────── credit ──────────┘ │
      │             full ──┘                                    │
      └──────────────────── READY: messages wait ───────────────┘

The legs in the robin take turns, a run of messages each. *Full* is who has credit, but too
much that it has not settled. A queue with messages and an empty robin is *waiting*: as many
idle legs are told READY as messages wait, the one first that has been idle for longest; and
after each 50 ms in which none of them gave credit, as many more.

Rules
-----
1. A queue is looked at when it was touched, when credit came, or when its time has come;
   a leg without credit costs nothing. What a call does is counted in runs and batches, and
   bounded; `next_deadline` asks for another one at once if something is left.
2. A leg with credit left in messages and in bytes may get one message even if that goes
   beyond its bytes: else a large message would never leave.
3. Credit that the client has given never falls, but by `credit_back`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from broker.core.ops import Attach, Deliver, PostOfficeOp
from broker.core.post_office import Holder, PostOffice
from paging.page import Piece
from paging.part import Part

RUN_MESSAGES_MAX: Final = 64
"""Of one turn in the robin, if other legs have credit too."""
RUN_BYTES_MAX: Final = 64 << 10
"""The same in bytes of bodies. One message may be larger."""
ALONE_MESSAGES_MAX: Final = 2_048
"""Of one run, if no other leg has credit: batches are not chopped without need."""
ALONE_BYTES_MAX: Final = 1 << 20
"""The same in bytes of bodies."""
BOOKKEEPING_BYTES_MAX: Final = 64 << 20
"""What a part may take up in memory beside its messages: half a billion holes, if they are close
together. Beyond it only what was returned is handed out, until acks have closed some."""
PLAN_PIECES_MAX: Final = 2_000
"""Runs and batches in them, of one call of `plan`; at some 5 µs each. The rest waits a turn."""
READY_AGAIN_S: Final = 0.05
"""Without credit for so long from those that were told READY, others are."""

AT_ONCE: Final = 0.0
"""A deadline before all others."""


class Planned(msgspec.Struct, frozen=True, gc=False):
    """A delivery whose op was appended: messages of one part for one leg."""

    leg: int
    part: int
    number: int
    first: int
    count: int
    redelivered: bool
    pieces: tuple[Piece, ...]
    """The messages themselves: their page may leave memory before they are handed out."""


class _Leg:
    __slots__ = (
        "automatic",
        "bytes_allowed",
        "bytes_used",
        "holder",
        "messages_allowed",
        "messages_settled",
        "messages_used",
        "number",
        "place",
        "queue",
    )

    def __init__(self, number: int, queue: _Queue, holder: Holder, automatic: bool) -> None:
        self.number = number
        self.queue = queue
        self.holder = holder
        self.automatic = automatic
        self.place = queue.idle
        self.place[number] = self
        # All since the channel opened.
        self.messages_allowed = self.messages_used = self.messages_settled = 0
        self.bytes_allowed = self.bytes_used = 0

    def move(self, place: OrderedDict[int, _Leg]) -> None:
        """To the end of `place`."""
        del self.place[self.number]
        self.place = place
        place[self.number] = self


class _Queue:
    __slots__ = ("full", "id", "idle", "robin", "told", "told_lately")

    def __init__(self, queue_id: int) -> None:
        self.id = queue_id
        self.robin: OrderedDict[int, _Leg] = OrderedDict()
        self.idle: OrderedDict[int, _Leg] = OrderedDict()
        self.full: OrderedDict[int, _Leg] = OrderedDict()
        self.told: OrderedDict[int, _Leg] = OrderedDict()
        self.told_lately = 0  # Of whom credit is still hoped for.

    @property
    def has_legs(self) -> bool:
        return bool(self.robin or self.idle or self.full or self.told)


class Dispatcher:
    """Plans the deliveries of one post office. See the module docstring for the rules.

    Args:
        office: The state of which this node is the owner.
        unacked_max: Messages that a leg may have at once without having settled them, whatever
            its client allows. Who sets it calls `settled` for each settlement. None: no bound.
        bookkeeping_bytes_max: Of one part: with more than that nothing fresh is handed out, since
            each delivery may leave holes. What was returned is, and closes them.
    """

    def __init__(
        self,
        office: PostOffice,
        *,
        unacked_max: int | None = None,
        bookkeeping_bytes_max: int = BOOKKEEPING_BYTES_MAX,
    ) -> None:
        self._office = office
        self._unacked_max = unacked_max
        self._bookkeeping_bytes_max = bookkeeping_bytes_max
        self._legs: dict[int, _Leg] = {}
        self._queues: dict[int, _Queue] = {}
        # Sets in the order of insertion.
        self._busy: OrderedDict[_Queue, None] = OrderedDict()  # Perhaps a run to plan.
        self._hungry: OrderedDict[_Queue, None] = OrderedDict()  # Perhaps somebody to tell.
        # Somebody has credit, but the messages are not in memory yet, or there are too many holes.
        self._away: dict[_Queue, None] = {}
        # When more are told. Each is set to the same time ahead, so the first ends first.
        self._waiting: OrderedDict[_Queue, float] = OrderedDict()

    # Legs

    def add_leg(
        self, leg: int, *, queue_id: int, session: bytes, consumer: bytes, automatic: bool
    ) -> None:
        """A consumer's channel is open. It has no credit yet."""
        assert leg not in self._legs
        queue = self._queues.get(queue_id)
        if queue is None:
            queue = self._queues[queue_id] = _Queue(queue_id)
        self._legs[leg] = _Leg(leg, queue, (session, consumer), automatic)
        self._mark(queue)

    def remove_leg(self, leg: int) -> None:
        """The channel is closed. What it holds is not this class's affair."""
        entry = self._legs.pop(leg)
        queue = entry.queue
        if entry.place is queue.told:
            # Somebody else is to be asked in its place, and not only in 50 ms.
            queue.told_lately = max(0, queue.told_lately - 1)
        del entry.place[leg]
        if queue.has_legs:
            self._mark(queue)
            return
        del self._queues[queue.id]
        self._busy.pop(queue, None)
        self._hungry.pop(queue, None)
        self._waiting.pop(queue, None)
        self._away.pop(queue, None)

    def credit(self, leg: int, messages: int, bytes_: int) -> None:
        """The client allows so much in all since the channel opened."""
        entry = self._legs[leg]
        queue = entry.queue
        entry.messages_allowed = max(entry.messages_allowed, messages)
        entry.bytes_allowed = max(entry.bytes_allowed, bytes_)
        if entry.place is queue.told:
            # READY ends with any credit that comes; and while it comes, nobody else is asked.
            queue.told_lately = max(0, queue.told_lately - 1)
            self._waiting.pop(queue, None)
            entry.move(queue.idle)
        self._find_place(entry)

    def credit_back(self, leg: int) -> tuple[int, int]:
        """The client wants back what is not used: (messages, bytes) that were planned until now.

        The leg is held to these. They count everything since the channel opened.
        """
        entry = self._legs[leg]
        entry.messages_allowed = entry.messages_used
        entry.bytes_allowed = entry.bytes_used
        if entry.place is not entry.queue.told:
            self._find_place(entry)
        return entry.messages_used, entry.bytes_used

    def settled(self, leg: int, messages: int) -> None:
        """So many of the messages sent on this leg are done with, or went back."""
        entry = self._legs[leg]
        # What an earlier channel of this consumer was sent may be settled on this one.
        entry.messages_settled = min(entry.messages_settled + messages, entry.messages_used)
        if entry.queue in self._away:
            self._mark(entry.queue)
        if entry.place is entry.queue.full:
            self._find_place(entry)

    def _find_place(self, entry: _Leg) -> None:
        queue = entry.queue
        place = queue.idle
        if self._has_credit(entry):
            place = queue.robin if self._messages_left(entry) > 0 else queue.full
        if entry.place is not place:
            entry.move(place)
        self._mark(queue)

    # Work

    def touched(self, queue_id: int) -> None:
        """Messages of this queue may wait, or be in memory, that did not before."""
        queue = self._queues.get(queue_id)
        if queue is not None:
            self._mark(queue)

    def plan(self, append: Callable[[PostOfficeOp], object]) -> list[Planned]:
        """Append the ops of all deliveries that can be made now, up to the bound of one call."""
        office = self._office
        planned: list[Planned] = []
        pieces = 0
        while self._busy and pieces < PLAN_PIECES_MAX:
            # One run, then it is another queue's turn.
            queue, _ = self._busy.popitem(last=False)
            number = office.part_of(queue.id)
            part = None if number is None else office.part(number)
            if number is not None and part is not None and part.ready and queue.robin:
                cost = self._plan_run(queue, number, part, append, planned)
                if not cost:
                    self._away[queue] = None
                    continue
                pieces += cost
                if part.ready and queue.robin:
                    self._busy[queue] = None
                    continue
            self._hungry[queue] = None
        return planned

    def _plan_run(
        self,
        queue: _Queue,
        part_number: int,
        part: Part,
        append: Callable[[PostOfficeOp], object],
        planned: list[Planned],
    ) -> int:
        """Plan a run for the leg whose turn it is. Returns what it cost; 0: it has to wait."""
        if part.bookkeeping_bytes > self._bookkeeping_bytes_max and not part.has_returned:
            return 0
        office = self._office
        leg = next(iter(queue.robin.values()))
        alone = len(queue.robin) == 1
        count_max = min(self._messages_left(leg), ALONE_MESSAGES_MAX if alone else RUN_MESSAGES_MAX)
        bytes_left = leg.bytes_allowed - leg.bytes_used
        bytes_max = min(bytes_left, ALONE_BYTES_MAX if alone else RUN_BYTES_MAX)
        head = part.head(count_max=count_max, bytes_max=bytes_max)
        if head is None:
            return 0
        run, pieces, bodies_len = head
        consumer_number = office.consumer_number(part_number, leg.holder)
        if consumer_number is None:
            consumer_number = office.next_consumer
            append(Attach(consumer_number, part_number, *leg.holder, leg.automatic))
        number, count = office.next_delivery, run.size
        append(Deliver(part_number, run.first, count, consumer_number, number))
        redelivered = bool(part.flagged(run))  # A head is flagged as a whole, or not at all.
        planned.append(
            Planned(leg.number, part_number, number, run.first, count, redelivered, pieces)
        )
        leg.messages_used += count
        leg.bytes_used += bodies_len
        queue.robin.move_to_end(leg.number)
        if not self._has_credit(leg):
            leg.move(queue.idle)
        elif self._messages_left(leg) <= 0:
            leg.move(queue.full)
        return 1 + len(pieces)

    def ready_legs(self, now: float) -> list[int]:
        """Who is to be told READY now. Called after `plan`, and when `next_deadline` has come."""
        legs: list[int] = []
        hungry, self._hungry = self._hungry, OrderedDict()
        for queue in hungry:
            self._tell(queue, now, legs)
        while self._waiting:
            queue, deadline = next(iter(self._waiting.items()))
            if now < deadline:
                break
            del self._waiting[queue]
            queue.told_lately = 0  # They are busy, and will give credit when they are not.
            self._tell(queue, now, legs)
        return legs

    def next_deadline(self) -> float | None:
        """When to call `plan` and `ready_legs` again, if nothing happens before."""
        if self._busy:
            return AT_ONCE
        return next(iter(self._waiting.values()), None)

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(legs)`."""
        placed: dict[int, _Leg] = {}
        for queue in self._queues.values():
            for place in (queue.robin, queue.idle, queue.full, queue.told):
                assert not placed.keys() & place.keys(), "a leg is in two places"
                assert all(leg.place is place for leg in place.values())
                placed |= place
            for leg in (*queue.robin.values(), *queue.full.values()):
                assert self._has_credit(leg)
                assert (self._messages_left(leg) > 0) == (leg.place is queue.robin)
            assert not any(self._has_credit(leg) for leg in queue.idle.values())
            if self._ready(queue):
                known = queue in self._busy or queue in self._away
                assert not queue.robin or known, "work is forgotten"
                asks = not queue.robin and bool(queue.idle)
                assert not asks or queue in self._hungry or queue in self._waiting
        assert placed == self._legs
        assert list(self._waiting.values()) == sorted(self._waiting.values())

    def _tell(self, queue: _Queue, now: float, legs: list[int]) -> None:
        ready = self._ready(queue)
        if queue.robin or not ready:
            # It does not wait any more.
            queue.told_lately = 0
            self._waiting.pop(queue, None)
            return
        while queue.idle and queue.told_lately < ready:
            leg, entry = next(iter(queue.idle.items()))
            entry.move(queue.told)
            queue.told_lately += 1
            legs.append(leg)
        if queue.idle and queue not in self._waiting:
            self._waiting[queue] = now + READY_AGAIN_S

    def _mark(self, queue: _Queue) -> None:
        self._away.pop(queue, None)
        if queue.robin:
            self._busy[queue] = None
        self._hungry[queue] = None

    def _ready(self, queue: _Queue) -> int:
        part = self._office.part_of(queue.id)
        return 0 if part is None else self._office.part(part).ready

    @staticmethod
    def _has_credit(leg: _Leg) -> bool:
        return leg.messages_used < leg.messages_allowed and leg.bytes_used < leg.bytes_allowed

    def _messages_left(self, leg: _Leg) -> int:
        allowed = leg.messages_allowed
        if self._unacked_max is not None:
            allowed = min(allowed, leg.messages_settled + self._unacked_max)
        return allowed - leg.messages_used
