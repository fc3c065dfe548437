"""One node in a process of its own: started, killed, stopped and continued by its process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from broker.commands.local_cluster import LocalNode

STOP_S_MAX: Final = 30.0
"""A node that was told to stop has so long."""


class NodeProcess:
    """Made from its file, not started by its maker. What it logs is in `log`.

    Args:
        launcher: A command that runs the command which follows it, in its own process.
    """

    def __init__(self, node: LocalNode, *, launcher: Sequence[str] = ()) -> None:
        self.name = node.name
        self.clients = node.clients
        self.url = f"tanist://{node.clients}"
        self.log = node.file.with_name("log")
        self._file = node.file
        self._launcher = list(launcher)
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
            command = [sys.executable, "-m", "broker.cli", "run", str(self._file), "--log", "json"]
            self._process = subprocess.Popen(
                self._launcher + command,
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
        return self._process.wait(STOP_S_MAX)

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

    def end(self) -> None:
        """End it, whatever state it is in."""
        if self.is_running:
            self.kill()
