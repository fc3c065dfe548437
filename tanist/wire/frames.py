"""Frames between a client and a node, and the reader that finds them in a stream of bytes.

    frame = len u32 | type u8 | flags u8 | channel u16 | payload(len)

Channel 0 is the connection itself. A length above the limit is refused when its header
is read: nothing of that size is ever collected.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Part

FRAME_BYTES_MAX: Final = 1 << 20
"""Payload of one frame; a longer one ends the connection with ERROR limit."""
FRAME_BYTES_MAX_BEFORE_WELCOME: Final = 8 << 10
"""The same before WELCOME."""
MESSAGE_BYTES_MAX: Final = FRAME_BYTES_MAX - (4 << 10)
"""Body and properties of one message, until large messages come."""

FRAME: Final = Struct("<IBBH")
FRAME_HEADER_BYTES: Final = FRAME.size
assert FRAME_HEADER_BYTES == 8


class Verb(IntEnum):
    """The type of a frame. Numbers are never given again."""

    HELLO = 1
    WELCOME = 2
    TOPOLOGY = 3
    PING = 4
    PONG = 5
    ERROR = 6
    CLOSE = 7
    CLOSED = 8
    MOVED = 9
    WAIT = 10
    RETRY = 11
    DONE = 12
    DECLARE = 16
    DELETE = 17
    DESCRIBE = 18
    LIST = 19
    STAT = 20
    PURGE = 21
    STATUS = 22
    OPEN_PRODUCER = 32
    OPEN_CONSUMER = 33
    OPENED = 34
    PUBLISH = 48
    CONFIRM = 49
    REFUSED = 50
    DELIVER = 51
    ACK = 52
    REQUEUE = 53
    SETTLED = 54
    CREDIT = 55
    READY = 56


CREDIT_BACK: Final = 1
"""Flag of CREDIT: the receiver shall say what it has planned, and keep to that."""


class Frame(NamedTuple):
    verb: int
    flags: int
    channel: int
    payload: bytes


def frame(verb: Verb, channel: int, *parts: Part, flags: int = 0) -> tuple[Part, ...]:
    """A frame as parts to be written one after the other."""
    length = sum(map(len, parts))
    return (FRAME.pack(length, verb, flags, channel), *parts)


class FrameReader:
    """Cuts what a connection received into frames.

    Each payload is copied out once; a frame that came in pieces is joined once, when its
    last piece is there, so that a large frame costs no repeated copying.

    Attributes:
        bytes_max: Limit of a payload; raised once the connection is welcome.
    """

    __slots__ = ("_pieces", "_pieces_len", "_wanted", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._pieces: list[bytes] = []
        self._pieces_len = 0
        self._wanted = FRAME_HEADER_BYTES

    @property
    def held_bytes(self) -> int:
        """Bytes of a frame that is not complete yet. At most a frame and one read."""
        return self._pieces_len

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises `RemoteProtocolError` at a bad length."""
        if self._pieces:
            self._pieces.append(data)
            self._pieces_len += len(data)
            if self._pieces_len < self._wanted:
                return []
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._pieces_len = 0
        frames: list[Frame] = []
        at, size = 0, len(data)
        while True:
            body_at = at + FRAME_HEADER_BYTES
            if body_at > size:
                self._wanted = FRAME_HEADER_BYTES
                break
            length, verb, flags, channel = FRAME.unpack_from(data, at)
            if length > self.bytes_max:
                raise RemoteProtocolError(
                    f"a frame of {length} bytes is above the limit of {self.bytes_max}",
                    code="limit",
                    value=str(length),
                )
            end = body_at + length
            if end > size:
                self._wanted = FRAME_HEADER_BYTES + length
                break
            frames.append(Frame(verb, flags, channel, data[body_at:end]))
            at = end
        if at < size:
            self._pieces.append(data[at:] if at else data)
            self._pieces_len = size - at
        return frames
