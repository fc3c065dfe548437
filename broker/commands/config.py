"""`tanist init` and `tanist config check`: a node's file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import click

from broker.commands.terminal import fail, json_option, say, show
from broker.config import Config, load_config, node_file

TEMPLATE: Final = """\
# A Tanist node. Every key may be left out, except node.name. Sizes are in bytes, times in
# milliseconds, and what stands here behind a # is what holds without it.
# Check it with: tanist config check FILE

[node]
name = "node1"            # Different on each node, and for ever the same: messages belong to it.
dir = "data"              # Where the node keeps its vote. Relative to this file.

[listen]                  # Loopback only, until messages between machines are encrypted.
clients = "127.0.0.1:7472"
peers = "127.0.0.1:7473"  # Where the other nodes reach this one.
group = "127.0.0.1:7474"  # Where the other nodes hear what it publishes.

[cluster]                 # The same on all nodes.
name = "tanist"
# failover_peers = 2      # How many other nodes hold a shadow of each post office.
# min_copies = 2          # Nothing is confirmed on fewer. Left out: 2 of 3 copies, 1 of 2 or 1.
# on_too_few_copies = "wait"   # wait: publishers wait for copies. solo: go on, less safely.

# The nodes that found the cluster and where each listens for the others (its listen.peers).
# The list is the same on all nodes. Without it, this node is a cluster of its own.
# [cluster.expected]
# node1 = "127.0.0.1:7473"
# node2 = "127.0.0.1:7483"
# node3 = "127.0.0.1:7493"

[timing]                  # In milliseconds. silence_ms and grace_ms agree on all nodes.
# silence_ms = 900        # A peer that was quiet for so long is suspected.
# heartbeat_ms = 100      # Between peers. At most a third of silence_ms.
# grace_ms = 10000        # After a takeover, deliveries wait so long for their session.
# lost_connection_grace_ms = 2000   # The same after a client's connection was lost.
# client_silence_ms = 3000   # A client that was quiet for so long is disconnected.
# park_ms = 3000          # A request that finds no owner waits for so long.

[limits]
# budget_bytes = 1073741824        # All queues, windows and kept segments. At 90 % no credit.
# queue_bytes_max = 1099511627776  # One queue in one post office; then no credit for it.
# queue_resident_bytes_max = 1099511627776   # The same in memory; the rest goes to files.
# page_bytes = 1048576             # Of a queue; what is written to a file at once.
# read_ahead_bytes = 8388608       # Wanted in memory where a consumer will come next.
# disk_free_bytes_min = 1073741824 # Left on the disk; no page is written that would take it.
# window_bytes = 67108864          # Not yet on all copies, per post office.
# window_ops = 50000               # The same, counted.
# repair_bytes = 67108864          # Kept for nodes that must catch up, per post office.
# producer_credit_bytes = 4194304  # One fast producer, ahead of what is stored.
# producer_credit_messages = 50000
# consumer_credit_messages_max = 100000   # Unacknowledged messages of one consumer.
# connections_max = 10000          # Clients. One more is refused.
# channels_max = 256               # Per connection. One more is refused.
# unsent_bytes_max = 16777216      # A client that takes less than it is sent is cut here.
# before_welcome_s = 5             # Seconds. A connection must have said HELLO by then.
# queues_max = 10000               # One more is refused.
# producers_max = 100000           # Remembered per post office.
# producer_idle_s = 86400          # Forgotten after so long without a channel and a publish.

# Queues that shall exist. More are made by: tanist queue create NAME
# [[queue]]
# name = "orders"
# spread = "every"        # every: a part in each post office. one: one part, one total order.
# when_full = "hold"      # hold: producers wait. refuse: they get an error.
# bytes_max = 0           # Of a part, about: from here on they do. 0: limits.queue_bytes_max.
"""


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@json_option
def init(directory: Path) -> None:
    """Write a node's file, with comments, into DIRECTORY."""
    path = directory / "node.toml"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise fail(f"{path} exists already; it was left as it is", code=1) from None
    except OSError as error:
        raise fail(f"{path}: {error.strerror}", code=1) from None
    show({"file": str(path)}, f"wrote {path}")
    say(f"next: look through it, then  tanist run {shlex.quote(str(path))}")


@click.group()
def config() -> None:
    """Look after a node's file."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path) -> None:
    """Say whether FILE (or FILE/node.toml) is right, and what a node would make of it."""
    file = node_file(file)
    loaded = load_config(file)
    document = {
        "file": str(file),
        "node": loaded.node.name,
        "cluster": loaded.cluster.name,
        "expected": sorted(loaded.cluster.expected) or [loaded.node.name],
        "clients": loaded.listen.clients,
        "notes": _notes(loaded),
    }
    lines = [f"{file} is right: node {loaded.node.name} of cluster {loaded.cluster.name}"]
    show(document, "\n".join([*lines, *(f"note: {note}" for note in _notes(loaded))]))
    say(f"next: tanist run {shlex.quote(str(file))}")


def _notes(loaded: Config) -> list[str]:
    """What is allowed and may surprise."""
    count = len(loaded.cluster.expected) or 1
    copies = 1 + min(loaded.cluster.failover_peers, count - 1)
    notes: list[str] = []
    if copies == 1:
        notes.append("there is one copy of each message: unprotected, it dies with its node")
    if count == 2:
        notes.append("two nodes: neither can take over from the other alone; three can")
    if loaded.cluster.min_copies is not None and loaded.cluster.min_copies > copies:
        notes.append(f"min_copies is above the {copies} copies there can be; {copies} will hold")
    return notes
