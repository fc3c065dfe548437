"""The producers of one post office: what they publish, and the credit that they are given.

Theory of operation
-------------------
A publish needs three things: credit, which the producer was given before; the next number,
or one that was stored already; and room in the stream, that is in the in-sync set. Publishes
for which there is no room are parked, all in the order in which they came.

    PUBLISH ── credit? ─▶ room? ─▶ number? ─▶ full? ─▶ publish op ─▶ Confirm
                  │          │        │          └─ holds: no more credit · refuses: REFUSED
                  │          │        └─ known: Confirm · a gap: ERROR, the channel ends
                  │          └─ parked until there is
                  └─ the connection ends

Credit counts what the node's memory, the stream and the queue allow, a share of it for each.
Who has used up half is *hungry*, and gets more at the end of a turn in which there is some to
give: the double of the last time if that was lately, the half if not. What was given is not
taken back, so somebody who publishes now and then must not be given what a fast one needs. A
batch may be larger than the credit for it: only without any it may not come. So a queue that
holds takes a batch of each producer beyond its bound, and what credit was out.

Rules
-----
1. Nothing is parked but on credit, so what is parked is bounded by the credit given out.
2. A channel that was refused is closed: what was pipelined behind the refusal is not read.
3. What a grant costs does not grow with the number of producers: sums over them are kept.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Final

from broker.core.channels import ProducerChannel, channel_error, makes_way
from broker.core.connection import Connection
from broker.core.events import Effect
from broker.core.handout import Confirm, Handout, Say
from broker.core.limits import Limits
from broker.core.ops import (
    ExpireProducer,
    OpenPart,
    PassTime,
    PostOfficeOp,
    Producer,
    Publish,
)
from broker.core.post_office import EXPIRED_MAX, PostOffice, Standing
from replication.core.stream import Stream
from tanist.errors import RemoteProtocolError
from tanist.wire import hot
from tanist.wire.batch import Batch
from tanist.wire.control import Opened, OpenProducer, QueueInfo, Refused
from tanist.wire.frames import Verb

GRANT_BELOW: Final = 0.5
"""A producer that has less than this share of its credit left is given more."""
GRANT_BYTES_FIRST: Final = 64 << 10
"""A new producer, or a slow one, is let so far ahead."""
GRANT_LATELY_S: Final = 1.0
"""Who is hungry again within this time is fast: it is let twice as far ahead as before."""
GRANT_SHARE: Final = 8
"""A producer is given this part of what is left at most, so that many share it."""
GRANT_BYTES_MIN: Final = 4 << 10
"""Less is not given. If memory has less, the producer waits for more; if only its queue has,
it gets this."""
REFUSED_RETRY_MS: Final = 1000
TIME_SHARE: Final = 24
"""Time is told to the post office each so-manieth part of what a producer may be idle."""


class Producers:
    """All producers with a channel to one post office.

    Args:
        stream: Owned by this node.
        office: What it carries.
        handout: Where answers leave.
        grantable_bytes: What the node's memory allows to give publishers still.
        disk_trouble: Why pages cannot be written, if they cannot.
        stored: Told the id of a queue in which a batch was stored.
    """

    def __init__(
        self,
        *,
        stream: Stream[PostOfficeOp, object],
        office: PostOffice,
        handout: Handout,
        limits: Limits,
        grantable_bytes: Callable[[], int],
        disk_trouble: Callable[[], str | None],
        stored: Callable[[int], None],
    ) -> None:
        self._stream = stream
        self._office = office
        self._handout = handout
        self._limits = limits
        self._grantable_bytes = grantable_bytes
        self._disk_trouble = disk_trouble
        self._stored = stored
        self._channels: dict[bytes, ProducerChannel] = {}
        self._hungry: dict[ProducerChannel, None] = {}
        self._parked: deque[tuple[ProducerChannel, Batch]] = deque()
        self._sharing: Counter[int] = Counter()
        """Producers by the id of their queue."""
        self.parked_bytes = 0
        self.credit_out_bytes = 0
        """Given to producers and not used yet."""
        self._time_told_at: float | None = None
        self._someone_idle = False
        self._were_here: set[bytes] = set()
        """Who had a channel when time was told before: they may be on their way back."""
        self.duplicates = 0
        """Messages that were repeated and known already, since this node owns the stream."""

    def __len__(self) -> int:
        return len(self._channels)

    def __iter__(self) -> Iterator[ProducerChannel]:
        return iter(list(self._channels.values()))

    # Channels

    def open(
        self,
        connection: Connection,
        number: int,
        asked: OpenProducer,
        queue: QueueInfo,
        outbox: list[Effect],
    ) -> None:
        """OPEN_PRODUCER, in the gen of this stream."""
        stream, office = self._stream, self._office
        producer = bytes.fromhex(asked.producer)
        standing, next_n = office.expected(producer, asked.producer_epoch)
        if standing is Standing.FENCED:
            sentence = f"producer epoch {asked.producer_epoch} is over: a newer one was opened"
            error = channel_error(asked.req, "fenced", sentence, str(asked.producer_epoch))
            self._handout.answer(connection, error, number)
            return
        before = self._channels.get(producer)
        if before is not None:
            if not makes_way(before, connection, number, asked.req, outbox):
                return
            self.forget(before)
        if asked.lowest_n > next_n:
            # Its entry has expired: as much as if everything had been lost.
            unknown = Opened(req=asked.req, gen=stream.gen, epoch=stream.epoch, unknown=True)
            self._handout.answer(connection, unknown, number)
            return
        if standing is Standing.UNKNOWN:
            stream.append(Producer(producer, asked.producer_epoch))
        channel = ProducerChannel(
            connection,
            number,
            stream.sid,
            queue,
            producer=producer,
            epoch=asked.producer_epoch,
        )
        connection.channels[number] = channel
        self._channels[producer] = channel
        self._sharing[queue.id] += 1
        self._grant(channel, -inf)
        opened = Opened(
            req=asked.req,
            gen=stream.gen,
            epoch=stream.epoch,
            next_n=next_n,
            credit=(channel.granted_messages, channel.granted_bytes),
        )
        stream.answer(Say(channel, opened))

    def opened(self, channel: ProducerChannel) -> None:
        """OPENED has left. Only now: CREDIT before it would be for a channel unknown there."""
        if not channel.has_credit:
            self._hungry[channel] = None

    def forget(self, channel: ProducerChannel) -> None:
        """The channel ends."""
        channel.close()
        self._hungry.pop(channel, None)
        if self._channels.get(channel.producer) is channel:
            del self._channels[channel.producer]
            self._sharing[channel.queue.id] -= 1
            if not self._sharing[channel.queue.id]:
                del self._sharing[channel.queue.id]
            self.credit_out_bytes -= channel.unused_bytes

    def wake(self, now: float) -> None:
        """Forget producers that were not here for long; or for longest, if they are too many."""
        if self._time_told_at is None:
            self._time_told_at = now
        passed_s = int(now - self._time_told_at)
        if passed_s >= max(1, self._limits.producer_idle_s // TIME_SHARE):
            self._time_told_at = now
            if self._office.knows_producers:
                self._stream.append(PassTime(passed_s))
                self._someone_idle = True
        if self._someone_idle:
            self._forget_idle()
        most = self._limits.producers_max
        for producer in self._office.producers_to_expire(most, in_use=self._channels):
            self._stream.append(ExpireProducer(producer))

    def _forget_idle(self) -> None:
        idle_s = self._limits.producer_idle_s
        in_use = self._channels.keys() | self._were_here
        idle = self._office.producers_idle(idle_s, in_use)
        for producer in idle:
            self._stream.append(ExpireProducer(producer))
        if len(idle) < EXPIRED_MAX:
            self._someone_idle = False
            self._were_here = set(self._channels)

    # Publishing

    def publish(self, channel: ProducerChannel, payload: bytes) -> None:
        """PUBLISH. Raises `RemoteProtocolError` for what must end the connection."""
        batch = Batch.parse(payload)
        if not channel.has_credit:
            raise RemoteProtocolError(
                f"a batch of {batch.count} messages came without credit", code="credit"
            )
        self.credit_out_bytes -= min(batch.size, channel.unused_bytes)
        channel.used_messages += batch.count
        channel.used_bytes += batch.size
        if self._parked or self._stream.room() < batch.size:
            channel.parked += 1
            self.parked_bytes += batch.size
            self._parked.append((channel, batch))
            return
        self._admit(channel, batch)

    def unpark(self) -> None:
        """Admit what waited for room, as far as there is some now."""
        while self._parked and self._stream.room() >= self._parked[0][1].size:
            channel, batch = self._parked.popleft()
            channel.parked -= 1
            self.parked_bytes -= batch.size
            if channel.open:
                self._admit(channel, batch)

    def _admit(self, channel: ProducerChannel, batch: Batch) -> None:
        stream, office, queue = self._stream, self._office, channel.queue
        _, next_n = office.expected(channel.producer, channel.epoch)
        if batch.end_n <= next_n:
            # Stored before. Its first copy may not be released yet, so this confirm waits
            # behind everything appended, as any answer does.
            self.duplicates += batch.count
            stream.answer(Confirm(channel, batch.end_n - 1))
        elif batch.first_n != next_n:
            sentence = f"message {next_n} is expected, and a batch from {batch.first_n} came"
            error = channel_error(0, "bad_state", sentence, str(batch.first_n))
            self._handout.answer(channel.connection, error, channel.number)
            self.forget(channel)
            return
        elif queue.settings.when_full == "refuse" and (full := self._full(queue)):
            refused = Refused(
                n=batch.first_n, code="full", sentence=full, retry_after_ms=REFUSED_RETRY_MS
            )
            self._handout.answer(channel.connection, refused, channel.number)
            self.forget(channel)
            return
        else:
            part = office.part_of(queue.id)
            if part is None:
                part = office.next_part
                stream.append(OpenPart(part, queue))
            stream.append(
                Publish(part, channel.producer, channel.epoch, office.end_of(part), batch)
            )
            stream.answer(Confirm(channel, batch.end_n - 1))
            self._stored(queue.id)
        if (
            channel.granted_messages - channel.used_messages
            < GRANT_BELOW * self._limits.producer_credit_messages
            or channel.unused_bytes < GRANT_BELOW * channel.window_bytes
        ):
            self._hungry[channel] = None

    def _full(self, queue: QueueInfo) -> str | None:
        """Why nothing more goes into a queue here; None if it does."""
        if self._bytes_left(queue) <= 0:
            return f"queue {queue.name!r} is full in post office {self._stream.sid}"
        trouble = self._disk_trouble()
        if trouble is not None and self._grantable_bytes() < GRANT_SHARE * GRANT_BYTES_MIN:
            return f"the memory of post office {self._stream.sid} is full: {trouble}"
        return None

    def _bytes_left(self, queue: QueueInfo) -> int:
        """What a queue may still hold here."""
        most = self._limits.queue_bytes_max
        if queue.settings.bytes_max:
            most = min(most, queue.settings.bytes_max)
        part = self._office.part_of(queue.id)
        return most if part is None else most - self._office.bytes_of(part)

    def why_dry(self, queue: QueueInfo) -> str:
        """Why its producers are given no credit."""
        full = self._full(queue)
        if full is not None:
            return full
        sid = self._stream.sid
        if self._stream.room() // 2 < GRANT_BYTES_MIN:
            return f"a copy of post office {sid} has no room for more"
        return f"the memory of post office {sid} is full"

    def dry(self, since: float) -> Counter[str]:
        """How many have had no credit since then, or for longer, by the reason."""
        return Counter(
            self.why_dry(channel.queue)
            for channel in self._hungry
            if channel.open and channel.dry_since is not None and channel.dry_since <= since
        )

    # Credit

    def feed_hungry(self, now: float, outbox: list[Effect]) -> None:
        """Give credit to those that have used up theirs, as far as there is some to give."""
        for channel in list(self._hungry):
            if not channel.open:
                del self._hungry[channel]
                continue
            if channel.parked or not self._grant(channel, now):
                if channel.dry_since is None and not channel.has_credit:
                    channel.dry_since = now
                continue
            channel.dry_since = None
            del self._hungry[channel]
            payload = hot.credit(channel.granted_messages, channel.granted_bytes)
            channel.write(Verb.CREDIT, (payload,), outbox)

    def _grant(self, channel: ProducerChannel, now: float) -> bool:
        """Give a producer credit, the less the less is left. False: there is none to give."""
        if self._stream.held is not None:
            return False
        limits, queue = self._limits, channel.queue
        left = min(self._grantable_bytes() // GRANT_SHARE, self._stream.room() // 2)
        if self._full(queue):
            if queue.settings.when_full != "refuse":
                return False
            # It must be able to come and be refused.
            left = max(left, GRANT_BYTES_MIN)
        if left < GRANT_BYTES_MIN:
            return False
        share = min(self._window(channel, now), left, self._share(queue))
        # No more than it got: who is given little is hungry soon, and not fast for that.
        channel.window_bytes, channel.granted_at = share, now
        channel.granted_messages = channel.used_messages + limits.producer_credit_messages
        # What was given once is not taken back, even if there is less to give now.
        self.credit_out_bytes -= channel.unused_bytes
        channel.granted_bytes = max(channel.granted_bytes, channel.used_bytes + share)
        self.credit_out_bytes += channel.unused_bytes
        return True

    def _window(self, channel: ProducerChannel, now: float) -> int:
        """How far ahead a producer is let now, as far as there is so much to give."""
        if now < channel.granted_at + GRANT_LATELY_S:
            return min(self._limits.producer_credit_bytes, 2 * channel.window_bytes)
        slow = max(GRANT_BYTES_FIRST, channel.window_bytes // 2)
        return min(self._limits.producer_credit_bytes, slow)

    def _share(self, queue: QueueInfo) -> int:
        """What one of a queue's producers gets of the bytes that are left to the queue.

        Not the less the more the others have already: who has credit may be idle for ever.
        """
        return max(GRANT_BYTES_MIN, self._bytes_left(queue) // max(1, self._sharing[queue.id]))
