"""Control messages: closed schemas; what does not fit is refused by name, never guessed."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest
from hypothesis import given, strategies as st

from tanist.wire import control
from tanist.wire.control import (
    SCHEMAS,
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
from tanist.wire.frames import FRAME_HEADER_BYTES, Frame, FrameReader, Verb
from tests.unit.wire_material import damaged, decoded, refusal

ID = "00112233445566778899aabbccddeeff"
TOPOLOGY = Topology(
    ver=7,
    hash="ab",
    nodes={"n1": ["10.0.0.1:7400"]},
    streams={0: Where(home=None, gen=1, epoch=1, owner="n1")},
)
QUEUE = QueueInfo(id=1 << 32 | 5, name="orders", settings=QueueSettings(when_full="refuse"))
EXAMPLES: list[Message] = [
    Hello(req=1, topology=(7, "ab"), versions=(1, 1), client="test", session=ID, dial=2),
    Welcome(
        req=1,
        node="n1",
        inc=(1 << 64) - 1,
        version=1,
        limits=ClientLimits(frame_bytes_max=1 << 20, message_bytes_max=1, channels_max=2),
        heartbeat_ms=1000,
        here=3,
        known=TOPOLOGY,
    ),
    TOPOLOGY,
    Ping(time_ms=5, topology=(7, "ab")),
    Pong(time_ms=5),
    Error(code="limit", sentence="too long", value="9", retryable=True, ends="connection"),
    Close(req=2, reason="done"),
    Closed(req=2),
    Moved(req=3, sid=1, locators=["10.0.0.1:7400"], gen=1, epoch=2, known=TOPOLOGY),
    Wait(req=3, sid=1, why="held", since_ms=1200),
    Retry(req=3, after_ms=100),
    Done(
        req=4,
        queue=QUEUE,
        queues=[QUEUE],
        stat=PartStat(ready=1, in_flight=2, bytes=3, consumers=4, paging=Paging(pages_on_disk=5)),
        purged=5,
        catalog=(1, 2),
        status=msgspec.Raw(b'{"streams":[1,2]}'),
    ),
    Declare(req=5, queue="orders", spread="one", at=2),
    Delete(req=6, queue="orders"),
    Describe(req=7, queue="orders"),
    List(req=8),
    List(req=8, after="orders", limit=1),
    Stat(req=9, sid=1, queue_id=5),
    Purge(req=10, sid=1, queue_id=5),
    Status(req=11),
    DeclareLost(req=11, sid=1, gen=2),
    Status(req=11, queues=True, after="orders", limit=2),
    OpenProducer(req=12, sid=1, queue_id=5, producer=ID, producer_epoch=1, lowest_n=1),
    OpenConsumer(
        req=13,
        sid=1,
        queue_id=5,
        consumer=ID,
        held=[(1, 2, 3)],
        acked=[(1, 5, 1)],
        requeued=[(1, 6, 1, 1)],
    ),
    Opened(
        req=12, gen=1, epoch=1, next_n=4, credit=(1, 2), already_done=[(1, 2)], not_yours=[(3, 4)]
    ),
    Refused(req=0, n=4, code="full", sentence="no room", retry_after_ms=100),
]


def on_the_wire(message: Message, channel: int = 0) -> bytes:
    return b"".join(control_frame(message, channel))


def read(verb: int, payload: bytes) -> Message:
    return read_control(Frame(verb, 0, 0, payload))


def test_there_is_an_example_of_every_message() -> None:
    # Given the examples above; then the tests below leave no schema out
    assert {type(example) for example in EXAMPLES} == set(SCHEMAS.values())
    assert len(SCHEMAS) == len(set(SCHEMAS.values()))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_control_message_reads_as_it_was_written(message: Message) -> None:
    # Given a message; when it is written, and read where it arrives
    (received,) = FrameReader(1 << 20).feed(on_the_wire(message, 3))

    # Then it is the same, on the same channel
    assert read_control(received) == message
    assert received.channel == 3


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_says_no_more_than_it_must(message: Message) -> None:
    # Given a message; when it is written
    written = msgspec.json.decode(on_the_wire(message)[FRAME_HEADER_BYTES:])

    # Then keys that have their default are left out
    fields = msgspec.structs.fields(message)
    defaults = {field.encode_name: field.default for field in fields if not field.required}
    assert not [key for key, default in defaults.items() if written.get(key, object()) == default]


@pytest.mark.parametrize("verb", sorted(set(SCHEMAS)))
@given(data=st.data())
def test_any_payload_is_read_or_refused(verb: Verb, data: st.DataObject) -> None:
    # Given anything, and a valid payload that was damaged
    example = next(message for message in EXAMPLES if type(message) is SCHEMAS[verb])
    valid = on_the_wire(example)[FRAME_HEADER_BYTES:]

    # When it is read, then nothing else happens
    for attempt in (data.draw(st.binary(max_size=40)), data.draw(damaged(valid))):
        decoded(partial(read, verb), attempt)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["req", "queue", "sid", "settings", "spread", "at"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_read_or_refused(document: object) -> None:
    # Given JSON of any form, some with the right keys; when it is read as some verbs
    payload = msgspec.json.encode(document)

    # Then nothing else happens
    for verb in (Verb.DECLARE, Verb.STAT, Verb.DONE, Verb.TOPOLOGY):
        decoded(partial(read, verb), payload)


@pytest.mark.parametrize(
    ("verb", "payload"),
    [
        (Verb.PING, b""),
        (Verb.PING, b"{}"),
        (Verb.PING, b"[5]"),
        (Verb.PING, b'{"time_ms":5} x'),
        (Verb.PING, b'{"time_ms":5,"more":1}'),
        (Verb.PING, b'{"time_ms":5.0}'),
        (Verb.PING, b'{"time_ms":true}'),
        (Verb.PING, b'{"time_ms":"5"}'),
        (Verb.PING, b'{"time_ms":-1}'),
        (Verb.PING, b'{"time_ms":9223372036854775808}'),
        (Verb.PING, b'{"time_ms":' + b"9" * 5000 + b"}"),
        (Verb.PING, b'{"time_ms":1e400}'),
        (Verb.PING, b'{"time_ms":NaN}'),
        (Verb.DELETE, b'{"req":4294967296,"queue":"q"}'),
        (Verb.DELETE, b'{"req":1,"queue":""}'),
        (Verb.DELETE, b'{"req":1,"queue":"\xff"}'),
        (Verb.DELETE, b'{"req":1,"queue":"\\ud800"}'),
        (Verb.DONE, b'{"status":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        (Verb.DONE, b'{"status":' + b"[" * 200_000),
        (Verb.DONE, b'{"queues":' + b"[" * 200_000),
        (Verb.TOPOLOGY, b'{"ver":1,"hash":"","nodes":{},"streams":{"-1":{}}}'),
        (
            Verb.TOPOLOGY,
            b'{"ver":1,"hash":"","nodes":{},"streams":'
            b'{"4294967296":{"home":"a","gen":1,"epoch":1,"owner":"a"}}}',
        ),
        (Verb.OPENED, b'{"gen":1,"epoch":1,"credit":[1,2,3]}'),
        (Verb.OPENED, b'{"gen":1,"epoch":1,"already_done":[[1]]}'),
    ],
    ids=lambda value: value.name if isinstance(value, Verb) else repr(value[:40]),
)
def test_what_the_schema_does_not_allow_is_refused_by_name(verb: Verb, payload: bytes) -> None:
    # Given a payload that breaks its schema; when it is read
    refused = refusal(partial(read, verb), payload)

    # Then the sentence names the verb, and the value is a piece of what was sent
    assert str(refused).startswith(f"bad {verb.name}: ")
    assert refused.value == payload[:80].decode("utf-8", "replace")


def test_a_refusal_does_not_send_back_what_was_sent() -> None:
    # Given an unknown key as long as a frame allows; when it is refused
    refused = refusal(partial(read, Verb.LIST), b'{"%s":1}' % (b"k" * 100_000))

    # Then the sentence is short enough for a client that was not welcome yet
    assert len(str(refused)) < 300


@pytest.mark.parametrize(
    "session", [ID[:-1], ID + "0", ID.upper(), ID[:-1] + "g", ID + "\n", " " + ID]
)
def test_an_id_has_one_spelling(session: str) -> None:
    # Given an id that other programs may take for the same; when HELLO has it
    hello = on_the_wire(Hello(req=1, versions=(1, 1), client="", session=session, dial=0))

    # Then it is refused
    refusal(partial(read, Verb.HELLO), hello[FRAME_HEADER_BYTES:])


@pytest.mark.parametrize(
    "name", ["a\x00b", "a\nb", "tab\t", "\u202egnp.exe", "\u2028", "é" * 128, "x" * 256]
)
def test_a_queue_name_can_be_seen_and_has_at_most_255_bytes(name: str) -> None:
    # Given a name with a character that cannot be seen, or that is too long as UTF-8
    payload = msgspec.json.encode({"req": 1, "queue": name})

    # When it is declared, then it is refused
    refusal(partial(read, Verb.DECLARE), payload)


@pytest.mark.parametrize("name", ["q", "Bestellungen für Zürich", "訂單", "x" * 255])
def test_a_queue_name_may_be_of_any_script(name: str) -> None:
    # Given such a name; when it is declared, then it is read
    message = read(Verb.DECLARE, msgspec.json.encode({"req": 1, "queue": name}))
    assert isinstance(message, Declare)
    assert message.queue == name


def test_a_binary_payload_is_no_control_message() -> None:
    # Given frames of binary verbs, and of none; when they are read as control messages
    for verb in {*range(256)} - set(SCHEMAS):
        # Then they are refused
        refusal(partial(read, verb), b"{}")


def test_the_status_of_a_node_is_passed_on_as_it_is() -> None:
    # Given a document whose form is nobody's business here
    document = b'{"streams": {"1": [1, 2]}, "x": null}'

    # When it is sent and read
    (received,) = FrameReader(1 << 20).feed(on_the_wire(Done(req=1, status=msgspec.Raw(document))))
    done = read_control(received)

    # Then it is the same bytes; and an answer without it says so
    assert isinstance(done, Done)
    assert bytes(done.status) == document
    assert Done(req=1).status == control.NO_STATUS
