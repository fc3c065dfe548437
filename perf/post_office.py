"""What a batch costs at its post office, from publish to ack.

Question: does the owner take a batch of 600 messages through publish op, planned delivery, the
payloads of its DELIVER frames and the ack op in less than 60 µs, and what does a shadow need
for the same ops?

Method: batches of one producer, a turn each; what is planned is acknowledged as it was
delivered. Records are made of all ops, as a stream would, and the shadow applies these. The
backlog is drained after it was published whole. Best of 7 rounds of 500 batches; one process,
no sockets. Collection is off, as a node collects in idle turns only.

Not shown: reading the frame, checking its table (`perf.wire`: parse), the stream's own work on
segments and receipts, writing to sockets.

Each result is a line for people, and with `--json` one JSON object for `perf/history/`.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from time import perf_counter

from broker.core.delivery import deliver_payloads
from broker.core.dispatcher import Dispatcher
from broker.core.ops import Ack, OpenPart, PostOfficeOp, Producer, Publish
from broker.core.post_office import PostOffice
from tanist.wire.batch import Batch, flags_of, seal
from tanist.wire.control import QueueInfo

ROUNDS = 7
BATCHES = 500
SHAPES = ((600, 100), (64, 1024), (1, 1024))
PRODUCER = b"P" * 16
QUEUE = QueueInfo(id=1 << 32 | 1, name="q")
CREDIT = 1 << 40


class Owner:
    """A post office, its dispatcher and some legs with credit."""

    def __init__(self, legs: int) -> None:
        self.office = PostOffice(1, 1)
        self.dispatcher = Dispatcher(self.office)
        self.log: list[PostOfficeOp] = []
        self.append(OpenPart(1, QUEUE))
        self.append(Producer(PRODUCER, 1))
        for leg in range(legs):
            self.add_leg(leg)

    def add_leg(self, leg: int) -> None:
        self.dispatcher.add_leg(
            leg,
            queue_id=QUEUE.id,
            session=b"S" * 16,
            consumer=leg.to_bytes(16, "little"),
            automatic=False,
        )
        self.dispatcher.credit(leg, CREDIT, CREDIT)

    def append(self, op: PostOfficeOp) -> None:
        self.log.append(op)
        op.parts()
        self.office.apply(op)

    def publish(self, batch: Batch) -> None:
        self.append(Publish(1, PRODUCER, 1, self.office.end_of(1), batch))
        self.dispatcher.touched(QUEUE.id)

    def end_turn(self) -> None:
        for planned in self.dispatcher.plan(self.append):
            for _ in deliver_payloads(self.office, planned):
                pass
            self.append(Ack(1, ((planned.number, planned.first, planned.count),)))
        self.dispatcher.ready_legs(0.0)


def keep_up(legs: int) -> Callable[[list[Batch]], float]:
    def run(batches: list[Batch]) -> float:
        owner = Owner(legs)
        begin = perf_counter()
        for batch in batches:
            owner.publish(batch)
            owner.end_turn()
        return perf_counter() - begin

    return run


def publish_only(batches: list[Batch]) -> float:
    owner = Owner(legs=0)
    begin = perf_counter()
    for batch in batches:
        owner.publish(batch)
    return perf_counter() - begin


def drain(batches: list[Batch]) -> float:
    owner = Owner(legs=0)
    for batch in batches:
        owner.publish(batch)
    owner.add_leg(0)
    begin = perf_counter()
    while owner.office.stat(QUEUE.id).ready:
        owner.end_turn()
    return perf_counter() - begin


def shadow(batches: list[Batch]) -> float:
    owner = Owner(legs=1)
    for batch in batches:
        owner.publish(batch)
        owner.end_turn()
    records = [(op.kind, b"".join(op.parts())) for op in owner.log]
    copy = PostOffice(1, 1)
    begin = perf_counter()
    for kind, data in records:
        copy.apply(copy.decode(kind, data, 0, len(data)))
    return perf_counter() - begin


MEASURED: dict[str, Callable[[list[Batch]], float]] = {
    "publish, plan, payloads, ack; one leg": keep_up(1),
    "the same; four legs take turns": keep_up(4),
    "publish alone": publish_only,
    "drain a backlog: plan, payloads, ack": drain,
    "shadow: decode and apply all of it": shadow,
}


def made(count: int, body_bytes: int) -> list[Batch]:
    bodies = [bytes(body_bytes)] * count
    flags = flags_of(persistent=False)
    return [
        Batch.parse(seal(bodies, [], flags=flags, first_n=1 + i * count, time_ms=1))
        for i in range(BATCHES)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    as_json = parser.parse_args().json
    gc.disable()
    for count, body_bytes in SHAPES:
        shape = f"{count} × {body_bytes} B"
        batches = made(count, body_bytes)
        if not as_json:
            print(f"\n{shape:44} {'µs a batch':>12}")
        for what, run in MEASURED.items():
            us = min(run(batches) for _ in range(ROUNDS)) / BATCHES * 1e6
            if as_json:
                line = {"benchmark": "post_office", "shape": shape, "what": what, "us": us}
                print(json.dumps(line))
            else:
                print(f"  {what:42} {us:12.1f}")
        gc.collect()


if __name__ == "__main__":
    main()
