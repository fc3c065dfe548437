"""Where the time of a message goes, in each process that it passes.

Question: which layer of which process takes how much of the processor time of a message of 100
bytes, from `post` to the answer to its `ack`?

Method: as `perf.throughput`, three nodes, one producer, one consumer, each of them run with
samples of its stack (`perf.sampled`). The shares are of the samples of one process.

Not shown: what the samples cost themselves (some per cent), and waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from broker.runtime.huge_pages import TUNABLE, VARIABLE
from perf.cluster import Cluster
from perf.sampled import SYSTEM, shares
from perf.throughput import round_trip

FUNCTIONS_SHOWN: Final = 8
OWNER, BACKUPS = "node1", ("node2", "node3")
ROLES: Final = ("produce", "consume")


def sampling(out: Path) -> list[str]:
    """The launcher of a program that shall leave its samples there."""
    return [sys.executable, "-m", "perf.sampled", str(out)]


async def run(messages: int, body_bytes: int, outs: dict[str, Path]) -> float:
    """Messages per second, all sampled."""
    # With its memory as it wants it at once: its timer would end a node that starts itself anew.
    huge = ["env", f"{VARIABLE}={TUNABLE}=1"]
    launchers = {name: huge + sampling(outs[name]) for name in (OWNER, *BACKUPS)}
    roles = {role: sampling(outs[role]) for role in ROLES}
    async with Cluster(3, launchers=launchers) as cluster:
        # Who enters at a node publishes to that node's post office.
        at = cluster.url_of(OWNER)
        rate = await round_trip(cluster, "q", messages, body_bytes, at=at, launchers=roles)
        cluster.leave()  # Each leaves its samples then.
        return rate


def show(name: str, samples: dict[str, float]) -> None:
    """A process, for people."""
    print(f"{name}: {samples[SYSTEM]:.0%} of its time is the kernel's")
    for place, share in sorted(shares(samples).items(), key=lambda each: -each[1]):
        if share >= 0.005:
            print(f"  {share:4.0%}  {place}")
    counted = {place: n for place, n in samples.items() if place != SYSTEM}
    whole = sum(counted.values())
    for place, n in sorted(counted.items(), key=lambda each: -each[1])[:FUNCTIONS_SHOWN]:
        print(f"        {n / whole:4.0%}  {place}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=3_000_000)
    parser.add_argument("--body-bytes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tanist-profile-") as directory:
        outs = {name: Path(directory) / name for name in (OWNER, *BACKUPS, *ROLES)}
        rate = asyncio.run(run(options.messages, options.body_bytes, outs))
        print(f"{options.messages:,} messages of {options.body_bytes} B, {rate:,.0f} a second")
        found = {}
        for name, out in outs.items():
            samples: dict[str, float] = json.loads(out.read_text())
            show(name + (" (owner)" if name == OWNER else ""), samples)
            found[name] = {"kernel": round(samples[SYSTEM], 3)} | {
                place: round(share, 3) for place, share in shares(samples).items()
            }
        print(json.dumps({"bench": "profile", "msg_per_s": round(rate), "processes": found}))


if __name__ == "__main__":
    main()
