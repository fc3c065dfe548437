"""Replay a seed, or try many: `python -m tests.simulation --seed 41`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from tests.simulation.worlds import WORLDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first, or the only one")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, one after another")
    parser.add_argument("--world", choices=sorted(WORLDS), default="cluster")
    arguments = parser.parse_args()
    world = WORLDS[arguments.world]
    began_at = time.perf_counter()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        try:
            report = world(seed)
        except Exception:
            print(
                f"failed at commit {_commit()}; replay: python -m tests.simulation"
                f" --world {arguments.world} --seed {seed}",
                file=sys.stderr,
            )
            raise
        if arguments.count == 1:
            print(f"seed {seed}: {report}")
    took_s = time.perf_counter() - began_at
    print(f"{arguments.count} schedules, {arguments.count / took_s:.1f} a second")
    return 0


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
