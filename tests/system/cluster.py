"""Real clusters for tests: node processes on loopback, each with its log in a file."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tanist
from broker.commands.local_cluster import free_ports, write_local_cluster
from broker.commands.survey import ask_all, put_together
from perf.node_process import NodeProcess

READY_S_MAX = 30.0
LOG_LINES_SHOWN = 100


def wait_until(condition: Callable[[], bool], *, what: str, seconds: float = READY_S_MAX) -> None:
    """Poll `condition`; fail with `what` if it does not come true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


class Cluster:
    """Nodes that found a cluster together. Not started by its maker.

    Args:
        extra: TOML at the end of each node's file, such as a `[timing]` table.
    """

    def __init__(self, directory: Path, *, nodes: int, extra: str = "") -> None:
        # Far from other runs on this machine, as likely as not.
        ports = free_ports(3 * nodes, above=16_000 + os.getpid() * 31 % 15_000)
        written = write_local_cluster(
            directory,
            nodes=nodes,
            client_ports=ports[:nodes],
            other_ports=ports[nodes:],
            extra=extra,
        )
        self.nodes = [NodeProcess(node) for node in written]

    def __getitem__(self, name: str) -> NodeProcess:
        return next(node for node in self.nodes if node.name == name)

    @property
    def url(self) -> str:
        """By which a client may enter at any node."""
        return "tanist://" + ",".join(node.clients for node in self.nodes)

    def start(self) -> None:
        """Start all nodes and wait until each takes clients and no copy is missing."""
        for node in self.nodes:
            node.start()
        wait_until(self._serves, what="all nodes to serve clients")
        self.wait_for_copies()

    def status(self) -> dict[str, Any]:
        """What `tanist status --json` prints. Any: its parts are looked at by the tests."""

        async def ask() -> dict[str, Any]:
            async with tanist.connect(self.url, failover_timeout_s=5) as client:
                return put_together(await ask_all(client))

        return asyncio.run(ask())

    def wait_for_status(self, right: Callable[[dict[str, Any]], bool], *, what: str) -> None:
        """Wait until the status is as it should be."""

        def condition() -> bool:
            try:
                return right(self.status())
            except tanist.Error:
                return False  # Nobody answers yet.

        wait_until(condition, what=what)

    def wait_for_copies(self) -> None:
        """Wait until every stream has all the copies that running nodes can give it."""
        running = sum(node.is_running for node in self.nodes)

        def complete(status: dict[str, Any]) -> bool:
            streams = status["streams"].values()
            return len(streams) > len(self.nodes) and all(
                len(stream["in_sync"]) >= min(running, 1 + len(stream["wanted"]))
                for stream in streams
            )

        self.wait_for_status(complete, what="all copies to be in sync")

    def owner_of(self, home: str) -> NodeProcess:
        """The node that owns the post office of `home` now."""
        streams = self.status()["streams"].values()
        owner = next(stream["owner"] for stream in streams if stream["home"] == home)
        return self[owner.rpartition(".")[0]]

    def close(self) -> None:
        """End all that runs, whatever state it is in."""
        for node in self.nodes:
            node.end()

    def show_logs(self) -> None:
        """For the report of a test that failed."""
        for node in self.nodes:
            print(f"--- log of {node.name}")
            if node.log.exists():
                lines = node.log.read_text(errors="replace").splitlines()
                print("\n".join(lines[-LOG_LINES_SHOWN:]))

    def _serves(self) -> bool:
        for node in self.nodes:
            assert node.is_running, f"{node.name} ended while the cluster was starting"
        return all(node.serves() for node in self.nodes)
