"""Real clusters for tests: node processes on loopback, each with its log in a file."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tanist
from broker.commands.local_cluster import LocalNode, free_ports, write_local_cluster
from broker.commands.status import ask_all, put_together

READY_S_MAX = 30.0
LOG_LINES_SHOWN = 100


def wait_until(condition: Callable[[], bool], *, what: str, seconds: float = READY_S_MAX) -> None:
    """Poll `condition`; fail with `what` if it does not come true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


class NodeProcess:
    """One node: started, killed, stopped and continued by its process id."""

    def __init__(self, node: LocalNode) -> None:
        self.name = node.name
        self.clients = node.clients
        self.url = f"tanist://{node.clients}"
        self.log = node.file.with_name("log")
        self._file = node.file
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, again if it was over: a new incarnation in the same directory."""
        assert not self.is_running
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "broker.cli", "run", str(self._file), "--log", "json"],
                stdin=subprocess.DEVNULL,
                stderr=log,
                # What goes to our terminal or group is not for the nodes.
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, and wait until the process is over."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM, as an operator does. Returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(READY_S_MAX)

    def freeze(self) -> None:
        """SIGSTOP: neither dead nor alive."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def serves(self) -> bool:
        """Whether it takes clients."""
        host, _, port = self.clients.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=1):
                return True
        except OSError:
            return False

    def logged(self, event: str) -> bool:
        """Whether a line of its log has this text in it."""
        return event in self.log.read_text(errors="replace")


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
            if node.is_running:
                node.kill()

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
