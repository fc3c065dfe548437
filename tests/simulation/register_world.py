"""Registers of several nodes in a simulated network, and what must be true of them.

Each seed draws its weather, its nodes (3 or 5 acceptors, sometimes one more node that only
proposes), whether the cluster is already formed, and how busy clients and faults are. Clients
change and read; each change adds its own name to the map, so that every committed value shows
which changes it contains. Faults: loss, repeats, late messages, slow disks, one-way cuts,
crashes that keep the disk, disks that fail until a restart, and wiped nodes, which come back as
new acceptors and so vote no more (fewer of them than would end the majority). In the end all
heals, and all requests of living nodes must be answered.

Invariants, checked after each event at the node where it happened:

    RI1  one value per ballot
    RI2  committed values of one version are equal; each contains all of its predecessor
    RI3  an acknowledged change is in all committed values that come later
    RI4  the version that a life of a node knows never decreases
    RI5  promised >= accepted, both non-decreasing, and never below what was told, across crashes
    RI6  a committed value was accepted, durably, by a quorum of its own and of its base's voters

RI7 and RI8 speak of changes of the set of acceptors, which does not change in this version.

Linearizable: a read or a change ends with a version at least as high as any that had been
acknowledged, to anybody, when it began; and what was refused is in no committed value (which
would also show a change that is applied twice, since the second time is refused).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from replication.core.acceptor import Acceptor, Vote, decode_vote, encode_vote
from replication.core.changes import DONE, Form, NodeUp
from replication.core.clustermap import EMPTY_MAP, NodeEntry, Settings, encode_map
from replication.core.envelope import (
    AcceptorId,
    Envelope,
    Voters,
    decode_envelope,
    encode_envelope,
)
from replication.core.identity import NO_BALLOT, Ballot, Incarnation
from replication.core.proposer import Proposer
from replication.core.register import Register
from replication.core.register_effects import (
    Changed,
    Effect,
    Fatal,
    FromPeer,
    Learned,
    Note,
    Persist,
    Persisted,
    Send,
    Wake,
)
from replication.core.register_messages import (
    Accept,
    Accepted,
    Nack,
    Promise,
    RegisterMessage,
    decode_message,
    encode_message,
)
from tests.simulation.network import FAIR, Disk, Network

CLUSTER = "sim"
CLUSTER_ID = f"{CLUSTER}/formed"

HEALING_S = 60.0
"""After all healed, so long it may take until every request is answered. Long, since a write of
before may still take its time, and patience doubles with each attempt that was in vain."""


class Violation(AssertionError):
    """An invariant does not hold. The text says which, and the values."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake planted on purpose: other classes for the parts, or another handling of disks."""

    acceptor: type[Acceptor] = Acceptor
    proposer: type[Proposer] = Proposer
    wiped_keeps_identity: bool = False


SOUND = Mutant()


@dataclass(slots=True)
class Counts:
    """What happened. A simulation in which these stay 0 tests nothing."""

    changes: int = 0
    reads: int = 0
    crashes: int = 0
    wipes: int = 0
    cuts: int = 0
    disk_errors: int = 0
    nacks: int = 0
    formed: int = 0
    unknown_yes: int = 0
    """Batches that were proposed once more, their outcome unknown, and had been stored…"""
    unknown_no: int = 0
    """…or had not."""
    given_up: int = 0
    """Requests whose process died first."""
    events: int = 0

    def add(self, other: Counts) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class _Asked:
    operation: str | None  # The name that a change adds; None: a read.
    acknowledged_ver: int  # The highest version acknowledged to anybody before it began.


@dataclass(slots=True)
class _Node:
    name: str
    disk: Disk
    acc_inc: int
    register: Register | None = None
    ver: int = 0
    asked: dict[int, _Asked] = field(default_factory=dict)
    wake_at: float | None = None


class RegisterWorld:
    """One schedule. `run()` raises `Violation`, or returns what happened."""

    def __init__(self, seed: int, mutant: Mutant = SOUND) -> None:
        self.network = Network(seed)
        self.counts = Counts()
        self._mutant = mutant
        chance = self.network.chance
        count = chance.choice((3, 3, 5))
        self._expected = tuple("abcde"[:count])
        self._settings = Settings()
        names = (*self._expected, "x") if chance.random() < 0.3 else self._expected
        self._horizon_s = chance.choice((3.0, 8.0))
        self._request_s = chance.choice((0.1, 0.3, 1.0))
        self._fault_s = chance.choice((0.5, 2.0, 100.0))
        self._down_s = chance.choice((0.1, 1.0, 4.0))
        self._read_share = chance.choice((0.1, 0.5))
        self._wipes_left = chance.choice((0, (count - 1) // 2))
        self._encoding = chance.random() < 0.1
        self._incs = 0
        self._operations = 0
        self._quiet = False
        # What was seen, of everybody together.
        self._values: dict[Ballot, bytes] = {}
        self._chain: dict[int, bytes] = {}
        self._names_at: dict[int, frozenset[str]] = {}
        self._accepted_by: dict[bytes, set[AcceptorId]] = {}
        self._votes: dict[AcceptorId, Vote] = {}
        self._told: dict[AcceptorId, tuple[Ballot, Ballot]] = {}
        self._acknowledged: dict[str, int] = {}
        self._acknowledged_ver = 0
        self._refused: set[str] = set()
        self._proposed: dict[tuple[Incarnation, int], dict[Ballot, bytes]] = {}
        self._nodes = {name: _Node(name, Disk(self.network, name), self._inc()) for name in names}
        if chance.random() < 0.75:
            self._form()

    def run(self) -> Counts:
        for node in self._nodes.values():
            self.network.after(self.network.chance.random() * 0.2, partial(self._start, node))
            self._later(self._request_s, self._request)
        self._later(self._fault_s, self._fault)
        self._later(0.3, self._heartbeats)
        self.network.run(until=self._horizon_s)
        self._heal()
        while self._is_unsettled() and self.network.now < self._horizon_s + HEALING_S:
            self.network.run(until=self.network.now + 1.0)
        self._check_end()
        self.counts.events = self.network.events
        return self.counts

    # The nodes.

    def _inc(self) -> int:
        self._incs += 1
        return self._incs

    def _form(self) -> None:
        """Begin with a cluster at version 1 instead of forming one."""
        voters = tuple(AcceptorId(name, self._nodes[name].acc_inc) for name in self._expected)
        form = Form(settings=self._settings, nodes={name: NodeEntry() for name in self._expected})
        value = encode_envelope(
            Envelope(
                ver=1,
                cluster_id=CLUSTER_ID,
                cfg=voters,
                base_cfg=(voters, None),
                done={},
                map=encode_map(form.apply(EMPTY_MAP)[0]),
            )
        )
        ballot = Ballot(1, Incarnation("a", self._inc()))
        self._values[ballot] = value
        for voter in voters:
            vote = Vote(
                cluster_id=CLUSTER_ID,
                acc_inc=voter.inc,
                promised=ballot,
                accepted=ballot,
                value=value,
            )
            self._nodes[voter.node].disk.durable = encode_vote(vote)
            self._accepted_by.setdefault(value, set()).add(voter)

    def _start(self, node: _Node) -> None:
        if node.register is not None:
            return
        register = Register(
            me=Incarnation(node.name, self._inc()),
            acceptor_inc=node.acc_inc,
            cluster=CLUSTER,
            expected=self._expected,
            settings=self._settings,
            saved=node.disk.durable,
            draw=self.network.chance.random,
        )
        # The parts become those of the mutant; nothing in the core knows of such a thing.
        register.acceptor.__class__ = self._mutant.acceptor
        register.proposer.__class__ = self._mutant.proposer
        node.register = register
        node.ver = 0
        node.asked = {}
        self._check_vote(register.acceptor)
        self._feed(node, Wake())

    def _crash(self, node: _Node) -> None:
        self.counts.crashes += 1
        self.counts.given_up += len(node.asked)
        node.register = None
        node.wake_at = None
        node.asked = {}
        self.network.crash(node.name)
        node.disk.crash()

    def _wipe(self, node: _Node) -> None:
        self.counts.wipes += 1
        self._wipes_left -= 1
        saved = node.disk.durable
        node.disk.durable = None
        if self._mutant.wiped_keeps_identity:
            assert saved is not None
            node.disk.durable = encode_vote(_begun_anew(decode_vote(saved)))
        else:
            node.acc_inc = self._inc()

    def _feed(self, node: _Node, event: FromPeer | Persisted | Wake) -> None:
        register = node.register
        if register is None:
            return
        outbox: list[Effect] = []
        register.handle(event, self.network.now, outbox)
        self._execute(node, register, outbox)

    def _execute(self, node: _Node, register: Register, outbox: list[Effect]) -> None:
        for effect in outbox:
            match effect:
                case Send():
                    self._send(node, register, effect)
                case Persist():
                    vote = register.acceptor.vote
                    done = partial(self._persisted, node, vote, effect.token)
                    node.disk.write(effect.blob, done)
                case Learned():
                    self._check_learned(node, register)
                case Changed():
                    self._check_changed(node, effect)
                case Note():
                    pass
                case Fatal():
                    raise Violation(f"a node gave up: {effect.sentence}")
        self._check_vote(register.acceptor)
        if register.ver < node.ver:
            raise Violation(f"RI4: {node.name} went back from {node.ver} to {register.ver}")
        node.ver = register.ver
        self._set_timer(node, register)

    def _persisted(self, node: _Node, vote: Vote, token: int) -> None:
        if vote.accepted > NO_BALLOT:
            voter = AcceptorId(node.name, vote.acc_inc)
            self._accepted_by.setdefault(vote.value, set()).add(voter)
        self._feed(node, Persisted(token))

    def _set_timer(self, node: _Node, register: Register) -> None:
        deadline = register.next_deadline()
        if deadline is None or (node.wake_at is not None and node.wake_at <= deadline):
            return
        node.wake_at = deadline
        delay_s = max(0.0, deadline - self.network.now)
        self.network.after(delay_s, partial(self._wake, node, deadline), owner=node.name)

    def _wake(self, node: _Node, deadline: float) -> None:
        if node.wake_at == deadline:
            node.wake_at = None
            self._feed(node, Wake())

    def _send(self, node: _Node, register: Register, send: Send) -> None:
        self._check_sent(node, register, send.message)
        if send.node not in self._nodes:
            return  # The map names each change like a node, and nobody lives there.
        message = send.message
        if self._encoding:
            message = decode_message(encode_message(message))
        deliver = partial(self._feed, self._nodes[send.node], FromPeer(node.name, message))
        self.network.send(node.name, send.node, deliver)

    # Clients, heartbeats and faults.

    def _later(self, scale_s: float, action: Callable[[], None]) -> None:
        self.network.after(self.network.chance.expovariate(1.0 / scale_s), action)

    def _request(self) -> None:
        if self._quiet:
            return
        self._later(self._request_s, self._request)
        node = self._nodes[self.network.chance.choice(sorted(self._nodes))]
        register = node.register
        if register is None or len(node.asked) > 4:
            return
        if self.network.chance.random() < self._read_share:
            self._ask(node, None)
        else:
            self._operations += 1
            self._ask(node, f"op{self._operations}")

    def _ask(self, node: _Node, operation: str | None) -> None:
        register = node.register
        assert register is not None
        outbox: list[Effect] = []
        if operation is None:
            request = register.read(self.network.now, outbox)
        else:
            change = NodeUp(me=Incarnation(operation, 1))
            request = register.change([change], self.network.now, outbox)
        node.asked[request] = _Asked(operation, self._acknowledged_ver)
        self._execute(node, register, outbox)

    def _heartbeats(self) -> None:
        self._later(0.3, self._heartbeats)
        source, target = self.network.chance.sample(sorted(self._nodes), 2)
        register = self._nodes[source].register
        if register is not None and register.ver > 0:
            deliver = partial(self._heard_ver, self._nodes[target], source, register.ver)
            self.network.send(source, target, deliver)

    def _heard_ver(self, node: _Node, source: str, ver: int) -> None:
        register = node.register
        if register is not None:
            outbox: list[Effect] = []
            register.heard_ver(source, ver, self.network.now, outbox)
            self._execute(node, register, outbox)

    def _fault(self) -> None:
        if self._quiet:
            return
        self._later(self._fault_s, self._fault)
        chance = self.network.chance
        node = self._nodes[chance.choice(sorted(self._nodes))]
        match chance.choice(("crash", "crash", "cut", "cut", "heal", "wipe", "disk")):
            case "crash" if node.register is not None:
                self._crash(node)
                self._later(self._down_s, partial(self._start, node))
            case "wipe" if self._may_be_wiped(node):
                self._crash(node)
                self._wipe(node)
                self._later(self._down_s, partial(self._start, node))
            case "cut":
                self.counts.cuts += 1
                self.network.cut(*chance.sample(sorted(self._nodes), 2))
            case "heal":
                self.network.heal()
            case "disk":
                # After an error nothing is answered until a restart.
                self.counts.disk_errors += 1
                node.disk.broken = True

    def _may_be_wiped(self, node: _Node) -> bool:
        # A wiped acceptor votes no more: another one than the first time costs a vote too.
        return (
            self._wipes_left > 0
            and node.register is not None
            and node.register.ver > 0
            and AcceptorId(node.name, node.acc_inc) in node.register.acceptors
        )

    def _heal(self) -> None:
        self._quiet = True
        self.network.heal()
        self.network.weather = FAIR
        for node in self._nodes.values():
            if node.disk.broken:
                self._crash(node)
            self._start(node)
            # As each node does when it starts: else nobody may know what a crash left behind.
            self._ask(node, None)

    # What must be true.

    def _check_vote(self, acceptor: Acceptor) -> None:
        vote = acceptor.vote
        voter = AcceptorId(acceptor.node, vote.acc_inc)
        before = self._votes.get(voter)
        if vote is before:
            return
        if vote.accepted > vote.promised:
            raise Violation(f"RI5: {voter} accepted {vote.accepted}, promised {vote.promised}")
        promised, accepted = self._told.get(voter, (NO_BALLOT, NO_BALLOT))
        if vote.promised < promised or vote.accepted < accepted:
            raise Violation(
                f"RI5: {voter} told of {promised} and {accepted}, and is now at"
                f" {vote.promised} and {vote.accepted}"
            )
        self._votes[voter] = vote
        if vote.accepted > NO_BALLOT:
            self._check_ballot(vote.accepted, vote.value)

    def _check_ballot(self, ballot: Ballot, value: bytes) -> None:
        if self._values.setdefault(ballot, value) != value:
            raise Violation(f"RI1: two values under ballot {ballot}")

    def _check_sent(self, node: _Node, register: Register, message: RegisterMessage) -> None:
        voter = AcceptorId(node.name, register.acceptor.vote.acc_inc)
        promised, accepted = self._told.get(voter, (NO_BALLOT, NO_BALLOT))
        match message:
            case Promise():
                self._told[voter] = (max(promised, message.ballot), accepted)
            case Accepted():
                told = (max(promised, message.ballot), max(accepted, message.ballot))
                self._told[voter] = told
            case Nack():
                self.counts.nacks += 1
            case Accept():
                self._check_ballot(message.ballot, message.value)
                self._count_proposal(register, message)
            case _:
                pass

    def _count_proposal(self, register: Register, message: Accept) -> None:
        # A batch that is proposed once more, by a node that does not know it as committed: the
        # outcome of the first time was unknown. The same bytes: it had succeeded.
        envelope = decode_envelope(message.value)
        done = envelope.done.get(register.me.node)
        if done is None or done.proposer_inc != register.me.inc or envelope.ver <= register.ver:
            return
        before = self._proposed.setdefault((register.me, done.batch), {})
        if message.ballot not in before and before:
            self.counts.unknown_yes += message.value in before.values()
            self.counts.unknown_no += message.value not in before.values()
        before[message.ballot] = message.value

    def _check_learned(self, node: _Node, register: Register) -> None:
        chosen = register.learner.chosen
        assert chosen is not None
        envelope, raw = chosen.envelope, chosen.raw
        if self._chain.setdefault(envelope.ver, raw) != raw:
            raise Violation(f"RI2: two committed values of version {envelope.ver}")
        if envelope.ver not in self._names_at:
            self._check_new_version(envelope, raw, frozenset(chosen.map.nodes))

    def _check_new_version(self, envelope: Envelope, raw: bytes, names: frozenset[str]) -> None:
        ver = envelope.ver
        self._names_at[ver] = names
        self.counts.formed += ver == 1 and envelope.cluster_id != CLUSTER_ID
        for other, others in ((ver - 1, names), (ver + 1, None)):
            if other in self._names_at:
                fewer, more = (
                    (self._names_at[other], names) if others else (names, self._names_at[other])
                )
                if not fewer <= more:
                    raise Violation(f"RI2: version {ver} and {other} are not on one chain")
        for name, at in self._acknowledged.items():
            if at <= ver and name not in names:
                raise Violation(f"RI3: {name}, acknowledged at {at}, is not in version {ver}")
        self._check_refused(names)
        accepted = self._accepted_by.get(raw, set())
        base_cfg, base_prev = envelope.base_cfg
        for voters in (envelope.cfg, envelope.prev, base_cfg, base_prev):
            if voters is not None and not _is_majority(voters, accepted):
                raise Violation(
                    f"RI6: version {ver} was accepted only by {sorted(accepted)} of {voters}"
                )

    def _check_changed(self, node: _Node, changed: Changed) -> None:
        asked = node.asked.pop(changed.request)
        if changed.ver < asked.acknowledged_ver:
            raise Violation(
                f"not linearizable: an answer at {changed.ver} after {asked.acknowledged_ver}"
            )
        self._acknowledged_ver = max(self._acknowledged_ver, changed.ver)
        if asked.operation is None:
            self.counts.reads += 1
            return
        self.counts.changes += 1
        if changed.results != (DONE,):
            self._refused.add(asked.operation)
            self._check_refused(*self._names_at.values())
            return
        if asked.operation not in self._names_at[changed.ver]:
            raise Violation(f"RI3: {asked.operation} is not in version {changed.ver}")
        self._acknowledged[asked.operation] = changed.ver

    def _check_refused(self, *committed: frozenset[str]) -> None:
        for names in committed:
            if not self._refused.isdisjoint(names):
                raise Violation(f"refused, and committed: {sorted(self._refused & names)}")

    def _is_unsettled(self) -> bool:
        vers = {node.ver for node in self._nodes.values()}
        return len(vers) != 1 or 0 in vers or any(node.asked for node in self._nodes.values())

    def _check_end(self) -> None:
        if self._is_unsettled():
            state = {name: (node.ver, node.asked) for name, node in self._nodes.items()}
            raise Violation(f"all healed {HEALING_S:.0f} s ago, and it is not settled: {state}")


def _is_majority(voters: Voters, accepted: set[AcceptorId]) -> bool:
    # On its own, so that a mistake in the core's own count would show.
    return len(accepted.intersection(voters)) >= len(voters) // 2 + 1


def _begun_anew(vote: Vote) -> Vote:
    """What a node would have that finds no file and goes on under its old identity."""
    envelope = decode_envelope(vote.value)
    empty = Envelope(
        ver=0,
        cluster_id=envelope.cluster_id,
        cfg=envelope.cfg,
        base_cfg=(envelope.cfg, None),
        done={},
        map=encode_map(EMPTY_MAP),
    )
    return Vote(cluster_id=vote.cluster_id, acc_inc=vote.acc_inc, value=encode_envelope(empty))
