"""Control groups, so that a node's memory has a limit that counts the page cache, too.

The kernel lets files stay in memory while nobody needs it. On a large machine a node that pages
to files would never touch the disk, and its rates would flatter it. In a group of its own, what
the kernel keeps of a process's files counts as the process's memory.

There are two versions. In v2 a limit is `memory.max`, and whoever is above a group must have
handed on the memory controller; in v1 it is `memory.limit_in_bytes`. Groups are made as far up
as this user may, so that nothing of them is left in the group of whoever started us.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mounts")
OWN_GROUPS: Final = Path("/proc/self/cgroup")
REMOVAL_S_MAX: Final = 2.0
"""The kernel takes a moment to let go of a process that has ended."""


class NoGroup(Exception):
    """No group with a limit of memory can be made here. The text says why."""


@dataclass(frozen=True, slots=True)
class Names:
    """What one version calls its files."""

    limit: str
    peak: str
    events: str
    killed: str
    """In `events`, the line that counts processes killed at the limit."""


V1: Final = Names(
    "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control", "oom_kill"
)
V2: Final = Names("memory.max", "memory.peak", "memory.events", "oom_kill")


class MemoryGroup:
    """A group with a limit. Made by `memory_groups`."""

    def __init__(self, path: Path, names: Names, limit_bytes: int) -> None:
        self._path = path
        self._names = names
        (path / names.limit).write_text(f"{limit_bytes}\n")

    @property
    def launcher(self) -> Sequence[str]:
        """Runs a command in this group: all that it ever takes is counted here."""
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", enter, str(self._path / "cgroup.procs")]

    @property
    def peak_bytes(self) -> int | None:
        """The most that was counted, page cache included. None: this kernel does not say."""
        with contextlib.suppress(OSError):
            return int((self._path / self._names.peak).read_text())
        return None

    @property
    def killed(self) -> int:
        """Processes that the kernel killed at the limit."""
        for line in (self._path / self._names.events).read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == self._names.killed:
                return int(count)
        return 0

    def remove(self) -> None:
        until = time.monotonic() + REMOVAL_S_MAX
        while True:
            try:
                self._path.rmdir()
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return


@contextlib.contextmanager
def memory_groups(names: Sequence[str], limit_bytes: int) -> Iterator[dict[str, MemoryGroup]]:
    """A group for each name, for as long as this lasts. Raises `NoGroup`."""
    with contextlib.ExitStack() as held:
        groups: dict[str, MemoryGroup] = {}
        for name in names:
            groups[name] = group = _make(f"tanist-{os.getpid()}-{name}", limit_bytes)
            held.callback(group.remove)
        yield groups


def _make(name: str, limit_bytes: int) -> MemoryGroup:
    refused = "no memory controller is mounted"
    for above, version in places(MOUNTS.read_text(), OWN_GROUPS.read_text()):
        path = above / name
        try:
            if version is V2:
                _hand_on(above)
            path.mkdir()
            try:
                return MemoryGroup(path, version, limit_bytes)
            except OSError:
                path.rmdir()
                raise
        except OSError as error:
            refused = f"{path}: {error.strerror}"
    raise NoGroup(refused)


def _hand_on(above: Path) -> None:
    control = above / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory\n")


def places(mounts: str, own_groups: str) -> Iterator[tuple[Path, Names]]:
    """Where a group might be made, best first: from the root down to our own group."""
    for line in mounts.splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            version = V1
        elif kind == "cgroup2":
            version = V2
        else:
            continue
        path = Path(mount)
        yield path, version
        for name in _own_group(own_groups, version).split("/"):
            if name:
                path /= name
                yield path, version


def _own_group(own_groups: str, version: Names) -> str:
    for line in own_groups.splitlines():
        number, controllers, path = line.split(":", 2)
        if (number == "0") if version is V2 else ("memory" in controllers.split(",")):
            return path
    return ""
