"""The control messages: JSON objects with closed schemas, one struct for each verb.

Every request carries `req`, which its one final answer repeats (WAIT is not final), and
`topology`, the (ver, hash) that the client knows, if that changed since its last frame
on this connection. Unknown keys are refused; what both sides understand is settled in
HELLO. A key that has its default may be left out, and is left out here.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Part
from tanist.wire.frames import Frame, Verb, frame
from tanist.wire.limits import (
    CLIENT_NAME_CHARACTERS_MAX,
    NUMBER_END,
    QUEUE_NAME_BYTES_MAX,
    QUEUES_PAGE_MAX,
)

VERSION: Final = 1
"""Of the protocol. HELLO names a range, WELCOME the one that is used."""

U16 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
U64 = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_END - 1)]
Incarnation = Annotated[int, msgspec.Meta(ge=0)]
"""All 64 bits may be set."""
Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""128 bits, chosen by the client, in hexadecimal digits."""
QueueName = Annotated[str, msgspec.Meta(min_length=1, max_length=QUEUE_NAME_BYTES_MAX)]
"""Its bytes are counted, and its characters looked at, by `check_queue_name`."""
_UNSEEN: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff]"
)
# A list of our own: `str.isprintable` is another one in each version of Python, and a name
# that one copy of the catalog takes all must take.
Ver = tuple[U64, str]
"""Of a topology: (ver, hash)."""
Known = tuple[U64, U64]
"""How much of the catalog has been seen: (gen, seq)."""
Run = tuple[U64, U64, U32]
"""(delivery number, first offset, count)."""
Returned = tuple[U64, U64, U32, U32]
"""A run and the cause of its return."""


def check_queue_name(name: str) -> None:
    """Raises `ValueError`, whose text is for whoever chose the name."""
    if _UNSEEN.search(name):
        raise ValueError(f"queue name {name!r} has characters that cannot be seen")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"queue name {name!r} has halves of characters (surrogates)") from None
    if not 0 < size <= QUEUE_NAME_BYTES_MAX:
        raise ValueError(
            f"queue name {name[:80]!r} has {size} bytes as UTF-8: 1 to {QUEUE_NAME_BYTES_MAX} are"
            " allowed"
        )


class Message(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Base of all control messages."""


class Request(Message, frozen=True, kw_only=True):
    req: U32
    topology: Ver | None = None


class Answer(Message, frozen=True, kw_only=True):
    req: U32 = 0
    """0: not asked for."""


class Where(Message, frozen=True, kw_only=True):
    """Of one stream."""

    home: str | None
    gen: U64
    epoch: U64
    owner: str


class Topology(Answer, frozen=True, kw_only=True):
    """What a client is told of the cluster map."""

    ver: U64
    hash: str
    nodes: dict[str, list[str]]
    """Client locators, "host:port", by node."""
    streams: dict[U32, Where]
    """By sid; 0 is the catalog."""


class ClientLimits(Message, frozen=True, kw_only=True):
    frame_bytes_max: U32
    message_bytes_max: U32
    channels_max: U32


class Hello(Request, frozen=True, kw_only=True):
    versions: tuple[U16, U16]
    client: Annotated[str, msgspec.Meta(max_length=CLIENT_NAME_CHARACTERS_MAX)]
    session: Id
    dial: U32
    heartbeat_ms: U32 = 1000
    auth: Literal[""] = ""


class Welcome(Answer, frozen=True, kw_only=True):
    node: str
    inc: Incarnation
    version: U16
    limits: ClientLimits
    heartbeat_ms: U32
    here: U32
    """The sid that producers who entered at this node publish to."""
    known: Topology | None = None
    """The topology, if the client's is older."""


class Ping(Message, frozen=True, kw_only=True):
    time_ms: U64
    topology: Ver | None = None


class Pong(Message, frozen=True, kw_only=True):
    time_ms: U64
    topology: Ver | None = None


class QueueSettings(Message, frozen=True, kw_only=True):
    when_full: Literal["hold", "refuse"] = "hold"
    """hold: no credit until there is room. refuse: REFUSED full."""
    bytes_max: U64 = 0
    """Bytes of a part; 0: only the node's own limit."""


class QueueInfo(Message, frozen=True, kw_only=True):
    id: U64
    name: QueueName
    spread: Literal["every", "one"] = "every"
    sid: U32 = 0
    """The one post office of a queue with spread one."""
    settings: QueueSettings = QueueSettings()

    def __post_init__(self) -> None:
        check_queue_name(self.name)


class Paging(Message, frozen=True, kw_only=True):
    """Where the pages of a part are, at the node that answers. Its open page counts apart."""

    pages_in_memory: U64 = 0
    pages_on_disk: U64 = 0
    """In files only."""
    memory_bytes: U64 = 0
    """What pages take up in memory, objects included."""
    disk_bytes: U64 = 0
    """Batches of the pages that are in files only."""
    tail_bytes: U64 = 0
    """What the open page takes up in memory."""
    read_ahead_hits: U64 = 0
    """Pages that had been in files only, and were in memory when a consumer came to them."""
    read_ahead_misses: U64 = 0
    """Pages that a consumer had to wait for."""

    @property
    def pages(self) -> int:
        return self.pages_in_memory + self.pages_on_disk


class PartStat(Message, frozen=True, kw_only=True):
    ready: U64
    in_flight: U64
    bytes: U64
    consumers: U64
    lost: U64 = 0
    """Of those that are ready: no copy can read them any more."""
    paging: Paging = Paging()


class QueueRequest(Request, frozen=True, kw_only=True):
    """About a queue by its name."""

    queue: QueueName

    def __post_init__(self) -> None:
        check_queue_name(self.queue)


class Declare(QueueRequest, frozen=True, kw_only=True):
    spread: Literal["every", "one"] = "every"
    at: U32 = 0
    settings: QueueSettings = QueueSettings()


class Delete(QueueRequest, frozen=True, kw_only=True):
    pass


class Describe(QueueRequest, frozen=True, kw_only=True):
    pass


class Page(Request, frozen=True, kw_only=True):
    """About many queues: those that follow a name, in the order of their names."""

    after: Annotated[str, msgspec.Meta(max_length=QUEUE_NAME_BYTES_MAX)] = ""
    """The last name of the page before; empty: from the first one on."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=QUEUES_PAGE_MAX)] = QUEUES_PAGE_MAX


class List(Page, frozen=True, kw_only=True):
    pass


class Stat(Request, frozen=True, kw_only=True):
    sid: U32
    queue_id: U64


class Purge(Request, frozen=True, kw_only=True):
    sid: U32
    queue_id: U64
    lost: bool = False
    """Only what no copy can read any more."""


class Status(Page, frozen=True, kw_only=True):
    queues: bool = False
    """A page of queues and what is in them is asked for, and nothing else of the status."""


class DeclareLost(Request, frozen=True, kw_only=True):
    """The operator's word that no copy of a stream will come back: it goes on empty."""

    sid: U32
    gen: U64
    """The life of it that is given up; another one is not touched."""


class OpenProducer(Request, frozen=True, kw_only=True):
    sid: U32
    gen: U64 = 0
    epoch: U64 = 0
    queue_id: U64
    producer: Id
    producer_epoch: U32
    lowest_n: U64
    """The lowest number without an answer."""
    catalog: Known = (0, 0)


class OpenConsumer(Request, frozen=True, kw_only=True):
    sid: U32
    gen: U64 = 0
    epoch: U64 = 0
    queue_id: U64
    consumer: Id
    mode: Literal["ack", "auto"] = "ack"
    catalog: Known = (0, 0)
    held: list[Run] = []
    acked: list[Run] = []
    requeued: list[Returned] = []


class Opened(Answer, frozen=True, kw_only=True):
    gen: U64
    epoch: U64
    next_n: U64 = 0
    """Producers: the number expected next. It is no confirm."""
    credit: tuple[U64, U64] = (0, 0)
    """Producers: (messages, bytes)."""
    already_done: list[tuple[U64, U32]] = []
    not_yours: list[tuple[U64, U32]] = []
    lost: bool = False
    """The stream has another life: none of the client's numbers was looked at."""
    unknown: bool = False
    """The producer is not known any more, and expects more than this stream does."""


NO_STATUS: Final = msgspec.Raw()
# A union of Raw with None would be read as None alone.


class Done(Answer, frozen=True, kw_only=True):
    queue: QueueInfo | None = None
    queues: list[QueueInfo] | None = None
    go_on_after: str = ""
    """The last name of this page of queues; empty: it was the last page."""
    stat: PartStat | None = None
    purged: U64 | None = None
    catalog: Known | None = None
    status: msgspec.Raw = NO_STATUS
    """A JSON object for people and programs that watch; not part of the protocol."""


class Refused(Answer, frozen=True, kw_only=True):
    n: U64
    code: str
    sentence: str
    retry_after_ms: U32 = 0


class Moved(Answer, frozen=True, kw_only=True):
    sid: U32
    locators: list[str] = []
    """Of the owner's node; empty: not known here, try another node."""
    gen: U64 = 0
    epoch: U64 = 0
    known: Topology | None = None


class Wait(Answer, frozen=True, kw_only=True):
    sid: U32
    why: str
    since_ms: U64 = 0


class Retry(Answer, frozen=True, kw_only=True):
    after_ms: U32


class Error(Answer, frozen=True, kw_only=True):
    code: str
    sentence: str
    value: str = ""
    retryable: bool = False
    ends: Literal["nothing", "channel", "connection"] = "nothing"


class Close(Request, frozen=True, kw_only=True):
    reason: str = ""


class Closed(Answer, frozen=True, kw_only=True):
    pass


SCHEMAS: Final[dict[int, type[Message]]] = {
    Verb.HELLO: Hello,
    Verb.WELCOME: Welcome,
    Verb.TOPOLOGY: Topology,
    Verb.PING: Ping,
    Verb.PONG: Pong,
    Verb.ERROR: Error,
    Verb.CLOSE: Close,
    Verb.CLOSED: Closed,
    Verb.MOVED: Moved,
    Verb.WAIT: Wait,
    Verb.RETRY: Retry,
    Verb.DONE: Done,
    Verb.DECLARE: Declare,
    Verb.DELETE: Delete,
    Verb.DESCRIBE: Describe,
    Verb.LIST: List,
    Verb.STAT: Stat,
    Verb.PURGE: Purge,
    Verb.STATUS: Status,
    Verb.DECLARE_LOST: DeclareLost,
    Verb.OPEN_PRODUCER: OpenProducer,
    Verb.OPEN_CONSUMER: OpenConsumer,
    Verb.OPENED: Opened,
    Verb.REFUSED: Refused,
}
_VERBS: Final = {schema: Verb(verb) for verb, schema in SCHEMAS.items()}
_DECODERS: Final = {verb: msgspec.json.Decoder(schema) for verb, schema in SCHEMAS.items()}
_encode: Final = msgspec.json.Encoder().encode


def control_frame(message: Message, channel: int = 0) -> tuple[Part, ...]:
    """The frame that carries `message`."""
    return frame(_VERBS[type(message)], channel, _encode(message))


def read_control(received: Frame) -> Message:
    """The message of a control frame. Raises `RemoteProtocolError` naming what is wrong."""
    decoder = _DECODERS.get(received.verb)
    if decoder is None:
        raise RemoteProtocolError(
            f"frame type {received.verb} is not a control message", value=str(received.verb)
        )
    try:
        return decoder.decode(received.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # The text may quote what was sent, of any length, and goes back in an ERROR.
        name = Verb(received.verb).name
        raise RemoteProtocolError(
            f"bad {name}: {str(error)[:200]}",
            value=received.payload[:80].decode("utf-8", "replace"),
        ) from error
