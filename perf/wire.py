"""What the wire format costs on the hot path.

Question: how many microseconds do sealing, reading, cutting and handing out a batch take, and
so how much of a core at 400,000 messages a second?

Method: batches of 600 messages of 100 B and of 64 of 1 KiB, without columns and with a
properties column of three distinct objects. Each operation runs for about 20 ms a round; the
best of 7 rounds counts, since whatever else the machine does can only make a round slower. One
process, no sockets.

Not shown: reading the socket, JSON, and what broker and client do with what was read.

Each result is a line for people, and with `--json` one JSON object for `perf/history/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from time import perf_counter

from tanist.wire import hot
from tanist.wire.batch import Batch, flags_of, seal
from tanist.wire.frames import FRAME_BYTES_MAX, FrameReader, Verb, frame

ROUNDS = 7
ROUND_S = 0.02
SHAPES = ((600, 100), (64, 1024))
PROPERTIES = tuple(b'{"type":"order","region":"%d"}' % region for region in range(3))
READ_BYTES = 256 << 10
FRAMES = 13
FIND = f"find {FRAMES} frames in reads of {READ_BYTES >> 10} KiB"
FLAGS = flags_of(persistent=False)


def best_us(operation: Callable[[], object]) -> float:
    """Microseconds that one call takes, in the best round."""
    times, best_s = 1, float("inf")
    while True:
        begin = perf_counter()
        for _ in range(times):
            operation()
        if perf_counter() - begin >= ROUND_S:
            break
        times *= 2
    for _ in range(ROUNDS):
        begin = perf_counter()
        for _ in range(times):
            operation()
        best_s = min(best_s, (perf_counter() - begin) / times)
    return best_s * 1e6


def operations(
    count: int, body_bytes: int, *, with_properties: bool
) -> dict[str, Callable[[], object]]:
    """What is measured, by name, on batches of this shape."""
    bodies = [bytes([i % 256]) * body_bytes for i in range(count)]
    properties = [PROPERTIES[i % 3] for i in range(count)] if with_properties else []
    data = seal(bodies, properties, flags=FLAGS, first_n=1, time_ms=1)
    batch = Batch.parse(data)

    def deliver(first: int, run: int) -> bytes:
        return b"".join(
            hot.deliver(
                number=1,
                first=first,
                time_ms=batch.time_ms,
                count=run,
                part=1,
                flags=0,
                batch_flags=batch.flags,
                cut=batch.cut(first, run),
            )
        )

    whole, half = deliver(0, count), deliver(count // 4, count // 2)
    frames = b"".join(frame(Verb.PUBLISH, 1, data)) * FRAMES
    reads = [frames[at : at + READ_BYTES] for at in range(0, len(frames), READ_BYTES)]

    def read_frames() -> None:
        reader = FrameReader(FRAME_BYTES_MAX)
        for read in reads:
            reader.feed(read)

    return {
        "seal": lambda: seal(bodies, properties, flags=FLAGS, first_n=1, time_ms=1),
        "parse": lambda: Batch.parse(data),
        "trusted": lambda: Batch.trusted(data),
        "cut the whole": lambda: batch.cut(0, count),
        "cut a half": lambda: batch.cut(count // 4, count // 2),
        "fitting": lambda: batch.fitting(count // 4, count // 2, body_bytes * count // 8),
        "read_deliver, whole": lambda: hot.read_deliver(whole),
        "read_deliver, half": lambda: hot.read_deliver(half),
        FIND: read_frames,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    as_json = parser.parse_args().json
    for count, body_bytes in SHAPES:
        for with_properties in (False, True):
            shape = f"{count} × {body_bytes} B" + (", properties" if with_properties else "")
            if not as_json:
                print(f"\n{shape:44} {'µs':>8} {'ns a message':>14}")
            made = operations(count, body_bytes, with_properties=with_properties)
            for name, operation in made.items():
                us = best_us(operation)
                if as_json:
                    print(json.dumps({"benchmark": "wire", "shape": shape, "what": name, "us": us}))
                else:
                    messages = count * (FRAMES if name == FIND else 1)
                    print(f"  {name:42} {us:8.2f} {us * 1000 / messages:14.1f}")


if __name__ == "__main__":
    main()
