"""What an idle cluster costs.

Question: how much of a core does each of three nodes use when nothing happens?

Method: three nodes on loopback, no clients; the processor time of each process over some
seconds after it has settled, by the kernel's accounting. Not shown: idle clients' heartbeats.
"""

from __future__ import annotations

import argparse
import asyncio
import json

from perf.cluster import Cluster
from perf.throughput import cpu_s

SETTLE_S = 5.0
SHARE_MAX = 0.03


async def bench(seconds: float) -> None:
    async with Cluster(3) as cluster:
        await asyncio.sleep(SETTLE_S)
        before = {name: cpu_s(cluster.pid(name)) for name in cluster.names}
        await asyncio.sleep(seconds)
        shares = {
            name: (cpu_s(cluster.pid(name)) - used) / seconds for name, used in before.items()
        }
    for name, share in shares.items():
        print(f"{name}: {share:.1%} of a core")
    most = max(shares.values())
    result = {"bench": "idle", "most": round(most, 4), "good": most < SHARE_MAX}
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    asyncio.run(bench(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
