"""One node's vote on the register, without I/O and without a clock.

Theory of operation
-------------------
A majority agrees on one value in two rounds: *prepare* asks its members to ignore older
ballots from now on, *accept* to store the new value. Here is one node's share of both. Safety
rests on one invariant, which holds between any two calls and across restarts:

    accepted <= promised, and neither ever goes back

      Vote()                  Init                  Prepare, Accept
    uninitialised ──────────────────▶ initialised ──────────────────┐
     identity, no cluster             value of version 0, ballot 0   │ ballots only grow
                                           ▲─────────────────────────┘

Rules
-----
1. Everything that can change a promise or the stored value is in this file.
2. No answer leaves before the vote that it tells of is durable, refusals included: they tell
   of a vote that a crash could still take back.
3. The identity is part of the vote, and is durable before it is named to anybody: others put
   it into the list of acceptors. A node whose file is lost is a new one; under its old
   identity it could break a promise that it forgot.
4. An uninitialised acceptor answers nobody but those who form a cluster.

Reference: Rystsov, "CASPaxos: Replicated State Machines without logs".
"""

from __future__ import annotations

from collections import deque
from typing import Final, assert_never

import msgspec
from msgspec.structs import replace

from replication.core.envelope import AcceptorId
from replication.core.identity import NO_BALLOT, Ballot
from replication.core.register_effects import Effect, Note, Persist, Send
from replication.core.register_messages import (
    Accept,
    Accepted,
    Init,
    InitAck,
    Nack,
    Prepare,
    Promise,
    RegisterMessage,
)
from tanist.errors import ConfigError

WAITING_MAX: Final = 64
"""The most answers that wait for a disk. After an error it never completes anything, and the
others go on asking: the oldest answers are dropped, which is as if the network had lost them."""


class Vote(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """What must survive a crash: all that an acceptor is."""

    cluster_id: str = ""
    """Empty: uninitialised."""

    acc_inc: int
    promised: Ballot = NO_BALLOT
    accepted: Ballot = NO_BALLOT
    value: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Vote)


def encode_vote(vote: Vote) -> bytes:
    return _encoder.encode(vote)


def decode_vote(saved: bytes) -> Vote:
    """Raises `ConfigError` if these are not the bytes of a vote."""
    try:
        return _decoder.decode(saved)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"the saved vote cannot be read ({error}): it was written by another version of"
            " Tanist; start that one"
        ) from error


class Acceptor:
    """A vote, and the answers that wait for it to become durable.

    Args:
        durable: Whether `vote` was read from disk, and not just made.
    """

    def __init__(self, node: str, vote: Vote, *, durable: bool) -> None:
        self.node = node
        self.vote = vote
        self._stored = vote if durable else None
        self._written = self._durable = 0
        self._waiting: deque[tuple[int, Send]] = deque(maxlen=WAITING_MAX)

    @property
    def initialised(self) -> bool:
        return self.vote.cluster_id != ""

    def handle(self, sender: str, message: Init | Prepare | Accept, outbox: list[Effect]) -> None:
        """Answer a message that is meant for this acceptor."""
        reply: RegisterMessage | None
        match message:
            case Init():
                reply = self._init(message)
            case Prepare():
                reply = self._prepare(message) if self._is_for_me(message) else None
            case Accept():
                reply = self._accept(message) if self._is_for_me(message) else None
            case _:
                assert_never(message)
        assert self.vote.accepted <= self.vote.promised
        if reply is not None:
            self.answer(sender, reply, outbox)
        else:
            outbox.append(
                Note(
                    "debug",
                    "dropped a message for another acceptor",
                    {"node": sender, "message": type(message).__name__},
                )
            )

    def answer(self, node: str, reply: RegisterMessage, outbox: list[Effect]) -> None:
        """Send `reply` as soon as the vote, as it is now, is durable."""
        if self.vote is not self._stored:
            self._stored = self.vote
            self._written += 1
            outbox.append(Persist(encode_vote(self.vote), self._written))
        self._waiting.append((self._written, Send(node, reply)))
        self._release(outbox)

    def persisted(self, token: int, outbox: list[Effect]) -> None:
        self._durable = max(self._durable, token)
        self._release(outbox)

    def _release(self, outbox: list[Effect]) -> None:
        while self._waiting and self._waiting[0][0] <= self._durable:
            outbox.append(self._waiting.popleft()[1])

    def _is_for_me(self, message: Prepare | Accept) -> bool:
        return (
            self.initialised
            and message.cluster_id == self.vote.cluster_id
            and message.acc_inc == self.vote.acc_inc
        )

    def _init(self, message: Init) -> InitAck | None:
        if self.initialised:
            # A repeat, which must not touch what was promised since. The cluster's id was
            # drawn for this one content, so it is enough to compare.
            if message.cluster_id != self.vote.cluster_id:
                return None
        else:
            # It names another file than this one: it was sent to a former life.
            if AcceptorId(self.node, self.vote.acc_inc) not in message.incs:
                return None
            self.vote = replace(self.vote, cluster_id=message.cluster_id, value=message.value)
        return InitAck(cluster_id=message.cluster_id, acc_inc=self.vote.acc_inc)

    def _prepare(self, message: Prepare) -> Promise | Nack:
        # Equal is refused too: a ballot that may carry a value already must not be promised
        # a second time, to a proposer that lost count.
        if message.ballot <= self.vote.promised:
            return self._nack(message.ballot)
        self.vote = replace(self.vote, promised=message.ballot)
        return Promise(
            cluster_id=self.vote.cluster_id,
            acc_inc=self.vote.acc_inc,
            ballot=message.ballot,
            accepted=self.vote.accepted,
            value=self.vote.value,
        )

    def _accept(self, message: Accept) -> Accepted | Nack:
        if message.ballot < self.vote.promised:
            return self._nack(message.ballot)
        if message.ballot == self.vote.accepted:
            # A repeat. Another value under the same ballot is a proposer's bug, and to store
            # it could undo a choice.
            if message.value != self.vote.value:
                return self._nack(message.ballot)
        else:
            # Above the promise is legal: this node missed the prepare round, but a majority
            # did not, and that is all that safety needs.
            self.vote = replace(
                self.vote, promised=message.ballot, accepted=message.ballot, value=message.value
            )
        return Accepted(
            cluster_id=self.vote.cluster_id, acc_inc=self.vote.acc_inc, ballot=message.ballot
        )

    def _nack(self, ballot: Ballot) -> Nack:
        return Nack(
            cluster_id=self.vote.cluster_id,
            acc_inc=self.vote.acc_inc,
            ballot=ballot,
            beat=self.vote.promised,
        )
