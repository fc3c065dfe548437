"""What the tests of streams share: a machine that is a list, nodes, and links between them."""

from __future__ import annotations

from hashlib import blake2b

from msgspec.structs import replace

from replication.core.changes import DONE, Function
from replication.core.clustermap import (
    CATALOG_SID,
    ClusterMap,
    NodeEntry,
    NodeState,
    OnTooFewCopies,
    Settings,
    StreamEntry,
)
from replication.core.identity import Incarnation
from replication.core.messages import StreamMessage, decode, encode
from replication.core.stream import Role, Stream, StreamLimits
from replication.core.stream_events import (
    Effect,
    Event,
    FromGroup,
    FromPeer,
    GroupDrained,
    MapChanged,
    Outcome,
    Propose,
    Publish,
    Released,
    Send,
    Wake,
)

SID = 1
CLUSTER8 = b"testtest"
A, B, C, D = (Incarnation(name, number) for number, name in enumerate("abcd", 1))


class Line:
    """An op: one more line."""

    kind = 7

    def __init__(self, text: bytes) -> None:
        self.text = text

    def parts(self) -> tuple[bytes, ...]:
        return (b">", self.text)


class Lines:
    """The machine. It cannot bear the line `b"poison"`."""

    def __init__(self, gen: int) -> None:
        self.gen = gen
        self.lines: list[bytes] = []

    def decode(self, kind: int, data: bytes, start: int, end: int) -> Line:
        assert kind == Line.kind
        return Line(data[start + 1 : end])

    def apply(self, op: Line, /) -> int:
        if op.text == b"poison":
            raise ValueError("poison")
        self.lines.append(op.text)
        return len(self.lines)

    def digest(self) -> bytes:
        return blake2b(b"\n".join(self.lines)).digest()


def a_map(
    *isr: Incarnation,
    owner: Incarnation = A,
    epoch: int = 1,
    gen: int = 1,
    min_copies: int = 1,
    failover_peers: int = 2,
    nodes: str = "abc",
    solo: bool = False,
    sid: int = SID,
) -> ClusterMap:
    """A cluster of nodes that are up, and one stream. Nobody need be proposed `SetCopies`."""
    settings = Settings(
        failover_peers=failover_peers,
        min_copies=min_copies,
        on_too_few_copies=OnTooFewCopies.SOLO if solo else OnTooFewCopies.WAIT,
    )
    entry = StreamEntry(
        home=None if sid == CATALOG_SID else "a",
        gen=gen,
        epoch=epoch,
        owner=owner,
        isr=tuple(sorted(isr)),
        min_copies=min_copies,
    )
    entries = {
        name: NodeEntry(proc_inc=number, state=NodeState.UP)
        for number, name in enumerate("abcd", 1)
        if name in nodes
    }
    value = ClusterMap(settings=settings, nodes=entries, streams={sid: entry}, next_sid=2)
    value.check()
    return value


def a_stream(
    me: Incarnation, limits: StreamLimits | None = None, sid: int = SID
) -> Stream[Line, int]:
    return Stream(
        sid=sid,
        me=me,
        cluster8=CLUSTER8,
        limits=limits or StreamLimits(),
        make=Lines,
        free_bytes=lambda: 1 << 30,
    )


class Cluster:
    """Some nodes' streams, with perfect links, on one clock that the test moves.

    Attributes:
        deaf: What is sent to them is lost, and so is what they say.
        said: All effects but messages and proposals, with who said them.
        proposed: All changes, in order. They are decided at once if `register_answers`.
    """

    def __init__(
        self,
        value: ClusterMap,
        *members: Incarnation,
        limits: StreamLimits | None = None,
        group_works: bool = True,
        deaf: tuple[Incarnation, ...] = (),
    ) -> None:
        self.now = 100.0
        self.value = value
        self.ver = 1
        self.register_answers = True
        self.group_works = group_works
        self.deaf = set(deaf)
        self.said: list[tuple[Incarnation, Effect]] = []
        self.proposed: list[Function] = []
        self.unanswered: list[tuple[Incarnation, Propose]] = []
        self.sent: list[tuple[Incarnation, Incarnation, StreamMessage]] = []
        (self.sid,) = value.streams
        self.streams = {who: a_stream(who, limits, self.sid) for who in members}
        self._outboxes: dict[Incarnation, list[Effect]] = {who: [] for who in members}
        self.learn()

    def __getitem__(self, who: Incarnation) -> Stream[Line, int]:
        return self.streams[who]

    def lines(self, who: Incarnation) -> list[bytes]:
        machine = self.streams[who].machine
        assert isinstance(machine, Lines)
        return machine.lines

    def add(self, who: Incarnation, limits: StreamLimits | None = None) -> None:
        """A node begins, with nothing."""
        self.streams[who] = a_stream(who, limits, self.sid)
        self._outboxes[who] = []
        self.learn()

    def learn(self, value: ClusterMap | None = None) -> None:
        """All nodes that hear anything learn of a map."""
        if value is not None:
            self.value, self.ver = value, self.ver + 1
        for who in self.streams:
            self.give(who, MapChanged(self.value, self.ver))
        self.carry()

    def give(self, who: Incarnation, event: Event) -> None:
        if who not in self.deaf:
            self.streams[who].handle(event, self.now, self._outboxes[who])

    def append(self, who: Incarnation, *texts: bytes) -> None:
        """Ops, each with itself as an effect, and the end of the turn."""
        for text in texts:
            self.streams[who].append(Line(text))
            self.streams[who].answer(text)
        self.seal(who)

    def seal(self, who: Incarnation) -> None:
        self.streams[who].seal(self.now, self._outboxes[who])
        self.carry()

    def run(self, seconds: float) -> None:
        """Let time pass: timers fire in steps of a millisecond."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.001
            for who, stream in self.streams.items():
                deadline = stream.next_deadline()
                if deadline is not None and deadline <= self.now:
                    self.give(who, Wake())
            self.carry()

    def carry(self) -> None:
        """Deliver what was said until nobody says any more."""
        while any(self._outboxes.values()):
            for who in self.streams:
                effects, self._outboxes[who] = self._outboxes[who], []
                for effect in effects:
                    self._carry_out(who, effect)

    def answer(self) -> None:
        """The register decides what it left unanswered."""
        unanswered, self.unanswered = self.unanswered, []
        for who, effect in unanswered:
            self._decide(who, effect)
        self.carry()

    def released(self, who: Incarnation) -> list[object]:
        return [
            one
            for speaker, effect in self.said
            if speaker == who and isinstance(effect, Released)
            for one in effect.effects
        ]

    def said_by(self, who: Incarnation, kind: type[Effect]) -> list[Effect]:
        return [effect for speaker, effect in self.said if speaker == who and type(effect) is kind]

    @property
    def entry(self) -> StreamEntry:
        return self.value.streams[self.sid]

    def _carry_out(self, who: Incarnation, effect: Effect) -> None:
        if isinstance(effect, Send):
            # What was lost was sent all the same.
            message = decode(b"".join(encode(effect.message)))
            self.sent.append((who, effect.to, message))
            if who not in self.deaf and effect.to in self.streams:
                self.give(effect.to, FromPeer(who, message))
        elif isinstance(effect, Publish):
            for other in self.streams:
                if other != who and who not in self.deaf and self.group_works:
                    self.give(other, FromGroup(decode(b"".join(effect.parts))))
                    self.give(other, GroupDrained())
        elif isinstance(effect, Propose):
            self.proposed.append(effect.function)
            if self.register_answers:
                self._decide(who, effect)
            else:
                self.unanswered.append((who, effect))
        else:
            self.said.append((who, effect))

    def _decide(self, who: Incarnation, effect: Propose) -> None:
        value, result = effect.function.apply(self.value)
        if result == DONE:
            self.value, self.ver = value, self.ver + 1
            for other in self.streams:
                self.give(other, MapChanged(value, self.ver))
        self.give(who, Outcome(effect.token, self.ver, result))


def moved(value: ClusterMap, owner: Incarnation, isr: tuple[Incarnation, ...]) -> ClusterMap:
    """The map after somebody took the stream over."""
    entry = value.streams[SID]
    after = replace(entry, epoch=entry.epoch + 1, owner=owner, isr=tuple(sorted(isr)))
    return replace(value, streams={SID: after})


def check_all(cluster: Cluster) -> None:
    """Every copy's own invariants; and members in sync have the owner's state."""
    for stream in cluster.streams.values():
        stream.check()
    owner = cluster[cluster.entry.owner]
    assert owner.role is Role.OWNER
    for who in cluster.entry.isr:
        if who not in cluster.deaf:
            assert cluster[who].machine.digest() == owner.machine.digest()
