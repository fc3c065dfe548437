"""The lock in a node's directory: one process at a time has it, and no process that is over."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def node_lock(directory: Path) -> Iterator[None]:
    """Have a node's directory for oneself.

    Raises `BlockingIOError` if a process has it, and another `OSError` if there can be no lock.
    """
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)
