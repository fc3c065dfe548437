"""The consumers of one post office: who is there, who may come back, and who is handed what.

Theory of operation
-------------------
A consumer's channel is a leg of the dispatcher from when its OPENED has left. At the end of a
turn, deliveries are planned for the legs with credit.

A consumer whose connection is lost keeps what it holds for a grace, and its messages return
when that ends: 2 s, counted as an attempt, if this node served it; 10 s, not counted, if the
post office was taken over from another node, or this node sent its clients away.

    open ── closed ───────────────────────────────▶ everything returns, detached
      │
      └── connection lost ──▶ grace ── it ends ──▶ everything returns, detached
      ▲                         │
      └──── it comes back ──────┘   presents what it holds; the rest returns

Rules
-----
1. Every message in flight belongs to an open leg or to a running grace.
2. A grace does not end before its clients had a chance to come: not while nothing is released.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

from broker.core.channels import ConsumerChannel, makes_way
from broker.core.connection import Connection
from broker.core.dispatcher import Dispatcher
from broker.core.events import Effect
from broker.core.handout import CreditBack, Hand, Say
from broker.core.holdings import Holdings
from broker.core.limits import Timing
from broker.core.ops import PostOfficeOp
from broker.core.post_office import Holder, PostOffice
from replication.core.stream import Stream
from tanist.wire import hot
from tanist.wire.control import OpenConsumer, Opened, QueueInfo
from tanist.wire.frames import Verb


@dataclass(slots=True)
class Grace:
    """What a consumer holds that is not there now."""

    ends_at: float
    counts: bool
    """Whether its end counts as an attempt: only if this node lost the connection."""
    after_seq: int
    """It does not end before this op is released."""


class Consumers:
    """All consumers with a channel to one post office, or with something to come back to.

    Args:
        stream: Owned by this node, as of now.
        office: What it carries.
        dispatcher: Plans deliveries for the legs that it is told of here.
        holdings: Returns what a channel that ends leaves behind.
    """

    def __init__(
        self,
        *,
        stream: Stream[PostOfficeOp, object],
        office: PostOffice,
        dispatcher: Dispatcher,
        holdings: Holdings,
        timing: Timing,
        now: float,
    ) -> None:
        self._stream = stream
        self._office = office
        self._dispatcher = dispatcher
        self._holdings = holdings
        self._timing = timing
        self._channels: dict[Holder, ConsumerChannel] = {}
        self._legs: dict[int, ConsumerChannel] = {}
        self._leg_numbers = count(1)
        self._promoted_end = stream.log_end
        self.graces = {
            holder: Grace(
                now + timing.grace_ms / 1000, counts=False, after_seq=self._promoted_end - 1
            )
            for holder in office.holders()
        }

    def __len__(self) -> int:
        return len(self._channels)

    def __iter__(self) -> Iterator[ConsumerChannel]:
        return iter(list(self._channels.values()))

    # Channels

    def open(
        self,
        connection: Connection,
        number: int,
        asked: OpenConsumer,
        queue: QueueInfo,
        outbox: list[Effect],
    ) -> None:
        """OPEN_CONSUMER in the gen of this stream, with what the client holds if it comes back."""
        stream = self._stream
        consumer = bytes.fromhex(asked.consumer)
        holder = (connection.session, consumer)
        before = self._channels.get(holder)
        if before is not None:
            if not makes_way(before, connection, number, asked.req, outbox):
                return
            self._forget(before)
            self._holdings.return_unsent(before)
        channel = ConsumerChannel(
            connection,
            number,
            stream.sid,
            queue,
            leg=next(self._leg_numbers),
            consumer=consumer,
            automatic=asked.mode == "auto",
        )
        already, not_yours = self._holdings.resume(channel, asked)
        self.graces.pop(holder, None)
        for part in self._office.parts_of(holder):
            if self._office.queue_of(part) != queue.id:
                # It takes from one queue, and does not know what it had of another.
                self._holdings.return_from(part, holder, failed=False)
        connection.channels[number] = channel
        self._channels[holder] = channel
        opened = Opened(
            req=asked.req,
            gen=stream.gen,
            epoch=stream.epoch,
            already_done=already,
            not_yours=not_yours,
        )
        stream.answer(Say(channel, opened))

    def opened(self, channel: ConsumerChannel) -> None:
        """OPENED has left. Only now: READY before it would be for a channel unknown there."""
        self._legs[channel.leg] = channel
        self._dispatcher.add_leg(
            channel.leg,
            queue_id=channel.queue.id,
            session=channel.connection.session,
            consumer=channel.consumer,
            automatic=channel.automatic,
        )

    def closed(self, channel: ConsumerChannel) -> None:
        """The channel ends for good: what was held returns at once."""
        self._forget(channel)
        self._holdings.return_unsent(channel)
        self._holdings.return_all(channel.holder, failed=False)

    def lost(self, channel: ConsumerChannel, now: float, *, sent_away: bool) -> None:
        """The connection is gone; the client may come back by another one.

        With `sent_away` that was this node's doing: nobody failed.
        """
        self._forget(channel)
        self._holdings.return_unsent(channel)
        part = self._office.part_of(channel.queue.id)
        if part is None or not self._office.in_flight_of(part, channel.holder):
            self._holdings.return_all(channel.holder, failed=False)
            return
        timing = self._timing
        grace_ms = timing.grace_ms if sent_away else timing.lost_connection_grace_ms
        self.graces[channel.holder] = Grace(
            now + grace_ms / 1000, counts=not sent_away, after_seq=self._promoted_end - 1
        )

    def _forget(self, channel: ConsumerChannel) -> None:
        self._holdings.settle_parked(channel)
        channel.close()
        if self._legs.pop(channel.leg, None) is not None:
            self._dispatcher.remove_leg(channel.leg)
        if self._channels.get(channel.holder) is channel:
            del self._channels[channel.holder]

    # Deliveries

    def credit(self, channel: ConsumerChannel, payload: bytes, *, back: bool) -> None:
        """CREDIT of a consumer. With `back`, the answer says what was planned until now."""
        messages, bytes_ = hot.read_credit(payload)
        if self._holdings.must_wait(channel):
            # In order, since credit that is called back ends what was given before.
            step = partial(self._credit, channel, messages, bytes_, back=back)
            self._holdings.park(channel, len(payload), step)
        else:
            self._credit(channel, messages, bytes_, back=back)

    def _credit(self, channel: ConsumerChannel, messages: int, bytes_: int, *, back: bool) -> None:
        if back:
            planned = self._dispatcher.credit_back(channel.leg)
            self._stream.answer(CreditBack(channel, *planned))
        else:
            self._dispatcher.credit(channel.leg, messages, bytes_)

    def plan(self, now: float, outbox: list[Effect]) -> None:
        """Append what can be delivered, and tell legs without credit that messages wait."""
        planned = [] if self._stream.full() else self._dispatcher.plan(self._stream.append)
        for one in planned:
            channel = self._legs[one.leg]
            channel.unsent[one.number] = (one.first, one.first + one.count)
            self._stream.answer(Hand(channel, one))
        for leg in self._dispatcher.ready_legs(now):
            self._legs[leg].write(Verb.READY, (b"",), outbox)

    # Time

    def wake(self, now: float) -> None:
        """Return what nobody came back for in time."""
        for holder, grace in list(self.graces.items()):
            if now < grace.ends_at:
                continue
            if self._stream.release < grace.after_seq or self._stream.held is not None:
                # Nothing leaves here: the clients had no chance to come.
                grace.ends_at = now + self._timing.grace_ms / 1000
                continue
            del self.graces[holder]
            self._holdings.return_all(holder, failed=grace.counts)

    def next_deadline(self) -> float | None:
        deadlines = [grace.ends_at for grace in self.graces.values()]
        ready_at = self._dispatcher.next_deadline()
        if ready_at is not None:
            deadlines.append(ready_at)
        return min(deadlines, default=None)
