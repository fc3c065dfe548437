"""One node's share of the cluster, without its clients: links, register, streams.

Theory of operation
-------------------
Everything that happens between nodes comes in here, as one event, and is passed to the part
that it concerns. What the parts say is carried on until nobody has anything more to say:

    shell ─▶ links ─▶ register ─ learned ─▶ every stream ─ proposals ─▶ register
                 └──▶ streams ─ released, promoted, deposed ─▶ news for the layer above
    heartbeats, the map ─▶ succession, caretaker ─ proposals ─▶ register

Rules
-----
1. Heartbeats leave first in a turn: a hung loop must look hung, and a busy one must not.
2. A map is acted on only when it is known to be committed.
3. The layer above reads `news` after each call; it is emptied by `take_news`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, assert_never

import msgspec

from replication.core import register_effects as register_says, stream_events as stream_says
from replication.core.caretaker import Caretaker
from replication.core.changes import DeclareLost
from replication.core.clustermap import ClusterMap, NodeState, incarnation, superseded
from replication.core.events import (
    DialFailed,
    Exit,
    GroupData,
    GroupDrained,
    GroupJoin,
    GroupLeave,
    GroupPublish,
    Level,
    Log,
    PeerData,
    PeerEffect,
    PeerEvent,
    PeerLost,
    PeerOpened,
    Persist,
    Persisted,
    PersistFailed,
    Wake,
)
from replication.core.identity import Incarnation
from replication.core.links import (
    Died,
    FromLink,
    LinkDown,
    LinkNews,
    Links,
    LinkUp,
    Namesake,
    VerSeen,
)
from replication.core.member_events import (
    Forwarded as Forwarded,
    MapLearned as MapLearned,
    MemberSettings as MemberSettings,
    News as News,
    ReleasedFound as ReleasedFound,
    SaidAside as SaidAside,
    Vouched as Vouched,
)
from replication.core.messages import (
    decode as decode_stream_message,
    encode as encode_stream_message,
)
from replication.core.peer_messages import (
    Aside,
    Ask,
    Forward,
    Heard,
    PeerMessage,
    PeerVerb,
    ReleasedAt,
    ReleasedIs,
    peer_frame,
    raw_peer_frame,
    read_peer_message,
)
from replication.core.proposals import Proposals
from replication.core.register import Register
from replication.core.register_messages import decode_message, encode_message
from replication.core.stream import Role, Stream
from replication.core.succession import Succession
from replication.core.turns import Turns
from tanist.errors import RemoteProtocolError
from tanist.wire.batch import Part

CUT_OFF_S: Final = 3.0
"""An owner that heard neither its in-sync set nor a majority for so long sends clients away."""


class Member:
    """One node as the others see it.

    Args:
        make: Makes the empty state machine of (sid, gen).
        free_bytes: What the node's budget leaves for one more stream's backlog.
    """

    def __init__(
        self,
        settings: MemberSettings,
        *,
        me: Incarnation,
        acceptor_inc: int,
        saved: bytes | None,
        draw: Callable[[], float],
        # The member carries any state machine; only the layer above knows which.
        make: Callable[[int, int], Any],
        free_bytes: Callable[[], int],
    ) -> None:
        self.me = me
        self.streams: dict[int, Stream[Any, Any]] = {}
        self.map: ClusterMap | None = None
        self.ver = 0
        self._settings = settings
        self._make = make
        self._free_bytes = free_bytes
        self._cluster8 = digest(settings.cluster.encode())[:8]
        agreed = msgspec.msgpack.encode((settings.expected, settings.settings))
        self.links = Links(
            me=me,
            cluster=settings.cluster,
            settings=digest(agreed).hex(),
            heartbeat_s=settings.heartbeat_s,
        )
        self.register = Register(
            me=me,
            acceptor_inc=acceptor_inc,
            cluster=settings.cluster,
            expected=settings.expected,
            settings=settings.settings,
            saved=saved,
            draw=draw,
        )
        silence_s = settings.settings.silence_ms / 1000
        self._succession = Succession(me=me, silence_s=silence_s)
        self._caretaker = Caretaker(me=me, presence=settings.presence)
        self._silence_s = silence_s
        self._turns = Turns(me)
        self._proposals = Proposals(self.register, self._turns)
        self._news: list[News] = []
        self._register_outbox: list[register_says.Effect] = []
        self._stream_outboxes: dict[int, list[stream_says.Effect]] = {}
        self._groups: dict[str, str] = {}
        self._hearing: str | None = None
        self._look_around = False
        """Something happened that those who care for the map must look at. Data is no such
        thing: on the hot path they would cost more than all the rest of a turn."""
        self.reticent: set[int] = set()
        """Streams whose owner, this node, does not say how far they are released."""

    # For the layer above

    def take_news(self) -> list[News]:
        news, self._news = self._news, []
        return news

    def start(self, now: float, outbox: list[PeerEffect]) -> None:
        """Meet the others, and find out what is agreed."""
        for name in self._settings.expected:
            self.links.meet(name, self._settings.addresses.get(name, ""), now, outbox)
        if self.register.cluster_id is not None:
            self.register.read(now, self._register_outbox)
        self.handle(Wake(), now, outbox)

    def owner_of(self, sid: int) -> Incarnation | None:
        if self.map is None or sid not in self.map.streams:
            return None
        return self.map.streams[sid].owner

    def owns(self, sid: int) -> bool:
        """Whether this node serves the stream: in the map, and promoted."""
        stream = self.streams.get(sid)
        return stream is not None and stream.role is Role.OWNER and self.owner_of(sid) == self.me

    def owner_is_suspect(self, sid: int, now: float) -> bool:
        """Whether a takeover of this stream is to be expected."""
        owner = self.owner_of(sid)
        if owner is None or self.map is None:
            return True
        if owner == self.me:
            return not self.owns(sid)
        if superseded(self.map, owner) or self.links.is_dead(owner):
            return True
        return now >= self.links.life_at(owner, now) + self._silence_s

    def ask_released(self, req: int, sid: int, outbox: list[PeerEffect]) -> bool:
        """Ask the owner of a stream how far it is released. False: it cannot be asked now."""
        owner = self.owner_of(sid)
        if owner is None:
            return False
        return self._send(owner, ReleasedAt(req, sid), outbox)

    def forward(self, sid: int, payload: bytes, outbox: list[PeerEffect]) -> bool:
        """Say this to the layer above at the owner of a stream. False: it was not sent."""
        owner = self.owner_of(sid)
        return owner is not None and self._send(owner, Forward(sid, payload), outbox)

    def say_aside(
        self, who: Incarnation, sid: int, gen: int, payload: bytes, outbox: list[PeerEffect]
    ) -> bool:
        """Say this to the layer above at another copy of a stream. False: it was not sent."""
        return self._send(who, Aside(sid, gen, payload), outbox)

    def declare_lost(self, token: int, sid: int, gen: int) -> None:
        """Propose that a stream goes on empty, since the operator vouches for it that no process
        that counts as down comes back with a copy. `Vouched` is the outcome."""
        function = DeclareLost(sid=sid, gen=gen, me=self.me, vouched=True)
        self._proposals.from_above(token, function)

    def cut_off(self, sid: int, now: float) -> bool:
        """Whether this owner hears neither its in-sync set nor a majority, for 3 s by now."""
        since = self.streams[sid].unanswered_since()
        if since is None or now < since + CUT_OFF_S:
            return False
        voters = [name for name, _ in self.register.acceptors]
        linked = [self.links.linked_as(name) for name in voters if name != self.me.node]
        heard = [who for who in linked if who and now < self.links.life_at(who, now) + CUT_OFF_S]
        return 2 * (len(heard) + (self.me.node in voters)) <= len(voters)

    # What happens

    def handle(self, event: PeerEvent, now: float, outbox: list[PeerEffect]) -> None:
        match event:
            case GroupData():
                self._from_group(event.data, now, outbox)
            case PeerData() | PeerOpened() | PeerLost() | DialFailed():
                self._link_news(self.links.handle(event, now, outbox), now, outbox)
            case GroupDrained():
                for sid, stream in self.streams.items():
                    stream.handle(stream_says.GroupDrained(), now, self._outbox_of(sid))
            case Persisted():
                self.register.handle(
                    register_says.Persisted(event.token), now, self._register_outbox
                )
            case PersistFailed():
                outbox.append(
                    Log(
                        Level.ERROR,
                        "the disk failed: this node does not vote any more until it is restarted",
                        {"why": event.sentence},
                    )
                )
            case Wake():
                self._look_around = True
                self._wake(now, outbox)
            case _:
                assert_never(event)
        self._carry_on(now, outbox)

    def end_turn(self, now: float, outbox: list[PeerEffect]) -> None:
        """Seal what was appended in this turn, and hand over what was proposed."""
        for sid, stream in self.streams.items():
            stream.seal(now, self._outbox_of(sid))
        self._carry_on(now, outbox)
        if self._look_around and not self._proposals.caring and not self.links.asks_for_namesake:
            self._look_around = False
            self._take_care(now, outbox)
        if self._proposals.hand_over(now, self._register_outbox):
            self._carry_on(now, outbox)

    def next_deadline(self) -> float | None:
        deadlines = [
            self.links.next_deadline(),
            self.register.next_deadline(),
            None if self._proposals.caring else self._succession.next_deadline(),
            self._proposals.next_deadline(),
            *(stream.next_deadline() for stream in self.streams.values()),
        ]
        return min((at for at in deadlines if at is not None), default=None)

    def _wake(self, now: float, outbox: list[PeerEffect]) -> None:
        self._link_news(self.links.wake(now, outbox), now, outbox)
        if self.links.lateness_s > self._silence_s / 3:
            self._succession.late(now)
            self.links.lateness_s = 0.0
        at = self.register.next_deadline()
        if at is not None and now >= at:
            self.register.handle(register_says.Wake(), now, self._register_outbox)
        for sid, stream in self.streams.items():
            at = stream.next_deadline()
            if at is not None and now >= at:
                stream.handle(stream_says.Wake(), now, self._outbox_of(sid))

    def _take_care(self, now: float, outbox: list[PeerEffect]) -> None:
        if self.map is None:
            return
        self._proposals.by_care(self._caretaker.wake(self.map, self.links, self._is_void, now))
        takeovers, questions = self._succession.wake(self.map, self.links, self._is_void, now)
        outbox.extend(
            Log(
                Level.WARNING,
                "an owner is gone: proposing to take over",
                {
                    "old": str(takeover.old),
                    "why": str(takeover.why),
                    "streams": [sid for sid, _ in takeover.streams],
                },
            )
            for takeover in takeovers
        )
        self._proposals.by_care(takeovers)
        for question in questions:
            self._send(question.member, Ask(question.who), outbox)

    def _is_void(self, sid: int) -> bool:
        stream = self.streams.get(sid)
        return stream is not None and stream.role is Role.VOID

    # Links

    def _send(self, who: Incarnation, message: PeerMessage, outbox: list[PeerEffect]) -> bool:
        write = self.links.write(who, peer_frame(message))
        if write is not None:
            outbox.append(write)
        return write is not None

    def _write(
        self, who: Incarnation, verb: PeerVerb, parts: tuple[Part, ...], outbox: list[PeerEffect]
    ) -> None:
        write = self.links.write(who, raw_peer_frame(verb, parts))
        if write is not None:
            outbox.append(write)

    def _link_news(self, news: list[LinkNews], now: float, outbox: list[PeerEffect]) -> None:
        for item in news:
            match item:
                case FromLink():
                    try:
                        self._from_link(item, now, outbox)
                    except RemoteProtocolError as error:
                        # One bad frame of a peer must not stop what all others send.
                        outbox.append(
                            Log(
                                Level.WARNING,
                                "dropped a frame of a peer",
                                {"peer": str(item.who), "why": str(error)},
                            )
                        )
                case VerSeen():
                    self.register.heard_ver(item.node, item.ver, now, self._register_outbox)
                case Died():
                    self._look_around = True
                    if self.map is not None:
                        self._turns.died(item.who, self.map, self.links.is_dead, now)
                    outbox.append(Log(Level.WARNING, "a node died", {"peer": str(item.who)}))
                    for sid, stream in self.streams.items():
                        stream.handle(stream_says.Dead(item.who), now, self._outbox_of(sid))
                case LinkUp():
                    outbox.append(Log(Level.INFO, "linked to a node", {"peer": str(item.who)}))
                case LinkDown():
                    outbox.append(
                        Log(Level.INFO, "lost the link to a node", {"peer": str(item.who)})
                    )
                case Namesake():
                    self._met_namesake(item.who, outbox)
                case _:
                    assert_never(item)

    def _met_namesake(self, who: Incarnation, outbox: list[PeerEffect]) -> None:
        if not self._caretaker.entered:
            outbox.append(Exit(1, _namesake(who)))
            return
        # The other one came later and is told the same by our answer. Should it enter all the
        # same, the map will say so, and this process ends.
        sentence = "another process was started under this node's name"
        outbox.append(Log(Level.WARNING, sentence, {"peer": str(who)}))

    def _from_link(self, frame: FromLink, now: float, outbox: list[PeerEffect]) -> None:
        who = frame.who
        if frame.verb == PeerVerb.STREAM:
            message = decode_stream_message(frame.payload)
            stream = self.streams.get(message.sid)
            if stream is not None:
                event = stream_says.FromPeer(who, message)
                stream.handle(event, now, self._outbox_of(message.sid))
                self._hearing = who.node
                self._carry_on(now, outbox)
                self._hearing = None
            return
        if frame.verb == PeerVerb.REGISTER:
            self.register.handle(
                register_says.FromPeer(who.node, decode_message(frame.payload)),
                now,
                self._register_outbox,
            )
            return
        other = read_peer_message(frame.verb, frame.payload)
        match other:
            case Ask():
                heard = other.who == self.me or (
                    not self.links.is_dead(other.who)
                    and now < self.links.life_at(other.who, now) + self._silence_s
                )
                self._send(who, Heard(other.who, heard), outbox)
            case Heard():
                self._look_around = True
                self._succession.heard(who, other.who, other.heard, now)
            case ReleasedAt():
                stream = self.streams.get(other.sid)
                if stream is not None and self.owns(other.sid) and other.sid not in self.reticent:
                    # Right after a takeover nothing is released in this epoch yet, and all
                    # the more was before it.
                    seq = stream.perhaps_released
                    answer = ReleasedIs(other.req, stream.gen, seq, True)
                else:
                    answer = ReleasedIs(other.req, 0, 0, False)
                self._send(who, answer, outbox)
            case ReleasedIs():
                self._news.append(ReleasedFound(other.req, other.gen, other.seq, other.owned))
            case Forward():
                self._news.append(Forwarded(who, other.sid, other.payload))
            case Aside():
                self._news.append(SaidAside(who, other.sid, other.gen, other.payload))
            case _:
                raise RemoteProtocolError(
                    f"peer frame type {frame.verb} came out of turn", code="bad_state"
                )

    def _from_group(self, data: bytes, now: float, outbox: list[PeerEffect]) -> None:
        if data[:8] != self._cluster8:
            return
        try:
            message = decode_stream_message(data)
        except RemoteProtocolError as error:
            outbox.append(Log(Level.WARNING, "dropped a frame of the group", {"why": str(error)}))
            return
        stream = self.streams.get(message.sid)
        if stream is not None:
            stream.handle(stream_says.FromGroup(message), now, self._outbox_of(message.sid))
            self._hearing = self._node_of(message.inc)
            self._carry_on(now, outbox)
            self._hearing = None

    def _node_of(self, inc: int) -> str | None:
        nodes = self.map.nodes.items() if self.map is not None else ()
        return next((name for name, entry in nodes if entry.proc_inc == inc), None)

    # What the parts say

    def _outbox_of(self, sid: int) -> list[stream_says.Effect]:
        outbox = self._stream_outboxes.get(sid)
        if outbox is None:
            outbox = self._stream_outboxes[sid] = []
        return outbox

    def _carry_on(self, now: float, outbox: list[PeerEffect]) -> None:
        """Carry out what register and streams said, until they say nothing more."""
        while self._register_outbox or self._stream_outboxes:
            register_effects, self._register_outbox = self._register_outbox, []
            for said in register_effects:
                self._register_said(said, now, outbox)
            streams_said, self._stream_outboxes = self._stream_outboxes, {}
            for sid, effects in streams_said.items():
                for effect in effects:
                    self._stream_said(sid, effect, now, outbox)

    def _register_said(
        self, effect: register_says.Effect, now: float, outbox: list[PeerEffect]
    ) -> None:
        match effect:
            case register_says.Send():
                who = self.links.linked_as(effect.node)
                parts = (encode_message(effect.message),)
                if who is not None:
                    self._write(who, PeerVerb.REGISTER, parts, outbox)
            case register_says.Persist():
                outbox.append(Persist(effect.blob, effect.token))
            case register_says.Learned():
                self._learned(effect.value, now, outbox)
            case register_says.Changed():
                self._changed(effect, now)
            case register_says.Note():
                level = Level[effect.level.upper()]
                outbox.append(Log(level, effect.text, effect.fields))
            case register_says.Fatal():
                outbox.append(Exit(1, effect.sentence))
            case _:
                assert_never(effect)

    def _learned(
        self, value: register_says.Committed, now: float, outbox: list[PeerEffect]
    ) -> None:
        self._look_around = True
        old, self.map, self.ver = self.map, value.map, value.ver
        self.links.ver = value.ver
        self.links.cluster_id = value.cluster_id
        for name, entry in value.map.nodes.items():
            if entry.peers:
                self.links.meet(name, entry.peers, now, outbox)
            if old is not None and name in old.nodes:
                before = incarnation(old, name)
                if before.inc != entry.proc_inc:
                    self.links.forget(before)
        self._follow_groups(value.map, outbox)
        newcomer = self._caretaker.learned(value.map)
        if newcomer is not None:
            outbox.append(Exit(1, _namesake(newcomer)))
            return
        if old is None and not self._caretaker.entered:
            self._ask_for_namesake(value.map, outbox)
        for sid in sorted(value.map.streams):
            stream = self.streams.get(sid)
            if stream is None:
                stream = self.streams[sid] = self._new_stream(sid)
            changed = stream_says.MapChanged(value.map, value.ver)
            stream.handle(changed, now, self._outbox_of(sid))
            for who in value.map.streams[sid].isr:
                if self.links.is_dead(who):
                    # It was told when it was proven, perhaps to another owner than this one.
                    stream.handle(stream_says.Dead(who), now, self._outbox_of(sid))
        self._news.append(MapLearned(value.ver))

    def _ask_for_namesake(self, value: ClusterMap, outbox: list[PeerEffect]) -> None:
        """Before this process does anything: is an earlier one of its name gone?"""
        entry = value.nodes.get(self.me.node)
        if entry is not None and entry.proc_inc and entry.peers:
            self.links.ask_for_namesake(entry.peers, outbox)

    def _new_stream(self, sid: int) -> Stream[Any, Any]:
        return Stream(
            sid=sid,
            me=self.me,
            cluster8=self._cluster8,
            limits=self._settings.stream_limits,
            make=lambda gen: self._make(sid, gen),
            free_bytes=self._free_bytes,
        )

    def _follow_groups(self, value: ClusterMap, outbox: list[PeerEffect]) -> None:
        for name, entry in sorted(value.nodes.items()):
            if name == self.me.node or self._groups.get(name, "") == entry.group:
                continue
            if self._groups.pop(name, ""):
                outbox.append(GroupLeave(name))
            if entry.group and entry.state is not NodeState.GONE:
                self._groups[name] = entry.group
                outbox.append(GroupJoin(name, entry.group))

    def _changed(self, effect: register_says.Changed, now: float) -> None:
        cared = self._proposals.caring
        answers = self._proposals.answered(effect)
        self._look_around |= cared and not self._proposals.caring
        for wish, result in answers:
            if wish.sid is None:
                self._news.append(Vouched(wish.token, result))
            else:
                outcome = stream_says.Outcome(wish.token, effect.ver, result)
                self.streams[wish.sid].handle(outcome, now, self._outbox_of(wish.sid))

    def _stream_said(
        self, sid: int, effect: stream_says.Effect, now: float, outbox: list[PeerEffect]
    ) -> None:
        match effect:
            case stream_says.Send():
                parts = tuple(encode_stream_message(effect.message))
                self._write(effect.to, PeerVerb.STREAM, parts, outbox)
            case stream_says.Publish():
                outbox.append(GroupPublish(effect.parts))
            case stream_says.Propose():
                self._proposals.by_stream(sid, effect.token, effect.function)
            case stream_says.Behind():
                if self._hearing is not None:
                    # Whoever spoke of that epoch knows a newer map.
                    self.register.heard_ver(self._hearing, self.ver + 1, now, self._register_outbox)
            case stream_says.Distrust():
                why = {"peer": str(effect.member), "sid": sid, "why": effect.sentence}
                outbox.append(Log(Level.ERROR, "a peer claims what cannot be", why))
                self._link_news(self.links.close(effect.member, now, outbox), now, outbox)
            case Log():
                outbox.append(effect)
            case stream_says.Fatal():
                outbox.append(Exit(1, effect.sentence))
            case _:
                self._news.append(effect)


def digest(data: bytes) -> bytes:
    """16 bytes that differ for different data."""
    return blake2b(data, digest_size=16).digest()


def _namesake(who: Incarnation) -> str:
    return (
        f"another process runs as node {who.node} (incarnation {who.inc:x}): each node needs a"
        " name of its own; stop one of the two, or change [node] name"
    )
