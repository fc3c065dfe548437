"""What the register agrees on: the cluster map in an envelope of who votes and what was done.

Theory of operation
-------------------
The envelope is one value. Changing it means to derive the next one from it, so all that were
ever committed form one chain; `ver` counts along it. The set of acceptors is inside the value
and so is agreed on with it. `done` remembers each proposer's last batch of changes, which
makes a repeated batch harmless: whoever finds his number there must not apply it again.

Rules
-----
1. Equal envelopes have equal bytes. Votes are cast on bytes and compared as bytes.
2. An acceptor is a node and an incarnation of its file. Whoever lost the file is another one.
3. While `prev` is set, both sets of acceptors must agree. The set does not change in this
   version, so `prev` is always None; what asks for a quorum must not rely on that.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

import msgspec

MAP_BYTES_MAX: Final = 48 << 10
"""The largest map. A change that would make it larger is refused: it travels and is written
whole, and 100 nodes need some 33 KiB."""

RESULTS_MAX: Final = 256
"""The most changes in one batch; what is asked for beyond that waits for the next one."""


class AcceptorId(NamedTuple):
    """A vote: a node's name, and the incarnation of its file of votes."""

    node: str
    inc: int

    def __str__(self) -> str:
        return f"{self.node}/{self.inc:x}"


Voters = tuple[AcceptorId, ...]


class Done(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last batch of one proposer: its process, the batch's number, a result per change."""

    proposer_inc: int
    batch: int
    results: tuple[str, ...]


class Envelope(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """One value of the register."""

    ver: int
    cluster_id: str
    cfg: Voters
    """Who votes, in the order in which they are listed."""

    prev: Voters | None = None
    """While the set of acceptors changes: the old set, which must agree as well."""

    base_cfg: tuple[Voters, Voters | None]
    """`cfg` and `prev` of the value that this one was derived from."""

    done: dict[str, Done]
    map: bytes

    @property
    def voters(self) -> frozenset[AcceptorId]:
        return frozenset((*self.cfg, *(self.prev or ())))

    def quorum(self, heard: Collection[AcceptorId]) -> bool:
        """Whether `heard` is enough to speak for this value."""
        return _majority(self.cfg, heard) and (self.prev is None or _majority(self.prev, heard))


def _majority(voters: Voters, heard: Collection[AcceptorId]) -> bool:
    return 2 * sum(voter in heard for voter in voters) > len(voters)


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Envelope)


def encode_envelope(value: Envelope) -> bytes:
    """The canonical bytes, on which votes are cast."""
    return _encoder.encode(value)


def decode_envelope(data: bytes) -> Envelope:
    """Raises `msgspec.DecodeError` (or its `ValidationError`) for anything but an envelope."""
    return _decoder.decode(data)
