"""How nodes form a cluster, join one, and refuse to form a second one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from replication.core.acceptor import decode_vote
from replication.core.bootstrap import HELLO_S
from replication.core.changes import DONE, NodeUp
from replication.core.clustermap import NodeState, Settings
from replication.core.identity import NO_BALLOT, Incarnation
from replication.core.register import Register
from replication.core.register_effects import (
    Changed,
    Committed,
    Effect,
    Event,
    Fatal,
    FromPeer,
    Learned,
    Note,
    Persist,
    Persisted,
    Send,
    Wake,
)
from replication.core.register_messages import Accepted, Init, LearnedMsg, Pull, RegisterMessage
from tanist.errors import ConfigError


class Nodes:
    """Registers that hear each other at once, and whose disks are as fast."""

    def __init__(self) -> None:
        self.now = 0.0
        self.registers: dict[str, Register] = {}
        self.files: dict[str, bytes] = {}
        self.learned: dict[str, list[Committed]] = {}
        self.changed: list[Changed] = []
        self.fatal: list[str] = []
        self.notes: list[str] = []
        self.sent: list[tuple[str, str, RegisterMessage]] = []
        self.lost: Callable[[RegisterMessage], bool] = lambda _: False
        self._incs = 0
        self._ways: deque[tuple[str, Event]] = deque()

    def start(
        self,
        name: str,
        *,
        expected: tuple[str, ...] = ("a", "b", "c"),
        cluster: str = "test",
        settings: Settings | None = None,
    ) -> Register:
        self._incs += 1
        register = Register(
            me=Incarnation(name, self._incs),
            acceptor_inc=100 + self._incs,
            cluster=cluster,
            expected=expected,
            settings=settings or Settings(),
            saved=self.files.get(name),
            draw=lambda: 0.5,
        )
        self.registers[name] = register
        self.learned[name] = []
        self._ways.append((name, Wake()))
        return register

    def start_all(self, *names: str) -> None:
        for name in names:
            self.start(name)
        self.run()

    def stop(self, name: str) -> None:
        del self.registers[name]

    def run(self, seconds: float = 3.0) -> None:
        until = self.now + seconds
        while True:
            while self._ways:
                name, event = self._ways.popleft()
                if name in self.registers:
                    outbox: list[Effect] = []
                    self.registers[name].handle(event, self.now, outbox)
                    self.execute(name, outbox)
            deadlines = [
                (deadline, name)
                for name, register in self.registers.items()
                if (deadline := register.next_deadline()) is not None
            ]
            if not deadlines or min(deadlines)[0] > until:
                break
            self.now, name = max(self.now, min(deadlines)[0]), min(deadlines)[1]
            self._ways.append((name, Wake()))
        self.now = until

    def execute(self, name: str, outbox: list[Effect]) -> None:
        for effect in outbox:
            match effect:
                case Send():
                    self.sent.append((name, effect.node, effect.message))
                    if not self.lost(effect.message):
                        self._ways.append((effect.node, FromPeer(name, effect.message)))
                case Persist():
                    self.files[name] = effect.blob
                    self._ways.append((name, Persisted(effect.token)))
                case Learned():
                    self.learned[name].append(effect.value)
                case Changed():
                    self.changed.append(effect)
                case Note():
                    self.notes.append(effect.text)
                case Fatal():
                    self.fatal.append(effect.sentence)

    def change(self, name: str, node: str = "x") -> int:
        outbox: list[Effect] = []
        function = NodeUp(me=Incarnation(node, 1))
        request = self.registers[name].change([function], self.now, outbox)
        self.execute(name, outbox)
        return request

    def inits(self) -> list[str]:
        """Who wrote an `Init` to somebody else."""
        return [source for source, _, message in self.sent if isinstance(message, Init)]

    def votes(self, name: str) -> bool:
        register = self.registers[name]
        mine = register.acceptor.vote.acc_inc
        return (name, mine) in register.acceptors


def formed(*names: str) -> Nodes:
    nodes = Nodes()
    nodes.start_all(*names)
    return nodes


def test_nodes_that_all_know_of_no_cluster_form_one() -> None:
    nodes = formed("a", "b", "c")

    registers = list(nodes.registers.values())
    assert {register.ver for register in registers} == {1}
    assert len({register.cluster_id for register in registers}) == 1
    assert [voter.node for voter in registers[0].acceptors] == ["a", "b", "c"]
    assert nodes.inits() == ["a", "a"]
    value = registers[0].value
    assert value is not None
    assert set(value.nodes) == {"a", "b", "c"}
    assert {entry.state for entry in value.nodes.values()} == {NodeState.DOWN}
    assert {entry.proc_inc for entry in value.nodes.values()} == {0}


def test_a_single_node_forms_its_cluster_alone() -> None:
    nodes = Nodes()
    register = nodes.start("a", expected=("a",))

    nodes.run(seconds=0.0)

    assert register.ver == 1
    assert register.last_majority_at == 0.0
    assert nodes.sent == []


def test_only_the_first_five_vote() -> None:
    nodes, names = Nodes(), tuple("abcdefg")
    for name in names:
        nodes.start(name, expected=names)

    nodes.run()

    assert [name for name in names if nodes.votes(name)] == list("abcde")
    assert {register.ver for register in nodes.registers.values()} == {1}


def test_no_cluster_is_formed_before_all_have_answered() -> None:
    nodes = Nodes()
    nodes.start_all("a", "b")
    assert {register.ver for register in nodes.registers.values()} == {0}
    assert nodes.inits() == []

    nodes.start_all("c")

    assert {register.ver for register in nodes.registers.values()} == {1}


def test_what_was_asked_for_before_there_was_a_cluster_is_done_once_there_is_one() -> None:
    nodes = Nodes()
    nodes.start("a")
    request = nodes.change("a")

    nodes.start("b")
    nodes.start("c")
    nodes.run()

    assert nodes.changed == [Changed(request, 2, (DONE,))]


def test_who_begins_makes_it_durable_before_anybody_else_hears_of_it() -> None:
    # Given a node that is about to form the cluster, and whose disk is slow
    nodes = Nodes()
    nodes.start("a", expected=("a", "b"))
    nodes.start("b", expected=("a", "b"))
    execute, held = nodes.execute, list[Effect]()

    def slow(name: str, outbox: list[Effect]) -> None:
        writes = [e for e in outbox if isinstance(e, Persist) and decode_vote(e.blob).cluster_id]
        held.extend(writes)
        execute(name, [effect for effect in outbox if effect not in writes])

    nodes.execute = slow  # type: ignore[method-assign]  # The disk is the test's.

    # When it has heard from all
    nodes.run()

    # Then it has told nobody: after a crash it would draw another id for the cluster
    assert len(held) == 1
    assert nodes.inits() == []


def test_version_0_is_finished_by_whoever_sees_it() -> None:
    # Given a cluster that a began, and all acknowledged, and a crashed before it heard of that
    nodes = Nodes()
    nodes.lost = lambda message: not isinstance(message, Init) and nodes.inits() != []
    nodes.start_all("a", "b", "c")
    begun = nodes.registers["b"].cluster_id
    assert begun is not None
    assert {register.ver for register in nodes.registers.values()} == {0}

    # When it comes back, and everybody sees version 0
    nodes.stop("a")
    nodes.lost = lambda _: False
    nodes.start_all("a")

    # Then the very same cluster is formed, and not only a saw to it
    assert {register.cluster_id for register in nodes.registers.values()} == {begun}
    assert {register.ver for register in nodes.registers.values()} == {1}
    assert len(set(nodes.inits())) > 1


def test_version_1_is_finished_by_who_stored_it_if_who_proposed_it_forgot() -> None:
    # Given version 1, stored by b and c, while a crashed before it stored or learned anything
    nodes = Nodes()
    nodes.lost = lambda message: isinstance(message, Accepted | LearnedMsg)
    for name in "abc":
        nodes.start(name)
    execute = nodes.execute

    def forgetful(name: str, outbox: list[Effect]) -> None:
        beyond = [
            e for e in outbox if isinstance(e, Persist) and decode_vote(e.blob).promised.round
        ]
        execute(name, [e for e in outbox if name != "a" or e not in beyond])

    nodes.execute = forgetful  # type: ignore[method-assign]  # The disk is the test's.
    nodes.run(seconds=0.1)
    nodes.stop("a")
    assert decode_vote(nodes.files["a"]).accepted == NO_BALLOT
    assert decode_vote(nodes.files["b"]).accepted != NO_BALLOT

    # When it comes back, and nobody has anything to ask for
    nodes.execute = execute  # type: ignore[method-assign]
    nodes.lost = lambda _: False
    nodes.start_all("a")

    # Then version 1 is known to all
    assert {register.ver for register in nodes.registers.values()} == {1}


def test_a_node_with_its_file_goes_on_as_the_acceptor_that_it_was() -> None:
    nodes = formed("a", "b", "c")
    for name in "abc":
        nodes.stop(name)

    nodes.start_all("a", "b")
    request = nodes.change("a")
    nodes.run()

    assert nodes.changed == [Changed(request, 2, (DONE,))]
    assert nodes.votes("a")


def test_a_node_that_lost_its_file_joins_and_votes_nowhere() -> None:
    # Given a cluster, one node of which lost its disk
    nodes = formed("a", "b", "c")
    cluster_id = nodes.registers["b"].cluster_id
    nodes.stop("a")
    del nodes.files["a"]

    # When it starts again
    nodes.start_all("a")

    # Then it is in the same cluster, can change the map, and has no vote
    request = nodes.change("a")
    nodes.run()
    assert nodes.registers["a"].cluster_id == cluster_id
    assert nodes.changed == [Changed(request, 2, (DONE,))]
    assert not nodes.votes("a")
    assert not nodes.registers["a"].acceptor.initialised
    assert {name: register.lost_vote for name, register in nodes.registers.items()} == {
        "a": True,
        "b": False,
        "c": False,
    }
    assert "the file of votes was lost: this node takes part, and does not vote" in nodes.notes


def test_nodes_that_lost_their_files_never_form_a_cluster_beside_a_survivor() -> None:
    nodes = formed("a", "b", "c")
    for name in "ab":
        nodes.stop(name)
        del nodes.files[name]
    nodes.stop("c")

    # When the survivor is not there, they wait
    nodes.start_all("a", "b")
    assert {register.ver for register in nodes.registers.values()} == {0}

    # When it comes back, they do not vote for a new cluster either
    survivor = nodes.start("c")
    nodes.run()
    assert not nodes.votes("a")
    assert {register.cluster_id for register in nodes.registers.values()} <= {
        survivor.cluster_id,
        None,
    }


def test_a_late_init_does_not_bring_a_lost_identity_back() -> None:
    nodes = formed("a", "b", "c")
    (late, _) = [message for _, _, message in nodes.sent if isinstance(message, Init)]
    nodes.stop("b")
    del nodes.files["b"]
    nodes.start_all("b")

    nodes.execute("a", [Send("b", late)])
    nodes.run()

    assert not nodes.registers["b"].acceptor.initialised


def test_a_newcomer_that_nobody_expected_joins() -> None:
    nodes = formed("a", "b", "c")

    nodes.start("d", settings=Settings(failover_peers=1))
    request = nodes.change("d")
    nodes.run()

    assert nodes.changed == [Changed(request, 2, (DONE,))]
    assert nodes.fatal == []


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"expected": ("a", "c", "b")}, "b expects the nodes a, c, b, but a expects a, b, c"),
        ({"settings": Settings(failover_peers=1)}, "failover_peers = 1"),
        ({"cluster": "prod"}, "b belongs to the cluster 'prod', but a is configured for 'test'"),
    ],
)
def test_nodes_that_are_configured_differently_say_so_and_form_nothing(
    other: dict[str, object], sentence: str
) -> None:
    nodes = Nodes()
    nodes.start("a")
    nodes.start("c")
    nodes.start("b", **other)  # type: ignore[arg-type]  # Each case changes one argument.

    nodes.run(seconds=0.0)

    assert any(sentence in fatal for fatal in nodes.fatal)
    assert nodes.inits() == []


def test_a_file_of_another_cluster_is_refused_at_the_start() -> None:
    nodes = formed("a", "b", "c")

    with pytest.raises(ConfigError, match=r"belongs to the cluster 'test/\w+'.*'prod'"):
        nodes.start("a", cluster="prod")


def test_what_another_cluster_says_is_dropped_and_noted() -> None:
    nodes = formed("a", "b", "c")

    nodes.execute("b", [Send("a", Pull(cluster_id="test/other", ver=0))])
    nodes.run()

    assert nodes.notes[-1] == "dropped a message of another cluster"


def test_a_node_that_hears_of_a_newer_version_pulls_it_but_asks_once_at_a_time() -> None:
    # Given a node that missed a change
    nodes = formed("a", "b", "c")
    nodes.lost = lambda message: isinstance(message, LearnedMsg)
    nodes.change("a")
    nodes.run()
    nodes.lost = lambda _: False
    assert nodes.registers["c"].ver == 1

    # When two heartbeats tell of it, and an old one comes late
    outbox: list[Effect] = []
    nodes.registers["c"].heard_ver("a", 2, nodes.now, outbox)
    nodes.registers["c"].heard_ver("a", 2, nodes.now, outbox)
    nodes.registers["c"].heard_ver("b", 1, nodes.now + HELLO_S, outbox)

    # Then it is pulled once
    assert [effect for effect in outbox if isinstance(effect, Send)] == outbox
    assert len(outbox) == 1
    nodes.execute("c", outbox)
    nodes.run()
    assert nodes.registers["c"].ver == 2
    assert [value.ver for value in nodes.learned["c"]] == [1, 2]


def test_a_read_answers_although_a_minority_is_away() -> None:
    nodes = formed("a", "b", "c")
    nodes.stop("c")
    outbox: list[Effect] = []

    request = nodes.registers["a"].read(nodes.now, outbox)
    nodes.execute("a", outbox)
    asked_at = nodes.now
    nodes.run()

    assert nodes.changed == [Changed(request, 1, ())]
    assert nodes.registers["a"].last_majority_at == asked_at


def test_without_a_majority_nothing_is_answered_and_nothing_is_refused() -> None:
    nodes = formed("a", "b", "c")
    nodes.stop("b")
    nodes.stop("c")
    request = nodes.change("a")
    nodes.run(seconds=60.0)
    assert nodes.changed == []

    nodes.start_all("b")
    nodes.run(seconds=10.0)

    assert nodes.changed == [Changed(request, 2, (DONE,))]
