"""What the copies of a stream say to each other, and how it is written.

    frame = cluster8 8 bytes | sid u32 | gen u32 | 'T' 'S' | version u8 | type u8 | epoch u32
          | inc u64 | commit u64 | key_id u16 | body_len u32 | body                46 bytes + body

Every message begins like that, whether it comes by the group or over a link, so there is one
reader for all. cluster8, sid and gen stand first, because subscribers filter by prefix. `inc`
is the life of the process that sent it. The bodies:

    DATA     one segment; by the group, or over links while a stream is idle
    REPAIR   segments, over a link
    TICK     log end u64 | release u64 | number u64 | echoed u64; over both
    others   a msgpack array of the fields that the header does not have; over links

Rules
-----
1. `decode` raises `RemoteProtocolError` for whatever is not a message, and nothing else. A
   bad frame never stops a receiver.
2. Whose cluster, epoch or owner a message is of, the stream checks.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Annotated, Final

import msgspec

from replication.core.history import Entry
from replication.core.segment import Segment, read_segments
from tanist.errors import RemoteProtocolError

HEADER: Final = Struct("<8sII2sBBIQQHI")
HEADER_BYTES: Final = HEADER.size
assert HEADER_BYTES == 46
MAGIC: Final = b"TS"
VERSION: Final = 1
TICK: Final = Struct("<QQQQ")

U64 = Annotated[int, msgspec.Meta(ge=0)]


class MessageType(IntEnum):
    """Numbers are never given again."""

    DATA = 1
    REPAIR = 2
    TICK = 3
    RECEIPT = 4
    NAK = 5
    INVITE = 6
    JOIN = 7
    NEWEPOCH = 8
    ALIGNED = 9
    VOID = 10


class _Message(msgspec.Struct, frozen=True):
    """What the header says of every message."""

    cluster8: bytes
    sid: int
    gen: int
    epoch: int
    inc: int


class Segments(_Message, frozen=True):
    """Ops, as they were made: what is new, or what the receiver lacked."""

    commit: int
    """Through here the receiver may apply."""
    repair: bool
    segments: tuple[Segment, ...]


class Tick(_Message, frozen=True):
    """How far the owner is. Without it the last lost segment would never be missed."""

    commit: int
    log_end: int
    release: int
    number: int
    """Per epoch. The owner remembers when it sent which."""
    echoed: int
    """The receiver's last receipt that the owner has read; by the group 0."""


class Receipt(_Message, frozen=True):
    """I hold everything up to `contig`, in your epoch."""

    number: U64
    """Per life of the sender and stream; of receipts that overtook each other the last counts."""
    tick: U64
    """The highest tick of this epoch that was heard."""
    contig: U64
    applied: U64
    free: U64
    """Bytes that the sender can still take for this stream."""


class Nak(_Message, frozen=True):
    """I lack the ops from `first` through `last`."""

    first: U64
    last: U64


class Invite(_Message, frozen=True):
    """Join this stream, which I own."""


class Join(_Message, frozen=True):
    """What I hold. `why`: your history does not fit it, and this must happen first; or empty."""

    history: tuple[Entry, ...]
    log_end: U64
    applied: U64
    why: str


class NewEpoch(_Message, frozen=True):
    """I am the owner in this epoch; this is my log."""

    history: tuple[Entry, ...]
    log_end: U64
    chain: U64
    first_kept: U64
    """Below this number I can repair nothing."""


class Aligned(_Message, frozen=True):
    """My log is a beginning of yours from now on. It ends with `contig`."""

    contig: U64
    applied: U64


class Void(_Message, frozen=True):
    """My copy is wrong: it must not be waited for, nor elected."""


StreamMessage = Segments | Tick | Receipt | Nak | Invite | Join | NewEpoch | Aligned | Void
_Plain = Receipt | Nak | Invite | Join | NewEpoch | Aligned | Void
_PLAIN: Final[dict[int, type[_Plain]]] = {
    MessageType.RECEIPT: Receipt,
    MessageType.NAK: Nak,
    MessageType.INVITE: Invite,
    MessageType.JOIN: Join,
    MessageType.NEWEPOCH: NewEpoch,
    MessageType.ALIGNED: Aligned,
    MessageType.VOID: Void,
}
_TYPES: Final = {schema: number for number, schema in _PLAIN.items()}
_HEAD_FIELDS: Final = len(_Message.__struct_fields__)
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[object]).decode


def encode(message: StreamMessage) -> list[bytes]:
    """The frame as parts to be written one after the other."""
    match message:
        case Segments():
            kind = MessageType.REPAIR if message.repair else MessageType.DATA
            parts = [part for segment in message.segments for part in segment.wire()]
            return [_header(message, kind, message.commit, sum(map(len, parts))), *parts]
        case Tick():
            body = TICK.pack(message.log_end, message.release, message.number, message.echoed)
            return [_header(message, MessageType.TICK, message.commit, len(body)), body]
        case _:
            body = _encode(msgspec.structs.astuple(message)[_HEAD_FIELDS:])
            return [_header(message, _TYPES[type(message)], 0, len(body)), body]


def decode(data: bytes) -> StreamMessage:
    """The message that is all of `data`. Raises `RemoteProtocolError` if it is not one."""
    if len(data) < HEADER_BYTES:
        raise _bad("shorter than a stream frame's header", len(data))
    cluster8, sid, gen, magic, version, kind, epoch, inc, commit, key_id, body_len = (
        HEADER.unpack_from(data)
    )
    if magic != MAGIC:
        raise _bad("not a frame of a stream", magic)
    if version != VERSION:
        raise RemoteProtocolError(
            f"stream frame version {version} is not known here (known: {VERSION})",
            code="version",
            value=str(version),
        )
    if key_id:
        raise _bad("sealed with a key that is not known here", key_id)
    if HEADER_BYTES + body_len != len(data):
        raise _bad("the body's length does not add up to the frame's size", body_len)
    if not gen or not epoch:
        raise _bad("a frame without gen or epoch", gen)
    head = (cluster8, sid, gen, epoch, inc)
    if kind == MessageType.DATA or kind == MessageType.REPAIR:
        segments = read_segments(data, HEADER_BYTES, len(data))
        if len(segments) != 1 and (kind == MessageType.DATA or not segments):
            raise _bad("segments in one frame", len(segments))
        return Segments(*head, commit, kind == MessageType.REPAIR, segments)
    if kind == MessageType.TICK:
        if body_len != TICK.size:
            raise _bad("a tick of another size", body_len)
        return Tick(*head, commit, *TICK.unpack_from(data, HEADER_BYTES))
    schema = _PLAIN.get(kind)
    if schema is None:
        raise _bad("unknown type of a stream frame", kind)
    try:
        fields = dict(
            zip(schema.__struct_fields__, (*head, *_decode(data[HEADER_BYTES:])), strict=True)
        )
        return msgspec.convert(fields, schema)
    except (msgspec.MsgspecError, ValueError) as error:
        # A UnicodeDecodeError is a ValueError, and so is a wrong number of fields.
        raise RemoteProtocolError(
            f"bad {schema.__name__} from a peer: {error}", value=schema.__name__
        ) from error


def _header(message: StreamMessage, kind: int, commit: int, body_len: int) -> bytes:
    return HEADER.pack(
        message.cluster8,
        message.sid,
        message.gen,
        MAGIC,
        VERSION,
        kind,
        message.epoch,
        message.inc,
        commit,
        0,
        body_len,
    )


def _bad(what: str, value: object) -> RemoteProtocolError:
    return RemoteProtocolError(f"{what} ({value!r})", value=repr(value))
