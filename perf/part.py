"""What a part costs on the hot path.

Question: how many microseconds does a batch take through append, head, deliver and ack, and
does that depend on how much waits, on holes, or on how the messages were published?

Method: one part in memory, no broker. Each operation runs for about 20 ms a round; the best of
7 rounds counts. "All four" is a whole batch that goes in at the end while one goes out at the
front, so the backlog stays as it is. Single messages are cut into runs of 64, as a consumer's
turn has them; that line is for one run, publishing its messages one by one included.
A part with holes has every second message of its first 10,000 acknowledged. Beside the time
stands the bytes that a message takes beyond those of its batch, with everything sealed.

Not shown: making frames, replication, page files, and the memory that the allocator wastes.

Each result is a line for people, and with `--json` one JSON object for `perf/history/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import count as numbers

from paging.part import Part
from paging.ranges import Range
from perf.wire import best_us
from tanist.wire.batch import Batch, flags_of, seal

BODY = b"x" * 100
BATCH_COUNT = 600
RUN_COUNT = 64
BYTES_MAX = 1 << 20
HOLDER = 1
HOLES = 10_000


def batch(count: int) -> Batch:
    flags = flags_of(persistent=False)
    return Batch.parse(seal([BODY] * count, [], flags=flags, first_n=1, time_ms=1))


def part_with(backlog: int, *, each: int) -> Part:
    """A part in which so many messages wait, `each` in a batch."""
    part, one = Part(), batch(each)
    for _ in range(backlog // each):
        # A batch of its own each time, as it is when they come from producers.
        part.append(Batch.trusted(bytes(bytearray(one.data))))
    return part


def through(part: Part, source: Batch, *, publishes: int, run_count: int) -> Callable[[], object]:
    """One turn: something comes, something is delivered and acknowledged."""
    number = numbers(1)

    def turn() -> None:
        for _ in range(publishes):
            part.append(source)
        head = part.head(count_max=run_count, bytes_max=BYTES_MAX)
        assert head is not None
        delivery = next(number)
        part.deliver(delivery, head.run, HOLDER)
        part.ack(delivery, head.run)

    return turn


def with_holes(part: Part) -> Part:
    """Every second of the first messages is done with, the others are held."""
    part.deliver(0, Range(0, HOLES), HOLDER)
    for first in range(0, HOLES, 2):
        part.ack(0, Range(first, first + 1))
    return part


def requeues(part: Part, run: Range) -> Callable[[], object]:
    number = numbers(1)

    def there_and_back() -> None:
        delivery = next(number)
        part.deliver(delivery, run, HOLDER)
        part.requeue(delivery, run, flagged=True, count_attempt=True)

    return there_and_back


def acks_one_by_one(part: Part, source: Batch) -> Callable[[], object]:
    number = numbers(1)

    def turn() -> None:
        run = part.append(source)
        delivery = next(number)
        part.deliver(delivery, run, HOLDER)
        for first in range(run.first, run.end):
            part.ack(delivery, Range(first, first + 1))

    return turn


def operations() -> dict[str, tuple[Callable[[], object], int]]:
    """What is measured, by name, and how many messages each is for."""
    whole, single = batch(BATCH_COUNT), batch(1)
    empty, full = Part(), part_with(1_000_000, each=BATCH_COUNT)
    holes = with_holes(part_with(100_000, each=BATCH_COUNT))
    singles, packed = part_with(100_000, each=1), part_with(100_000, each=1)
    in_batches = part_with(100_000, each=BATCH_COUNT)
    loose = part_with(RUN_COUNT, each=1)
    run, first = Range(30_000, 30_000 + RUN_COUNT), Range(0, RUN_COUNT)

    def turn_of(part: Part) -> Callable[[], object]:
        return through(part, whole, publishes=1, run_count=BATCH_COUNT)

    return {
        "all four, nothing waits": (turn_of(empty), BATCH_COUNT),
        "all four, 1,000,000 wait": (turn_of(full), BATCH_COUNT),
        "all four, 5,000 holes before them": (turn_of(holes), BATCH_COUNT),
        "all four, one message, nothing waits": (
            through(Part(), single, publishes=1, run_count=RUN_COUNT),
            1,
        ),
        "all four, 64 single messages, 100,000 wait": (
            through(singles, single, publishes=RUN_COUNT, run_count=RUN_COUNT),
            RUN_COUNT,
        ),
        "walk 64 messages of one batch": (lambda: list(in_batches.pages.pieces(run)), RUN_COUNT),
        "walk 64 single messages, packed": (lambda: list(packed.pages.pieces(run)), RUN_COUNT),
        "walk 64 single messages, loose": (lambda: list(loose.pages.pieces(first)), RUN_COUNT),
        "acks one by one, a batch": (acks_one_by_one(Part(), whole), BATCH_COUNT),
        "deliver and requeue 10,000": (
            requeues(part_with(20_000, each=BATCH_COUNT), Range(0, 10_000)),
            10_000,
        ),
    }


def overhead_bytes(each: int) -> float:
    """Bytes a message takes beyond its batch's."""
    part = part_with(60_000, each=each)
    part.pages.seal()
    return (part.pages.resident_bytes - part.bytes) / 60_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    as_json = parser.parse_args().json
    if not as_json:
        print(f"{'bodies of 100 B':46} {'µs':>8} {'ns a message':>14}")
    for name, (operation, count) in operations().items():
        us = best_us(operation)
        if as_json:
            print(json.dumps({"benchmark": "part", "what": name, "us": us, "messages": count}))
        else:
            print(f"  {name:44} {us:8.2f} {us * 1000 / count:14.1f}")
    for each in (1, 10, BATCH_COUNT):
        extra = overhead_bytes(each)
        if as_json:
            print(json.dumps({"benchmark": "part", "each": each, "overhead_bytes": extra}))
        else:
            print(f"  {f'bytes a message beyond its batch, {each} in one':44} {extra:8.2f}")


if __name__ == "__main__":
    main()
