"""What the bookkeeping of a part's messages costs when they are acknowledged in an order of
their own.

Question: how much memory does a set of 50,000,000 offsets take up when every second one has
gone, how long does it take to take one out, and does it matter in which order they go?

Method: one set that is one run. Of every two offsets the first one is taken out, a call each:
in order, in random order, and in runs of 64 in random order with all of a run's calls in a
row, as many consumers do it that each work through their own delivery. Then all runs are
read, as a digest does. Each order has a process of its own, and what was freed before is given
back to the system. Memory is what that process has grown by since it had nothing but the
numbers to take out; beside it stands what the set says of itself. The longest of all calls is
told as well. Time is that of this thread alone, with the 0.3 µs that it takes to ask for it.

Not shown: pages, replication, and the garbage collector, which is off: nothing here is a cycle.

Each result is a line for people, and with `--json` one JSON object for `perf/history/`.
"""

from __future__ import annotations

import argparse
import gc
import json
from array import array
from collections.abc import Iterator
from ctypes import CDLL
from multiprocessing import get_context
from pathlib import Path
from random import Random
from resource import getpagesize
from time import thread_time_ns

from paging.ranges import Range, Ranges

MESSAGES = 50_000_000
RUN_COUNT = 64
ORDERS = ("in order", "runs in random order", "in random order")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * getpagesize()


def firsts(messages: int, order: str) -> array[int]:
    """Every second offset, in an order that is the same each time."""
    random = Random(1)
    if order == "in order":
        return array("Q", range(0, messages, 2))
    if order == "in random order":
        offsets = array("Q", range(0, messages, 2))
        random.shuffle(offsets)
        return offsets
    starts = array("Q", range(0, messages, RUN_COUNT))
    random.shuffle(starts)
    return array("Q", _in_runs(starts, messages))


def _in_runs(starts: array[int], messages: int) -> Iterator[int]:
    for start in starts:
        yield from range(start, min(start + RUN_COUNT, messages), 2)


def measure(messages: int, order: str) -> dict[str, object]:
    offsets = firsts(messages, order)
    gc.collect()
    gc.disable()
    CDLL(None).malloc_trim(0)
    before = resident_bytes()
    queue = Ranges(Range(0, messages))
    remove = queue.remove
    longest_ns, begin = 0, thread_time_ns()
    last = begin
    for first in offsets:
        remove(Range(first, first + 1))
        now = thread_time_ns()
        if now - last > longest_ns:
            longest_ns = now - last
        last = now
    took_ns = last - begin
    grown = resident_bytes() - before
    begin = thread_time_ns()
    runs = sum(1 for _ in queue)
    read_ns = thread_time_ns() - begin
    gc.enable()
    assert runs == queue.runs == queue.count == messages // 2
    return {
        "benchmark": "ranges",
        "what": order,
        "messages": messages,
        "ns": took_ns / len(offsets),
        "longest_us": longest_ns / 1000,
        "read_ns": read_ns / runs,
        "bytes_a_message": grown / messages,
        "bytes_it_says": queue.bookkeeping_bytes / messages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--messages", type=int, default=MESSAGES)
    arguments = parser.parse_args()
    if not arguments.json:
        print(
            f"{f'every second of {arguments.messages:,}':34} {'ns':>7} {'longest, µs':>12}"
            f" {'read, ns':>9} {'bytes a message':>16} {'it says':>8}"
        )
    for order in ORDERS:
        with get_context("spawn").Pool(1) as pool:
            result = pool.apply(measure, (arguments.messages, order))
        if arguments.json:
            print(json.dumps(result), flush=True)
        else:
            print(
                "  {what:32} {ns:7.0f} {longest_us:12.0f} {read_ns:9.0f}"
                " {bytes_a_message:16.3f} {bytes_it_says:8.3f}".format_map(result),
                flush=True,
            )


if __name__ == "__main__":
    main()
