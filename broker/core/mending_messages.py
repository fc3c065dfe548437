"""What two copies of a part say to each other about a page that one of them cannot read.

They travel as the payload of an ASIDE. All integers are little endian.

    WANTED   1 u8 | part u32 | token u64 | epoch u64 | first offset u64 | end offset u64
    FOUND    2 u8 | token u64 | epoch u64 | through offset u64
             | (first offset u64 | length u32 | batch)*

FOUND has everything that is not done with there, from the first offset that was wanted up to
`through`, without that one. What it does not have up to there is done with or unreadable at
that copy, or has not come yet. If `through` is the first offset wanted, nothing was looked at:
the disk is busy there.

Rule: whoever holds what `read` returned may rely on it: offsets rise, no two pieces overlap,
none reaches beyond `through`, and each batch was parsed as at its admission.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Batch
from tanist.wire.limits import NUMBER_END

_WANTED: Final = Struct("<BIQQQQ")
_FOUND: Final = Struct("<BQQQ")
_PIECE: Final = Struct("<QI")
_KIND_WANTED: Final = 1
_KIND_FOUND: Final = 2

Pieces = list[tuple[int, Batch]]
"""Batches, and the offset of the first message of each."""


class Wanted(NamedTuple):
    """Who has messages of this part, from `first` up to `end`?"""

    token: int
    epoch: int
    """Which the asker serves or follows. Copies of one epoch have the same messages."""
    part: int
    first: int
    end: int


class Found(NamedTuple):
    """The answer to one `Wanted`, perhaps for a part of it."""

    token: int
    epoch: int
    through: int
    pieces: Pieces


def encode_wanted(wanted: Wanted) -> bytes:
    token, epoch, part, first, end = wanted
    return _WANTED.pack(_KIND_WANTED, part, token, epoch, first, end)


def encode_found(found: Found) -> bytes:
    parts: list[bytes] = [_FOUND.pack(_KIND_FOUND, found.token, found.epoch, found.through)]
    for first, batch in found.pieces:
        data = batch.data[batch.start : batch.start + batch.size]
        parts += (_PIECE.pack(first, len(data)), data)
    return b"".join(parts)


def read(payload: bytes) -> Wanted | Found:
    """Raises `RemoteProtocolError` if it is neither."""
    kind = payload[0] if payload else 0
    if kind == _KIND_WANTED:
        return _read_wanted(payload)
    if kind == _KIND_FOUND:
        return _read_found(payload)
    raise _bad("it is of no known kind", kind)


def _read_wanted(payload: bytes) -> Wanted:
    if len(payload) != _WANTED.size:
        raise _bad("a WANTED of another length", len(payload))
    _, part, token, epoch, first, end = _WANTED.unpack(payload)
    if not first < end <= NUMBER_END:
        raise _bad("a WANTED for an empty or endless range", (first, end))
    return Wanted(token, epoch, part, first, end)


def _read_found(payload: bytes) -> Found:
    if len(payload) < _FOUND.size:
        raise _bad("a FOUND without its beginning", len(payload))
    _, token, epoch, through = _FOUND.unpack_from(payload)
    pieces: Pieces = []
    at, last_end = _FOUND.size, 0
    while at < len(payload):
        if len(payload) - at < _PIECE.size:
            raise _bad("a piece without its beginning", len(payload) - at)
        first, length = _PIECE.unpack_from(payload, at)
        at += _PIECE.size
        if len(payload) - at < length:
            raise _bad("a piece is longer than what came", length)
        batch = Batch.parse(payload[at : at + length])
        at += length
        if first < last_end:
            raise _bad("pieces overlap or do not rise", (last_end, first))
        last_end = first + batch.count
        pieces.append((first, batch))
    if not last_end <= through <= NUMBER_END:
        raise _bad("a piece beyond its end", (last_end, through))
    return Found(token, epoch, through, pieces)


def _bad(what: str, value: object) -> RemoteProtocolError:
    return RemoteProtocolError(f"bad word about a damaged page: {what} ({value!r})")
