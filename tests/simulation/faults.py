"""What goes wrong in a simulated cluster, and how often: drawn anew by each seed.

Four profiles, since none of them finds what the others find:

    plain    every fault there is; then all heals, and everything must drain
    tight    no process dies; owners are suspected soon and wrongly, and what a cut holds back
             arrives after somebody else has taken over
    steady   faults, a pause, and then one that never ends: the others must go on without
    paged    as plain, and memory is so small that most messages are in page files; disks are
             full, slow or broken for a while, and one of them loses what it was given
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tests.simulation.network import Weather


class Profile(StrEnum):
    PLAIN = "plain"
    TIGHT = "tight"
    STEADY = "steady"
    PAGED = "paged"


class Fault(StrEnum):
    """What may happen to a node, to two of them, or to a client."""

    KILL = "kill"
    KILL_IN_TURN = "kill in a turn"
    KILL_TWO = "kill two"
    KILL_FOLLOWED = "kill the owner, then its successor"
    POWER_OFF = "power off"
    STOP = "stop"
    FREEZE = "freeze"
    CUT = "cut one way"
    CUT_PAIR = "cut a pair"
    ISOLATE = "cut off from all nodes"
    ISOLATE_ALL = "cut off from nodes and clients"
    ISOLATE_MOST = "cut off from clients and some nodes"
    RESET = "reset connections"
    CUT_CLIENT = "cut a client from a node"
    CUT_CLIENT_OFF = "cut a client from all nodes"
    UNPLUG_CLIENT = "reset and cut a client's connections"
    FREEZE_CLIENT = "freeze a client"
    KILL_CLIENT = "kill a client"
    CLOSE_CLIENT = "close a client"
    DISK_FULL = "no page can be written"
    DISK_DEAF = "no page can be read"
    DISK_SLOW = "a disk is slow"
    SPOIL_PAGES = "pages are spoiled"
    CLEAR_PAGES = "all pages of a node are removed"


_PLAIN: Final = {
    Fault.KILL: 4,
    Fault.KILL_IN_TURN: 3,
    Fault.KILL_TWO: 1,
    Fault.KILL_FOLLOWED: 2,
    Fault.POWER_OFF: 2,
    Fault.STOP: 2,
    Fault.FREEZE: 3,
    Fault.CUT: 2,
    Fault.CUT_PAIR: 2,
    Fault.ISOLATE: 2,
    Fault.ISOLATE_ALL: 1,
    Fault.ISOLATE_MOST: 1,
    Fault.RESET: 3,
    Fault.CUT_CLIENT: 2,
    Fault.CUT_CLIENT_OFF: 1,
    Fault.UNPLUG_CLIENT: 3,
    Fault.FREEZE_CLIENT: 1,
    Fault.KILL_CLIENT: 1,
    Fault.CLOSE_CLIENT: 1,
}
_PAGED: Final = _PLAIN | {
    Fault.DISK_FULL: 5,
    Fault.DISK_DEAF: 5,
    Fault.DISK_SLOW: 4,
    Fault.SPOIL_PAGES: 5,
    Fault.CLEAR_PAGES: 4,
}
_TIGHT: Final = {
    Fault.FREEZE: 5,
    Fault.CUT: 4,
    Fault.CUT_PAIR: 3,
    Fault.ISOLATE: 5,
    Fault.RESET: 3,
    Fault.CUT_CLIENT: 2,
    Fault.CUT_CLIENT_OFF: 1,
    Fault.UNPLUG_CLIENT: 3,
    Fault.FREEZE_CLIENT: 1,
}
ENDLESS: Final = (
    Fault.POWER_OFF,
    Fault.KILL,
    Fault.FREEZE,
    Fault.CUT,
    Fault.CUT_PAIR,
    Fault.ISOLATE,
    Fault.ISOLATE_ALL,
    Fault.ISOLATE_MOST,
)
"""Of which profile *steady* makes one that does not end."""


@dataclass(frozen=True, slots=True)
class Paging:
    """How little memory there is, and what keeps it filled."""

    page_bytes: int
    pages_bytes_max: int
    """Pages take up no more in the memory of a node."""
    part_bytes_max: int
    """Those of one part no more than that."""
    read_ahead_bytes: int
    body_bytes: int
    """A message is that long at least."""
    spoils: float
    """This share of what is written to one node's disk can never be read again. All that is
    there may be spoiled or removed, too, but on no other node."""

    @staticmethod
    def draw(chance: random.Random) -> Paging:
        page_bytes = chance.choice((300, 1_000, 4_000))
        return Paging(
            page_bytes=page_bytes,
            pages_bytes_max=chance.choice((0, 4_000, 16_000, 64_000)),
            part_bytes_max=chance.choice((page_bytes, 1 << 40)),
            read_ahead_bytes=page_bytes * chance.choice((1, 4)),
            body_bytes=chance.choice((0, 100, 400, 1_500)),
            spoils=chance.choice((0.0, 0.02, 0.3)),
        )


@dataclass(frozen=True, slots=True)
class Climate:
    """All that a seed draws besides the schedule itself."""

    profile: Profile
    nodes: int
    failover_peers: int
    silence_ms: int
    lost_connection_grace_ms: int
    grace_ms: int
    client_silence_ms: int
    weather: Weather
    turn_s: float
    """How long a turn of a loop may be waited for."""
    stormy_s: float
    """For so long faults happen."""
    fault_s: float
    """Between two of them, on average."""
    down_s: float
    """How long one lasts, on average."""
    faults: tuple[Fault, ...]
    """Drawn from, with their weights, without those that this seed leaves out."""
    post_s: float
    """Between two bursts of a producer."""
    burst: int
    clients: int
    full_bytes: int
    """Two queues hold so much per post office: one makes its producers wait, one refuses."""
    closes_s: float
    """Between two times that a client closes a consumer and opens another one."""
    holds: float
    """Share of the messages that a consumer keeps for a while."""
    returns: float
    """Share of the messages that it gives back."""
    work_s: tuple[float, ...]
    """Of these each client draws how long it needs for a message."""
    backlog: int
    """Messages posted and not acknowledged; beyond, nobody posts, so that a run stays short."""
    paging: Paging | None
    """None: there is memory for everything."""

    @staticmethod
    def draw(chance: random.Random, profile: Profile) -> Climate:
        tight, paged = profile is Profile.TIGHT, profile is Profile.PAGED
        weights = _TIGHT if tight else _PAGED if paged else _PLAIN
        left_out = {fault for fault in weights if chance.random() < 0.3}
        kinds = [fault for fault in weights if fault not in left_out] or list(weights)
        nodes = chance.choice((3, 3, 3, 4, 5))
        return Climate(
            profile=profile,
            nodes=nodes,
            failover_peers=chance.choice((2, 2, 2, 2, 1, min(3, nodes - 1))),
            silence_ms=chance.choice((250, 400)) if tight else chance.choice((400, 900)),
            # Short ones end more often, and then what a client still holds is not its own.
            lost_connection_grace_ms=chance.choice((150, 400, 2_000)),
            grace_ms=chance.choice((1_500, 10_000)),
            client_silence_ms=chance.choice((1_500, 3_000)),
            weather=Weather(
                loss=chance.choice((0.0, 0.01, 0.05, 0.2)),
                repeat=chance.choice((0.0, 0.1, 0.3)),
                delay_s=chance.choice((0.0003, 0.001, 0.005, 0.02)),
                disk_s=chance.choice((0.0005, 0.005, 0.05)),
            ),
            turn_s=chance.choice((0.0005, 0.002, 0.008)),
            stormy_s=chance.choice((3.0, 6.0, 10.0)),
            fault_s=chance.choice((0.3, 0.8, 2.0)),
            down_s=chance.choice((0.3, 0.8) if tight else (0.3, 1.5, 4.0)),
            faults=tuple(fault for fault in kinds for _ in range(weights[fault])),
            post_s=chance.choice((0.02, 0.1, 0.3)),
            burst=chance.choice((1, 2, 10)),
            clients=chance.choice((2, 3, 4)),
            full_bytes=chance.choice((600, 3_000, 1 << 20)),
            closes_s=chance.choice((1.0, 5.0, 1_000.0)),
            holds=chance.choice((0.0, 0.1, 0.5)),
            returns=chance.choice((0.0, 0.02, 0.1)),
            work_s=(0.01, 0.05, 0.2) if paged else (0.0, 0.0, 0.002, 0.02),
            backlog=250 if paged else 150,
            paging=Paging.draw(chance) if paged else None,
        )
