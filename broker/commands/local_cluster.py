"""The files of a cluster whose nodes all run on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A node that can be started with `tanist run FILE`."""

    name: str
    file: Path
    clients: str
    """Where clients reach it."""


def write_local_cluster(
    directory: Path, *, nodes: int, client_ports: list[int], other_ports: list[int], extra: str = ""
) -> list[LocalNode]:
    """Write a file for each node into a directory of its own.

    Args:
        client_ports: One for each node.
        other_ports: Two for each node.
        extra: TOML that stands at the end of each file, such as `[timing]`.
    """
    assert len(client_ports) == nodes
    assert len(other_ports) == 2 * nodes
    names = [f"node{number}" for number in range(1, nodes + 1)]
    expected = "".join(
        f'{name} = "127.0.0.1:{port}"\n' for name, port in zip(names, other_ports, strict=False)
    )
    made: list[LocalNode] = []
    for number, name in enumerate(names):
        file = directory / name / "node.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        clients = f"127.0.0.1:{client_ports[number]}"
        file.write_text(
            f'[node]\nname = "{name}"\ndir = "data"\n\n'
            f'[listen]\nclients = "{clients}"\npeers = "127.0.0.1:{other_ports[number]}"\n'
            f'group = "127.0.0.1:{other_ports[nodes + number]}"\n\n'
            f"[cluster.expected]\n{expected}\n{extra}",
            encoding="utf-8",
        )
        made.append(LocalNode(name, file, clients))
    return made


def free_ports(count: int, *, above: int) -> list[int]:
    """Ports of loopback that nobody has now, the lowest first.

    Below 32768, where the kernel takes the ports of outgoing connections from: a node that is
    started again later will find its own still free.
    """
    return list(islice(_free_ports(above), count))


def _free_ports(above: int) -> Iterator[int]:
    for port in range(above + 1, 32768):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
