"""The post office: all parts with one home, their producers, consumers and deliveries.

Theory of operation
-------------------
It is the state that one stream carries. The owner applies each op as it appends it, every
shadow applies the same ops in the same order, and so each holds the same messages in the
same places: a promotion converts nothing.

A *producer* is known by its id, under one epoch, and its batches come strictly in order: the
state knows the number that comes next, so a repeat is recognised wherever the client repeats
it. Producers stand in the order of their last use, for the owner to forget the oldest. How
long ago that was is counted in *served time*: owners say how much of it passed, by an op.

A *consumer* is known by its *holder*, the pair (session, consumer), which survives its
connections and its owner. On each part from which it is served it has a number, under which
the part notes what it holds.

What the owner asks before it appends (is this a repeat, does the part exist, what does a
consumer hold) is answered from here as well. It includes everything that was appended, which
is more than has left the node: so an answer given from here waits for the log's last op.

Rules
-----
1. `apply` takes no time, no chance and no setting of this node, and iterates over nothing
   whose order is not that of ops. Whatever admission lets through cannot fail in it.
2. Numbers of parts, consumers and deliveries are counted up here, and never given again.
3. How many bytes a part takes depends on this node's pages. It is no part of the digest, and
   nothing in `apply` may ask for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container
from enum import StrEnum
from hashlib import blake2b
from itertools import islice, takewhile
from struct import Struct
from typing import Any, Final

import msgspec

from broker.core.ops import (
    Ack,
    Attach,
    Deliver,
    Detach,
    DropPart,
    ExpireProducer,
    OpenPart,
    PassTime,
    PostOfficeOp,
    Producer,
    Publish,
    Purge,
    Requeue,
    Skip,
    decode_post_office_op,
)
from paging.pages import Shelf
from paging.part import Answer, Part, Purged
from paging.ranges import Range
from tanist.wire.control import Paging, PartStat, QueueInfo

Holder = tuple[bytes, bytes]
"""(session, consumer): whose deliveries these are, across connections and owners."""

Result = Range | list[Answer] | Purged | None
"""Of a publish, the offsets; of an ack or a requeue, an answer for each run; of a purge or a
skip, what it found; of all others nothing."""

FIRST_N: Final = 1
"""Number of a producer's first message, in each of its epochs."""
EXPIRED_MAX: Final = 1_000
"""Producers that are named for expiry at once, so that a turn of the loop stays short."""

_NUMBERS: Final = Struct("<IQIIQQ")
_ENTRY: Final = Struct("<IQ")
_PRODUCER: Final = Struct("<16sIQQ")
_CONSUMER: Final = Struct("<I16s16sI?")
_encode_queue: Final = msgspec.msgpack.Encoder().encode


class Standing(StrEnum):
    """What the post office knows of a producer in one of its epochs."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    """It never came in this epoch, or was forgotten."""
    FENCED = "fenced"
    """A later epoch has come: this is an older client of the same id."""


class Consumer(msgspec.Struct, frozen=True, gc=False):
    """A consumer as one part knows it."""

    session: bytes
    consumer: bytes
    part: int
    automatic: bool


class _Producer:
    __slots__ = ("epoch", "next_n", "used_s")

    def __init__(self, epoch: int, used_s: int) -> None:
        self.epoch = epoch
        self.next_n = FIRST_N
        self.used_s = used_s  # When it was used last, in served time.


class _Entry:
    """A part, and whose it is."""

    __slots__ = ("consumers", "part", "queue")

    def __init__(self, queue: QueueInfo, part: Part) -> None:
        self.queue = queue
        self.part = part
        self.consumers: dict[int, None] = {}  # Numbers, in the order of their attachment.


class PostOffice:
    """One copy, on the owner or on a shadow. See the module docstring for the rules.

    Args:
        shelf: Where the pages are kept: this node's own affair.

    Attributes:
        next_part: The number that the next `OpenPart` must give.
        next_consumer: The same of `Attach`.
        next_delivery: The same of `Deliver`.
        served_s: For how long owners have served this content, as they said.
    """

    def __init__(self, sid: int, gen: int, *, shelf: Shelf | None = None) -> None:
        self.sid = sid
        self.gen = gen
        self.next_part = 1
        self.next_consumer = 1
        self.next_delivery = 1
        self.served_s = 0
        self.shelf = shelf or Shelf.in_memory()
        self._entries: dict[int, _Entry] = {}
        self._part_of: dict[int, int] = {}  # By queue id.
        # The one that was used last stands last.
        self._producers: OrderedDict[bytes, _Producer] = OrderedDict()
        self._consumers: dict[int, Consumer] = {}
        self._holders: dict[Holder, dict[int, int]] = {}  # Its number, by part.

    # The state machine

    @staticmethod
    def decode(kind: int, data: bytes, start: int, end: int) -> PostOfficeOp:
        """The op of a record. Raises `RemoteProtocolError` for a kind of a newer version."""
        return decode_post_office_op(kind, data, start, end)

    def apply(self, op: PostOfficeOp) -> Result:
        """Make the change, which admission has found possible."""
        return _APPLY[type(op)](self, op)

    def _open_part(self, op: OpenPart) -> None:
        assert op.part == self.next_part
        assert op.queue.id not in self._part_of
        self.next_part += 1
        self._entries[op.part] = _Entry(op.queue, Part(self.shelf.new_pages(op.part)))
        self._part_of[op.queue.id] = op.part

    def _publish(self, op: Publish) -> Range:
        part = self._entries[op.part].part
        producer = self._producers[op.producer]
        assert op.producer_epoch == producer.epoch
        assert op.batch.first_n == producer.next_n
        assert op.base == part.end
        self._producers.move_to_end(op.producer)
        producer.next_n = op.batch.end_n
        producer.used_s = self.served_s
        return part.append(op.batch)

    def _deliver(self, op: Deliver) -> None:
        assert op.number == self.next_delivery
        assert self._consumers[op.consumer_number].part == op.part
        self.next_delivery += 1
        run = Range(op.first, op.first + op.count)
        self._entries[op.part].part.deliver(op.number, run, op.consumer_number)

    def _ack(self, op: Ack) -> list[Answer]:
        part = self._entries[op.part].part
        return [part.ack(number, Range(first, first + n)) for number, first, n in op.runs]

    def _requeue(self, op: Requeue) -> list[Answer]:
        part = self._entries[op.part].part
        return [
            part.requeue(
                number,
                Range(first, first + n),
                flagged=op.flagged,
                count_attempt=op.count_attempt,
            )
            for number, first, n in op.runs
        ]

    def _attach(self, op: Attach) -> None:
        numbers = self._holders.setdefault((op.session, op.consumer), {})
        assert op.consumer_number == self.next_consumer
        assert op.part not in numbers
        self.next_consumer += 1
        numbers[op.part] = op.consumer_number
        self._entries[op.part].consumers[op.consumer_number] = None
        self._consumers[op.consumer_number] = Consumer(
            op.session, op.consumer, op.part, op.automatic
        )

    def _detach(self, op: Detach) -> None:
        for part, number in self._holders.pop((op.session, op.consumer)).items():
            entry = self._entries[part]
            assert not entry.part.held_by(number), "a consumer left with messages"
            del entry.consumers[number]
            del self._consumers[number]

    def _bind_producer(self, op: Producer) -> None:
        known = self._producers.get(op.producer)
        assert known is None or op.producer_epoch > known.epoch
        self._producers[op.producer] = _Producer(op.producer_epoch, self.served_s)
        self._producers.move_to_end(op.producer)

    def _expire_producer(self, op: ExpireProducer) -> None:
        del self._producers[op.producer]

    def _pass_time(self, op: PassTime) -> None:
        self.served_s += op.seconds

    def _drop_part(self, op: DropPart) -> None:
        entry = self._entries.pop(op.part)
        del self._part_of[entry.queue.id]
        entry.part.pages.close()
        for number in entry.consumers:
            consumer = self._consumers.pop(number)
            holder = (consumer.session, consumer.consumer)
            numbers = self._holders[holder]
            del numbers[op.part]
            if not numbers:
                del self._holders[holder]

    def _purge(self, op: Purge) -> Purged:
        part = self._entries[op.part].part
        return part.purge(op.through)

    def _skip(self, op: Skip) -> Purged:
        part = self._entries[op.part].part
        found = [part.skip(Range(*run)) for run in op.runs]
        return Purged(sum(f.dropped for f in found), sum(f.held for f in found))

    def digest(self) -> bytes:
        """16 bytes that are equal on all copies that applied the same ops. `O(state)`."""
        numbers = (self.sid, self.gen, self.next_part, self.next_consumer, self.next_delivery)
        digest = blake2b(_NUMBERS.pack(*numbers, self.served_s), digest_size=16)
        for part, entry in sorted(self._entries.items(), key=lambda item: item[0]):
            queue, content = _encode_queue(entry.queue), entry.part.digest()
            digest.update(_ENTRY.pack(part, len(queue) + len(content)))
            digest.update(queue)
            digest.update(content)
        for number, consumer in sorted(self._consumers.items(), key=lambda item: item[0]):
            digest.update(_CONSUMER.pack(number, *msgspec.structs.astuple(consumer)))
        # In the order of their last use, since it decides who is forgotten.
        for producer, known in self._producers.items():
            digest.update(_PRODUCER.pack(producer, known.epoch, known.next_n, known.used_s))
        return digest.digest()

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(state)`."""
        assert self._part_of == {e.queue.id: part for part, e in self._entries.items()}
        assert self.held_bytes == sum(entry.part.bytes for entry in self._entries.values())
        assert all(0 < part < self.next_part for part in self._entries)
        holders: dict[Holder, dict[int, int]] = {}
        for number, consumer in self._consumers.items():
            assert 0 < number < self.next_consumer
            assert number in self._entries[consumer.part].consumers
            holders.setdefault((consumer.session, consumer.consumer), {})[consumer.part] = number
        assert self._holders == holders
        for part, entry in self._entries.items():
            entry.part.check()
            held = 0
            for number in entry.consumers:
                assert self._consumers[number].part == part
                for delivery, run in entry.part.held_by(number):
                    assert 0 < delivery < self.next_delivery
                    held += run.size
            assert held == entry.part.in_flight, "a message is in flight to nobody"
        assert all(known.next_n >= FIRST_N for known in self._producers.values())
        used = [known.used_s for known in self._producers.values()]
        assert used == sorted(used)
        assert not used or used[-1] <= self.served_s

    # What became of an op, for the owner

    @staticmethod
    def answers(result: object) -> list[Answer]:
        """Of an ack or a requeue: an answer for each run."""
        assert isinstance(result, list)
        return result

    @staticmethod
    def purged(result: object) -> int:
        """Of a purge or a skip: how many messages are gone."""
        assert isinstance(result, Purged)
        return result.dropped

    # Parts

    @property
    def held_bytes(self) -> int:
        """Bytes of all batches that are kept, in memory or not."""
        return self.shelf.tally.bytes

    @property
    def resident_bytes(self) -> int:
        """What they take up in memory, those that are there."""
        return self.shelf.tally.resident_bytes

    def part_of(self, queue_id: int) -> int | None:
        """The number of the part of a queue, if it was ever used here."""
        return self._part_of.get(queue_id)

    def has_part(self, number: int) -> bool:
        """Whether there is a part of this number."""
        return number in self._entries

    def part(self, number: int) -> Part:
        """The content of a part, to be read."""
        return self._entries[number].part

    def end_of(self, part: int) -> int:
        """The offset that the next message of this part will have."""
        return self._entries[part].part.end

    def bytes_of(self, part: int) -> int:
        """Bytes of the batches that this part keeps, in memory or not."""
        return self._entries[part].part.bytes

    def queue_of(self, part: int) -> int:
        """The id of the queue whose part this is."""
        return self._entries[part].queue.id

    def queue_name(self, part: int) -> str:
        """The name of the queue whose part this is."""
        return self._entries[part].queue.name

    def queues(self) -> list[QueueInfo]:
        """The definitions of all queues that have a part here, as they were when it opened."""
        return [entry.queue for entry in self._entries.values()]

    def queue_ids(self) -> list[int]:
        """The ids of all queues that have a part here."""
        return list(self._part_of)

    def stat(self, queue_id: int) -> PartStat:
        """Counts of a queue's part; all are 0 if there is none. `O(1)`.

        `consumers` are those that were ever served and are not gone.
        """
        number = self._part_of.get(queue_id)
        if number is None:
            return PartStat(ready=0, in_flight=0, bytes=0, consumers=0)
        entry = self._entries[number]
        part = entry.part
        return PartStat(
            ready=part.ready,
            in_flight=part.in_flight,
            bytes=part.bytes,
            consumers=len(entry.consumers),
            lost=sum(run.size for run in part.lost),
        )

    def paging(self, queue_id: int) -> Paging:
        """Where the pages of a queue's part are in this copy. `O(pages in memory)`."""
        number = self._part_of.get(queue_id)
        if number is None:
            return Paging()
        pages = self._entries[number].part.pages
        return Paging(
            pages_in_memory=pages.count - 1 - pages.away,
            pages_on_disk=pages.away,
            memory_bytes=pages.resident_bytes - pages.tail_bytes,
            disk_bytes=pages.disk_bytes,
            tail_bytes=pages.tail_bytes,
            read_ahead_hits=pages.hits,
            read_ahead_misses=pages.misses,
        )

    # Producers

    def expected(self, producer: bytes, producer_epoch: int) -> tuple[Standing, int]:
        """What is known of a producer, and the number that its next message must have.

        Below that number a batch is a repeat of what was stored. To whom is not known, the
        first number is the next.
        """
        known = self._producers.get(producer)
        if known is None or producer_epoch > known.epoch:
            return Standing.UNKNOWN, FIRST_N
        if producer_epoch < known.epoch:
            return Standing.FENCED, known.next_n
        return Standing.KNOWN, known.next_n

    @property
    def knows_producers(self) -> bool:
        return bool(self._producers)

    def producers_idle(self, idle_s: int, in_use: Container[bytes] = ()) -> list[bytes]:
        """Who was not used for so much of served time, those idle for longest first.

        None of `in_use` is named, and not more than `EXPIRED_MAX` are. `O(named)`, and those
        in use that have been idle for longer.
        """
        before_s = self.served_s - idle_s
        idle = takewhile(lambda item: item[1].used_s <= before_s, self._producers.items())
        named = (producer for producer, _ in idle if producer not in in_use)
        return list(islice(named, EXPIRED_MAX))

    def producers_to_expire(self, most: int, in_use: Container[bytes] = ()) -> list[bytes]:
        """Who is to be forgotten so that `most` are left: those idle for longest.

        None of `in_use` is named, and not more than `EXPIRED_MAX` are. `O(named)`, and those
        in use that have been idle for longer.
        """
        excess = min(len(self._producers) - most, EXPIRED_MAX)
        if excess <= 0:
            return []
        idle = (producer for producer in self._producers if producer not in in_use)
        return list(islice(idle, excess))

    # Consumers

    def consumer_number(self, part: int, holder: Holder) -> int | None:
        """Under which number a holder is attached to a part, if it is."""
        numbers = self._holders.get(holder)
        return None if numbers is None else numbers.get(part)

    def holders(self) -> list[Holder]:
        """All attached consumers, in the order of their attachment."""
        return list(self._holders)

    def is_attached(self, holder: Holder) -> bool:
        return holder in self._holders

    def parts_of(self, holder: Holder) -> list[int]:
        """The parts to which a holder is attached."""
        return list(self._holders.get(holder, ()))

    def in_flight_of(self, part: int, holder: Holder) -> list[tuple[int, Range]]:
        """What a holder holds of a part, by delivery number. `O(what it holds)`."""
        number = self.consumer_number(part, holder)
        return [] if number is None else self._entries[part].part.held_by(number)

    def claim(self, part: int, number: int, run: Range) -> Answer:
        """What an ack of `run` under delivery `number` would answer now; changes nothing.

        For a client that comes back: `done` is what it may keep. The run must not go beyond
        the end of the part.
        """
        return self._entries[part].part.standing(number, run)


# A look-up by type takes 60 ns, whichever op it is; a `match` over eleven up to 500.
# Any: the type of such a table cannot say that key and argument go together.
_APPLY: Final[dict[type[PostOfficeOp], Callable[[PostOffice, Any], Result]]] = {
    OpenPart: PostOffice._open_part,
    Publish: PostOffice._publish,
    Deliver: PostOffice._deliver,
    Ack: PostOffice._ack,
    Requeue: PostOffice._requeue,
    Attach: PostOffice._attach,
    Detach: PostOffice._detach,
    Producer: PostOffice._bind_producer,
    ExpireProducer: PostOffice._expire_producer,
    PassTime: PostOffice._pass_time,
    Skip: PostOffice._skip,
    DropPart: PostOffice._drop_part,
    Purge: PostOffice._purge,
}
