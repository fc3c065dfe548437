"""Who somebody is: a node's life, and the ballots that such a life may use."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import msgspec


class Incarnation(NamedTuple):
    """One life of a node's process. Memory does not survive it, so neither does the identity."""

    node: str
    inc: int

    def __str__(self) -> str:
        return f"{self.node}.{self.inc:x}"


class Ballot(NamedTuple):
    """A proposer's number. The round is compared first, so whoever counts on wins."""

    round: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    proposer: Incarnation

    def __str__(self) -> str:
        return f"{self.round}.{self.proposer}"


# Below every ballot that anybody proposes: rounds begin at 1.
NO_BALLOT: Final = Ballot(0, Incarnation("", 0))
