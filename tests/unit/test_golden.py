"""Golden bytes: one of each frame and batch shape, as they are on the wire for ever.

`golden/<name>.hex` holds the bytes, a field or two a line, with a remark behind `#`. Those of
batches and binary frames were put together field by field from `docs/wire-format.md`, without
the code. A change of a golden file is a new version of the protocol.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tanist.wire import hot
from tanist.wire.batch import Batch, Part, flags_of, resealed, seal
from tanist.wire.control import (
    ClientLimits,
    Close,
    Closed,
    Declare,
    DeclareLost,
    Delete,
    Describe,
    Done,
    Error,
    Hello,
    List,
    Message,
    Moved,
    OpenConsumer,
    Opened,
    OpenProducer,
    Paging,
    PartStat,
    Ping,
    Pong,
    Purge,
    QueueInfo,
    QueueSettings,
    Refused,
    Retry,
    Stat,
    Status,
    Topology,
    Wait,
    Welcome,
    Where,
    control_frame,
    read_control,
)
from tanist.wire.frames import CREDIT_BACK, FRAME_BYTES_MAX, SETTLED_MORE, FrameReader, Verb, frame

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> bytes:
    """The bytes of a golden file, without its remarks."""
    lines = (GOLDEN / f"{name}.hex").read_text(encoding="utf-8").splitlines()
    return bytes.fromhex("".join(line.partition("#")[0] for line in lines))


# Batches

COLUMNS = golden("columns")
TWO = Batch.trusted(golden("batch_with_columns"))
THREE = Batch.trusted(golden("batch_plain"))

BATCHES: dict[str, bytes] = {
    "batch_plain": seal(
        [b"one", b"", b"three"],
        [],
        flags=flags_of(persistent=False),
        first_n=1,
        time_ms=1_700_000_000_000,
    ),
    "batch_properties": seal(
        [b"a", b"b", b"c"],
        [b'{"k":1}', b"{}", b'{"k":1}'],
        flags=flags_of(persistent=True, lane=9),
        first_n=258,
        time_ms=1,
    ),
    "batch_in_doubt": resealed(THREE, first_n=7, in_doubt=True),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_has_its_golden_bytes(name: str) -> None:
    # Given the bytes that stand for ever; when the same batch is sealed
    sealed = BATCHES[name]

    # Then it has these bytes, and they are admitted
    assert sealed.hex(" ") == golden(name).hex(" ")
    assert Batch.parse(golden(name)).count == 3


def test_a_batch_with_every_shape_of_column_has_its_golden_bytes() -> None:
    # Given a batch with a column of each shape, written by hand
    batch = Batch.parse(golden("batch_with_columns"))

    # When its second message is cut out
    cut = batch.cut(1, 1)

    # Then its columns are those of the file, and the cut has its golden bytes
    at = 32 + 4 * batch.count
    assert batch.data[at : at + batch.columns_len] == COLUMNS
    assert b"".join(cut.parts).hex(" ") == golden("cut_of_the_second").hex(" ")


# Frames

ID_A = "000102030405060708090a0b0c0d0e0f"
ID_B = "f0e0d0c0b0a090807060504030201000"
QUEUE = QueueInfo(
    id=1 << 32 | 2,
    name="orders",
    spread="one",
    sid=2,
    settings=QueueSettings(when_full="refuse", bytes_max=1 << 20),
)
TOPOLOGY = Topology(
    ver=9,
    hash="c0ffee",
    nodes={"n1": ["10.0.0.1:7400", "n1.example:7400"], "n2": []},
    streams={
        0: Where(home=None, gen=1, epoch=1, owner="n1"),
        1: Where(home="n1", gen=1, epoch=4, owner="n2"),
    },
)
CONTROL: dict[str, tuple[int, Message]] = {
    "hello": (
        0,
        Hello(
            req=1, topology=(9, "c0ffee"), versions=(1, 1), client="billing", session=ID_A, dial=3
        ),
    ),
    "welcome": (
        0,
        Welcome(
            req=1,
            node="n1",
            inc=0xF123_4567_89AB_CDEF,
            version=1,
            limits=ClientLimits(
                frame_bytes_max=1_048_576, message_bytes_max=1_044_480, channels_max=256
            ),
            heartbeat_ms=1000,
            here=1,
            known=TOPOLOGY,
        ),
    ),
    "topology": (0, TOPOLOGY),
    "ping": (0, Ping(time_ms=1_700_000_000_000, topology=(9, "c0ffee"))),
    "pong": (0, Pong(time_ms=1_700_000_000_000)),
    "error": (
        0,
        Error(
            req=7,
            code="limit",
            sentence="a frame of 9000 bytes is above the limit of 8192",
            value="9000",
            ends="connection",
        ),
    ),
    "close": (5, Close(req=8, reason="done")),
    "closed": (5, Closed(req=8)),
    "moved": (5, Moved(req=9, sid=1, locators=["10.0.0.2:7400"], gen=1, epoch=5)),
    "wait": (5, Wait(req=9, sid=1, why="held", since_ms=1500)),
    "retry": (5, Retry(req=9, after_ms=100)),
    "done": (0, Done(req=10, queue=QUEUE, catalog=(1, 12))),
    "done_list": (0, Done(req=11, queues=[QUEUE])),
    "done_list_more": (0, Done(req=11, queues=[], go_on_after="orders")),
    "done_stat": (0, Done(req=12, stat=PartStat(ready=3, in_flight=2, bytes=500, consumers=1))),
    "done_stat_paging": (
        0,
        Done(
            req=12,
            stat=PartStat(
                ready=3,
                in_flight=2,
                bytes=500,
                consumers=1,
                lost=1,
                paging=Paging(
                    pages_in_memory=9,
                    pages_on_disk=40,
                    memory_bytes=9500,
                    disk_bytes=41000,
                    tail_bytes=120,
                    read_ahead_hits=7,
                    read_ahead_misses=2,
                ),
            ),
        ),
    ),
    "done_purge": (0, Done(req=13, purged=3)),
    "done_status": (0, Done(req=14, status=msgspec.Raw(b'{"node":"n1"}'))),
    "declare": (
        0,
        Declare(
            req=10, queue="orders", spread="one", at=2, settings=QueueSettings(when_full="refuse")
        ),
    ),
    "delete": (0, Delete(req=15, queue="orders")),
    "describe": (0, Describe(req=16, queue="orders")),
    "list": (0, List(req=11)),
    "list_next": (0, List(req=12, after="orders", limit=500)),
    "stat": (0, Stat(req=12, sid=2, queue_id=1 << 32 | 2)),
    "purge": (0, Purge(req=13, sid=2, queue_id=1 << 32 | 2)),
    "status": (0, Status(req=14)),
    "declare_lost": (0, DeclareLost(req=15, sid=2, gen=1)),
    "status_queues": (0, Status(req=14, queues=True, after="orders")),
    "open_producer": (
        3,
        OpenProducer(
            req=17,
            sid=1,
            gen=1,
            epoch=4,
            queue_id=1 << 32 | 2,
            producer=ID_A,
            producer_epoch=2,
            lowest_n=41,
            catalog=(1, 12),
        ),
    ),
    "open_consumer": (
        5,
        OpenConsumer(
            req=18,
            sid=1,
            gen=1,
            epoch=4,
            queue_id=1 << 32 | 2,
            consumer=ID_B,
            mode="auto",
            catalog=(1, 12),
            held=[(9, 40, 3)],
            acked=[(8, 30, 10)],
            requeued=[(9, 43, 1, 1)],
        ),
    ),
    "opened_producer": (3, Opened(req=17, gen=1, epoch=5, next_n=41, credit=(50_000, 4_194_304))),
    "opened_consumer": (
        5,
        Opened(req=18, gen=1, epoch=5, already_done=[(30, 10)], not_yours=[(40, 1)]),
    ),
    "opened_lost": (3, Opened(req=17, gen=2, epoch=6, next_n=1, lost=True)),
    "refused": (3, Refused(n=41, code="full", sentence="orders is full", retry_after_ms=250)),
}
HOT: dict[str, tuple[Part, ...]] = {
    "publish": frame(Verb.PUBLISH, 3, golden("batch_plain")),
    "confirm": frame(Verb.CONFIRM, 3, hot.confirm(600, 3)),
    "deliver": frame(
        Verb.DELIVER,
        5,
        *hot.deliver(
            number=9,
            first=40,
            time_ms=THREE.time_ms,
            count=2,
            part=6,
            flags=0,
            batch_flags=THREE.flags,
            cut=THREE.cut(1, 2),
        ),
    ),
    "deliver_again": frame(
        Verb.DELIVER,
        5,
        *hot.deliver(
            number=10,
            first=41,
            time_ms=TWO.time_ms,
            count=1,
            part=6,
            flags=hot.REDELIVERED,
            batch_flags=TWO.flags,
            cut=TWO.cut(1, 1),
            attempts=b"\x02\x00",
        ),
    ),
    "ack": frame(Verb.ACK, 5, hot.settlement(1, 0, [(9, 40, 2), (10, 41, 1)])),
    "requeue": frame(Verb.REQUEUE, 5, hot.settlement(2, hot.Cause.FAILED, [(10, 41, 1)])),
    "settled": frame(Verb.SETTLED, 5, hot.settled(2, [(40, 2)], [(41, 1)])),
    "settled_more": frame(Verb.SETTLED, 5, hot.settled(2, [], [(41, 1)]), flags=SETTLED_MORE),
    "credit": frame(Verb.CREDIT, 5, hot.credit(1000, 1_048_576)),
    "credit_back": frame(Verb.CREDIT, 5, hot.credit(600, 62_000), flags=CREDIT_BACK),
    "ready": frame(Verb.READY, 5),
}


def test_every_verb_has_a_golden_frame_and_every_file_a_test() -> None:
    # Given the verbs, and the files
    verbs = {golden(name)[4] for name in (*CONTROL, *HOT)}
    files = {path.stem for path in GOLDEN.glob("*.hex")}

    # Then none is left out
    assert verbs == set(Verb)
    pieces = {"columns", "batch_with_columns", "cut_of_the_second"}
    elsewhere = {"page"}  # The format of a page file.
    assert files == {*BATCHES, *CONTROL, *HOT} | pieces | elsewhere


@pytest.mark.parametrize("name", CONTROL)
def test_a_control_frame_has_its_golden_bytes(name: str) -> None:
    # Given a message; when its frame is made, and the golden bytes are read
    channel, message = CONTROL[name]
    (received,) = FrameReader(FRAME_BYTES_MAX).feed(golden(name))

    # Then one is the other, both ways
    assert b"".join(control_frame(message, channel)) == golden(name)
    assert read_control(received) == message


@pytest.mark.parametrize("name", HOT)
def test_a_binary_frame_has_its_golden_bytes(name: str) -> None:
    # Given a frame of the many; when it is made
    made = b"".join(HOT[name])

    # Then it has these bytes
    assert made.hex(" ") == golden(name).hex(" ")


def test_golden_deliveries_read_as_what_they_say() -> None:
    # Given the two golden deliveries, the second with columns and attempts
    reader = FrameReader(FRAME_BYTES_MAX)
    first, second = reader.feed(golden("deliver") + golden("deliver_again"))

    # When they are read
    plain, again = hot.read_deliver(first.payload), hot.read_deliver(second.payload)

    # Then the fields are those that the remarks name
    assert (plain.number, plain.first, plain.count, plain.base, plain.part) == (9, 40, 2, 3, 6)
    assert (plain.flags, plain.attempts, plain.columns) == (0, None, b"")
    assert plain.data[plain.bodies_at :] == b"three"
    assert (again.number, again.first, again.count, again.base) == (10, 41, 1, 2)
    assert again.flags == hot.REDELIVERED | hot.HAS_ATTEMPTS
    assert list(again.attempts or ()) == [2]
    assert again.data[again.bodies_at :] == b"cd"
