"""A cluster of real node processes on loopback, for benchmarks, torture and tests.

Every process is started here and ended here, by its pid. Waiting is for a condition, with a
limit; what a node logged is kept in its directory.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import tanist
from broker.commands.local_cluster import free_ports, write_local_cluster
from perf.node_process import NodeProcess

READY_S_MAX: Final = 30.0
LOG_LINES_SHOWN: Final = 25
_CLIENTS, _OTHERS = 1, 2

Status = dict[str, Any]
"""Any: a document for people; nothing of it is part of the protocol."""


class ClusterError(Exception):
    """A cluster did not come to what was waited for. The text has the end of the logs."""


class Cluster:
    """Node processes that belong together: `async with Cluster(3) as cluster`.

    Args:
        nodes: How many.
        extra: TOML for the end of each node's file.
        under: Where the nodes' directories are made; None: where temporary files are.
        launchers: By a node's name, a command that runs the node's command.
    """

    def __init__(
        self,
        nodes: int,
        *,
        extra: str = "",
        under: Path | None = None,
        launchers: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        # Far from other runs on this machine, as likely as not.
        ports_above = 16_000 + os.getpid() * 31 % 15_000
        self.directory = Path(tempfile.mkdtemp(prefix="tanist-", dir=under))
        ports = free_ports((_CLIENTS + _OTHERS) * nodes, above=ports_above)
        self._nodes = {
            node.name: NodeProcess(node, launcher=(launchers or {}).get(node.name, ()))
            for node in write_local_cluster(
                self.directory,
                nodes=nodes,
                client_ports=ports[:nodes],
                other_ports=ports[nodes:],
                extra=extra,
            )
        }

    @property
    def names(self) -> list[str]:
        return list(self._nodes)

    @property
    def url(self) -> str:
        return "tanist://" + ",".join(node.clients for node in self._nodes.values())

    def url_of(self, name: str) -> str:
        return self._nodes[name].url

    def pid(self, name: str) -> int:
        return self._nodes[name].pid

    # Processes

    def start(self, name: str) -> None:
        """Start a node, for the first time or again."""
        self._nodes[name].start()

    def kill(self, name: str) -> None:
        """End it at once, as a crash would."""
        self._nodes[name].kill()

    def stop(self, name: str) -> None:
        """Have it stand still: it keeps its memory and its sockets."""
        self._nodes[name].freeze()

    def leave(self) -> None:
        """Have all end as an operator does, with what they do then."""
        for node in self._nodes.values():
            node.stop()

    def go_on(self, name: str) -> None:
        self._nodes[name].thaw()

    def running(self) -> list[str]:
        return [name for name, node in self._nodes.items() if node.is_running]

    async def __aenter__(self) -> Cluster:
        try:
            for name in self._nodes:
                self.start(name)
            await self.ready()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and not issubclass(kind, asyncio.CancelledError):
            print(self.logs(), file=sys.stderr)
        self.close()

    def close(self) -> None:
        """End all processes and remove their files."""
        for node in self._nodes.values():
            node.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    # What they say

    def log_of(self, name: str) -> str:
        log = self._nodes[name].log
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    def logs(self) -> str:
        """The end of each node's log."""
        ends = [
            f"--- {name}\n" + "\n".join(self.log_of(name).splitlines()[-LOG_LINES_SHOWN:])
            for name in self._nodes
        ]
        return "\n".join(ends)

    async def status(self, name: str) -> Status:
        """What a node says of itself and the cluster."""
        client = await tanist.connect(self.url_of(name), failover_timeout_s=5)
        try:
            return await client.status()
        finally:
            await client.close()

    async def wait_for(
        self,
        name: str,
        condition: Callable[[Status], bool],
        what: str,
        limit_s: float = READY_S_MAX,
    ) -> Status:
        """Until a node's status shows it. Raises `ClusterError` when the time is over."""
        until = time.monotonic() + limit_s
        last: object = None
        while time.monotonic() < until:
            try:
                status = await self.status(name)
            except tanist.Error as error:
                last = error
            else:
                if condition(status):
                    return status
                last = {sid: s["in_sync"] for sid, s in status["streams"].items()}
            await asyncio.sleep(0.02)
        raise ClusterError(f"{name}: not {what} within {limit_s:.0f} s ({last})\n{self.logs()}")

    async def ready(self) -> None:
        """Until all nodes are up and every stream has all its copies in sync."""
        running = self.running()
        for name in running:
            await self.wait_for(name, lambda s: is_whole(s, len(running)), "whole")


def is_whole(status: Status, nodes: int) -> bool:
    """Whether so many nodes are up, each with its post office, and nothing lacks a copy."""
    up = [name for name, node in status["nodes"].items() if node["state"] == "up"]
    return (
        len(up) == nodes
        and len(status["streams"]) == len(status["nodes"]) + 1
        and all(
            len(stream["in_sync"]) > len(stream["wanted"])
            # A single node is unprotected, and says so.
            and (nodes == 1 or not stream["warnings"])
            for stream in status["streams"].values()
        )
    )
