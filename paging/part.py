"""The part of a queue that one post office holds: batches, and ranges over them.

Theory of operation
-------------------
Every message of a part has an offset, and is in exactly one place until it is done with:

    append ──▶ fresh ──deliver──▶ held under a number ──ack──▶ gone
                                     │        ▲
                                  requeue  deliver
                                     ▼        │
                                     returned ─────────purge──▶ gone (so do fresh ones)

A place is a set of offsets kept as runs, and a step moves a run from one place to another,
so what a step costs does not depend on how many messages it moves. Two more things are
known of a message, as runs too, and go with it wherever it is: whether it is *flagged* as
perhaps seen before, and how often its consumers failed (*attempts*). Flags are for good.

What is handed out next is `head`: returned messages first, by offset, then fresh ones.

How many runs there can be. Fresh messages are one run, since they are taken from its front
only. All others are held or returned, and nothing fresh is handed out while something is
returned; so held and returned together are never more than the credit that the consumers
had at the moment when they had most, whatever the backlog. In the worst case, every second
one acknowledged, each of these is a run. Where runs are many they are kept as bits (`spans`);
and who hands messages out stops giving out fresh ones while `bookkeeping_bytes` is too much.

Rules
-----
1. This is replicated state: no clock, no chance, no order but that of offsets and numbers,
   nothing of this node's configuration. How pages are cut is not part of it.
2. Whatever admission lets through, a step cannot fail. What asserts here is our own bug.
3. No step looks at single messages. What is delivered from the front, or acknowledged as it
   was delivered, touches no sorted container.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from struct import pack
from typing import Final, NamedTuple

from crc32c import crc32c

from paging.pages import Head, Pages
from paging.ranges import Counted, Range, RangeMap, Ranges
from tanist.wire.batch import IN_DOUBT, Batch

ATTEMPTS_MAX: Final = 0xFFFF
"""Attempts are counted up to here, as a delivery has 16 bits for them."""

_DELIVERY_BYTES: Final = 500
"""What is known of one delivery that is in flight, beside the holes in it."""

Holder = Hashable
"""Who a delivery was made to. The same on every copy, and so is its `repr`."""

Digest = bytes


@dataclass(slots=True)
class Answer:
    """What became of a run that was acknowledged or requeued; its three parts are all of it."""

    done: list[Range]
    """Held under that number until now: the step was made."""
    already_done: list[Range]
    """Gone before. A good answer too: most likely the step is a repeat."""
    not_yours: list[Range]
    """Waits again or is with another consumer: it may be delivered again."""


class Purged(NamedTuple):
    """What a purge found up to its offset."""

    dropped: int
    held: int
    """In flight, and left to whom they were delivered."""


class _Delivery:
    """What is still held under one number."""

    __slots__ = ("holder", "ranges")

    def __init__(self, holder: Holder, run: Range) -> None:
        self.holder = holder
        self.ranges = Ranges(run)


class Part:
    """Batches by offset, and where each message is. See the module docstring for the rules."""

    def __init__(self, pages: Pages | None = None) -> None:
        self.pages = pages or Pages()
        self.pages.reader = self
        self._live = Ranges()  # Everything not done with, wherever it is.
        self._fresh = Ranges()
        self._returned = Ranges()
        self._held: dict[int, _Delivery] = {}  # By delivery number.
        self._by_holder: dict[Holder, dict[int, _Delivery]] = {}
        self._flagged = Ranges()
        self._attempts = RangeMap()
        self._crc = 0  # Over all batches ever appended.

    @property
    def end(self) -> int:
        """The offset that the next message will have."""
        return self.pages.end

    @property
    def live(self) -> Ranges:
        """All messages that are not done with. To be read only."""
        return self._live

    def cursors(self) -> tuple[int | None, int | None]:
        """The next message that was returned, and the next fresh one, without what is lost."""
        returned, fresh = self._returned.first, self._fresh.first
        if self.pages.lost:
            returned = self._first_readable(self._returned)
            fresh = self._first_readable(self._fresh)
        return returned and returned.first, fresh and fresh.first

    @property
    def ready(self) -> int:
        """Messages that wait for a consumer."""
        return self._fresh.count + self._returned.count

    @property
    def in_flight(self) -> int:
        """Messages that are delivered and not acknowledged."""
        return self._live.count - self.ready

    @property
    def bytes(self) -> int:
        """Bytes of the batches that are kept, in memory or not."""
        return self.pages.bytes

    @property
    def runs(self) -> int:
        """Of how many runs the messages not done with consist: what the bookkeeping costs."""
        return self._live.runs

    @property
    def bookkeeping_bytes(self) -> int:
        """About what all but the messages takes up in memory. `O(1)`."""
        places = (self._live, self._fresh, self._returned, self._flagged)
        return (
            sum(place.bookkeeping_bytes for place in places)
            + self._attempts.bookkeeping_bytes
            # The holes in what a delivery still holds are holes in `live`, or returned.
            + self._live.bookkeeping_bytes
            + _DELIVERY_BYTES * len(self._held)
        )

    @property
    def has_returned(self) -> bool:
        """Whether what is handed out next was handed out before."""
        return bool(self._returned)

    def append(self, batch: Batch) -> Range:
        """Apply a publish op: the batch's messages wait at the end. `O(1)`."""
        first = self.pages.append(batch)
        run = Range(first, first + batch.count)
        self._live.add(run)
        self._fresh.add(run)
        if batch.flags & IN_DOUBT:
            self._flagged.add(run)
        data = memoryview(batch.data)[batch.start : batch.start + batch.size]
        self._crc = crc32c(data, self._crc)
        return run

    def head(self, *, count_max: int, bytes_max: int) -> Head | None:
        """The next run to hand out, or None if nothing waits, or if it is not in memory yet.

        At most `count_max` messages with `bytes_max` bytes of bodies, but always one. All of
        them are returned or all are fresh, and all are flagged or none is. What is lost is
        passed over.
        """
        assert count_max > 0
        run = self._returned.first or self._fresh.first
        if self.pages.lost and run is not None:
            run = self._first_readable(self._returned) or self._first_readable(self._fresh)
        if run is None:
            return None
        end = min(run.first + count_max, run.end)
        end = min(end, self.pages.resident_end(run.first, end))
        if end == run.first:
            return None
        if run.end > end:
            run = Range(run.first, end)
        if self._flagged:
            flagged = self._flagged.within(run)
            if flagged and flagged[0].first == run.first:
                run = flagged[0]
            elif flagged:
                run = Range(run.first, flagged[0].first)
        return self.pages.fitting(run, bytes_max)

    def waiting(self, run: Range) -> list[Range]:
        """Which parts of a run wait for a consumer."""
        return [*self._returned.within(run), *self._fresh.within(run)]

    @property
    def lost(self) -> list[Range]:
        """What waits, and no copy can read any more."""
        return [piece for run in self.pages.lost for piece in self.waiting(run)]

    def flagged(self, run: Range) -> list[Range]:
        """Which parts of a run may have been seen before. Of a `head`, all of it or nothing."""
        return self._flagged.within(run) if self._flagged else []

    def attempts(self, run: Range) -> list[Counted]:
        """How often consumers failed at messages of a run, where they did."""
        return self._attempts.within(run) if self._attempts else []

    def held_by(self, holder: Holder) -> list[tuple[int, Range]]:
        """What a consumer holds, by delivery number, in the order of the deliveries."""
        return [
            (number, run)
            for number, delivery in self._by_holder.get(holder, {}).items()
            for run in delivery.ranges
        ]

    def deliver(self, number: int, run: Range, holder: Holder) -> None:
        """Apply a deliver op: `run` is held under `number` until acked or requeued.

        All of it waits, and all is returned or all is fresh. `O(1)` for a head that is fresh.
        """
        assert number not in self._held
        if self._returned and self._returned.covers(run):
            self._returned.remove(run)
        else:
            self._fresh.remove(run)
        delivery = _Delivery(holder, run)
        self._held[number] = delivery
        self._by_holder.setdefault(holder, {})[number] = delivery

    def ack(self, number: int, run: Range) -> Answer:
        """Apply an ack op: what of `run` is held under `number` is done with."""
        mine = self._take(number, run)
        for piece in mine:
            self._forget(piece)
        return self._answer(mine, run)

    def standing(self, number: int, run: Range) -> Answer:
        """What an ack would answer now; `done` is what is held. Nothing changes."""
        delivery = self._held.get(number)
        return self._answer(delivery.ranges.within(run) if delivery else [], run)

    def requeue(self, number: int, run: Range, *, flagged: bool, count_attempt: bool) -> Answer:
        """Apply a requeue op: what of `run` is held under `number` waits again.

        By its offset each message finds its old place. A flag that it has it keeps.
        """
        mine = self._take(number, run)
        for piece in mine:
            self._returned.add(piece)
            if flagged:
                self._flagged.merge(piece)
            if count_attempt:
                self._attempts.raise_by_one(piece, value_max=ATTEMPTS_MAX)
        return self._answer(mine, run)

    def purge(self, through: int) -> Purged:
        """Apply a purge op: what waits is gone, up to and with the offset `through`."""
        end = min(through + 1, self.end)
        if end <= 0:
            return Purged(0, 0)
        return self.skip(Range(0, end))

    def skip(self, run: Range) -> Purged:
        """Apply a skip op: what waits of `run` is gone. What is held stays with its holders."""
        dropped = 0
        for place in (self._returned, self._fresh):
            for piece in place.discard(run):
                self._forget(piece)
                dropped += piece.size
        return Purged(dropped, sum(piece.size for piece in self._live.within(run)))

    def digest(self) -> Digest:
        """The replicated state in canonical form: equal on every copy that applied the same ops.

        For comparing copies; `O(runs)`.
        """
        parts = [pack("<QI", self.end, self._crc)]
        places = (self._live, self._fresh, self._returned, self._flagged)
        parts += [_encode(place) for place in places]
        parts.append(pack("<Q", len(self._held)))
        for number, delivery in sorted(self._held.items(), key=lambda item: item[0]):
            holder = repr(delivery.holder).encode()
            parts += (pack("<QQ", number, len(holder)), holder, _encode(delivery.ranges))
        for run, value in self._attempts:
            parts.append(pack("<QQQ", *run, value))
        return b"".join(parts)

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(runs + batches)`."""
        placed = Ranges()
        held = [delivery.ranges for delivery in self._held.values()]
        for place in (self._fresh, self._returned, *held):
            place.check()
            for run in place:
                placed.add(run)  # Asserts that no message is in two places.
        self._live.check()
        assert list(placed) == list(self._live), "a message is in no place"
        assert self.in_flight == sum(place.count for place in held)
        assert all(held), "a delivery of which nothing is held"
        by_holder: dict[Holder, dict[int, _Delivery]] = {}
        for number, delivery in self._held.items():
            by_holder.setdefault(delivery.holder, {})[number] = delivery
        assert self._by_holder == by_holder
        self._flagged.check()
        self._attempts.check()
        assert all(self._live.covers(run) for run in self._flagged), "a flag without a message"
        assert all(self._live.covers(run) for run, _ in self._attempts), "attempts at nothing"
        self.pages.check(self._live)

    def _first_readable(self, place: Ranges) -> Range | None:
        for run in place:
            readable = self.pages.lost.gaps(run)
            if readable:
                return readable[0]
        return None

    def _take(self, number: int, run: Range) -> list[Range]:
        assert run.end <= self.end  # Admission refused anything else.
        delivery = self._held.get(number)
        if delivery is None:
            return []
        mine = delivery.ranges.discard(run)
        if not delivery.ranges:
            del self._held[number]
            numbers = self._by_holder[delivery.holder]
            del numbers[number]
            if not numbers:
                del self._by_holder[delivery.holder]
        return mine

    def _forget(self, run: Range) -> None:
        self._live.remove(run)
        self.pages.drop(run)
        if self._flagged:
            self._flagged.discard(run)
        if self._attempts:
            self._attempts.clear(run)

    def _answer(self, mine: list[Range], run: Range) -> Answer:
        if len(mine) == 1 and mine[0] == run:
            return Answer(mine, [], [])
        # What still lives was requeued since, or is with another consumer: "done" would be
        # a lie, since it may be delivered again. The rest was done before.
        rest = Ranges()
        rest.add(run)
        for piece in mine:
            rest.remove(piece)
        already_done: list[Range] = []
        not_yours: list[Range] = []
        for piece in rest:
            already_done += self._live.gaps(piece)
            not_yours += self._live.within(piece)
        return Answer(mine, already_done, not_yours)


def _encode(ranges: Ranges) -> bytes:
    offsets = [offset for run in ranges for offset in run]
    return pack(f"<Q{len(offsets)}Q", len(offsets), *offsets)
