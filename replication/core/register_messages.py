"""What the nodes say to each other about the register.

Each message names the cluster that it belongs to, and where it is meant for one acceptor, or
comes from one, that acceptor's incarnation: what was said to a file that is lost must not be
heard by the one that replaced it. There is no request number: a ballot is used for one attempt
and never again, so it says which question an answer belongs to.
"""

from __future__ import annotations

import msgspec

from replication.core.clustermap import Settings
from replication.core.envelope import AcceptorId
from replication.core.identity import Ballot
from tanist.errors import RemoteProtocolError


class _Message(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    tag=True,
    forbid_unknown_fields=True,
):
    cluster_id: str
    """Empty as long as the sender knows no cluster."""


class Hello(_Message, frozen=True, kw_only=True):
    """Who are you, and is there a cluster? The only question to one that is in none."""


class HelloReply(_Message, frozen=True, kw_only=True):
    """The configuration and the state of a node."""

    cluster: str
    expected: tuple[str, ...]
    settings: Settings
    acc_inc: int
    initialised: bool
    """Whether it has a vote: its acceptor took an `Init`."""

    ver: int
    """Of the newest value that it knows, committed or not."""

    ballot: Ballot
    value: bytes | None
    """The newest value that it knows to be committed; with version 0 the value of `Init`."""


class Init(_Message, frozen=True, kw_only=True):
    """Become an acceptor of this cluster, beginning with this value, of version 0."""

    incs: tuple[AcceptorId, ...]
    """The incarnations that all expected nodes named in their `HelloReply`."""

    value: bytes


class InitAck(_Message, frozen=True, kw_only=True):
    acc_inc: int


class Prepare(_Message, frozen=True, kw_only=True):
    acc_inc: int
    ballot: Ballot


class Promise(_Message, frozen=True, kw_only=True):
    acc_inc: int
    ballot: Ballot
    accepted: Ballot
    value: bytes


class Accept(_Message, frozen=True, kw_only=True):
    acc_inc: int
    ballot: Ballot
    value: bytes


class Accepted(_Message, frozen=True, kw_only=True):
    acc_inc: int
    ballot: Ballot


class Nack(_Message, frozen=True, kw_only=True):
    """No. `beat`: the ballot that a new attempt must exceed."""

    acc_inc: int
    ballot: Ballot
    beat: Ballot


class LearnedMsg(_Message, frozen=True, kw_only=True):
    """This value is committed."""

    ballot: Ballot
    value: bytes


class Pull(_Message, frozen=True, kw_only=True):
    """I know no committed value newer than `ver`: send me yours."""

    ver: int


RegisterMessage = (
    Hello
    | HelloReply
    | Init
    | InitAck
    | Prepare
    | Promise
    | Accept
    | Accepted
    | Nack
    | LearnedMsg
    | Pull
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[RegisterMessage] = msgspec.msgpack.Decoder(RegisterMessage)


def encode_message(message: RegisterMessage) -> bytes:
    return _encoder.encode(message)


def decode_message(data: bytes) -> RegisterMessage:
    """Raises `RemoteProtocolError` for anything but a message of the register."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise RemoteProtocolError(f"not a message of the register: {error}") from error
