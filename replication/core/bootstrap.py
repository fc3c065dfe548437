"""How a node finds its cluster, or forms one with the others.

Theory of operation
-------------------
    ask all expected nodes ──▶ one knows a committed value ──▶ join: learn it, vote nowhere
            │
            └─ all answered, and none is beyond version 0
                    │ the lowest one, or anybody who saw a version 0
                    ▼
       Init to itself, then to all ── acknowledged by all ──▶ propose version 1

The danger is a second cluster beside the survivors of a first one. A node that lost its file
looks like one that never had any, so a cluster is only formed when **all** expected nodes say
that they are in none, and there is not one survivor who could have known better.

Version 0 means that somebody began to form the cluster. Everybody who sees that may go on, with
the very same content, since the one who began may be dead. Version 1 exists only after all
acknowledged, so nobody can be in a cluster that a part of the nodes has never heard of.

Rules
-----
1. All nodes are configured alike: name, nodes and settings. They are compared before anything
   is formed. A cluster that is formed keeps its own settings, so a newcomer only compares the
   name.
2. `Init` with equal content may be repeated for ever. With other content it is refused.
3. A node with a file beyond version 0 has nothing to do here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from replication.core.clustermap import EMPTY_MAP, Settings, encode_map
from replication.core.envelope import AcceptorId, Envelope, encode_envelope
from replication.core.register_effects import Effect, Fatal, Note, Send
from replication.core.register_messages import Hello, HelloReply, Init, InitAck

HELLO_S: Final = 0.5
"""Between two rounds of asking."""

ACCEPTORS_MAX: Final = 5
"""The first so many of the expected nodes vote. More would make each change slower, and survive
no fault that anybody plans for."""


class Bootstrap:
    """Asks around until the node is in a cluster.

    Args:
        expected: The nodes that form the cluster, the same list on all of them. A node that
            is not among them can only join.
    """

    def __init__(
        self,
        *,
        node: str,
        cluster: str,
        expected: tuple[str, ...],
        settings: Settings,
        draw: Callable[[], float],
    ) -> None:
        self.node = node
        self.cluster = cluster
        self.expected = expected
        self.settings = settings
        self._draw = draw
        self._rank = sorted(expected).index(node) if node in expected else None
        self._rounds = 0
        self._replies: dict[str, HelloReply] = {}
        self._next_at = 0.0
        self._init: Init | None = None
        self._acks: set[str] = set()

    def next_deadline(self) -> float:
        return self._next_at

    def wake(self, now: float, outbox: list[Effect]) -> None:
        """Ask everybody who is expected, this node's own acceptor included."""
        if now < self._next_at:
            return
        self._next_at = now + HELLO_S
        self._rounds += 1
        outbox.extend(Send(node, Hello(cluster_id="")) for node in self.expected)
        if self._init is not None:
            self._send_init(outbox)

    def replied(self, sender: str, reply: HelloReply, outbox: list[Effect]) -> None:
        """What a node says of itself. Forms a cluster if that was the last word needed."""
        if reply.cluster != self.cluster:
            outbox.append(
                Fatal(
                    f"{sender} belongs to the cluster {reply.cluster!r}, but {self.node} is"
                    f" configured for {self.cluster!r}: correct the name, or the list of nodes"
                )
            )
        elif reply.ver > 0 or sender not in self.expected:
            self._replies.pop(sender, None)  # It will say what the cluster's value is.
        elif (reply.expected, reply.settings) != (self.expected, self.settings):
            outbox.append(Fatal(self._mismatch(sender, reply)))
        else:
            self._replies[sender] = reply
            if self._init is None and len(self._replies) == len(self.expected):
                self._decide(outbox)

    def acknowledged(self, sender: str, ack: InitAck, outbox: list[Effect]) -> bool:
        """Whether all have acknowledged the `Init` now."""
        init = self._init
        if init is None or ack.cluster_id != init.cluster_id or sender in self._acks:
            return False
        if AcceptorId(sender, ack.acc_inc) in init.incs:
            self._acks.add(sender)
            if sender == self.node:
                self._send_init(outbox)
        return self._acks == set(self.expected)

    def _decide(self, outbox: list[Effect]) -> None:
        if self._rank is None:
            return
        begun = {r.cluster_id: r for r in self._replies.values() if r.initialised}
        if len(begun) > 1:
            sides = " and ".join(
                f"{node} ({reply.cluster_id})"
                for node, reply in sorted(self._replies.items())
                if reply.initialised
            )
            outbox.append(
                Fatal(
                    f"two clusters were begun and none was finished: {sides}; stop all nodes,"
                    " remove their files of votes, and start them again"
                )
            )
            return
        incs = tuple(AcceptorId(n, self._replies[n].acc_inc) for n in self.expected)
        if begun:
            if self._rounds <= self._rank:
                return  # The one who began is probably still at it.
            (cluster_id, reply), *_ = begun.items()
            assert reply.value is not None
            self._init = Init(cluster_id=cluster_id, incs=incs, value=reply.value)
        elif self._rank == 0:
            cluster_id = f"{self.cluster}/{self._word()}{self._word()}"
            cfg = incs[:ACCEPTORS_MAX]
            value = Envelope(
                ver=0,
                cluster_id=cluster_id,
                cfg=cfg,
                base_cfg=(cfg, None),
                done={},
                map=encode_map(EMPTY_MAP),
            )
            self._init = Init(cluster_id=cluster_id, incs=incs, value=encode_envelope(value))
            outbox.append(
                Note(
                    "info", "forming a cluster", {"cluster_id": cluster_id, "nodes": self.expected}
                )
            )
        if self._init is not None:
            self._send_init(outbox)

    def _send_init(self, outbox: list[Effect]) -> None:
        assert self._init is not None
        # This node first, until that is durable. Otherwise it could crash, forget what it had
        # drawn, hear that nobody is in a cluster yet, and draw again, while the first `Init` is
        # still under way: two clusters begun, and none that all acknowledge.
        asked = self.expected if self.node in self._acks else (self.node,)
        outbox.extend(Send(name, self._init) for name in asked if name not in self._acks)

    def _word(self) -> str:
        return f"{int(self._draw() * (1 << 32)):08x}"

    def _mismatch(self, sender: str, reply: HelloReply) -> str:
        if reply.expected != self.expected:
            return (
                f"{sender} expects the nodes {', '.join(reply.expected)}, but {self.node} expects"
                f" {', '.join(self.expected)}: make the lists equal, in the same order"
            )
        return (
            f"{sender} and {self.node} are configured differently ({_text(reply.settings)}"
            f" there, {_text(self.settings)} here): make the settings equal"
        )


def _text(settings: Settings) -> str:
    return ", ".join(f"{name} = {getattr(settings, name)}" for name in Settings.__struct_fields__)
