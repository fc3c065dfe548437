"""How a copy comes to follow an owner: whether its log is a beginning of the owner's.

Theory of operation
-------------------
The owner tells its history and its log's end. Below the common point of both histories the
logs are the same; there the tail is cut, and the ops from there on come by repair. That works
for a shadow, a newcomer and a deposed owner alike, as long as three things hold:

1. nothing at or above the common point is applied here, since a state cannot be taken back;
2. the owner still keeps the segments from the common point on;
3. the chains agree there. Where this copy does not know its own, or the owner's is not told,
   the first segment that is received decides. If they do not, this copy is wrong: it is void.

Else the content must come anew, into a fresh copy. If the owner keeps the log from its first
op on, the fresh copy is filled by ops as well (`Refill`). The old copy stays until the fresh
one has all that the owner's log had at that moment: until then it is the one that counts, it
is electable if it is in sync, and no receipts are given. Only a void copy is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from replication.core.copy import Copy
from replication.core.history import common_point
from replication.core.messages import NewEpoch


@dataclass(frozen=True, slots=True)
class GoOn:
    """Cut the tail at `common`, and take what follows from the owner."""

    common: int


@dataclass(frozen=True, slots=True)
class Refill:
    """Fill a fresh copy from op 1 on."""

    why: str


@dataclass(frozen=True, slots=True)
class WaitForTransfer:
    """The content must come as pages; ops alone do not lead there."""

    why: str


Plan = GoOn | Refill | WaitForTransfer


# What the machine is does not matter here.
def plan(copy: Copy[Any, Any], offer: NewEpoch) -> Plan:
    """What this copy has to do to follow the owner that says `offer`."""
    common = common_point(copy.history, copy.log.end, offer.history, offer.log_end)
    why = copy.void or _obstacle(copy, offer, common)
    if not why:
        return GoOn(common)
    if offer.first_kept == 1:
        return Refill(why)
    return WaitForTransfer(f"{why}; the owner keeps ops from {offer.first_kept} on")


def _obstacle(copy: Copy[Any, Any], offer: NewEpoch, common: int) -> str:
    if copy.applied >= common:
        return f"applied through {copy.applied}, but only ops below {common} are common"
    if common < min(offer.first_kept, offer.log_end):
        return f"ops from {common} on are missing here"
    return ""


# What the machine is does not matter here.
def difference(copy: Copy[Any, Any], offer: NewEpoch) -> str:
    """Where this copy's log and the owner's, which should be the same there, are not."""
    common = common_point(copy.history, copy.log.end, offer.history, offer.log_end)
    mine = copy.log.chain_at(common)
    theirs = offer.chain if common == offer.log_end else None
    for entry in offer.history:
        if entry.start == common:
            theirs = entry.chain
    if mine is not None and theirs is not None and mine != theirs:
        return f"the logs differ below op {common}"
    return ""


def sound(offer: NewEpoch) -> bool:
    """Whether an owner's log can look like that."""
    epochs = [entry.epoch for entry in offer.history]
    starts = [entry.start for entry in offer.history]
    return (
        bool(epochs)
        and epochs == sorted(set(epochs))
        and starts == sorted(starts)
        and epochs[-1] == offer.epoch
        and starts[0] >= 1
        and starts[-1] <= offer.log_end
        and 1 <= offer.first_kept <= offer.log_end
    )
