"""Frames between a client and a node, and the reader that finds them in a stream of bytes.

    frame = len u32 | type u8 | flags u8 | channel u16 | payload(len)

Channel 0 is the connection itself. A length above the limit is refused when its header
is read: nothing of that size is ever collected. Flags are 0, but for those of CREDIT and
SETTLED.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Part
from tanist.wire.limits import (
    FRAME_BYTES_MAX as FRAME_BYTES_MAX,
    FRAME_BYTES_MAX_BEFORE_WELCOME as FRAME_BYTES_MAX_BEFORE_WELCOME,
    MESSAGE_BYTES_MAX as MESSAGE_BYTES_MAX,
)

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
    DECLARE_LOST = 23
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
SETTLED_MORE: Final = 1
"""Flag of SETTLED: the answer did not fit, and goes on in the next SETTLED of the channel."""
_FLAGS: Final[dict[int, int]] = {Verb.CREDIT: CREDIT_BACK, Verb.SETTLED: SETTLED_MORE}


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

    Frames that lie within one piece are copied out once. One that came in pieces is
    collected in one growing buffer: a list of pieces would cost forty times the frame
    itself when they are a byte each.

    Attributes:
        bytes_max: Limit of a payload; raised once the connection is welcome.
    """

    __slots__ = ("_head", "_held", "_held_header", "_missing", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        # Of a frame that has begun: first its header alone, then its payload.
        self._held_header = bytearray()
        self._head: tuple[int, int, int] | None = None
        self._held = bytearray()
        self._missing = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of a frame that is not complete yet. At most a header and `bytes_max`."""
        return len(self._held_header) + len(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes.

        Raises `RemoteProtocolError` at a header that is not allowed. The connection is then
        closed: what came before in the same piece is lost with it.
        """
        frames: list[Frame] = []
        at, size = 0, len(data)
        if self._held_header:
            at = self._go_on(data, frames)
        while at < size:
            body_at = at + FRAME_HEADER_BYTES
            if body_at > size:
                self._held_header += data[at:]
                break
            length, verb, flags, channel = self._header(data, at)
            end = body_at + length
            if end > size:
                self._held_header += data[at:body_at]
                self._head = (verb, flags, channel)
                self._held += data[body_at:]
                self._missing = end - size
                break
            frames.append(Frame(verb, flags, channel, data[body_at:end]))
            at = end
        return frames

    def _go_on(self, data: bytes, frames: list[Frame]) -> int:
        """Go on with the frame that has begun. Returns where the next one begins in `data`."""
        at = 0
        if self._head is None:
            at = FRAME_HEADER_BYTES - len(self._held_header)
            self._held_header += data[:at]
            if len(self._held_header) < FRAME_HEADER_BYTES:
                return len(data)
            self._missing, *head = self._header(self._held_header, 0)
            self._head = (head[0], head[1], head[2])
        end = at + self._missing
        if end > len(data):
            self._held += data[at:]
            self._missing = end - len(data)
            return len(data)
        self._held += data[at:end]
        frames.append(Frame(*self._head, bytes(self._held)))
        self._head = None
        self._held_header.clear()
        self._held = bytearray()
        return end

    def _header(self, data: bytes | bytearray, at: int) -> tuple[int, int, int, int]:
        length, verb, flags, channel = FRAME.unpack_from(data, at)
        if length > self.bytes_max:
            raise RemoteProtocolError(
                f"a frame of {length} bytes is above the limit of {self.bytes_max}",
                code="limit",
                value=str(length),
            )
        if flags and flags != _FLAGS.get(verb):
            raise RemoteProtocolError(
                f"flags {flags} of frame type {verb} are not known", value=str(flags)
            )
        return length, verb, flags, channel
