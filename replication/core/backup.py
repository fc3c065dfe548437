"""What an owner knows of one other copy of its stream."""

from __future__ import annotations

from replication.core.identity import Incarnation


class Backup:
    """A member of the in-sync set, or a joiner, as seen by the owner in one epoch.

    Attributes:
        aligned: It follows this epoch, and gives receipts.
        why: Why it does not, if it said so.
        receipt: It holds all ops through this one, in this epoch.
        receipt_bytes: The log's `bytes_total` through that op.
        number: Of its latest receipt.
        first_end: The log's end when it aligned; None before.
        heard_at, progress_at: When anything came from it; when its receipt last grew, or
            nothing was outstanding.
        answered_at: The latest tick that it answered was *sent* then; -inf: none.
        greeted_first_at, greeted_at: When it was first, and last, told of the epoch.
        later_at: It is no candidate for the in-sync set before.
        dead: Its process is proven dead.
        void: It said that its copy is wrong.
        repaired: The last request for ops that was answered, and when.
    """

    __slots__ = (
        "aligned",
        "answered_at",
        "applied",
        "dead",
        "first_end",
        "free",
        "greeted_at",
        "greeted_first_at",
        "heard_at",
        "later_at",
        "number",
        "progress_at",
        "receipt",
        "receipt_bytes",
        "repaired",
        "void",
        "who",
        "why",
    )

    def __init__(self, who: Incarnation, now: float) -> None:
        self.who = who
        self.aligned = False
        self.why = ""
        self.receipt = 0
        self.receipt_bytes = 0
        self.applied = 0
        self.free = 0
        self.number = 0
        self.first_end: int | None = None
        self.heard_at = now
        self.progress_at = now
        self.answered_at = float("-inf")
        self.greeted_first_at: float | None = None
        self.greeted_at = float("-inf")
        self.later_at = float("-inf")
        self.dead = False
        self.void = False
        self.repaired = (0, float("-inf"))
