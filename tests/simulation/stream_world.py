"""One stream on three to five nodes in a simulated network, and what must be true of it.

The register is one atomic value with the real changes of the cluster map; what is simulated of
it is that requests and replies are late, lost and repeated, so that outcomes are unknown for a
while. Who takes over, and when, follows the rules of succession in a simpler form: the owner is
proven dead, superseded, or has shown no life in both directions.

Clients are a burst of ops and answers at whoever takes himself for the owner. The machine is a
list, of which each copy knows the checksum after each op; so copies are compared in one step.

Invariants, checked after each event at the node where it happened:

    SI1   one owner for each (gen, epoch)
    SI4   every live member of the in-sync set has all that was ever released, in this order
    SI5   what is released never changes, whoever released it
    SI6   nothing applied is cut, SI7 no receipt is beyond the log, SI8 histories are sound:
          the streams assert these themselves
    SI9   who becomes owner has what was released in all epochs before, also what was released
          there later
    SI10  whoever gives receipts has a state that is a beginning of the owner's
    SI11  in the end, equal digests on all members; SI12: and everything is released
    SI13  when a stream is lost, at least min_copies that held what was released have died
    SI14  no effect leaves before its op is released at that node
    fence no delivery may leave once another owner's grace for it can have ended
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

from msgspec.structs import replace

from replication.core.changes import (
    DONE,
    DeclareLost,
    Function,
    NodeUp,
    SetDown,
    SetUp,
    Takeover,
    TakeoverWhy,
)
from replication.core.clustermap import (
    ClusterMap,
    NodeEntry,
    NodeState,
    OnTooFewCopies,
    Settings,
    StreamEntry,
    copies,
    default_min_copies,
    is_live,
    order,
    superseded,
)
from replication.core.identity import Incarnation
from replication.core.messages import Receipt, Tick, decode, encode
from replication.core.stream import Role, Stream, StreamLimits
from replication.core.stream_events import (
    Behind,
    CopyVoid,
    Dead,
    Deposed,
    Distrust,
    Effect,
    Event,
    Fatal,
    FromGroup,
    FromPeer,
    GroupDrained,
    Lost,
    MapChanged,
    Outcome,
    Promoted,
    Propose,
    Publish,
    Released,
    Send,
    Wake,
)
from tests.simulation.faults import Profile
from tests.simulation.network import FAIR, Network, Weather
from tests.simulation.register_world import Violation

CLUSTER8 = b"simulate"
REGISTER = "register"
HEALING_S = 20.0
"""After all healed, so long it may take until everything is released everywhere."""
RETRY_S = 0.4
"""A proposal without a reply is repeated."""


class _Network(Network):
    """Here connections break as well, and nothing is later than a few seconds: the heaviest
    tail would hold up a connection, and with it all that comes after, beyond the end."""

    def _delay_s(self) -> float:
        return min(super()._delay_s(), 1.0)

    def reset(self, one: str, other: str) -> None:
        """What was under way between these two never comes."""
        for way in ((one, other), (other, one)):
            self._streams.get(way, deque()).clear()


class SimOp:
    """One line of the list. Some are large enough to be a part of their own."""

    __slots__ = ("kind", "number", "padding")

    def __init__(self, number: int, padding: bytes) -> None:
        self.kind = 1
        self.number = number
        self.padding = padding

    def parts(self) -> tuple[bytes, ...]:
        return (self.number.to_bytes(8, "little"), self.padding)


class SimList:
    """The machine. `sums[n]` is the checksum of the first n ops."""

    def __init__(self, gen: int) -> None:
        self.gen = gen
        self.sums = [0]

    def decode(self, kind: int, data: bytes, start: int, end: int) -> SimOp:
        assert kind == 1
        return SimOp(int.from_bytes(data[start : start + 8], "little"), data[start + 8 : end])

    def apply(self, op: SimOp, /) -> int:
        line = op.number.to_bytes(8, "little") + len(op.padding).to_bytes(4, "little")
        self.sums.append(crc32(line, self.sums[-1]))
        return len(self.sums) - 1

    def digest(self) -> bytes:
        return self.sums[-1].to_bytes(4, "little")


@dataclass(slots=True)
class Effected:
    """An effect of a client's request: at which node, and of which op."""

    seq: int
    delivery: bool


@dataclass(slots=True)
class _Life:
    """A process, and its part of the stream."""

    who: Incarnation
    stream: Stream[SimOp, int]
    outbox: list[Effect] = field(default_factory=list)
    map: ClusterMap | None = None
    ver: int = 0
    alive: bool = True
    stopped: bool = False
    held_back: list[Callable[[], None]] = field(default_factory=list)
    turn_ends: bool = False
    wakes_at: float | None = None
    proposals: dict[int, Function] = field(default_factory=dict)
    own_token: int = 0
    """Of what the node itself proposed last: 0, none is under way."""
    own_tokens: int = 1 << 32
    proved_dead: set[Incarnation] = field(default_factory=set)
    life_shown_at: float = 0.0
    life_shown_by: tuple[Incarnation, int] | None = None
    receipts_sent: dict[int, float] = field(default_factory=dict)
    suspected_at: float | None = None


@dataclass(slots=True)
class _Ownership:
    """Somebody was promoted. `sums` goes on growing with his copy."""

    who: Incarnation
    epoch: int
    log_end: int
    sums: list[int]
    released_first_at: float | None = None


class StreamWorld:
    """See the module docstring."""

    def __init__(self, seed: int, profile: Profile = Profile.PLAIN) -> None:
        self.seed = seed
        self.profile = profile
        self.net = _Network(seed)
        self.chance = chance = self.net.chance
        self.counts: Counter[str] = Counter()
        tight = profile is Profile.TIGHT
        self.net.weather = Weather(
            loss=chance.choice((0.0, 0.01, 0.1, 0.3)),
            repeat=chance.choice((0.0, 0.1, 0.3)),
            delay_s=chance.choice((0.0003, 0.002, 0.01, 0.03)),
            disk_s=0.001,
        )
        self.register_loss = chance.choice((0.0, 0.1, 0.4))
        self.register_s = chance.choice((0.002, 0.02, 0.2))
        self.turn_s = chance.choice((0.0, 0.0005, 0.005))
        self.load_s = chance.choice((0.01, 0.03, 0.1))
        self.burst = chance.choice((1, 3, 10))
        self.fault_s = chance.choice((0.15, 0.4, 1.0))
        self.down_s = chance.choice((0.2, 0.8, 2.5))
        self.stormy_s = chance.choice((2.0, 4.0))
        self.names = "abcde"[: chance.choice((3, 3, 4, 5))]
        self.sid = 0 if chance.random() < 0.15 else 1
        self.small_repair = chance.random() < 0.15
        self.limits = StreamLimits(
            # Roads that tell different stories are what finds mistakes.
            group_tick_every=1,
            window_bytes=chance.choice((4_000, 40_000)),
            window_ops=200,
            repair_bytes=3_000 if self.small_repair else 1 << 30,
            segment_bytes=chance.choice((200, 2_000)),
            link_bytes_max=chance.choice((1, 300, 8 << 10)),
            repair_answer_bytes=4_000,
            expand_bytes_max=2_000,
            receipt_bytes=1_000,
            tick_s=chance.choice((0.05, 0.1)),
            stalled_s=1.0,
            long_silent_s=1.5,
            quarantine_s=chance.choice((0.5, 2.0)),
            invite_s=0.3,
            expand_s=chance.choice((0.3, 1.0)),
        )
        self.settings = Settings(
            failover_peers=chance.choice((1, 2, 2, 2, 3)),
            min_copies=chance.choice((None, None, None, 2)),
            on_too_few_copies=OnTooFewCopies.WAIT,
            silence_ms=chance.choice((300, 600) if tight else (300, 900)),
            grace_ms=2_000,
        )
        # An owner is suspected after this; in profile tight soon, and as a rule wrongly.
        self.patience_s = chance.choice((0.06, 0.12)) if tight else self.settings.silence_ms / 1000
        self.kinds = self._draw_kinds()
        self.healed = False
        # What happened, for the invariants.
        self.lives: dict[str, _Life] = {}
        self.graves: list[_Life] = []
        self.owners: dict[tuple[int, int], _Ownership] = {}
        self.released = 0
        self.released_in: dict[int, int] = {}  # By epoch, of this gen.
        self.sums_released: list[int] = [0]
        self.chains: dict[int, int] = {}
        self.gen = 1
        self.promoted_at = 0.0
        self.effects_of: dict[tuple[Incarnation, int], int] = {}
        self._incs = 0
        self._ops = 0
        self._until = self.stormy_s
        self.value, self.ver = self._first_map(), 1
        self.done: dict[tuple[Incarnation, int], str] = {}

    # The beginning

    def _first_map(self) -> ClusterMap:
        nodes = {name: NodeEntry(state=NodeState.DOWN) for name in self.names}
        return ClusterMap(settings=self.settings, nodes=nodes)

    def _draw_kinds(self) -> list[str]:
        weights = {
            "crash": 4, "crash owner": 3, "crash two": 2, "stop": 3, "stop owner": 3,
            "cut one way": 2, "cut pair": 2, "isolate owner": 2, "reset": 2, "no register": 2,
        }  # fmt: skip
        if self.profile is Profile.TIGHT:
            weights = {
                "stop": 2, "stop owner": 4, "cut one way": 3, "cut pair": 3, "isolate owner": 5,
                "reset": 2, "no register": 1,
            }  # fmt: skip
        kinds = [kind for kind in weights if self.chance.random() > 0.25] or list(weights)
        return [kind for kind in kinds for _ in range(weights[kind])]

    def run(self) -> Counter[str]:
        """Run the schedule. Raises `Violation`, or an `AssertionError` of a stream."""
        for name in self.names:
            self._start(name)
        owner = self.lives[self.names[0]].who
        entry = StreamEntry(
            home=None if self.sid == 0 else owner.node,
            gen=1,
            epoch=1,
            owner=owner,
            isr=(owner,),
            min_copies=default_min_copies(self.value),
        )
        self._commit(replace(self.value, streams={self.sid: entry}, next_sid=self.sid + 1))
        self.net.after(0.3, self._fault)
        self.net.after(0.1, self._load)
        self.net.run(until=self.stormy_s)
        if self.profile is Profile.STEADY:
            self._steady()
        else:
            self._heal()
        self._settle()
        self._at_the_end()
        for life in [*self.lives.values(), *self.graves]:
            self.counts.update(life.stream.counts)
        return self.counts

    def _start(self, name: str) -> None:
        self._incs += 1
        who = Incarnation(name, self._incs)
        stream = Stream(
            sid=self.sid,
            me=who,
            cluster8=CLUSTER8,
            limits=self.limits,
            make=SimList,
            free_bytes=lambda: 1 << 20,
        )
        life = _Life(who, stream, life_shown_at=self.net.now)
        self.lives[name] = life
        if self.net.now == 0.0:
            entry = replace(self.value.nodes[name], proc_inc=who.inc, state=NodeState.UP)
            self._commit(replace(self.value, nodes={**self.value.nodes, name: entry}))
        else:
            self._propose(life, self._own_token(life), NodeUp(me=who))
        self.net.after(self.chance.uniform(0.0, 0.1), lambda: self._look(life))

    # The register

    def _commit(self, value: ClusterMap) -> None:
        value.check()
        before = self.value.streams.get(self.sid)
        self.value, self.ver = value, self.ver + 1
        entry = value.streams.get(self.sid)
        if entry is not None and before is not None:
            if entry.epoch < before.epoch:
                raise Violation(f"SI3: epoch {before.epoch} was followed by {entry.epoch}")
            if entry.gen > before.gen:
                self._lost(before)
        self._check_members()
        for name in self.names:
            self._teach(name)

    def _teach(self, name: str) -> None:
        value, ver = self.value, self.ver
        self._register_way(REGISTER, name, lambda life: self._learn(life, value, ver))

    def _register_way(self, source: str, target: str, deliver: Callable[[_Life], None]) -> None:
        """A message from the register to a node. It may be lost, late, or come twice."""
        life = self.lives.get(target)
        if life is None or self.net.is_cut(source, target):
            return
        if not self.healed and self.chance.random() < self.register_loss:
            return
        delay_s = (0.001 if self.healed else self.register_s) * self.chance.paretovariate(1.5)
        self.net.after(delay_s, lambda: self._at(life, lambda: deliver(life)))

    def _learn(self, life: _Life, value: ClusterMap, ver: int) -> None:
        if ver <= life.ver:
            return
        life.map, life.ver = value, ver
        self._handle(life, MapChanged(value, ver))

    def _propose(self, life: _Life, token: int, function: Function) -> None:
        life.proposals[token] = function
        self._request(life, token)

    def _request(self, life: _Life, token: int) -> None:
        if not life.alive or token not in life.proposals:
            return
        function = life.proposals[token]
        lost = not self.healed and self.chance.random() < self.register_loss
        if not life.stopped and not lost and not self.net.is_cut(life.who.node, REGISTER):
            delay_s = (0.001 if self.healed else self.register_s) * self.chance.paretovariate(1.5)
            self.net.after(delay_s, lambda: self._decide(life.who, token, function))
        self.net.after(RETRY_S, lambda: self._request(life, token))

    def _decide(self, who: Incarnation, token: int, function: Function) -> None:
        if who.node in self.value.nodes and self.value.nodes[who.node].proc_inc > who.inc:
            return  # What a former life asked for cannot be accepted after a newer change.
        if (who, token) not in self.done:
            value, result = function.apply(self.value)
            self.done[who, token] = result
            self._count_change(function, result)
            if result == DONE:
                self._commit(value)
        else:
            was = self.done[who, token]
            self.counts["unknown was yes" if was == DONE else "unknown was no"] += 1
        result, value, ver = self.done[who, token], self.value, self.ver

        def reply(life: _Life) -> None:
            if life.who != who or life.proposals.pop(token, None) is None:
                return
            self._learn(life, value, ver)
            if token == life.own_token:
                life.own_token = 0
            elif token < 1 << 32:
                self._handle(life, Outcome(token, ver, result))

        self._register_way(REGISTER, who.node, reply)

    def _count_change(self, function: Function, result: str) -> None:
        name = type(function).__name__
        self.counts[name if result == DONE else f"{name} refused"] += 1

    def _own_token(self, life: _Life) -> int:
        life.own_tokens += 1
        life.own_token = life.own_tokens
        return life.own_token

    # A node

    def _at(self, life: _Life, action: Callable[[], None]) -> None:
        """Something happens at a process; later, if it stands still; never, if it is over."""
        if not life.alive:
            return
        if life.stopped:
            life.held_back.append(action)
        else:
            action()

    def _handle(self, life: _Life, event: Event) -> None:
        life.stream.handle(event, self.net.now, life.outbox)
        self._turn(life)

    def _turn(self, life: _Life) -> None:
        self._check(life)
        if not life.turn_ends:
            life.turn_ends = True
            self.net.after(
                self.turn_s * self.chance.random(), lambda: self._at(life, lambda: self._end(life))
            )

    def _end(self, life: _Life) -> None:
        """The turn of its loop ends: what it said goes out."""
        life.turn_ends = False
        now = self.net.now
        if life.stream.role is Role.OWNER:
            life.stream.seal(now, life.outbox)
        effects, life.outbox = life.outbox, []
        for effect in effects:
            self._carry_out(life, effect)
        self._check(life)
        deadline = life.stream.next_deadline()
        if deadline is not None and (life.wakes_at is None or deadline < life.wakes_at):
            life.wakes_at = deadline
            self.net.after(
                max(0.0, deadline - now), lambda: self._at(life, lambda: self._wake(life, deadline))
            )

    def _wake(self, life: _Life, deadline: float) -> None:
        if life.wakes_at == deadline:
            life.wakes_at = None
            self._handle(life, Wake())

    def _carry_out(self, life: _Life, effect: Effect) -> None:
        me = life.who.node
        match effect:
            case Send():
                if isinstance(effect.message, Receipt):
                    life.receipts_sent[effect.message.number] = self.net.now
                data = b"".join(encode(effect.message))
                to, sender = effect.to, life.who
                self.net.stream(me, to.node, lambda: self._deliver(sender, to, data))
            case Publish():
                data = b"".join(effect.parts)
                for name in self.names:
                    if name != me:
                        self.net.send(me, name, lambda name=name: self._deliver_group(name, data))  # type: ignore[misc]
            case Propose():
                self._propose(life, effect.token, effect.function)
            case Behind():
                self._teach(me)
            case Released():
                self._released(life, effect)
            case Promoted():
                self.counts["adopted ops"] += effect.adopted
            case Deposed():
                self.counts["deposed"] += 1
            case Lost():
                self.counts["lost"] += 1
            case Distrust() | Fatal() | CopyVoid():
                raise Violation(f"nobody here lies or fails: {effect.sentence}")
            case _:
                pass

    def _deliver(self, sender: Incarnation, to: Incarnation, data: bytes) -> None:
        life = self.lives[to.node]
        if life.who == to:
            message = decode(data)

            def receive() -> None:
                if isinstance(message, Tick):
                    self._life_shown(life, sender, message)
                self._handle(life, FromPeer(sender, message))

            self._at(life, receive)

    def _deliver_group(self, name: str, data: bytes) -> None:
        life = self.lives[name]
        message = decode(data)

        def receive() -> None:
            self._handle(life, FromGroup(message))
            if self.chance.random() < 0.7:
                self._handle(life, GroupDrained())
            else:
                self.net.after(
                    0.002, lambda: self._at(life, lambda: self._handle(life, GroupDrained()))
                )

        self._at(life, receive)

    # Who is alive, and who takes over

    def _life_shown(self, life: _Life, owner: Incarnation, tick: Tick) -> None:
        """A tick shows life in both directions if it echoes a receipt that was sent lately."""
        sent_at = life.receipts_sent.get(tick.echoed)
        mute = life.stream.role is Role.WAITING_FOR_TRANSFER or not life.receipts_sent
        if life.life_shown_by != (owner, tick.epoch) or mute:
            life.life_shown_by = (owner, tick.epoch)
            life.life_shown_at = self.net.now
        elif sent_at is not None:
            life.life_shown_at = max(life.life_shown_at, sent_at)

    def _look(self, life: _Life) -> None:
        """What a node does from time to time: who is dead, who must be replaced."""
        if not life.alive:
            return
        self.net.after(self.chance.uniform(0.04, 0.08), lambda: self._look(life))
        if life.stopped:
            return
        if self.chance.random() < 0.2:
            self._teach(life.who.node)
        self._prove_deaths(life)
        if life.map is not None and not life.own_token:
            function = self._wish(life, life.map)
            if function is not None:
                self._propose(life, self._own_token(life), function)

    def _prove_deaths(self, life: _Life) -> None:
        me = life.who.node
        for grave in self.graves:
            other = grave.who.node
            if (
                grave.who not in life.proved_dead
                and not self.net.is_cut(me, other)
                and not self.net.is_cut(other, me)
            ):
                life.proved_dead.add(grave.who)
                self._handle(life, Dead(grave.who))

    def _wish(self, life: _Life, value: ClusterMap) -> Function | None:
        entry = value.streams.get(self.sid)
        me = life.who
        if entry is None:
            return None
        if value.nodes[me.node].proc_inc == me.inc and not is_live(value, me):
            return SetUp(who=me)
        for name in self.names:
            other = Incarnation(name, value.nodes[name].proc_inc)
            if other in life.proved_dead and value.nodes[name].state is NodeState.UP:
                return SetDown(who=other)
        if entry.owner != me and self._stands(life, entry):
            return self._takeover(life, value, entry)
        return self._declaration(life, value, entry)

    def _stands(self, life: _Life, entry: StreamEntry) -> bool:
        """Whether this copy may become the owner's."""
        return life.who in entry.isr and life.stream.role is not Role.VOID

    def _takeover(self, life: _Life, value: ClusterMap, entry: StreamEntry) -> Function | None:
        now, old = self.net.now, entry.owner
        if life.life_shown_by is None or life.life_shown_by[1] < entry.epoch:
            life.life_shown_by, life.life_shown_at = (old, entry.epoch), now
        if superseded(value, old):
            why = TakeoverWhy.SUPERSEDED
        elif old in life.proved_dead:
            why = TakeoverWhy.DEAD
        elif now >= life.life_shown_at + self.patience_s and not self._heard_elsewhere(life, entry):
            why = TakeoverWhy.SILENT
        else:
            life.suspected_at = None
            return None
        # A later life of the owner's node stands last, if at all: a planted mistake lets it.
        heirs = [*(name for name in order(value, entry.home) if name != old.node), old.node]
        if life.suspected_at is None:
            life.suspected_at = now
        if now < life.suspected_at + 0.03 * heirs.index(life.who.node):
            return None
        life.suspected_at = None
        return Takeover(streams=((self.sid, entry.epoch),), me=life.who, old=old, why=why)

    def _heard_elsewhere(self, life: _Life, entry: StreamEntry) -> bool:
        """Whether another member says that it hears the owner. Profile tight does not ask."""
        if self.profile is Profile.TIGHT and not self.healed:
            return False
        me = life.who.node
        for who in entry.isr:
            other = self.lives[who.node]
            if who in (life.who, entry.owner) or other.who != who:
                continue
            reached = not self.net.is_cut(me, who.node) and not self.net.is_cut(who.node, me)
            if (
                reached
                and other.alive
                and not other.stopped
                and self.net.now < other.life_shown_at + self.patience_s
            ):
                return True
        return False

    def _declaration(self, life: _Life, value: ClusterMap, entry: StreamEntry) -> Function | None:
        if not all(superseded(value, who) for who in (*entry.isr, *entry.shed)):
            return None
        return DeclareLost(sid=self.sid, gen=entry.gen, me=life.who)

    # Clients

    def _load(self) -> None:
        if self.net.now < self._until:
            self.net.after(self.chance.expovariate(1 / self.load_s), self._load)
        owners = [
            life
            for life in self.lives.values()
            if life.alive and not life.stopped and life.stream.role is Role.OWNER
        ]
        if not owners:
            return
        life = self.chance.choice(owners)
        stream = life.stream
        for _ in range(self.chance.randint(1, self.burst)):
            size = self.chance.choice((0, 0, 20, 700))
            small = stream.log_end - stream.commit < 40
            if stream.room() < size + 20 and not (small and self.chance.random() < 0.2):
                self.counts["no room"] += 1
                continue
            self._ops += 1
            stream.append(SimOp(self._ops, b"x" * size))
            stream.answer(Effected(stream.log_end - 1, delivery=self.chance.random() < 0.3))
            if self.chance.random() < 0.1:
                stream.answer(Effected(stream.log_end - 1, delivery=False))
        self._turn(life)

    def _released(self, life: _Life, effect: Released) -> None:
        stream, now = life.stream, self.net.now
        for one in effect.effects:
            assert isinstance(one, Effected)
            self.counts["effects"] += 1
            if one.seq > self.effects_of.get((life.who, stream.gen), 0):
                raise Violation(f"SI14: an effect of op {one.seq} left {life.who} too early")
            if one.delivery and stream.may_deliver(now):
                self.counts["deliveries"] += 1
                self._check_fence(stream)
            elif one.delivery:
                self.counts["deliveries withheld"] += 1

    # Faults

    def _fault(self) -> None:
        if self.net.now >= self._until:
            return
        self.net.after(self.chance.expovariate(1 / self.fault_s), self._fault)
        self.counts["faults"] += 1
        chance = self.chance
        kind = chance.choice(self.kinds)
        lasts_s = chance.expovariate(1 / self.down_s)
        entry = self.value.streams[self.sid]
        one = chance.choice(self.names)
        if "owner" in kind:
            one = entry.owner.node
        other = chance.choice([name for name in self.names if name != one])
        match kind:
            case "crash" | "crash owner":
                self._crash(one, lasts_s)
            case "crash two":
                self._crash(one, lasts_s)
                self._crash(other, lasts_s * chance.random())
            case "stop" | "stop owner":
                self._stop(one, lasts_s)
            case "cut one way":
                self._cut([(one, other)], lasts_s)
            case "cut pair":
                self._cut([(one, other), (other, one)], lasts_s)
            case "isolate owner":
                others = [*self.names, REGISTER]
                ways = [(one, to) for to in others] + [(to, one) for to in others]
                self._cut(ways, lasts_s)
            case "no register":
                self._cut([(one, REGISTER), (REGISTER, one)], lasts_s)
            case _:
                self._reset(one, other)

    def _crash(self, name: str, down_s: float | None) -> None:
        life = self.lives[name]
        if not life.alive:
            return
        self.counts["crashes"] += 1
        life.alive = False
        self.graves.append(life)
        self.net.crash(name)
        if down_s is not None:
            self.net.after(down_s, lambda: self._restart(name))

    def _restart(self, name: str) -> None:
        if not self.lives[name].alive:
            self._start(name)

    def _stop(self, name: str, lasts_s: float | None) -> None:
        life = self.lives[name]
        if not life.alive or life.stopped:
            return
        self.counts["stops"] += 1
        life.stopped = True
        if lasts_s is not None:
            self.net.after(lasts_s, lambda: self._resume(life))

    def _resume(self, life: _Life) -> None:
        if not life.stopped:
            return
        life.stopped = False
        # It has not heard anybody, and that is its own fault.
        life.life_shown_at = self.net.now
        held_back, life.held_back = life.held_back, []
        for action in held_back:
            self._at(life, action)

    def _cut(self, ways: list[tuple[str, str]], lasts_s: float | None) -> None:
        self.counts["cuts of the network"] += 1
        for source, target in ways:
            if source != target:
                self.net.cut(source, target)
        if lasts_s is not None:
            self.net.after(lasts_s, self._mend)

    def _mend(self) -> None:
        if self.net.now < self._until:
            self.net.heal()

    def _reset(self, one: str, other: str) -> None:
        self.counts["resets"] += 1
        self.net.reset(one, other)

    # The end

    def _heal(self) -> None:
        self._until = self.net.now
        self.healed = True
        self.patience_s = self.settings.silence_ms / 1000
        self.net.weather = FAIR
        self.net.heal()
        for name in self.names:
            self._resume(self.lives[name])
            self._restart(name)

    def _steady(self) -> None:
        """All heals, and then something breaks for good."""
        self._heal()
        self.net.run(until=self.net.now + 8.0)
        entry = self.value.streams[self.sid]
        one = entry.owner.node if self.chance.random() < 0.5 else self.chance.choice(self.names)
        other = self.chance.choice([name for name in self.names if name != one])
        match self.chance.choice(("crash", "stop", "isolate", "one way", "pair")):
            case "crash":
                self._crash(one, None)
            case "stop":
                self._stop(one, None)
            case "isolate":
                others = [*self.names, REGISTER]
                self._cut([(one, to) for to in others] + [(to, one) for to in others], None)
            case "one way":
                self._cut([(one, other)], None)
            case _:
                self._cut([(one, other), (other, one)], None)

    def _settle(self) -> None:
        """Everything that is pending shall be released, and so shall a last op."""
        until = self.net.now + HEALING_S
        self.net.run(until=self.net.now + 3.0)
        last = None
        while self.net.now < until:
            self.net.run(until=self.net.now + 0.5)
            owner = self._owner()
            if owner is None:
                continue
            stream = owner.stream
            if last != (owner.who, stream.epoch):
                last = (owner.who, stream.epoch)
                self._ops += 1
                stream.append(SimOp(self._ops, b""))
                stream.answer(Effected(stream.log_end - 1, delivery=False))
                self._turn(owner)
            elif stream.release == stream.log_end - 1 and self._is_full():
                # Once more, so that the others hear of it and apply.
                self.net.run(until=self.net.now + 0.5)
                if last == (owner.who, stream.epoch) and stream.release == stream.log_end - 1:
                    return
        if not self._may_wait_for_ever():
            entry = self.value.streams[self.sid]
            said = {n: (x.stream.role.value, x.stream.why) for n, x in self.lives.items()}
            raise Violation(f"SI12: not released after {HEALING_S} s: {entry}, {said}")
        self.counts["waits for ever"] += 1

    def _owner(self) -> _Life | None:
        entry = self.value.streams[self.sid]
        life = self.lives[entry.owner.node]
        good = life.alive and not life.stopped and life.who == entry.owner
        return life if good and life.stream.role is Role.OWNER else None

    def _is_full(self) -> bool:
        """As many copies as are wanted are in sync, if nothing is broken any more."""
        if self.profile is Profile.STEADY or self.small_repair:
            return True
        return len(self.value.streams[self.sid].isr) == copies(self.value)

    def _may_wait_for_ever(self) -> bool:
        entry = self.value.streams[self.sid]
        live = [life.who for life in self.lives.values() if life.alive]
        proven = all(superseded(self.value, who) for who in (*entry.isr, *entry.shed))
        if not any(who in live for who in entry.isr) and not proven:
            # The operator must say that a copy which was let go is the best there is, or that
            # a node which is down will not come back with one. But he is not asked for one
            # death: nobody is let go whose copy is needed.
            self._check_deaths(entry)
            return True
        # Without transfer of content a copy that needs it waits, and with it the stream.
        return any(
            life.stream.role is Role.WAITING_FOR_TRANSFER and "keeps ops" in life.stream.why
            for life in self.lives.values()
        )

    def _at_the_end(self) -> None:
        owner = self._owner()
        if owner is None:
            return
        entry = self.value.streams[self.sid]
        digest = owner.stream.machine.digest()
        for who in entry.isr:
            life = self.lives[who.node]
            if life.who != who or not life.alive or life.stopped or self.profile is Profile.STEADY:
                continue
            if life.stream.role is Role.WAITING_FOR_TRANSFER:
                continue
            if life.stream.machine.digest() != digest:
                raise Violation(f"SI11: {who} has another state than {owner.who}")
        for life in self.lives.values():
            life.stream.check()

    # Invariants

    def _check(self, life: _Life) -> None:
        stream = life.stream
        if not self.net.events % 16:
            stream.check()
        role = stream.role
        if role is Role.OWNER:
            self._check_owner(life)
        elif stream._following.shadow is not None and not stream.why:
            owned = self.owners.get((stream.gen, stream.epoch))
            if owned is not None and _sum(life, stream.applied) != _at(owned.sums, stream.applied):
                raise Violation(f"SI10: {life.who} applied what {owned.who} does not have")
        entry = self.value.streams.get(self.sid)
        if entry is not None and life.who in entry.isr:
            self._check_member(life, entry)

    def _check_owner(self, life: _Life) -> None:
        stream = life.stream
        key = (stream.gen, stream.epoch)
        owned = self.owners.get(key)
        if owned is None:
            start = stream.copy.history[-1].start
            owned = _Ownership(life.who, stream.epoch, start, _list(stream).sums)
            self.owners[key] = owned
            self.counts["promotions"] += 1
            if key[1] > 1 and self.net.now < self.promoted_at + 1.0:
                self.counts["promoted again within a second"] += 1
            self.promoted_at = self.net.now
            before = max((r for e, r in self.released_in.items() if e < key[1]), default=0)
            if stream.gen == self.gen and _sum(life, before) != self.sums_released[before]:
                raise Violation(f"SI9: {life.who} owns epoch {key[1]} without op {before}")
        elif owned.who != life.who:
            raise Violation(f"SI1: {owned.who} and {life.who} both own {key}")
        release = stream.release
        if release <= self.effects_of.get((life.who, stream.gen), 0):
            return
        self.effects_of[life.who, stream.gen] = release
        if owned.released_first_at is None:
            owned.released_first_at = self.net.now
        if stream.gen != self.gen:
            return
        # Released: by whomever, it is the same, and everybody who comes later has it.
        sums = _list(stream).sums
        known = min(release, self.released)
        if sums[known] != self.sums_released[known]:
            raise Violation(f"SI5: {life.who} released another op {known} than others did")
        for (gen, epoch), later in self.owners.items():
            if gen != stream.gen or epoch <= stream.epoch:
                continue
            if release >= later.log_end or _at(later.sums, release) != sums[release]:
                raise Violation(
                    f"SI9: {life.who} released op {release} in epoch {stream.epoch};"
                    f" {later.who} owns {epoch} without it"
                )
        self.released_in[stream.epoch] = release
        if release > self.released:
            self.counts["released"] += release - self.released
            self.sums_released.extend(sums[self.released + 1 : release + 1])
            self.released = release
        chain = stream.copy.log.chain_at(release + 1)
        if chain is not None:
            self.chains[release] = chain
        self._check_members()

    def _check_members(self) -> None:
        entry = self.value.streams.get(self.sid)
        if entry is None:
            return
        for who in entry.isr:
            life = self.lives[who.node]
            if life.who == who and life.alive:
                self._check_member(life, entry)

    def _check_member(self, life: _Life, entry: StreamEntry) -> None:
        if entry.gen == self.gen and self.released and not self._has(life, self.released):
            raise Violation(f"SI4: {life.who} is in sync without op {self.released}")

    def _has(self, life: _Life, seq: int) -> bool:
        """Whether this copy, with its tail, has op `seq` and all before it."""
        copy = life.stream.copy
        if copy.gen != self.gen:
            return False
        if life.stream.applied >= seq:
            return _list(life.stream).sums[seq] == self.sums_released[seq]
        if copy.log.end <= seq:
            return False
        return seq not in self.chains or copy.log.chain_at(seq + 1) == self.chains[seq]

    def _check_fence(self, stream: Stream[SimOp, int]) -> None:
        grace_s = self.settings.grace_ms / 1000
        for (gen, epoch), later in self.owners.items():
            if (gen, epoch) <= (stream.gen, stream.epoch) or later.released_first_at is None:
                continue
            if self.net.now >= later.released_first_at + grace_s:
                raise Violation(f"fence: epoch {stream.epoch} delivers long after {epoch} began")

    def _lost(self, before: StreamEntry) -> None:
        self.counts["declared lost"] += 1
        self._check_deaths(before)
        self.gen += 1
        self.released = 0
        self.released_in = {}
        self.sums_released = [0]
        self.chains = {}

    def _check_deaths(self, entry: StreamEntry) -> None:
        if not self.released:
            return
        died = [str(life.who) for life in self.graves if self._has(life, self.released)]
        if len(died) < entry.min_copies:
            raise Violation(
                f"SI13: nobody is left with op {self.released}, but of those that held it only"
                f" {died} died, and min_copies is {entry.min_copies}"
            )


def _list(stream: Stream[SimOp, int]) -> SimList:
    machine = stream.machine
    assert isinstance(machine, SimList)
    return machine


def _sum(life: _Life, seq: int) -> int | None:
    return _at(_list(life.stream).sums, seq)


def _at(sums: list[int], seq: int) -> int | None:
    return sums[seq] if seq < len(sums) else None


def run_world(seed: int, profile: Profile = Profile.PLAIN) -> Counter[str]:
    """One schedule."""
    return StreamWorld(seed, profile).run()
