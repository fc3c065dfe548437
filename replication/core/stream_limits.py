"""Every bound and every time of one stream."""

from __future__ import annotations

from typing import Annotated

import msgspec

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class StreamLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Silence and grace are not here: they must be the same on all nodes, so the map has them."""

    window_bytes: AtLeastOne = 64 << 20
    """Uncommitted ops. A tenth is for what publishes cannot use. Also of the reorder buffer."""

    window_ops: AtLeastOne = 50_000
    """The same, counted; and effects that wait for release, whatever caused them."""

    repair_bytes: AtLeastOne = 64 << 20
    """The newest segments that are kept so that others can catch up by ops."""

    segment_bytes: AtLeastOne = 64 << 10
    """A segment is cut here. A larger op makes a larger one."""

    link_bytes_max: AtLeastOne = 8 << 10
    """A smaller segment of an idle stream goes over the links instead of the group."""

    repair_answer_bytes: AtLeastOne = 256 << 10
    """Sent for one request of a copy that lacks something."""

    expand_bytes_max: AtLeastOne = 1 << 20
    """A joiner is taken in only if it is this near to the log's end."""

    receipt_bytes: AtLeastOne = 256 << 10
    """Received since the last receipt: the next one does not wait any longer."""

    tick_s: Seconds = 0.1
    """Between two ticks of an owner."""

    tick_soon_s: Seconds = 0.005
    """After the last op, or the last release, of a burst."""

    group_tick_every: AtLeastOne = 5
    """While nothing happens the group hears only each so-manieth tick, enough to see that it
    works: each wakes up everybody, and the links carry all of them."""

    receipt_s: Seconds = 0.001
    """Between two receipts of a copy, but for `receipt_bytes`."""

    gap_s: Seconds = 0.002
    """A gap is waited out for so long, as the group may reorder. Also how long a repeated
    request for the same ops counts as the same request."""

    nak_s_min: Seconds = 0.005
    nak_s_max: Seconds = 0.1
    """A request without an answer is repeated after the first, doubling up to the second."""

    greet_s: Seconds = 0.2
    """Until a copy has aligned with the epoch it is told of it again."""

    invite_s: Seconds = 1.0
    """Until a node has answered an invitation it is sent another one."""

    expand_s: Seconds = 1.0
    """A joiner that holds up commit for so long, and is still behind, is left for later."""

    stalled_s: Seconds = 3.0
    """A member that makes no progress for so long is proposed for removal."""

    long_silent_s: Seconds = 5.0
    """A member that was silent for so long may leave with only `min_copies` staying."""

    quarantine_s: Seconds = 30.0
    """Who was expelled for being slow or silent is not taken in again before."""
