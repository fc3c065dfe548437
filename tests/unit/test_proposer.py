"""Proposals: which base they build on, when they are committed, and what is never done twice."""

from __future__ import annotations

from typing import TypeVar

import pytest
from msgspec.structs import replace

from replication.core.changes import DONE, Create, Form, Function, NodeUp
from replication.core.clustermap import (
    EMPTY_MAP,
    ClusterMap,
    NodeEntry,
    Settings,
    decode_map,
    encode_map,
)
from replication.core.envelope import (
    MAP_BYTES_MAX,
    RESULTS_MAX,
    AcceptorId,
    Envelope,
    decode_envelope,
    encode_envelope,
)
from replication.core.identity import NO_BALLOT, Ballot, Incarnation
from replication.core.learner import Learner
from replication.core.proposer import ATTEMPT_S, ATTEMPT_S_MAX, BACKOFF_S_MAX, Proposer
from replication.core.register_effects import Changed, Effect, Learned, Send
from replication.core.register_messages import (
    Accept,
    Accepted,
    LearnedMsg,
    Nack,
    Prepare,
    Promise,
)

T = TypeVar("T")

ME = Incarnation("a", 10)
VOTERS = tuple(AcceptorId(node, number) for number, node in enumerate("abc", start=1))
FORM = Form(settings=Settings(), nodes={node: NodeEntry() for node in "abc"})
FORMED = FORM.apply(EMPTY_MAP)[0]


def an_envelope(ver: int, value: ClusterMap = FORMED) -> Envelope:
    return Envelope(
        ver=ver,
        cluster_id="c/1",
        cfg=VOTERS,
        base_cfg=(VOTERS, None),
        done={},
        map=encode_map(value),
    )


def up(node: str, inc: int = 1) -> NodeUp:
    return NodeUp(me=Incarnation(node, inc))


class Conversation:
    """One proposer, and what it says to acceptors that the test plays."""

    def __init__(self, *, rank: int = 0) -> None:
        self.learner = Learner()
        self.proposer = Proposer(
            me=ME, rank=rank, form=FORM, learner=self.learner, draw=lambda: 0.5
        )
        self.proposer.open("c/1", VOTERS)
        self.now = 100.0
        self.outbox: list[Effect] = []

    def change(self, *functions: Function) -> int:
        return self.proposer.submit(functions, self.now, self.outbox)

    def read(self) -> int:
        return self.proposer.submit((), self.now, self.outbox)

    def prepared(self) -> Ballot:
        """The ballot that it asked promises for last."""
        return self._sent(Prepare)[-1].ballot

    def proposed(self) -> Accept:
        """What it asked to be accepted last."""
        return self._sent(Accept)[-1]

    def promise(
        self,
        voter: int,
        *,
        shows: Envelope,
        accepted: Ballot = NO_BALLOT,
        ballot: Ballot | None = None,
    ) -> None:
        message = Promise(
            cluster_id="c/1",
            acc_inc=VOTERS[voter].inc,
            ballot=ballot or self.prepared(),
            accepted=accepted,
            value=encode_envelope(shows),
        )
        self.proposer.handle(VOTERS[voter].node, message, self.now, self.outbox)

    def accept(self, *voters: int, ballot: Ballot | None = None) -> None:
        for voter in voters:
            message = Accepted(
                cluster_id="c/1",
                acc_inc=VOTERS[voter].inc,
                ballot=ballot or self.proposed().ballot,
            )
            self.proposer.handle(VOTERS[voter].node, message, self.now, self.outbox)

    def nack(self, voter: int, *, beat: Ballot) -> None:
        message = Nack(
            cluster_id="c/1", acc_inc=VOTERS[voter].inc, ballot=self.prepared(), beat=beat
        )
        self.proposer.handle(VOTERS[voter].node, message, self.now, self.outbox)

    def wait(self) -> float:
        """Until its next deadline. Returns how long that was."""
        deadline = self.proposer.next_deadline()
        assert deadline is not None
        waited_s, self.now = deadline - self.now, deadline
        self.proposer.wake(self.now, self.outbox)
        return waited_s

    def answers(self) -> list[Changed]:
        return [effect for effect in self.outbox if isinstance(effect, Changed)]

    def learned(self) -> list[int]:
        return [effect.value.ver for effect in self.outbox if isinstance(effect, Learned)]

    def _sent(self, kind: type[T]) -> list[T]:
        return [
            effect.message
            for effect in self.outbox
            if isinstance(effect, Send) and isinstance(effect.message, kind)
        ]


def test_a_change_is_applied_to_the_newest_value_that_promises_show() -> None:
    # Given two acceptors that hold different values, neither of them known to be committed
    talk = Conversation()
    talk.change(up("d"))
    newer = an_envelope(6, up("x").apply(FORMED)[0])

    # When they promise, the one with the higher ballot first
    talk.promise(0, shows=newer, accepted=Ballot(4, ME))
    talk.promise(1, shows=an_envelope(5), accepted=Ballot(3, ME))

    # Then the newer one is the base: its change is carried along
    envelope = decode_envelope(talk.proposed().value)
    assert envelope.ver == 7
    assert {"d", "x"} <= set(decode_map(envelope.map).nodes)


def test_nothing_is_proposed_without_a_majority_and_nothing_is_committed_without_one() -> None:
    talk = Conversation()
    request = talk.change(up("d"))
    talk.promise(0, shows=an_envelope(5))
    talk.promise(0, shows=an_envelope(5))
    assert not [e for e in talk.outbox if isinstance(e, Send) and isinstance(e.message, Accept)]

    talk.promise(1, shows=an_envelope(5))
    talk.accept(2, 2)
    assert talk.answers() == []

    talk.accept(0)
    assert talk.answers() == [Changed(request, 6, (DONE,))]
    assert talk.learned() == [6]


def test_a_commit_is_told_to_all_nodes_of_the_map() -> None:
    talk = Conversation()
    talk.change(up("d"))
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))

    talk.accept(0, 1)

    told = [
        effect.node
        for effect in talk.outbox
        if isinstance(effect, Send) and isinstance(effect.message, LearnedMsg)
    ]
    assert told == ["a", "b", "c", "d"]


def test_a_voter_that_is_not_in_the_list_does_not_count() -> None:
    talk = Conversation()
    talk.change(up("d"))
    talk.promise(0, shows=an_envelope(5))
    stranger = Promise(
        cluster_id="c/1",
        acc_inc=99,  # b's file was lost, and this is the one that replaced it.
        ballot=talk.prepared(),
        accepted=NO_BALLOT,
        value=encode_envelope(an_envelope(5)),
    )

    talk.proposer.handle("b", stranger, talk.now, talk.outbox)

    assert talk.proposer.last_majority_at is None


def test_a_late_promise_is_not_counted_for_a_later_ballot() -> None:
    # Given an attempt that was given up
    talk = Conversation()
    talk.change(up("d"))
    old = talk.prepared()
    talk.wait()
    talk.wait()
    assert talk.prepared() > old

    # When the promises for it come after all
    talk.promise(0, shows=an_envelope(5), ballot=old)
    talk.promise(1, shows=an_envelope(5), ballot=old)

    # Then they are no majority for the new one
    assert talk.proposer.last_majority_at is None


def test_a_late_accepted_is_not_counted_for_a_later_ballot() -> None:
    talk = Conversation()
    talk.change(up("d"))
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))
    old = talk.proposed().ballot
    talk.wait()
    talk.wait()
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))

    talk.accept(0, 1, ballot=old)

    assert talk.answers() == []


def test_a_timeout_is_not_a_no_and_the_batch_is_found_where_it_was_stored() -> None:
    # Given a batch that one acceptor stored, while the proposer heard of nothing
    talk = Conversation()
    request = talk.change(up("d"))
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))
    first = talk.proposed()
    talk.wait()
    assert talk.answers() == []

    # When the next round shows it, and a request was added meanwhile
    later = talk.change(up("e"))
    talk.wait()
    stored = decode_envelope(first.value)
    talk.promise(0, shows=stored, accepted=first.ballot)
    talk.promise(1, shows=an_envelope(5))

    # Then the very same value is proposed under a new ballot, and the rest comes after it
    second = talk.proposed()
    assert second.value == first.value
    assert second.ballot > first.ballot
    talk.accept(0, 1)
    assert talk.answers() == [Changed(request, 6, (DONE,))]
    talk.promise(0, shows=stored, accepted=second.ballot)
    talk.promise(1, shows=stored, accepted=second.ballot)
    talk.accept(0, 1)
    assert talk.answers()[1:] == [Changed(later, 7, (DONE,))]


def test_a_batch_that_was_not_stored_is_proposed_again_with_nothing_added() -> None:
    talk = Conversation()
    talk.change(up("d"))
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))
    first = talk.proposed()
    talk.wait()
    talk.change(up("e"))
    talk.wait()

    talk.promise(1, shows=an_envelope(5))
    talk.promise(2, shows=an_envelope(5))

    assert talk.proposed().value == first.value
    assert talk.proposed().ballot > first.ballot


def test_a_batch_that_somebody_carried_along_is_answered_without_another_round() -> None:
    # Given a batch of unknown outcome
    talk = Conversation()
    request = talk.change(up("d"))
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))
    mine = talk.proposed()
    talk.wait()

    # When another proposer's value, derived from it, is learned
    theirs = encode_envelope(_next(decode_envelope(mine.value)))
    assert talk.learner.learn(Ballot(9, Incarnation("b", 1)), theirs, talk.outbox)
    talk.proposer.learned(talk.now, talk.outbox)

    # Then the outcome is known
    assert talk.answers() == [Changed(request, 7, (DONE,))]
    assert talk.proposer.next_deadline() is None


def _next(envelope: Envelope) -> Envelope:
    return Envelope(
        ver=envelope.ver + 1,
        cluster_id=envelope.cluster_id,
        cfg=envelope.cfg,
        base_cfg=envelope.base_cfg,
        done=envelope.done,
        map=encode_map(up("z").apply(decode_map(envelope.map))[0]),
    )


def test_what_is_asked_for_during_a_prepare_round_joins_its_batch() -> None:
    talk = Conversation()
    first = talk.change(up("d"))
    second = talk.change(up("e"), up("e"))
    third = talk.read()
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))

    talk.accept(0, 1)

    refused = "refused: e.1 came up before"
    assert talk.answers() == [
        Changed(first, 6, (DONE,)),
        Changed(second, 6, (DONE, refused)),
        Changed(third, 6, ()),
    ]


def test_a_read_stores_the_base_once_more_and_changes_no_version() -> None:
    talk = Conversation()
    request = talk.read()
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))

    assert talk.proposed().value == encode_envelope(an_envelope(5))
    talk.accept(1, 2)

    assert talk.answers() == [Changed(request, 5, ())]
    assert talk.proposer.last_majority_at == talk.now


def test_version_1_is_formed_before_anything_else_is_done() -> None:
    # Given a cluster that is at version 0
    talk = Conversation()
    request = talk.change(up("a"), Create(home="a", me=Incarnation("a", 1)))
    zero = an_envelope(0, EMPTY_MAP)
    talk.promise(0, shows=zero)
    talk.promise(1, shows=zero)

    # When the first round is through, then all expected nodes are in the map, and no more
    one = decode_envelope(talk.proposed().value)
    talk.accept(0, 1)
    assert decode_map(one.map) == FORMED
    assert talk.answers() == []

    # And the batch follows in the next round
    talk.promise(0, shows=one)
    talk.promise(1, shows=one)
    talk.accept(0, 1)
    assert talk.answers() == [Changed(request, 2, (DONE, DONE))]


def test_a_refusal_makes_the_next_attempt_go_above_the_ballot_to_beat() -> None:
    talk = Conversation(rank=2)
    talk.change(up("d"))

    talk.nack(1, beat=Ballot(41, Incarnation("b", 1)))
    waited_s = talk.wait()

    assert talk.prepared().round == 42
    assert waited_s == pytest.approx(2 * 0.05 + 0.5 * 0.02 * 2)


def test_patience_doubles_with_each_attempt_in_vain_and_both_waits_have_a_limit() -> None:
    talk = Conversation()
    talk.change(up("d"))

    attempts, breaks = [], []
    for _ in range(12):
        attempts.append(talk.wait())
        breaks.append(talk.wait())

    assert attempts[:3] == pytest.approx([ATTEMPT_S, 2 * ATTEMPT_S, 4 * ATTEMPT_S])
    assert max(attempts) == pytest.approx(ATTEMPT_S_MAX)
    assert max(breaks) == pytest.approx(BACKOFF_S_MAX)
    assert breaks == sorted(breaks)


def test_a_map_that_would_be_too_large_is_refused() -> None:
    talk = Conversation()
    large = NodeUp(me=Incarnation("d", 1), locators=("x" * MAP_BYTES_MAX,))
    request = talk.change(large, up("e"))
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))

    talk.accept(0, 1)

    (answer,) = talk.answers()
    assert answer.request == request
    assert answer.results[0].startswith("refused: the map would have")
    assert answer.results[1] == DONE


def test_a_batch_has_a_limit_and_the_rest_comes_in_the_next_one() -> None:
    talk = Conversation()
    half = [up("d")] * (RESULTS_MAX // 2)
    requests = [talk.change(*half) for _ in range(3)]
    talk.promise(0, shows=an_envelope(5))
    talk.promise(1, shows=an_envelope(5))

    talk.accept(0, 1)

    assert [answer.request for answer in talk.answers()] == requests[:2]
    assert talk.prepared().round == 2


def test_two_values_of_one_version_are_a_fork() -> None:
    learner, outbox = Learner(), list[Effect]()
    learner.learn(Ballot(1, ME), encode_envelope(an_envelope(5)), outbox)

    with pytest.raises(AssertionError, match="forked"):
        learner.learn(Ballot(2, ME), encode_envelope(an_envelope(5, EMPTY_MAP)), outbox)


def test_an_older_value_is_not_learned() -> None:
    learner, outbox = Learner(), list[Effect]()
    learner.learn(Ballot(1, ME), encode_envelope(an_envelope(5)), outbox)

    assert not learner.learn(Ballot(2, ME), encode_envelope(an_envelope(4)), outbox)

    assert learner.ver == 5


class Reconfigures(Proposer):
    """Changes the acceptors, as a later version will; the rule for that stands already."""

    def _derive(self, base: Envelope) -> Envelope:
        return replace(super()._derive(base), cfg=VOTERS[1:], prev=VOTERS)


def test_other_acceptors_are_only_proposed_on_a_base_that_is_known_to_be_committed() -> None:
    # Given a proposer that wants other acceptors, and a base that may not be committed
    talk = Conversation()
    talk.proposer.__class__ = Reconfigures
    base = an_envelope(5)
    talk.change(up("d"))
    talk.promise(0, shows=base)
    talk.promise(1, shows=base)

    # Then the base is proposed as it is
    assert talk.proposed().value == encode_envelope(base)

    # When that is committed, then the new acceptors are proposed
    talk.accept(0, 1)
    talk.promise(0, shows=base)
    talk.promise(1, shows=base)
    new = decode_envelope(talk.proposed().value)
    assert (new.cfg, new.prev) == (VOTERS[1:], VOTERS)


def test_while_acceptors_change_both_sets_must_agree() -> None:
    joint = replace(an_envelope(5), cfg=VOTERS[:1], prev=VOTERS)

    assert joint.quorum({VOTERS[0], VOTERS[1]})
    assert not joint.quorum({VOTERS[1], VOTERS[2]})
    assert not joint.quorum({VOTERS[0]})
