"""Ops: what is written into a record is what is read from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.core.ops import (
    Ack,
    Adopt,
    Attach,
    CatalogOp,
    DeclareQueue,
    DeleteQueue,
    Deliver,
    Detach,
    DropPart,
    ExpireProducer,
    Kind,
    OpenPart,
    PassTime,
    PostOfficeOp,
    Producer,
    Publish,
    Purge,
    Requeue,
    Skip,
    decode_catalog_op,
    decode_post_office_op,
)
from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Batch, flags_of, seal
from tanist.wire.control import QueueInfo, QueueSettings

SESSION = bytes(range(16))
CONSUMER = bytes(range(16, 32))
PRODUCER = bytes(range(32, 48))
QUEUE = QueueInfo(
    id=7 << 32 | 3,
    name="orders/ü",
    spread="one",
    sid=2,
    settings=QueueSettings(when_full="refuse", bytes_max=1 << 40),
)
MANY = [(number, 1 << 40, 2) for number in range(70)]


def batch(*bodies: bytes, first_n: int = 1) -> Batch:
    return Batch.parse(
        seal(list(bodies), [], flags=flags_of(persistent=True), first_n=first_n, time_ms=5)
    )


POST_OFFICE_OPS: list[PostOfficeOp] = [
    OpenPart(3, QUEUE),
    Deliver(3, 1 << 40, 600, 9, 1 << 41),
    Ack(3, [(5, 1 << 40, 600)]),
    Ack(3, MANY),
    Requeue(3, [(5, 0, 1)], True, False),
    Requeue(3, MANY, False, True),
    Attach(9, 3, SESSION, CONSUMER, True),
    Detach(SESSION, CONSUMER),
    Producer(PRODUCER, 4),
    ExpireProducer(PRODUCER),
    DropPart(3),
    Purge(3, 1 << 40),
    PassTime(3_600),
    Skip(3, [(0, 5), (1 << 40, (1 << 40) + 600)]),
]
CATALOG_OPS: list[CatalogOp] = [DeclareQueue(QUEUE), DeleteQueue(QUEUE.id), Adopt(QUEUE)]


@pytest.mark.parametrize("op", POST_OFFICE_OPS, ids=lambda op: type(op).__name__)
def test_an_op_of_a_post_office_is_read_as_it_was_written(op: PostOfficeOp) -> None:
    # Given its record, between two others
    record = b"".join(op.parts())

    # When it is read from there
    read = decode_post_office_op(op.kind, b"before" + record + b"after", 6, 6 + len(record))

    # Then it is the same op
    assert read == op
    assert type(read) is type(op)


@pytest.mark.parametrize("op", CATALOG_OPS, ids=lambda op: type(op).__name__)
def test_an_op_of_the_catalog_is_read_as_it_was_written(op: CatalogOp) -> None:
    # Given its record, between two others
    record = b"".join(op.parts())

    # When it is read from there
    read = decode_catalog_op(op.kind, b"before" + record + b"after", 6, 6 + len(record))

    # Then it is the same op
    assert read == op
    assert type(read) is type(op)


def test_every_kind_of_op_is_tested_here() -> None:
    # Given the ops above, and one publish
    ops = [*POST_OFFICE_OPS, *CATALOG_OPS, Publish(1, PRODUCER, 1, 0, batch(b"a"))]

    # When their kinds are collected
    kinds = {op.kind for op in ops}

    # Then none is missing
    assert kinds == set(Kind)


def test_a_batch_is_written_and_read_without_a_copy() -> None:
    # Given the publish of a batch, as one of several records
    sealed = batch(b"one", b"three", first_n=41)
    op = Publish(3, PRODUCER, 4, 1 << 40, sealed)
    data = b"".join((b"before", *op.parts(), b"after"))

    # When it is read there, and written again
    read = decode_post_office_op(op.kind, data, 6, len(data) - 5)

    # Then its fields are the same, its bytes are those of the producer, and nobody copied them
    assert isinstance(read, Publish)
    assert (read.part, read.producer, read.producer_epoch, read.base) == (3, PRODUCER, 4, 1 << 40)
    assert (read.first_n, read.count) == (41, 2)
    assert read.batch.data is data
    assert op.parts()[1] is sealed.data
    assert read.parts() == op.parts()


def test_the_golden_bytes_of_ops_do_not_change() -> None:
    # Given ops as they have always been
    publish = Publish(1, b"P" * 16, 2, 3, batch(b"a"))

    # When they are written
    records = [
        *publish.parts()[:1],
        *Deliver(1, 2, 3, 4, 5).parts(),
        *Ack(1, [(2, 3, 4)]).parts(),
        *Requeue(1, [(2, 3, 4)], True, False).parts(),
        *Attach(1, 2, b"S" * 16, b"C" * 16, False).parts(),
        *Skip(1, [(2, 3), (4, 5)]).parts(),
        b"".join(OpenPart(1, QueueInfo(id=1 << 32, name="q")).parts()),
    ]

    # Then another program that knows the table in the docstring can read them
    assert [record.hex() for record in records] == [
        "01000000020000000300000000000000" + "50" * 16,
        "01000000040000000300000002000000000000000500000000000000",
        "010000000200000000000000030000000000000004000000",
        "0100000001000200000000000000030000000000000004000000",
        "010000000200000000" + "53" * 16 + "43" * 16,
        "01000000" + "".join(f"0{n}" + "00" * 7 for n in (2, 3, 4, 5)),
        "0100000082a26964cf0000000100000000a46e616d65a171",
    ]


@pytest.mark.parametrize("decode", [decode_post_office_op, decode_catalog_op])
def test_an_op_of_an_unknown_kind_is_not_skipped(
    decode: Callable[[int, bytes, int, int], object],
) -> None:
    # Given a kind that a newer version has added
    kind = 200

    # When it is read
    with pytest.raises(RemoteProtocolError) as caught:
        decode(kind, b"", 0, 0)

    # Then whoever reads it stops, and can say why
    assert caught.value.code == "version"
    assert caught.value.value == "200"


def test_an_op_of_the_catalog_is_none_of_a_post_office() -> None:
    # Given the record of a declaration
    op = DeclareQueue(QUEUE)
    record = b"".join(op.parts())

    # When it is given to a post office
    with pytest.raises(RemoteProtocolError) as caught:
        decode_post_office_op(op.kind, record, 0, len(record))

    # Then it is refused
    assert caught.value.code == "version"
