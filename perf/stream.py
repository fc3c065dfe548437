"""What the stream itself costs, whatever state it carries.

Question: does one turn with one batch of 64 KiB (append, seal, two receipts, release) take less
than 40 µs at the owner, and less than 60 µs at a shadow (read the frame, verify, confirm,
apply)? What does an op cost that is as small as an ack?

Method: an owner and two shadows, whose machine does nothing; each turn's frames are joined as a
transport would, then read by the shadows, and their receipts are given to the owner. Owner and
shadow are timed apart, each by its own calls only. Best of 7 rounds of 300 turns; collection is
off, as a node collects in idle turns only.

Not shown: the machine's work (`perf.post_office`), sockets, the group transport, ticks.

Each result is a line for people, and with `--json` one JSON object for `perf/history/`.
"""

from __future__ import annotations

import argparse
import gc
import json
from time import perf_counter

from replication.core.clustermap import ClusterMap, NodeEntry, NodeState, Settings, StreamEntry
from replication.core.identity import Incarnation
from replication.core.messages import decode, encode
from replication.core.stream import Stream, StreamLimits
from replication.core.stream_events import (
    Effect,
    FromGroup,
    FromPeer,
    GroupDrained,
    MapChanged,
    Publish,
    Send,
)

ROUNDS = 7
TURNS = 300
TURN_S = 0.002
NODES = (Incarnation("a", 1), Incarnation("b", 2), Incarnation("c", 3))
SHAPES = ((1, 64 << 10), (8, 8 << 10), (64, 1 << 10), (64, 40), (1, 40))


class Nothing:
    """An op of which the state is nothing."""

    __slots__ = ("body",)
    kind = 2
    head = bytes(32)

    def __init__(self, body: bytes) -> None:
        self.body = body

    def parts(self) -> tuple[bytes, ...]:
        return (self.head, self.body)


class NoState:
    """The machine."""

    def __init__(self, gen: int) -> None:
        self.applied = 0

    def decode(self, kind: int, data: bytes, start: int, end: int) -> Nothing:
        return NOTHING

    def apply(self, op: Nothing, /) -> None:
        self.applied += 1

    def digest(self) -> bytes:
        return b""


NOTHING = Nothing(b"")


def a_map() -> ClusterMap:
    entry = StreamEntry(home="a", gen=1, epoch=1, owner=NODES[0], isr=NODES, min_copies=1)
    return ClusterMap(
        settings=Settings(min_copies=1),
        nodes={who.node: NodeEntry(proc_inc=who.inc, state=NodeState.UP) for who in NODES},
        streams={1: entry},
        next_sid=2,
    )


class Copies:
    """An owner and its shadows, and where their time goes."""

    def __init__(self) -> None:
        self.now = 1.0
        self.owner_s = self.shadow_s = 0.0
        limits = StreamLimits(tick_s=1e6, tick_soon_s=1e6, receipt_s=TURN_S / 4)
        self.streams = {
            who: Stream(
                sid=1,
                me=who,
                cluster8=b"clusters",
                limits=limits,
                make=NoState,
                free_bytes=lambda: 1 << 30,
            )
            for who in NODES
        }
        self.owner = self.streams[NODES[0]]
        outbox: list[Effect] = []
        for who in reversed(NODES):
            self.streams[who].handle(MapChanged(a_map(), 1), self.now, outbox)
        self.exchange(NODES[0], outbox)

    def exchange(self, who: Incarnation, outbox: list[Effect]) -> None:
        """Until nobody says any more. Only what it is given for is timed."""
        for effect in outbox:
            replies: list[Effect] = []
            match effect:
                case Send():
                    data = b"".join(encode(effect.message))
                    self.give(who, effect.to, data, replies, by_link=True)
                    self.exchange(effect.to, replies)
                case Publish():
                    data = b"".join(effect.parts)
                    for other in NODES[1:]:
                        replies = []
                        self.give(who, other, data, replies, by_link=False)
                        self.exchange(other, replies)
                case _:
                    pass

    def give(
        self, who: Incarnation, to: Incarnation, data: bytes, out: list[Effect], *, by_link: bool
    ) -> None:
        stream = self.streams[to]
        begin = perf_counter()
        message = decode(data)
        if by_link:
            stream.handle(FromPeer(who, message), self.now, out)
        else:
            stream.handle(FromGroup(message), self.now, out)
            stream.handle(GroupDrained(), self.now, out)
        took = perf_counter() - begin
        if to == NODES[0]:
            self.owner_s += took
        else:
            self.shadow_s += took

    def turn(self, ops: list[Nothing]) -> None:
        self.now += TURN_S
        outbox: list[Effect] = []
        owner = self.owner
        begin = perf_counter()
        for op in ops:
            owner.append(op)
            owner.answer(op)
        owner.seal(self.now, outbox)
        self.owner_s += perf_counter() - begin
        self.now += TURN_S / 2
        self.exchange(NODES[0], outbox)


def run(ops: list[Nothing]) -> tuple[float, float]:
    """Seconds of the owner, and of one shadow, for all turns."""
    copies = Copies()
    copies.turn(ops)
    copies.owner_s = copies.shadow_s = 0.0
    for _ in range(TURNS):
        copies.turn(ops)
    assert copies.owner.release >= TURNS * len(ops), "what was sent was released"
    return copies.owner_s, copies.shadow_s / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    as_json = parser.parse_args().json
    gc.disable()
    if not as_json:
        print(f"{'a turn of':24} {'owner µs':>10} {'shadow µs':>10} {'owner µs an op':>16}")
    for count, body_bytes in SHAPES:
        ops = [Nothing(bytes(body_bytes)) for _ in range(count)]
        rounds = [run(ops) for _ in range(ROUNDS)]
        owner_us, shadow_us = (min(side) / TURNS * 1e6 for side in zip(*rounds, strict=True))
        shape = f"{count} × {body_bytes} B"
        if as_json:
            line = {"benchmark": "stream", "shape": shape, "owner": owner_us, "shadow": shadow_us}
            print(json.dumps(line))
        else:
            print(f"{shape:24} {owner_us:10.1f} {shadow_us:10.1f} {owner_us / count:16.2f}")
        gc.collect()


if __name__ == "__main__":
    main()
