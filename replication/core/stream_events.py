"""What a stream is told by its node, and what it says must be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replication.core.changes import Function
from replication.core.clustermap import ClusterMap
from replication.core.events import GroupDrained as GroupDrained, Log, Wake as Wake
from replication.core.identity import Incarnation
from replication.core.messages import StreamMessage


@dataclass(frozen=True, slots=True)
class MapChanged:
    """This value of the cluster map is known to be committed."""

    value: ClusterMap
    ver: int


@dataclass(slots=True)
class FromPeer:
    """A message that came over the link of `member`, which vouches for the sender."""

    member: Incarnation
    message: StreamMessage


@dataclass(slots=True)
class FromGroup:
    """A message that came by the group transport: nobody vouches for its sender."""

    message: StreamMessage


@dataclass(frozen=True, slots=True)
class Dead:
    """The process of `member` is proven dead."""

    member: Incarnation


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a `Propose`, after the `MapChanged` of a map that shows it.

    `result` is "done", or begins with "refused". As long as it is unknown there is no outcome.
    """

    token: int
    ver: int
    result: str


Event = MapChanged | FromPeer | FromGroup | GroupDrained | Dead | Outcome | Wake


@dataclass(slots=True)
class Send:
    """Over the link to this life of a node; lost if there is none."""

    to: Incarnation
    message: StreamMessage


@dataclass(slots=True)
class Publish:
    """One frame for the group: the parts one after the other."""

    parts: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Propose:
    """A change of the cluster map. It is repeated below until its outcome is known."""

    function: Function
    token: int


Note = Log
"""A line for the operator. The same as everybody's, so that it can be passed on."""


@dataclass(frozen=True, slots=True)
class Behind:
    """An epoch was heard of that the map known here does not show: pull the map."""

    sid: int
    epoch: int


@dataclass(slots=True)
class Released:
    """These effects may leave the node now, in this order."""

    sid: int
    effects: list[object]


@dataclass(frozen=True, slots=True)
class Promoted:
    """This node owns the stream from now on. `adopted`: ops of the tail, applied just now."""

    sid: int
    gen: int
    epoch: int
    adopted: int


@dataclass(frozen=True, slots=True)
class Deposed:
    """There is a higher epoch. The effects that waited are gone; `epoch` is the one that ended."""

    sid: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The content was lost in the cluster: the copy begins anew, empty, in this gen."""

    sid: int
    gen: int


@dataclass(frozen=True, slots=True)
class Joined:
    """This copy follows the owner of this epoch from now on, and gives receipts."""

    sid: int
    gen: int
    epoch: int


@dataclass(frozen=True, slots=True)
class CopyVoid:
    """The copy is wrong: applying an op failed, or its log is another one than the owner's.

    It is no candidate for anything until it is filled anew.
    """

    sid: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Distrust:
    """`member` claims what cannot be: close its link."""

    sid: int
    member: Incarnation
    sentence: str


@dataclass(frozen=True, slots=True)
class Fatal:
    """The node must end, so that another one takes over. What was released may still leave."""

    sid: int
    sentence: str


News = Released | Promoted | Deposed | Lost | Joined | CopyVoid
"""What concerns the layer that speaks with clients."""

Effect = Send | Publish | Propose | Behind | Distrust | Note | Fatal | News
