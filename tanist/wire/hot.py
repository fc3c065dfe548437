"""The binary payloads: those of frames that come by the thousand.

CONFIRM   through n u64 | copies u32
DELIVER   delivery number u64 | first offset u64 | time_ms u64 | count u32 | base u32
          | columns_len u32 | bodies_len u32 | part u32 | delivery flags u8 | batch flags u8 | 0 u16
          | attempts u16[count] if flag 2 | ends u32[count] | columns | bodies
ACK       a u32 | cause u32 | (delivery number u64, first offset u64, count u32)*
REQUEUE   the same
SETTLED   through a u32 | how many already done u32 | (first offset u64, count u32)*
          the first so many were already done, the others are not yours; an answer of more
          than SPANS_MAX comes in several frames, all but the last flagged
CREDIT    messages u64 | bytes u64       both cumulative since the channel opened
READY     nothing
PUBLISH   a batch

Whoever holds what a reader here returned may rely on it: every length fits, no table falls,
no range is empty or has an end beyond `NUMBER_END`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from tanist.errors import RemoteProtocolError
from tanist.wire.batch import (
    COUNT_MAX,
    DELIVER_HEADER_BYTES,
    HAS_COLUMNS,
    Cut,
    Part,
    check_flags,
)
from tanist.wire.columns import check_columns, falls, u16s, u32s
from tanist.wire.frames import SETTLED_MORE, Verb, frame
from tanist.wire.limits import FRAME_BYTES_MAX, NUMBER_END

REDELIVERED: Final = 1
HAS_ATTEMPTS: Final = 2
_KNOWN_FLAGS: Final = REDELIVERED | HAS_ATTEMPTS

_CONFIRM: Final = Struct("<QI")
_DELIVER: Final = Struct("<QQQIIIIIBBH")
assert _DELIVER.size == DELIVER_HEADER_BYTES
_SETTLE: Final = Struct("<II")
_RUN: Final = Struct("<QQI")
_SPAN: Final = Struct("<QI")
_CREDIT: Final = Struct("<QQ")

SPANS_MAX: Final = (FRAME_BYTES_MAX - _SETTLE.size) // _SPAN.size
"""Of one SETTLED."""


class Cause(IntEnum):
    """Why a consumer gives a message back."""

    RETURNED = 0
    """It was not worked on: not counted as an attempt."""
    FAILED = 1
    """The consumer failed on it: counted."""


Run = tuple[int, int, int]
"""(delivery number, first offset, count): messages, named by the delivery that holds them."""
Span = tuple[int, int]
"""(first offset, count)."""


class Settlement(NamedTuple):
    """An ACK or a REQUEUE."""

    a: int
    cause: int
    ranges: list[Run]


class Settled(NamedTuple):
    """The answer to all settlements through `a`."""

    a: int
    already_done: list[Span]
    not_yours: list[Span]


@dataclass(slots=True)
class Delivery:
    """A DELIVER, taken apart: tables and bodies stay bytes."""

    number: int
    first: int
    time_ms: int
    count: int
    base: int
    part: int
    flags: int
    batch_flags: int
    attempts: array[int] | None
    ends: bytes
    columns: bytes
    bodies_at: int
    data: bytes


def confirm(through_n: int, copies: int) -> bytes:
    return _CONFIRM.pack(through_n, copies)


def read_confirm(data: bytes) -> tuple[int, int]:
    """(through n, copies)."""
    through, copies = _exactly(_CONFIRM, data, "CONFIRM")
    return through, copies


def credit(messages: int, bytes_: int) -> bytes:
    return _CREDIT.pack(messages, bytes_)


def read_credit(data: bytes) -> tuple[int, int]:
    """(messages, bytes), both cumulative."""
    messages, bytes_ = _exactly(_CREDIT, data, "CREDIT")
    return messages, bytes_


def settlement(a: int, cause: int, ranges: Iterable[Run]) -> bytes:
    """The payload of an ACK or a REQUEUE."""
    return _SETTLE.pack(a, cause) + b"".join([_RUN.pack(*r) for r in ranges])


def read_settlement(data: bytes) -> Settlement:
    """An ACK or a REQUEUE. Raises `RemoteProtocolError`."""
    if len(data) < _SETTLE.size or (len(data) - _SETTLE.size) % _RUN.size:
        raise _bad("ACK", len(data))
    a, cause = _SETTLE.unpack_from(data)
    ranges: list[Run] = list(_RUN.iter_unpack(data[_SETTLE.size :]))
    for run in ranges:
        number, first, count = run
        if number >= NUMBER_END or not count or first + count > NUMBER_END:
            raise _bad("ACK", run)
    if cause not in (Cause.RETURNED, Cause.FAILED):
        raise _bad("ACK", cause)
    return Settlement(a, cause, ranges)


def settled_frames(
    channel: int, a: int, already_done: list[Span], not_yours: list[Span]
) -> Iterator[tuple[Part, ...]]:
    """The frames of one answer: a single one, unless it has very many spans."""
    while len(already_done) + len(not_yours) > SPANS_MAX:
        done, already_done = already_done[:SPANS_MAX], already_done[SPANS_MAX:]
        left = SPANS_MAX - len(done)
        others, not_yours = not_yours[:left], not_yours[left:]
        yield frame(Verb.SETTLED, channel, settled(a, done, others), flags=SETTLED_MORE)
    yield frame(Verb.SETTLED, channel, settled(a, already_done, not_yours))


def settled(a: int, already_done: list[Span], not_yours: list[Span]) -> bytes:
    spans = b"".join([_SPAN.pack(*span) for span in (*already_done, *not_yours)])
    return _SETTLE.pack(a, len(already_done)) + spans


def read_settled(data: bytes) -> Settled:
    """A SETTLED. Raises `RemoteProtocolError`."""
    if len(data) < _SETTLE.size or (len(data) - _SETTLE.size) % _SPAN.size:
        raise _bad("SETTLED", len(data))
    a, already = _SETTLE.unpack_from(data)
    spans: list[Span] = list(_SPAN.iter_unpack(data[_SETTLE.size :]))
    if already > len(spans):
        raise _bad("SETTLED", already)
    for span in spans:
        first, count = span
        if not count or first + count > NUMBER_END:
            raise _bad("SETTLED", span)
    return Settled(a, spans[:already], spans[already:])


def deliver(
    *,
    number: int,
    first: int,
    time_ms: int,
    count: int,
    part: int,
    flags: int,
    batch_flags: int,
    cut: Cut,
    attempts: bytes = b"",
) -> tuple[Part, ...]:
    """The payload of a DELIVER. `attempts`: u16 a message, little endian, if any are above 0."""
    if attempts:
        flags |= HAS_ATTEMPTS
    header = _DELIVER.pack(
        number,
        first,
        time_ms,
        count,
        cut.base,
        cut.columns_len,
        cut.bodies_len,
        part,
        flags,
        batch_flags,
        0,
    )
    return (header + attempts, *cut.parts)


def read_deliver(data: bytes) -> Delivery:
    """A DELIVER. Raises `RemoteProtocolError` if its lengths, table or columns do not fit."""
    if len(data) < DELIVER_HEADER_BYTES:
        raise _bad("DELIVER", len(data))
    (
        number,
        first,
        time_ms,
        count,
        base,
        columns_len,
        bodies_len,
        part,
        flags,
        batch_flags,
        zero,
    ) = _DELIVER.unpack_from(data)
    if not 0 < count <= COUNT_MAX:
        raise _bad("DELIVER", count)
    if flags & ~_KNOWN_FLAGS or zero:
        raise _bad("DELIVER", flags)
    check_flags(batch_flags)
    if number >= NUMBER_END or first + count > NUMBER_END:
        raise _bad("DELIVER", (number, first, count))
    ends_at = DELIVER_HEADER_BYTES + (2 * count if flags & HAS_ATTEMPTS else 0)
    columns_at = ends_at + 4 * count
    bodies_at = columns_at + columns_len
    if bodies_at + bodies_len != len(data):
        raise _bad("DELIVER", len(data))
    ends = data[ends_at:columns_at]
    table = u32s(ends)
    if table[0] < base or table[-1] - base != bodies_len or falls(table):
        raise _bad("DELIVER", bodies_len)
    if bool(batch_flags & HAS_COLUMNS) != bool(columns_len):
        raise _bad("DELIVER", columns_len)
    columns = data[columns_at:bodies_at]
    if columns:
        check_columns(columns, count)
    return Delivery(
        number,
        first,
        time_ms,
        count,
        base,
        part,
        flags,
        batch_flags,
        u16s(data[DELIVER_HEADER_BYTES:ends_at]) if flags & HAS_ATTEMPTS else None,
        ends,
        columns,
        bodies_at,
        data,
    )


def _exactly(form: Struct, data: bytes, name: str) -> tuple[int, ...]:
    if len(data) != form.size:
        raise _bad(name, len(data))
    return form.unpack(data)


def _bad(name: str, value: object) -> RemoteProtocolError:
    return RemoteProtocolError(f"bad {name}: {value!r} does not fit", value=repr(value))
