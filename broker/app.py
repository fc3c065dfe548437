"""Composition: the one place that knows all concrete classes of a node."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Final

import uvloop

from broker.config import Config, host_and_port, node_settings
from broker.core.events import DiskDone
from broker.core.limits import Limits
from broker.core.node import Node
from broker.core.settings import NodeSettings
from broker.runtime.client_listener import ClientListener
from broker.runtime.connection import bound_socket
from broker.runtime.logs import Logs
from broker.runtime.node_lock import node_lock
from broker.runtime.page_io import PageIo
from broker.runtime.peer_links import PeerLinks
from broker.runtime.shell import Roads, Shell
from broker.runtime.store import Store
from paging.files import FileFault, PageFiles, Removal
from paging.pagefile import LIFE_BYTES
from replication.core.events import Level
from replication.core.identity import Incarnation
from replication.core.member import digest
from replication.groups.tcp import TcpGroup
from replication.slotfile import SlotFile

SEGMENT_BYTES: Final = 64 << 10
"""The group counts frames where a stream's window counts bytes; a full frame is a segment."""


class StartError(Exception):
    """The node cannot start here and now. The text is for the operator."""


def run_node(config: Config, logs: Logs, *, plain_asyncio: bool, with_parent: bool) -> int:
    """Run one node until it ends. Returns the exit code.

    Raises `StartError` if it cannot start here, and `SlotFileDamaged`.

    Args:
        plain_asyncio: Use the loop of the standard library.
        with_parent: End when standard input does, as when whoever started us is gone.
    """
    factory = asyncio.new_event_loop if plain_asyncio else uvloop.new_event_loop
    with ExitStack() as held:
        directory = held.enter_context(_own_directory(Path(config.node.dir)))
        sockets = [
            held.enter_context(_own_address(f"listen.{key}", getattr(config.listen, key)))
            for key in ("clients", "peers")
        ]
        _allow_many_sockets()
        files = _page_files(directory, logs, config.limits)
        slots = SlotFile(directory / "vote")
        held.callback(slots.close)
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(_run(node_settings(config), logs, sockets, slots, files, with_parent))


async def _run(
    settings: NodeSettings,
    logs: Logs,
    sockets: list[socket.socket],
    slots: SlotFile,
    files: PageFiles,
    with_parent: bool,
) -> int:
    pages: PageIo
    core = Node(
        settings,
        me=Incarnation(settings.name, secrets.randbits(62)),
        acceptor_inc=secrets.randbits(62),
        saved=slots.state,
        draw=random.SystemRandom().random,
        disk_traffic=lambda: pages.traffic,
    )
    shell = Shell(core, logs, settings.limits)
    _hear_of_failures(shell, logs)
    _hear_the_operator(shell, with_parent=with_parent)
    clients, peers = sockets
    try:
        group = TcpGroup(
            settings.group_address,
            prefix=digest(settings.cluster.encode())[:8],
            frames_max=max(1, settings.limits.window_bytes // SEGMENT_BYTES),
            on_ready=shell.group_ready,
        )
    except OSError as error:
        raise _taken("listen.group", settings.group_address, error) from error
    pages = PageIo(files, lambda done: shell.feed(DiskDone(done)))
    return await shell.run(
        Roads(
            clients=ClientListener(clients, shell.feed),
            peers=PeerLinks(peers, shell.feed_peer),
            group=group,
            store=Store(slots.write, shell.feed),
            pages=pages,
        )
    )


def _page_files(directory: Path, logs: Logs, limits: Limits) -> PageFiles:
    """Where pages go. What an earlier process left there is removed, in a thread."""
    try:
        life, left = secrets.token_bytes(LIFE_BYTES), limits.disk_free_bytes_min
        files = PageFiles.open(directory, life, free_bytes_min=left)
    except FileFault as error:
        raise StartError(f"node.dir: {error}") from error

    def tidy() -> None:
        done = Removal()
        for so_far in files.remove_earlier_lives():
            done = so_far
        if done.files:
            fields: dict[str, object] = {"files": done.files, "bytes": done.bytes}
            logs.write(Level.INFO, "removed the pages of a process that was killed", fields)
        for sentence in done.left:
            logs.write(Level.WARNING, sentence)

    Thread(target=tidy, name="tanist-tidy", daemon=True).start()
    return files


def _hear_of_failures(shell: Shell, logs: Logs) -> None:
    # asyncio alone would log what nobody catches, and go on.
    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # Any: asyncio says of each key what it is, in prose.
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            # The world's doing, such as too many open files while a client is accepted.
            logs.write(Level.WARNING, context["message"], {"why": str(error or "")})
        else:
            shell.broke(error)

    asyncio.get_running_loop().set_exception_handler(handle)


def _hear_the_operator(shell: Shell, *, with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, shell.stop)
    if with_parent:
        parent = sys.stdin.fileno()

        def heard() -> None:
            if not os.read(parent, 4096):
                loop.remove_reader(parent)
                shell.stop()

        loop.add_reader(parent, heard)


@contextmanager
def _own_directory(directory: Path) -> Iterator[Path]:
    """The node's directory, which no other process may use at the same time."""
    with ExitStack() as held:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(node_lock(directory))
        except BlockingIOError:
            raise StartError(
                f"node.dir: {directory} belongs to a node that is running; give each its own"
            ) from None
        except OSError as error:
            raise StartError(f"node.dir: {directory}: {error.strerror}") from error
        yield directory


@contextmanager
def _own_address(key: str, address: str) -> Iterator[socket.socket]:
    try:
        bound = bound_socket(*host_and_port(address))
    except OSError as error:
        raise _taken(key, address, error) from error
    with bound:
        yield bound


def _taken(key: str, address: str, error: OSError) -> StartError:
    return StartError(
        f"{key}: {address} cannot be had ({error.strerror}): is another node running there?"
    )


def _allow_many_sockets() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
