"""What two nodes say to each other besides their streams: who they are, and that they live.

    frame = len u32 | type u8 | flags u8 | 0 u16 | payload

The frame is that of clients (`tanist.wire.frames`), with a type for each kind of payload.
Register and stream messages have forms of their own and travel as they are.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

import msgspec

from replication.core.identity import Incarnation
from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Part
from tanist.wire.frames import FRAME

PEER_FRAME_BYTES_MAX: Final = 4 << 20
"""Payload of one frame between nodes; a longer one ends the link. A segment is cut at 64 KiB,
or is one record as large as the largest frame of a client."""
PEER_VERSION: Final = 1

U64 = Annotated[int, msgspec.Meta(ge=0)]


class PeerVerb(IntEnum):
    """The type of a frame between nodes."""

    HELLO = 1
    HEARTBEAT = 2
    REGISTER = 3
    STREAM = 4
    ASK = 5
    HEARD = 6
    RELEASED_AT = 7
    RELEASED_IS = 8
    FORWARD = 9
    ASIDE = 10


class _PeerMessage(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class PeerHello(_PeerMessage, frozen=True):
    """The first frame of each side."""

    cluster: str
    settings: str
    """Digest of the expected nodes and the settings that must agree."""
    cluster_id: str
    """Empty as long as the node's acceptor was never initialised."""
    me: Incarnation
    versions: tuple[int, int]


class Heartbeat(_PeerMessage, frozen=True):
    """A sign of life in both directions: it tells which of ours arrived there."""

    number: U64
    echo: U64
    """Number of the last heartbeat received on this link; 0: none."""
    ver: U64
    """Of the cluster map that the sender knows to be committed."""


class Ask(_PeerMessage, frozen=True):
    """Do you hear this node?"""

    who: Incarnation


class Heard(_PeerMessage, frozen=True):
    who: Incarnation
    heard: bool


class ReleasedAt(_PeerMessage, frozen=True):
    """How far has this stream, which you own, been released?"""

    req: U64
    sid: U64


class ReleasedIs(_PeerMessage, frozen=True):
    req: U64
    gen: U64
    seq: U64
    owned: bool
    """False: the node asked does not own the stream; ask again, somebody else."""


class Forward(_PeerMessage, frozen=True):
    """For the layer above, at the owner of this stream. It may be lost."""

    sid: U64
    payload: bytes


class Aside(_PeerMessage, frozen=True):
    """From one copy of a stream to another, past the stream itself: for the layer above. It may
    be lost."""

    sid: U64
    gen: U64
    payload: bytes


PeerMessage = PeerHello | Heartbeat | Ask | Heard | ReleasedAt | ReleasedIs | Forward | Aside

_SCHEMAS: Final[dict[PeerVerb, type[PeerMessage]]] = {
    PeerVerb.HELLO: PeerHello,
    PeerVerb.HEARTBEAT: Heartbeat,
    PeerVerb.ASK: Ask,
    PeerVerb.HEARD: Heard,
    PeerVerb.RELEASED_AT: ReleasedAt,
    PeerVerb.RELEASED_IS: ReleasedIs,
    PeerVerb.FORWARD: Forward,
    PeerVerb.ASIDE: Aside,
}
_VERBS: Final = {schema: verb for verb, schema in _SCHEMAS.items()}
_DECODERS: Final = {int(v): msgspec.msgpack.Decoder(s) for v, s in _SCHEMAS.items()}
_encode: Final = msgspec.msgpack.Encoder().encode


def peer_frame(message: PeerMessage) -> tuple[Part, ...]:
    """The frame that carries `message`."""
    return raw_peer_frame(_VERBS[type(message)], (_encode(message),))


def raw_peer_frame(verb: PeerVerb, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """A frame whose payload is `parts`, one after the other."""
    return (FRAME.pack(sum(map(len, parts)), verb, 0, 0), *parts)


def read_peer_message(verb: int, payload: bytes) -> PeerMessage:
    """The message of a frame that is neither REGISTER nor STREAM. Raises `RemoteProtocolError`."""
    decoder = _DECODERS.get(verb)
    if decoder is None:
        raise RemoteProtocolError(f"peer frame type {verb} is not known", value=str(verb))
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        name = PeerVerb(verb).name
        raise RemoteProtocolError(f"bad {name} from a peer: {error}", value=name) from error
