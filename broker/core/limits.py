"""Every bound and every time of a node: what can grow and what can wait, in one place."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

BUDGET_BYTES_MIN: Final = 16 << 20
"""In less a node with a few post offices has no room for pages beside what it keeps of each."""
WINDOW_BYTES_MIN: Final = 4 << 20
"""The largest message must fit into what publishes may use of it, and others beside."""
WINDOW_OPS_MIN: Final = 100
SIZE_BYTES_MAX: Final = 1 << 62
"""Twice as much is no number on the wire."""

Bytes = Annotated[int, msgspec.Meta(ge=1, le=SIZE_BYTES_MAX)]
Count = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
"""Up to 24 days."""
Seconds = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Table `[limits]` of a node's file. All sizes are in bytes."""

    budget_bytes: Annotated[int, msgspec.Meta(ge=BUDGET_BYTES_MIN, le=SIZE_BYTES_MAX)] = 1 << 30
    """Pages in memory, windows, tails and kept segments of the node. Above 75 % pages are written
    to files; at 90 % publishers get no credit."""

    queue_bytes_max: Bytes = 1 << 40
    """Held per partial queue, in memory and in page files. Above it its producers get no credit,
    or REFUSED full."""

    queue_resident_bytes_max: Bytes = 1 << 40
    """Of that in memory: what is beyond it goes to page files even if memory is left. Kept to
    within three pages; fewer than four pages count as four."""

    page_bytes: Annotated[int, msgspec.Meta(ge=64 << 10, le=64 << 20)] = 1 << 20
    """Of one page: so much is collected before it is written, and read at once."""

    read_ahead_bytes: Bytes = 8 << 20
    """Per partial queue: read from page files before consumers come to it. At most a quarter of
    `queue_resident_bytes_max`."""

    disk_free_bytes_min: Bytes = 1 << 30
    """Left free on the disk of `node.dir`. Below it no page is written."""

    window_bytes: Annotated[int, msgspec.Meta(ge=WINDOW_BYTES_MIN, le=1 << 40)] = 64 << 20
    """Uncommitted ops per stream. Publishes that do not fit wait in order."""

    window_ops: Annotated[int, msgspec.Meta(ge=WINDOW_OPS_MIN, le=(1 << 31) - 1)] = 50_000
    """The same, counted."""

    repair_bytes: Bytes = 64 << 20
    """The newest segments that every copy keeps per stream, so that others can catch up by ops."""

    producer_credit_bytes: Bytes = 4 << 20
    """Given to one producer ahead of what is stored, if it is fast."""

    producer_credit_messages: Count = 50_000
    """The same, counted."""

    consumer_credit_messages_max: Count = 100_000
    """Unacknowledged messages of one leg. A consumer that allows more is held to this."""

    connections_max: Count = 10_000
    """Client connections. One more is closed with ERROR limit."""

    channels_max: Count = 256
    """Per connection. One more is refused with ERROR limit."""

    unsent_bytes_max: Bytes = 16 << 20
    """Written to one connection and not yet taken by it. Above it the connection is closed."""

    before_welcome_s: Seconds = 5
    """A connection that has not said HELLO by then is closed."""

    queues_max: Count = 10_000
    """Queues in the catalog. One more is refused."""

    producers_max: Count = 100_000
    """Remembered producers per post office; beyond, the one idle for longest is forgotten."""

    producer_idle_s: Seconds = 24 * 60 * 60
    """A producer without a channel that published nothing for so long is forgotten."""


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Table `[timing]`. All times are in milliseconds. The first three must agree in a cluster."""

    silence_ms: Milliseconds = 900
    """A peer that was quiet for so long is suspected; an owner may be taken over."""

    grace_ms: Milliseconds = 10_000
    """After a promotion, deliveries in flight are kept for so long for their session."""

    lost_connection_grace_ms: Milliseconds = 2_000
    """The same after a connection was lost while the owner lives."""

    heartbeat_ms: Milliseconds = 100
    """Between peers, while nothing else goes out."""

    client_silence_ms: Milliseconds = 3_000
    """A client that was quiet for so long is disconnected. Its heartbeats run each second."""

    park_ms: Milliseconds = 3_000
    """A request that finds no owner waits for so long, then it is answered RETRY."""
