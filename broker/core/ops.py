"""Ops: the changes to a replicated state, and how each is written into a record.

A stream gives a record its kind and its length; what stands between is said here. All
integers are little endian; ids of sessions, consumers and producers are 16 raw bytes. A
*run* is (delivery number u64, first offset u64, count u32).

    OPEN_PART        part u32 | queue as msgpack
    PUBLISH          part u32 | producer epoch u32 | base offset u64 | producer 16 | batch
    DELIVER          part u32 | consumer number u32 | count u32 | first offset u64
                     | delivery number u64
    ACK              part u32 | run*
    REQUEUE          part u32 | flagged u8 | count attempt u8 | run*
    ATTACH           consumer number u32 | part u32 | automatic u8 | session 16 | consumer 16
    DETACH           session 16 | consumer 16
    PRODUCER         producer epoch u32 | producer 16
    EXPIRE_PRODUCER  producer 16
    DROP_PART        part u32
    PURGE            part u32 | through offset u64
    PASS_TIME        seconds u32
    SKIP             part u32 | (first offset u64, end offset u64)*
    DECLARE, ADOPT   queue as msgpack
    DELETE           queue id u64

Rules
-----
1. A batch goes in and comes out as the bytes that its producer sealed. Its count and its
   first producer number stand in its own header and nowhere else.
2. A consumer is named by its ids once, when it is attached to a part, and by the number that
   it gets there in every delivery from then on.
3. Kinds are never given again. Whoever reads an unknown one stops: skipping a change would
   make this copy another state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from struct import Struct
from typing import ClassVar, Final

import msgspec

from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Batch
from tanist.wire.control import QueueInfo
from tanist.wire.hot import Run


class Kind(IntEnum):
    """The kind of a record. The catalog's begin at 64."""

    OPEN_PART = 1
    PUBLISH = 2
    DELIVER = 3
    ACK = 4
    REQUEUE = 5
    ATTACH = 6
    DETACH = 7
    PRODUCER = 8
    EXPIRE_PRODUCER = 9
    DROP_PART = 10
    PURGE = 11
    PASS_TIME = 12
    SKIP = 13
    DECLARE = 64
    DELETE = 65
    ADOPT = 66


_PART: Final = Struct("<I")
_PUBLISH: Final = Struct("<IIQ16s")
_DELIVER: Final = Struct("<IIIQQ")
_REQUEUE: Final = Struct("<I??")
_RUN: Final = Struct("<QQI")
_ATTACH: Final = Struct("<II?16s16s")
_DETACH: Final = Struct("<16s16s")
_PRODUCER: Final = Struct("<I16s")
_PURGE: Final = Struct("<IQ")
_PASS_TIME: Final = Struct("<I")
_RANGE: Final = Struct("<QQ")
_QUEUE_ID: Final = Struct("<Q")

_encode_queue: Final = msgspec.msgpack.Encoder().encode
_decode_queue: Final = msgspec.msgpack.Decoder(QueueInfo).decode


class OpenPart(msgspec.Struct, frozen=True):
    """The part of a queue comes into being, by its first use in this post office.

    It carries the whole definition, so that a lost catalog can be made again from parts.
    """

    kind: ClassVar[int] = Kind.OPEN_PART
    part: int
    queue: QueueInfo

    def parts(self) -> tuple[bytes, ...]:
        return (_PART.pack(self.part), _encode_queue(self.queue))


class Publish(msgspec.Struct, frozen=True, gc=False):
    """A producer's next batch is stored at the end of a part."""

    kind: ClassVar[int] = Kind.PUBLISH
    part: int
    producer: bytes
    producer_epoch: int
    base: int
    """The offset of the first message."""
    batch: Batch

    @property
    def first_n(self) -> int:
        return self.batch.first_n

    @property
    def count(self) -> int:
        return self.batch.count

    def parts(self) -> tuple[bytes, ...]:
        batch = self.batch
        data = batch.data
        if batch.start or len(data) != batch.size:
            data = data[batch.start : batch.start + batch.size]
        return (_PUBLISH.pack(self.part, self.producer_epoch, self.base, self.producer), data)


class Deliver(msgspec.Struct, frozen=True, gc=False):
    """Messages that wait are handed to a consumer, which holds them under this number."""

    kind: ClassVar[int] = Kind.DELIVER
    part: int
    first: int
    count: int
    consumer_number: int
    number: int

    def parts(self) -> tuple[bytes, ...]:
        return (
            _DELIVER.pack(self.part, self.consumer_number, self.count, self.first, self.number),
        )


class Ack(msgspec.Struct, frozen=True, gc=False):
    """Deliveries are done with."""

    kind: ClassVar[int] = Kind.ACK
    part: int
    runs: Sequence[Run]

    def parts(self) -> tuple[bytes, ...]:
        return (_PART.pack(self.part) + _pack_runs(self.runs),)


class Requeue(msgspec.Struct, frozen=True, gc=False):
    """Deliveries go back to their places, and may be flagged and counted as failed attempts."""

    kind: ClassVar[int] = Kind.REQUEUE
    part: int
    runs: Sequence[Run]
    flagged: bool
    count_attempt: bool

    def parts(self) -> tuple[bytes, ...]:
        head = _REQUEUE.pack(self.part, self.flagged, self.count_attempt)
        return (head + _pack_runs(self.runs),)


class Attach(msgspec.Struct, frozen=True, gc=False):
    """A consumer gets its number: written together with the first delivery to it."""

    kind: ClassVar[int] = Kind.ATTACH
    consumer_number: int
    part: int
    session: bytes
    consumer: bytes
    automatic: bool
    """It acknowledges by itself. The broker does nothing else for it: people want to see it."""

    def parts(self) -> tuple[bytes, ...]:
        return (
            _ATTACH.pack(
                self.consumer_number, self.part, self.automatic, self.session, self.consumer
            ),
        )


class Detach(msgspec.Struct, frozen=True, gc=False):
    """A consumer is gone, from all parts. It holds nothing any more."""

    kind: ClassVar[int] = Kind.DETACH
    session: bytes
    consumer: bytes

    def parts(self) -> tuple[bytes, ...]:
        return (_DETACH.pack(self.session, self.consumer),)


class Producer(msgspec.Struct, frozen=True, gc=False):
    """A producer is known from here on, or by a higher epoch. It begins at number 1."""

    kind: ClassVar[int] = Kind.PRODUCER
    producer: bytes
    producer_epoch: int

    def parts(self) -> tuple[bytes, ...]:
        return (_PRODUCER.pack(self.producer_epoch, self.producer),)


class ExpireProducer(msgspec.Struct, frozen=True, gc=False):
    """A producer is forgotten: its repeats would no longer be recognised."""

    kind: ClassVar[int] = Kind.EXPIRE_PRODUCER
    producer: bytes

    def parts(self) -> tuple[bytes, ...]:
        return (self.producer,)


class DropPart(msgspec.Struct, frozen=True, gc=False):
    """The queue was deleted: its part goes, with messages and consumers."""

    kind: ClassVar[int] = Kind.DROP_PART
    part: int

    def parts(self) -> tuple[bytes, ...]:
        return (_PART.pack(self.part),)


class Purge(msgspec.Struct, frozen=True, gc=False):
    """What waits goes, up to and with this offset. What is in flight stays."""

    kind: ClassVar[int] = Kind.PURGE
    part: int
    through: int

    def parts(self) -> tuple[bytes, ...]:
        return (_PURGE.pack(self.part, self.through),)


class PassTime(msgspec.Struct, frozen=True, gc=False):
    """So much time has passed since the owner said so last, or became the owner.

    It was measured, so no clock that is set wrong, here or at a client, shows in it.
    """

    kind: ClassVar[int] = Kind.PASS_TIME
    seconds: int

    def parts(self) -> tuple[bytes, ...]:
        return (_PASS_TIME.pack(self.seconds),)


class Skip(msgspec.Struct, frozen=True, gc=False):
    """What waits of these offsets goes: nobody can read it any more, the operator says."""

    kind: ClassVar[int] = Kind.SKIP
    part: int
    runs: Sequence[tuple[int, int]]
    """From the first offset up to the end."""

    def parts(self) -> tuple[bytes, ...]:
        return (b"".join([_PART.pack(self.part), *(_RANGE.pack(*run) for run in self.runs)]),)


class DeclareQueue(msgspec.Struct, frozen=True):
    """A queue comes into being, under an id that was never given before."""

    kind: ClassVar[int] = Kind.DECLARE
    queue: QueueInfo

    def parts(self) -> tuple[bytes, ...]:
        return (_encode_queue(self.queue),)


class DeleteQueue(msgspec.Struct, frozen=True, gc=False):
    """A queue is gone from the catalog; owners of its parts drop them."""

    kind: ClassVar[int] = Kind.DELETE
    queue_id: int

    def parts(self) -> tuple[bytes, ...]:
        return (_QUEUE_ID.pack(self.queue_id),)


class Adopt(msgspec.Struct, frozen=True):
    """A queue of a catalog that was lost is declared again by an owner of one of its parts."""

    kind: ClassVar[int] = Kind.ADOPT
    queue: QueueInfo

    def parts(self) -> tuple[bytes, ...]:
        return (_encode_queue(self.queue),)


PostOfficeOp = (
    OpenPart
    | Publish
    | Deliver
    | Ack
    | Requeue
    | Attach
    | Detach
    | Producer
    | ExpireProducer
    | DropPart
    | Purge
    | PassTime
    | Skip
)
CatalogOp = DeclareQueue | DeleteQueue | Adopt


def decode_post_office_op(kind: int, data: bytes, start: int, end: int) -> PostOfficeOp:
    """The op of the record that `data` holds from `start` to `end`. A batch is not copied."""
    decoder = _POST_OFFICE_OPS.get(kind)
    if decoder is None:
        raise _unknown("post office", kind)
    return decoder(data, start, end)


def decode_catalog_op(kind: int, data: bytes, start: int, end: int) -> CatalogOp:
    """The op of the record that `data` holds from `start` to `end`."""
    decoder = _CATALOG_OPS.get(kind)
    if decoder is None:
        raise _unknown("catalog", kind)
    return decoder(data, start, end)


def _open_part(data: bytes, start: int, end: int) -> OpenPart:
    (part,) = _PART.unpack_from(data, start)
    return OpenPart(part, _decode_queue(data[start + _PART.size : end]))


def _publish(data: bytes, start: int, end: int) -> Publish:
    part, epoch, base, producer = _PUBLISH.unpack_from(data, start)
    batch = Batch.trusted(data, start + _PUBLISH.size)
    assert batch.start + batch.size == end
    return Publish(part, producer, epoch, base, batch)


def _deliver(data: bytes, start: int, end: int) -> Deliver:
    part, consumer_number, count, first, number = _DELIVER.unpack_from(data, start)
    return Deliver(part, first, count, consumer_number, number)


def _ack(data: bytes, start: int, end: int) -> Ack:
    (part,) = _PART.unpack_from(data, start)
    return Ack(part, _unpack_runs(data[start + _PART.size : end]))


def _requeue(data: bytes, start: int, end: int) -> Requeue:
    part, flagged, count_attempt = _REQUEUE.unpack_from(data, start)
    return Requeue(part, _unpack_runs(data[start + _REQUEUE.size : end]), flagged, count_attempt)


def _attach(data: bytes, start: int, end: int) -> Attach:
    consumer_number, part, automatic, session, consumer = _ATTACH.unpack_from(data, start)
    return Attach(consumer_number, part, session, consumer, automatic)


def _detach(data: bytes, start: int, end: int) -> Detach:
    return Detach(*_DETACH.unpack_from(data, start))


def _producer(data: bytes, start: int, end: int) -> Producer:
    epoch, producer = _PRODUCER.unpack_from(data, start)
    return Producer(producer, epoch)


def _expire_producer(data: bytes, start: int, end: int) -> ExpireProducer:
    return ExpireProducer(data[start:end])


def _drop_part(data: bytes, start: int, end: int) -> DropPart:
    return DropPart(*_PART.unpack_from(data, start))


def _purge(data: bytes, start: int, end: int) -> Purge:
    return Purge(*_PURGE.unpack_from(data, start))


def _pass_time(data: bytes, start: int, end: int) -> PassTime:
    return PassTime(*_PASS_TIME.unpack_from(data, start))


def _skip(data: bytes, start: int, end: int) -> Skip:
    (part,) = _PART.unpack_from(data, start)
    return Skip(part, list(_RANGE.iter_unpack(data[start + _PART.size : end])))


def _declare(data: bytes, start: int, end: int) -> DeclareQueue:
    return DeclareQueue(_decode_queue(data[start:end]))


def _delete(data: bytes, start: int, end: int) -> DeleteQueue:
    return DeleteQueue(*_QUEUE_ID.unpack_from(data, start))


def _adopt(data: bytes, start: int, end: int) -> Adopt:
    return Adopt(_decode_queue(data[start:end]))


_POST_OFFICE_OPS: Final[dict[int, Callable[[bytes, int, int], PostOfficeOp]]] = {
    Kind.OPEN_PART: _open_part,
    Kind.PUBLISH: _publish,
    Kind.DELIVER: _deliver,
    Kind.ACK: _ack,
    Kind.REQUEUE: _requeue,
    Kind.ATTACH: _attach,
    Kind.DETACH: _detach,
    Kind.PRODUCER: _producer,
    Kind.EXPIRE_PRODUCER: _expire_producer,
    Kind.DROP_PART: _drop_part,
    Kind.PURGE: _purge,
    Kind.PASS_TIME: _pass_time,
    Kind.SKIP: _skip,
}
_CATALOG_OPS: Final[dict[int, Callable[[bytes, int, int], CatalogOp]]] = {
    Kind.DECLARE: _declare,
    Kind.DELETE: _delete,
    Kind.ADOPT: _adopt,
}


def _pack_runs(runs: Sequence[Run]) -> bytes:
    if len(runs) == 1:  # By far the most frequent.
        return _RUN.pack(*runs[0])
    return b"".join([_RUN.pack(*run) for run in runs])


def _unpack_runs(data: bytes) -> list[Run]:
    return list(_RUN.iter_unpack(data))


def _unknown(state: str, kind: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"op {kind} of a {state} is not known here: it was written by a newer version",
        code="version",
        value=str(kind),
    )
