"""The register of one node: the cluster map, agreed on with the others.

Theory of operation
-------------------
Four parts, each with rules of its own, and this one joins them: the *acceptor* votes, the
*proposer* makes changes, the *learner* knows what is committed, and the *bootstrap* finds or
forms the cluster. They talk to each other as nodes do, by messages; what a node sends to itself
never leaves it, and still waits for the vote to become durable.

    change, read ─▶ proposer ── Prepare, Accept ──▶ acceptors (this node's among them)
                       ▲  └──── committed ──▶ learner ── LearnedMsg ──▶ other learners
                       └── Promise, Accepted, Nack ──┘

A node that has no file, in a cluster that is at version 1 or beyond, votes nowhere: its old
identity is in the list of acceptors, and what it promised is forgotten. It proposes and learns
like everybody else.

Rules
-----
1. Act only on what the learner knows. What an acceptor stored may never be committed.
2. A request is answered when its outcome is known, however long that takes.
3. Messages for another cluster are dropped here, those for another acceptor by the acceptor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, assert_never

from replication.core.acceptor import Acceptor, Vote, decode_vote
from replication.core.bootstrap import Bootstrap
from replication.core.changes import Form, Function
from replication.core.clustermap import ClusterMap, NodeEntry, Settings
from replication.core.envelope import AcceptorId, Envelope, Voters, decode_envelope
from replication.core.identity import NO_BALLOT, Ballot, Incarnation
from replication.core.learner import Learner
from replication.core.proposer import Proposer
from replication.core.register_effects import (
    Effect,
    Event,
    Fatal,
    FromPeer,
    Note,
    Persisted,
    Send,
    Wake,
)
from replication.core.register_messages import (
    Accept,
    Accepted,
    Hello,
    HelloReply,
    Init,
    InitAck,
    LearnedMsg,
    Nack,
    Prepare,
    Promise,
    Pull,
    RegisterMessage,
)
from tanist.errors import ConfigError

PULL_S: Final = 0.1
"""After asking for a newer value, so long nobody else is asked for it."""


class Register:
    """One node's share of the register.

    Args:
        me: This process.
        acceptor_inc: The identity of the acceptor if there is no saved vote.
        cluster: The configured name.
        expected: The nodes that form the cluster, the same list on all of them.
        settings: As configured; those of a cluster that is formed are in its map.
        saved: The blob of the last `Persist`, or None if there is no file.
        draw: Uniform in [0, 1).

    Raises:
        ConfigError: `saved` cannot be read, or belongs to a cluster of another name.
    """

    def __init__(
        self,
        *,
        me: Incarnation,
        acceptor_inc: int,
        cluster: str,
        expected: tuple[str, ...],
        settings: Settings,
        saved: bytes | None,
        draw: Callable[[], float],
    ) -> None:
        assert expected
        assert len(set(expected)) == len(expected)
        self.me = me
        self.cluster = cluster
        self.expected = expected
        self.settings = settings
        vote = Vote(acc_inc=acceptor_inc) if saved is None else decode_vote(saved)
        self.acceptor = Acceptor(me.node, vote, durable=saved is not None)
        self.learner = Learner()
        self.proposer = Proposer(
            me=me,
            rank=sorted(expected).index(me.node) if me.node in expected else len(expected),
            form=Form(settings=settings, nodes={name: NodeEntry() for name in expected}),
            learner=self.learner,
            draw=draw,
        )
        self.bootstrap: Bootstrap | None = None
        self._to_self: deque[RegisterMessage] = deque()
        self._pulled_at: float | None = None
        stored = self._stored()
        if stored is not None and not self._is_ours(stored.cluster_id):
            raise ConfigError(
                f"the file of votes of {me.node} belongs to the cluster {stored.cluster_id!r},"
                f" but the configured name is {cluster!r}: correct the name, or the data directory"
            )
        if stored is not None and stored.ver > 0:
            self.proposer.open(stored.cluster_id, stored.voters)
        else:
            self.bootstrap = Bootstrap(
                node=me.node, cluster=cluster, expected=expected, settings=settings, draw=draw
            )

    # What the node asks.

    @property
    def value(self) -> ClusterMap | None:
        """The newest map that is known to be committed; None: none yet."""
        return self.learner.chosen.map if self.learner.chosen is not None else None

    @property
    def ver(self) -> int:
        """The version of `value`, for heartbeats; 0: none yet."""
        return self.learner.ver

    @property
    def cluster_id(self) -> str | None:
        """None: this node is in no cluster yet."""
        if self.learner.chosen is not None:
            return self.learner.chosen.envelope.cluster_id
        return self.acceptor.vote.cluster_id or None

    @property
    def acceptors(self) -> Voters:
        """Who votes, for status; empty as long as there is no cluster."""
        if self.learner.chosen is not None:
            return self.learner.chosen.envelope.cfg
        stored = self._stored()
        return stored.cfg if stored is not None else ()

    @property
    def lost_vote(self) -> bool:
        """Whether this node should vote and cannot: its file is not the one that was counted."""
        mine = AcceptorId(self.me.node, self.acceptor.vote.acc_inc)
        named = any(acceptor.node == self.me.node for acceptor in self.acceptors)
        return named and mine not in self.acceptors

    @property
    def last_majority_at(self) -> float | None:
        """When a majority of the acceptors last answered a round of this node."""
        return self.proposer.last_majority_at

    def change(self, functions: Sequence[Function], now: float, outbox: list[Effect]) -> int:
        """Have these applied in one step, in this order. `Changed` tells the outcome."""
        assert functions
        return self._submit(functions, now, outbox)

    def read(self, now: float, outbox: list[Effect]) -> int:
        """Find the newest committed value: when `Changed` answers, `value` is at least as
        new as anything that was committed before this call."""
        return self._submit((), now, outbox)

    def heard_ver(self, node: str, ver: int, now: float, outbox: list[Effect]) -> None:
        """A heartbeat of `node` carried that version."""
        cluster_id = self.cluster_id
        if cluster_id is None or ver <= self.ver:
            return
        if self._pulled_at is None or now >= self._pulled_at + PULL_S:
            self._pulled_at = now
            outbox.append(Send(node, Pull(cluster_id=cluster_id, ver=self.ver)))

    # What happens.

    def handle(self, event: Event, now: float, outbox: list[Effect]) -> None:
        effects: list[Effect] = []
        match event:
            case FromPeer():
                self._heard(event.node, event.message, now, effects)
            case Persisted():
                self.acceptor.persisted(event.token, effects)
            case Wake():
                self._ask_around(now, effects)
                self.proposer.wake(now, effects)
            case _:
                assert_never(event)
        self._settle(effects, now, outbox)

    def next_deadline(self) -> float | None:
        deadlines = (
            self.bootstrap.next_deadline() if self.bootstrap is not None else None,
            self.proposer.next_deadline(),
        )
        return min((at for at in deadlines if at is not None), default=None)

    def _submit(self, functions: Sequence[Function], now: float, outbox: list[Effect]) -> int:
        effects: list[Effect] = []
        request = self.proposer.submit(functions, now, effects)
        self._settle(effects, now, outbox)
        return request

    def _settle(self, effects: list[Effect], now: float, outbox: list[Effect]) -> None:
        """Hand over the effects, and deliver what this node says to itself."""
        while effects:
            for effect in effects:
                if isinstance(effect, Send) and effect.node == self.me.node:
                    self._to_self.append(effect.message)
                else:
                    outbox.append(effect)
            effects = []
            while self._to_self:
                self._heard(self.me.node, self._to_self.popleft(), now, effects)

    def _heard(
        self, sender: str, message: RegisterMessage, now: float, outbox: list[Effect]
    ) -> None:
        if not self._may_hear(message):
            outbox.append(
                Note(
                    "warning",
                    "dropped a message of another cluster",
                    {"node": sender, "cluster_id": message.cluster_id},
                )
            )
            return
        match message:
            case Hello():
                self.acceptor.answer(sender, self._introduction(), outbox)
            case HelloReply():
                self._introduced(sender, message, now, outbox)
            case Init():
                # One that lost its file must not become a member again by a late repeat.
                if self.ver == 0:
                    self.acceptor.handle(sender, message, outbox)
            case InitAck():
                form = self.bootstrap
                if form is not None and form.acknowledged(sender, message, outbox):
                    self._form(now, outbox)
            case Prepare() | Accept():
                self.acceptor.handle(sender, message, outbox)
                # What others use is a good beginning for a ballot of one's own.
                self.proposer.saw(self.acceptor.vote.promised)
            case Promise() | Accepted() | Nack():
                self.proposer.handle(sender, message, now, outbox)
            case LearnedMsg():
                self._learn(message.ballot, message.value, now, outbox)
            case Pull():
                if self.ver > message.ver:
                    self.learner.tell([sender], outbox)
            case _:
                assert_never(message)

    def _may_hear(self, message: RegisterMessage) -> bool:
        if isinstance(message, Hello | HelloReply):
            return True
        mine = self.cluster_id
        return self._is_ours(message.cluster_id) if mine is None else message.cluster_id == mine

    def _is_ours(self, cluster_id: str) -> bool:
        return cluster_id.rpartition("/")[0] == self.cluster

    def _stored(self) -> Envelope | None:
        vote = self.acceptor.vote
        return decode_envelope(vote.value) if self.acceptor.initialised else None

    def _introduction(self) -> HelloReply:
        chosen, stored, vote = self.learner.chosen, self._stored(), self.acceptor.vote
        ver = max(self.ver, stored.ver if stored is not None else 0)
        value = vote.value if stored is not None and ver == 0 else None
        return HelloReply(
            cluster_id=self.cluster_id or "",
            cluster=self.cluster,
            expected=self.expected,
            settings=self.settings,
            acc_inc=vote.acc_inc,
            initialised=stored is not None,
            ver=ver,
            ballot=chosen.ballot if chosen is not None else NO_BALLOT,
            value=chosen.raw if chosen is not None else value,
        )

    def _introduced(self, sender: str, reply: HelloReply, now: float, outbox: list[Effect]) -> None:
        if self.bootstrap is None:
            return
        self.bootstrap.replied(sender, reply, outbox)
        if reply.ver == 0 or reply.value is None or not self._is_ours(reply.cluster_id):
            return
        if self.cluster_id not in (None, reply.cluster_id):
            outbox.append(
                Fatal(
                    f"{self.me.node} began to form {self.cluster_id}, but {sender} is in"
                    f" {reply.cluster_id}: remove the file of votes of {self.me.node}"
                )
            )
            return
        self._learn(reply.ballot, reply.value, now, outbox)

    def _ask_around(self, now: float, outbox: list[Effect]) -> None:
        if self.bootstrap is None or now < self.bootstrap.next_deadline():
            return
        stored = self._stored()
        if stored is not None and stored.ver > 0:
            # Somebody heard all acknowledge, proposed version 1, and was not heard of again.
            # Perhaps nobody knows whether it is committed: a round of one's own will tell.
            self._form(now, outbox)
        else:
            self.bootstrap.wake(now, outbox)

    def _form(self, now: float, outbox: list[Effect]) -> None:
        stored = self._stored()
        assert stored is not None
        self.bootstrap = None
        self.proposer.open(stored.cluster_id, stored.voters, form=True)
        self.proposer.wake(now, outbox)

    def _learn(self, ballot: Ballot, raw: bytes, now: float, outbox: list[Effect]) -> None:
        if not self.learner.learn(ballot, raw, outbox):
            return
        chosen = self.learner.chosen
        assert chosen is not None
        self.bootstrap = None
        if not self.proposer.is_open:
            if self.lost_vote:
                text = "the file of votes was lost: this node takes part, and does not vote"
                outbox.append(Note("warning", text, {"node": self.me.node}))
            self.proposer.open(chosen.envelope.cluster_id, chosen.envelope.voters)
        self.proposer.learned(now, outbox)
        self.proposer.wake(now, outbox)
