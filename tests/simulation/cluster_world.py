"""A whole cluster and its clients, on simulated machines, and what must be true of them.

The nodes and the clients are the cores that run in production; only sockets, disks and clocks
are simulated. A seed draws a climate (`faults.py`) and a schedule. When the storm is over all
heals, but for the fault that never ends in the steady profile; then everything must drain, and
what the applications have seen is checked (`history.py`), as are the copies of all streams
after each turn of a node (`invariants.py`).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from msgspec.structs import replace

from broker.core.events import Exit, Log, Stop
from broker.core.limits import Limits, Timing
from broker.core.node import Node
from broker.core.post_office import PostOffice
from broker.core.settings import NodeSettings
from replication.core.clustermap import CATALOG_SID, StreamEntry
from replication.core.identity import Incarnation
from tanist.wire.control import Declare, QueueSettings
from tests.simulation import history
from tests.simulation.faults import ENDLESS, Climate, Fault, Profile
from tests.simulation.invariants import Invariants, Violation
from tests.simulation.network import FAIR, Network
from tests.simulation.page_disk import DiskHealth
from tests.simulation.pipes import Pipes
from tests.simulation.sim_client import Plan, SimClient
from tests.simulation.sim_node import CLIENT_PORT, PEER_PORT, Group, SimNode, Watch

CALM_S_MAX: Final = 90.0
"""When all has healed, everything must be drained after so long."""
SETTLE_S_MAX: Final = 60.0
"""Before the fault that never ends, everybody who can be in sync must be after so long."""
OPERATE_S: Final = 8.0
"""When nobody who is in sync lives, the operator waits so long before he gives up the others."""
RESTART_S: Final = 0.1
EVERY: Final = "every"
ONE: Final = "one"
SOLO: Final = "solo"
FULL: Final = "full"
"""Queues: spread over all post offices; in one; with one consumer only, and its producers wait
when it is full; the last refuses what it has no room for."""

NodeMaker = Callable[[NodeSettings, Incarnation, int, bytes | None, Callable[[], float]], Node]


def make_node(
    settings: NodeSettings,
    me: Incarnation,
    acceptor_inc: int,
    saved: bytes | None,
    draw: Callable[[], float],
) -> Node:
    return Node(settings, me=me, acceptor_inc=acceptor_inc, saved=saved, draw=draw)


@dataclass(slots=True)
class Report:
    """What happened in one schedule."""

    climate: Climate
    messages: history.Counts = field(default_factory=history.Counts)
    rare: Counter[str] = field(default_factory=Counter)
    """What the streams counted, and what the world did."""
    sim_s: float = 0.0
    events: int = 0

    def __str__(self) -> str:
        rare = ", ".join(f"{name} {n}" for name, n in sorted(self.rare.items()))
        return f"{self.climate}\n{self.messages}\n{rare}\n{self.sim_s:.1f} s, {self.events} events"


class ClusterWorld:
    """One schedule. `run()` raises `Violation`, or returns what happened.

    Args:
        make: Makes a node's core; a mutant's, to see whether it is found.
        told: Called with each line that tells what happens, for whoever replays a seed.
    """

    def __init__(
        self,
        seed: int,
        profile: Profile = Profile.PLAIN,
        *,
        make: NodeMaker = make_node,
        told: Callable[[str], None] | None = None,
    ) -> None:
        self.network = Network(seed)
        chance = self._chance = self.network.chance
        self.climate = Climate.draw(chance, profile)
        self.network.weather = self.climate.weather
        self.pipes = Pipes(self.network)
        self.report = Report(self.climate)
        self.events: list[history.Recorded] = []
        self._make = make
        self._told = told
        self._quiet = False
        self._catalog_lost = False
        self._incs = 0
        self._problems: list[str] = []
        self._backlog = 0
        self._graces: dict[
            tuple[Incarnation, int, tuple[bytes, bytes]], tuple[float, float, bool]
        ] = {}
        """Since when it runs, when it ends, and whether its consumer is there all the same."""
        self._ownerless_since: dict[int, float] = {}
        self._taken_at: dict[int, float] = {}
        group = Group(self.network, self.pipes)
        watch = Watch(
            turn=self._turned,
            log=self._logged,
            ended=self._exited,
            broke=self._node_broke,
            wrote=lambda node, connection, data: None,
        )
        names = "abcde"[: self.climate.nodes]
        self._settings = {name: self._settings_of(name, names) for name in names}
        self._acceptor_incs: dict[str, int] = {}
        self.nodes = {
            name: SimNode(
                name,
                network=self.network,
                pipes=self.pipes,
                group=group,
                watch=watch,
                boot=self._boot,
            )
            for name in names
        }
        for node in self.nodes.values():
            node.turn_s = self.climate.turn_s
        paging = self.climate.paging
        self._spoiler = self.nodes[chance.choice(names)] if paging is not None else None
        """The only node whose pages may be spoiled for good, so that others can read them."""
        if self._spoiler is not None and paging is not None:
            self._spoiler.health.spoils = paging.spoils
        self.invariants = Invariants(self.nodes, self._stream_lost, self._stream_taken, chance)
        self.clients = [self._client(index) for index in range(self.climate.clients)]

    def run(self) -> Report:
        chance, climate = self._chance, self.climate
        for node in self.nodes.values():
            self.network.after(chance.random() * 0.2, node.start)
        for client in self.clients:
            self.network.after(1.0 + chance.random(), client.start)
        self._run_until(2.0 + chance.random())
        self._later(climate.fault_s, self._fault)
        self._run_until(self.network.now + climate.stormy_s)
        self.heal()
        if climate.profile is Profile.STEADY:
            self._settle()
            self._strike_for_good()
            self._run_until(self.network.now + 4.0)
        self._drain()
        self.report.sim_s = self.network.now
        self.report.events = self.network.events
        self._check_end()
        return self.report

    # The nodes

    def _settings_of(self, name: str, names: str) -> NodeSettings:
        climate, paging = self.climate, self.climate.paging
        limits = Limits(
            producer_credit_messages=self._chance.choice((50, 50_000)),
            consumer_credit_messages_max=100_000,
        )
        if paging is not None:
            limits = replace(
                limits,
                page_bytes=paging.page_bytes,
                queue_resident_bytes_max=paging.part_bytes_max,
                read_ahead_bytes=paging.read_ahead_bytes,
            )
        return NodeSettings(
            name=name,
            cluster="sim",
            expected=tuple(names),
            peers={other: f"{other}:{PEER_PORT}" for other in names},
            peer_address=f"{name}:{PEER_PORT}",
            group_address=f"group-{name}",
            locators=(f"{name}:{CLIENT_PORT}",),
            failover_peers=climate.failover_peers,
            limits=limits,
            pages_bytes_max=paging.pages_bytes_max if paging is not None else None,
            timing=Timing(
                silence_ms=climate.silence_ms,
                grace_ms=climate.grace_ms,
                lost_connection_grace_ms=climate.lost_connection_grace_ms,
                client_silence_ms=climate.client_silence_ms,
            ),
        )

    def _boot(self, node: SimNode) -> tuple[Node, int]:
        self._incs += 1
        acceptor_inc = self._acceptor_incs.setdefault(node.name, 1000 + self._incs)
        me = Incarnation(node.name, self._incs)
        draw = self._chance.random
        core = self._make(self._settings[node.name], me, acceptor_inc, node.disk.durable, draw)
        return core, me.inc

    def _client(self, index: int) -> SimClient:
        chance = self._chance
        queues = (EVERY, ONE, FULL)
        holds = QueueSettings(bytes_max=self.climate.full_bytes)
        refuses = QueueSettings(bytes_max=self.climate.full_bytes, when_full="refuse")
        declares: tuple[Declare, ...] = (
            Declare(req=0, queue=EVERY),
            Declare(req=0, queue=SOLO, settings=holds),
            Declare(req=0, queue=FULL, settings=refuses),
        )
        takes: list[str] = [queue for queue in queues if chance.random() < 0.6]
        if index == 0:
            declares += (Declare(req=0, queue=ONE, spread="one", at=1),)
            takes = [*queues, SOLO]
        plan = Plan(
            declares=declares,
            posts_to=tuple(q for q in (EVERY, ONE, SOLO, FULL) if chance.random() < 0.6),
            takes_from=tuple(takes),
            automatic=chance.random() < 0.3,
            prefetch=chance.choice((1, 5, 50, 1000)),
            work_s=chance.choice(self.climate.work_s),
            failover_timeout_s=chance.choice((5.0, 200.0)),
        )
        return SimClient(
            f"x{index}",
            plan,
            locators=[f"{name}:{CLIENT_PORT}" for name in self.nodes],
            climate=self.climate,
            network=self.network,
            pipes=self.pipes,
            tell=self._tell,
            may_post=lambda: self._backlog < self.climate.backlog,
            broke=self._client_broke,
            draw_id=lambda: f"{chance.getrandbits(128):032x}",
            lost_catalog=lambda: self._catalog_lost,
        )

    # What happens

    def _tell(self, event: history.Recorded) -> None:
        self.events.append(event)
        if isinstance(event, history.Posted):
            self._backlog += 1
        elif isinstance(event, history.Refused) or (
            isinstance(event, history.Settled) and event.acked
        ):
            self._backlog -= 1

    def _run_until(self, at: float) -> None:
        self.network.run(until=at, watch=self._raise_problems)

    def _raise_problems(self) -> None:
        if self._problems:
            raise Violation("\n".join(self._problems))

    def _say(self, what: str) -> None:
        if self._told is not None:
            self._told(f"{self.network.now:9.4f} {what}")

    def _turned(self, node: SimNode) -> None:
        self.invariants.turn(node)
        self._watch_graces(node)
        if self.climate.paging is not None and self._chance.random() < 0.02:
            assert node.core is not None
            node.core.storeroom.pager.check()

    def _logged(self, node: SimNode, log: Log) -> None:
        self.report.rare[f"log: {log.event}"] += 1
        self._say(f"{node.name}: {log.event} {log.fields}")
        match log:
            case Log(event="serves a stream", fields={"sid": int(sid)}) if node.core is not None:
                machine = node.core.member.streams[sid].machine
                if isinstance(machine, PostOffice) and machine.shelf.tally.disk_bytes:
                    self.report.rare["takeovers with pages away"] += 1
            case Log(
                event="messages are lost",
                fields={
                    "queue": str(queue),
                    "post_office": int(sid),
                    "first": int(first),
                    "end": int(end),
                },
            ):
                at = self.network.now
                passed = history.PassedOver(at=at, queue=queue, sid=sid, first=first, end=end)
                self.events.append(passed)

    def _exited(self, node: SimNode, effect: Exit) -> None:
        if effect.code:
            self._problems.append(f"{node.name} ended with {effect.code}: {effect.sentence}")
        elif self._quiet:
            # It was told to stop while it was frozen.
            self.network.after(RESTART_S, node.start)

    def _node_broke(self, node: SimNode, error: Exception) -> None:
        self._problems.append(f"{node.name} broke:\n{_stack(error)}")

    def _client_broke(self, name: str, error: Exception) -> None:
        self._problems.append(f"client {name} broke:\n{_stack(error)}")

    def _stream_lost(self, sid: int, gen: int) -> None:
        self.report.rare["lost"] += 1
        self._say(f"LOST: stream {sid} in gen {gen}")
        if sid == CATALOG_SID:
            self._catalog_lost = True
        else:
            self.events.append(history.StreamLost(at=self.network.now, sid=sid, gen=gen))

    def _stream_taken(self, sid: int) -> None:
        self.report.rare["takeovers"] += 1
        if self.network.now < self._taken_at.get(sid, -10.0) + 1.0:
            self.report.rare["double takeovers"] += 1
        self._taken_at[sid] = self.network.now

    def _watch_graces(self, node: SimNode) -> None:
        """Whose grace has ended: his messages may go to others from now on."""
        core = node.core
        if core is None:
            return
        gone = {key for key in self._graces if key[0] == core.me}
        for sid, desk in core.desks.offices.items():
            for holder, grace in desk.consumers.graces.items():
                key = (core.me, sid, holder)
                gone.discard(key)
                since, _, _ = self._graces.get(key, (node.now, 0.0, False))
                there = any(channel.holder == holder for channel in desk.consumers)
                self._graces[key] = (since, grace.ends_at, there)
        for key in gone:
            since, ends_at, there = self._graces.pop(key)
            _, sid, holder = key
            if node.now < ends_at or sid not in core.desks.offices or there:
                continue  # He came back, or it is another owner's affair now.
            timing = self._settings[node.name].timing
            least_s = min(timing.lost_connection_grace_ms, timing.grace_ms) / 1000
            if node.now - since < 0.999 * least_s:
                self._problems.append(f"{node.name} ended a grace after {node.now - since:.3f} s")
            self.report.rare["graces that ended"] += 1
            for client in self.clients:
                if holder[0] in client.sessions:
                    name, consumer = client.sessions[holder[0]], holder[1].hex()
                    gone_ = history.Gone(at=self.network.now, client=name, consumer=consumer)
                    self.events.append(gone_)

    # Faults

    def _later(self, mean_s: float, action: Callable[[], None]) -> None:
        self.network.after(self._chance.expovariate(1.0 / mean_s), action)

    def _fault(self) -> None:
        if self._quiet:
            return
        self._later(self.climate.fault_s, self._fault)
        fault = self._chance.choice(self.climate.faults)
        self._strike(fault, until_s=self._chance.expovariate(1.0 / self.climate.down_s))

    def _strike(self, fault: Fault, until_s: float | None) -> None:
        """`until_s`: after so long it is over; None: never."""
        chance = self._chance
        name, other = chance.sample(sorted(self.nodes), 2)
        node = self.nodes[name]
        client = chance.choice(self.clients)
        self.report.rare[f"fault: {fault}"] += 1
        self._say(f"-- {fault}: {name} (and {other}; {client.place}) for {until_s}")
        match fault:
            case Fault.KILL:
                self._kill(node, until_s)
            case Fault.KILL_IN_TURN:
                node.kill_in_turn(chance.random())
                self._start_later(node, until_s)
            case Fault.KILL_TWO:
                self._kill(node, until_s)
                self._kill(self.nodes[other], until_s)
            case Fault.KILL_FOLLOWED:
                self._kill(node, until_s)
                second_s = chance.choice((0.01, 0.1, 0.5))
                self._end_later(second_s, partial(self._kill, self.nodes[other], until_s))
            case Fault.POWER_OFF:
                node.kill(power_off=True)
                self._start_later(node, until_s)
            case Fault.STOP:
                node.feed(Stop())
                self._start_later(node, until_s)
            case Fault.FREEZE:
                if node.core is not None and not node.stopped:
                    node.stop()
                    self._end_later(until_s, node.go_on)
            case Fault.CUT:
                self._cut([(name, other)], until_s)
            case Fault.CUT_PAIR:
                self._cut([(name, other), (other, name)], until_s)
            case Fault.ISOLATE:
                self._cut(self._ways(name, [n for n in self.nodes if n != name]), until_s)
            case Fault.ISOLATE_ALL:
                places = [n for n in self.nodes if n != name] + [c.place for c in self.clients]
                self._cut(self._ways(name, places), until_s)
            case Fault.ISOLATE_MOST:
                places = [n for n in self.nodes if n not in (name, other)]
                places += [c.place for c in self.clients]
                self._cut(self._ways(name, places), until_s)
            case Fault.RESET:
                for socket in list(self.pipes.open_at(name)):
                    if chance.random() < 0.5:
                        socket.reset()
            case Fault.CUT_CLIENT:
                ways = self._ways(client.place, [name])
                self._cut(chance.choice((ways, ways[:1], ways[1:])), until_s)
            case Fault.CUT_CLIENT_OFF:
                self._cut(self._ways(client.place, list(self.nodes)), until_s)
            case Fault.UNPLUG_CLIENT:
                for socket in list(self.pipes.open_at(client.place)):
                    socket.reset()
                self._cut(self._ways(client.place, list(self.nodes)), until_s)
            case Fault.FREEZE_CLIENT:
                if not client.frozen:
                    client.freeze()
                    self._end_later(until_s, client.go_on)
            case Fault.KILL_CLIENT:
                client.kill()
                self._end_later(until_s, client.start)
            case Fault.CLOSE_CLIENT:
                client.leave()
                self._end_later(until_s, client.start)
            case Fault.DISK_FULL | Fault.DISK_DEAF | Fault.DISK_SLOW:
                self._ail(node.health, fault, until_s)
            case Fault.SPOIL_PAGES | Fault.CLEAR_PAGES:
                assert self._spoiler is not None
                pages = self._spoiler.pages
                if pages is not None:
                    (pages.spoil if fault is Fault.SPOIL_PAGES else pages.clear)()

    def _ail(self, health: DiskHealth, fault: Fault, until_s: float | None) -> None:
        ail = {
            Fault.DISK_FULL: health.fill,
            Fault.DISK_DEAF: health.deafen,
            Fault.DISK_SLOW: health.slow_down,
        }[fault]
        ail(1)
        self._end_later(until_s, partial(ail, -1))

    def _ways(self, name: str, places: list[str]) -> list[tuple[str, str]]:
        return [(name, place) for place in places] + [(place, name) for place in places]

    def _cut(self, ways: list[tuple[str, str]], until_s: float | None) -> None:
        for way in ways:
            self.pipes.cut(*way)
            self._end_later(until_s, partial(self.pipes.mend, *way))

    def _kill(self, node: SimNode, until_s: float | None) -> None:
        node.kill()
        self._start_later(node, until_s)

    def _start_later(self, node: SimNode, until_s: float | None) -> None:
        self._end_later(until_s, node.start)

    def _end_later(self, until_s: float | None, action: Callable[[], None]) -> None:
        if until_s is None:
            return

        def end() -> None:
            if not self._quiet:  # Else it has ended already, with all others.
                action()

        self.network.after(until_s, end)

    # The end

    def heal(self) -> None:
        """Every fault is over."""
        self._say("-- all heals")
        self._quiet = True
        self.network.weather = FAIR
        self.pipes.heal()
        for node in self.nodes.values():
            node.health.heal()
            node.kill_in_turn(None)
            if node.stopped:
                node.go_on()
            node.start()
        for client in self.clients:
            if client.frozen:
                client.go_on()
            client.start()

    def _settle(self) -> None:
        """Until everybody who shall be in sync is, or it is clear that this takes too long."""
        until = self.network.now + SETTLE_S_MAX
        while self.network.now < until and not self._all_in_sync():
            self._run_until(self.network.now + 0.5)
            self._operate()

    def _all_in_sync(self) -> bool:
        value = self.invariants.map
        if value is None:
            return False
        most = 1 + min(value.settings.failover_peers, len(self.nodes) - 1)
        # Who has no copy of the catalog when he is cut off from its owner never gets one.
        known = {
            (
                node.core.member.streams[CATALOG_SID].gen,
                node.core.member.streams[CATALOG_SID].applied,
            )
            for node in self.nodes.values()
            if node.core is not None and CATALOG_SID in node.core.member.streams
        }
        return len(known) == 1 and all(
            len(entry.isr) >= most and all(self._lives(who) for who in entry.isr)
            for entry in value.streams.values()
        )

    def _lives(self, who: Incarnation) -> bool:
        core = self.nodes[who.node].core
        return core is not None and core.me == who

    def _strike_for_good(self) -> None:
        self._say("-- and now one fault that never ends")
        # Of three, two are a majority: they go on, and clients must be able to reach them.
        few = len(self.nodes) < 4
        faults = [f for f in ENDLESS if not (few and f is Fault.ISOLATE_MOST)]
        self._strike(self._chance.choice(faults), until_s=None)

    def _drain(self) -> None:
        for client in self.clients:
            client.be_quiet()
        until = self.network.now + CALM_S_MAX
        calm = 0
        while calm < 2:
            self._run_until(self.network.now + 0.3)
            left = self._left()
            calm = 0 if left else calm + 1
            self._operate()
            if left and self.network.now >= until:
                raise Violation("SI12: not drained:\n" + "\n".join(left))

    def _operate(self) -> None:
        """What no node may decide: that a copy which left the in-sync set alive, and is the
        last one, is given up, so that its stream is LOST; and what becomes of a queue whose
        name was given again."""
        value = self.invariants.map
        for node in self.nodes.values():
            catalog = node.core.definitions.catalog if node.core is not None else None
            for queue in catalog.queues() if catalog is not None else ():
                if "~" in queue.name:
                    self.report.rare["queues renamed"] += 1
                    self.clients[0].take_also(queue.name)
        for sid, entry in value.streams.items() if value is not None else ():
            if any(self._lives(who) for who in entry.isr):
                self._ownerless_since.pop(sid, None)
                continue
            since = self._ownerless_since.setdefault(sid, self.network.now)
            if self.network.now < since + OPERATE_S:
                continue
            for who in entry.shed:
                if self._lives(who):
                    self._say(f"-- the operator restarts {who}, for stream {sid}")
                    self.report.rare["shed copies given up"] += 1
                    self.nodes[who.node].kill()
                    self.nodes[who.node].start()

    def _left(self) -> list[str]:
        """What is still to be done."""
        left = [what for client in self.clients for what in client.waits_for()]
        value = self.invariants.map
        if value is None:
            return ["no map is committed"]
        for sid, entry in value.streams.items():
            core = self.nodes[entry.owner.node].core
            if core is None or core.me != entry.owner:
                left.append(f"stream {sid} has no owner: {entry}")
                continue
            stream = core.member.streams.get(sid)
            if stream is None:
                left.append(f"stream {sid} is not known to its owner: {entry}")
                continue
            if not core.member.owns(sid) or stream.held or stream.release < stream.log_end - 1:
                left.append(
                    f"stream {sid} at {entry.owner}: {stream.role.value} held {stream.held}"
                    f" release {stream.release} of {stream.log_end - 1}: {entry}"
                )
            if self.climate.profile is not Profile.STEADY:
                left += self._behind(sid, entry, stream.log_end)
            desk = core.desks.offices.get(sid)
            for queue in desk.office.queues() if desk is not None else ():
                stat = desk.office.stat(queue.id) if desk is not None else None
                if stat is not None and (stat.ready or stat.in_flight):
                    left.append(f"stream {sid} at {entry.owner}: {queue.name} has {stat}")
            left += self._pages_of(sid, entry)
        return left

    def _pages_of(self, sid: int, entry: StreamEntry) -> list[str]:
        """Files that members of the in-sync set have, though nothing may be left to be in them."""
        return [
            f"{who} has {key}"
            for who in entry.isr
            if self._lives(who) and (pages := self.nodes[who.node].pages) is not None
            for key in pages.files
            if key.book.sid == sid
        ]

    def _behind(self, sid: int, entry: StreamEntry, log_end: int) -> list[str]:
        """The members of the in-sync set that do not have all."""
        behind = []
        for who in entry.isr:
            core = self.nodes[who.node].core
            stream = core.member.streams.get(sid) if core is not None else None
            if stream is None or stream.applied < log_end - 1:
                behind.append(f"{who} lacks some of stream {sid}, which ends at {log_end}")
        return behind

    def _check_end(self) -> None:
        for node in self.nodes.values():
            self.report.rare += node.health.counts
            if node.core is not None:
                node.core.storeroom.pager.check()
                for stream in node.core.member.streams.values():
                    self.report.rare.update(stream.counts)
        for client in self.clients:
            client.check()
            self.report.rare["resumed with held"] += client.resumed_held
            self.report.rare["resumed in doubt"] += client.resumed_in_doubt
        self.invariants.check_digests()
        verdict = history.check(self.events)
        self.report.messages = verdict.counts
        if verdict.violations:
            shown = verdict.violations[:5]
            raise Violation("\n".join(map(str, [*shown, f"{len(verdict.violations)} in all"])))


def _stack(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
