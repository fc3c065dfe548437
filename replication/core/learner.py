"""What one node knows to be committed.

A node acts only on a committed value, whoever found out that it is. Versions count along one
chain, so the newest one is all that is worth keeping, and it never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass

from replication.core.clustermap import ClusterMap, decode_map
from replication.core.envelope import Envelope, decode_envelope
from replication.core.identity import Ballot
from replication.core.register_effects import Committed, Effect, Learned, Send
from replication.core.register_messages import LearnedMsg


@dataclass(frozen=True, slots=True)
class Chosen:
    """A committed value, with a ballot under which it was."""

    ballot: Ballot
    raw: bytes
    envelope: Envelope
    map: ClusterMap


class Learner:
    """The newest committed value that this node knows, and how others come to know it."""

    def __init__(self) -> None:
        self.chosen: Chosen | None = None

    @property
    def ver(self) -> int:
        return self.chosen.envelope.ver if self.chosen is not None else 0

    def learn(self, ballot: Ballot, raw: bytes, outbox: list[Effect]) -> bool:
        """A value is committed. Returns whether it is newer than what was known."""
        envelope = decode_envelope(raw)
        known = self.chosen
        if known is not None and envelope.ver <= known.envelope.ver:
            # The same value may be committed under several ballots. Two values of one
            # version are a fork: then nothing that this node knows can be trusted.
            assert envelope.ver < known.envelope.ver or raw == known.raw, "the chain forked"
            return False
        value = decode_map(envelope.map)
        self.chosen = Chosen(ballot, raw, envelope, value)
        outbox.append(Learned(Committed(envelope.ver, envelope.cluster_id, value)))
        return True

    def tell(self, nodes: list[str], outbox: list[Effect]) -> None:
        """Let these nodes know the newest value."""
        assert self.chosen is not None
        message = LearnedMsg(
            cluster_id=self.chosen.envelope.cluster_id,
            ballot=self.chosen.ballot,
            value=self.chosen.raw,
        )
        outbox.extend(Send(node, message) for node in nodes)

    def tell_all(self, outbox: list[Effect]) -> None:
        assert self.chosen is not None
        self.tell(sorted(self.chosen.map.nodes), outbox)
