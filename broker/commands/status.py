"""`tanist status`: the cluster, as all nodes together describe it."""

from __future__ import annotations

from typing import Final

import click
from rich.table import Table

from broker.commands.connection import url_option, with_client
from broker.commands.output import naming_stdout
from broker.commands.survey import Document, ask_all, put_together
from broker.commands.terminal import console, json_option, show, wants_json

QUEUES_SHOWN_MAX: Final = 40
"""On the page for people; the document for programs has all."""

_PAGE_COLUMNS: Final = (
    "pages on disk",
    "MiB on disk",
    "in time",
    "late",
    "MiB written",
    "MiB/s",
    "MiB read",
    "MiB/s",
)


@click.command()
@url_option
@json_option
def status(url: str) -> None:
    """Show nodes, post offices and their owners, copies, lag, and queues."""
    document = put_together(with_client(url, ask_all))
    if wants_json():
        show(document, "")
    else:
        with naming_stdout():
            _print(document)


def _print(document: Document) -> None:
    out = console()
    out.print(f"cluster {document['cluster']}, map {document['ver']}")
    for doubt in document["doubts"]:
        out.print(doubt, style="yellow", soft_wrap=True)
    nodes = Table("node", "state", "clients at", "clients", "memory", "votes", box=None)
    for name, node in document["nodes"].items():
        memory = node.get("memory")
        nodes.add_row(
            name,
            node["state"] + ("" if node["answered"] else ", no answer"),
            ", ".join(node["locators"]),
            str(node.get("clients", "")),
            f"{memory['used_bytes'] >> 20:,} of {memory['budget_bytes'] >> 20:,} MiB"
            if memory
            else "",
            "yes" if name in document["acceptors"] else "",
        )
    out.print(nodes)
    _print_pages({name: n["paging"] for name, n in document["nodes"].items() if "paging" in n})
    out.print()
    streams = Table("stream", "home", "owner", "epoch", "gen", "in sync", "lag", box=None)
    for sid, stream in document["streams"].items():
        streams.add_row(
            sid,
            stream["home"] or "(catalog)",
            _node(stream["owner"]),
            str(stream["epoch"]),
            str(stream["gen"]),
            ", ".join(map(_node, stream["in_sync"])),
            ", ".join(
                f"{_node(who)} {follower['lag_ops']:,}"
                for who, follower in stream.get("followers", {}).items()
                if follower["lag_ops"]
            ),
        )
    out.print(streams)
    warned = [(sid, w) for sid, stream in document["streams"].items() for w in stream["warnings"]]
    if warned:
        out.print()
    for sid, warning in warned:
        out.print(f"stream {sid}: {warning}", style="yellow", soft_wrap=True)
    if document["queues"]:
        out.print()
        queues = Table("queue", "spread", box=None)
        for title in ("ready", "in flight", "bytes"):
            queues.add_column(title, justify="right")
        shown = _fullest(document["queues"])
        for name, queue in shown.items():
            numbers = (queue["ready"], queue["in_flight"], queue["bytes"])
            queues.add_row(name, queue["spread"], *(f"{n:,}" for n in numbers))
        out.print(queues)
        more = len(document["queues"]) - len(shown)
        if more:
            out.print(f"and {more:,} queues with fewer messages; all of them: tanist queue ls")


def _print_pages(nodes: Document) -> None:
    """What nodes have in files, and how fast: nothing, as long as none wrote a page."""
    out = console()
    if any(paging["disk"]["files_written"] for paging in nodes.values()):
        table = Table("node", box=None)
        for title in _PAGE_COLUMNS:
            table.add_column(title, justify="right")
        for name, paging in nodes.items():
            disk = paging["disk"]
            table.add_row(
                name,
                f"{paging['pages_on_disk']:,}",
                f"{paging['disk_bytes'] >> 20:,}",
                f"{paging['read_ahead_hits']:,}",
                f"{paging['read_ahead_misses']:,}",
                f"{disk['bytes_written'] >> 20:,}",
                _speed(disk["bytes_written"], disk["writing_s"]),
                f"{disk['bytes_read'] >> 20:,}",
                _speed(disk["bytes_read"], disk["reading_s"]),
            )
        out.print()
        out.print(table)
    for name, paging in nodes.items():
        disk = paging["disk"]
        if paging["trouble"]:
            sentence = f"{name}: pages cannot be written: {paging['trouble']}"
            out.print(sentence, style="yellow", soft_wrap=True)
        if disk["failed"]:
            sentence = (
                f"{name}: {disk['failed']:,} writes or reads of pages failed; its log says how"
            )
            out.print(sentence, style="yellow", soft_wrap=True)
        if disk["left"]:
            sentence = f"{name}: {disk['left']:,} files could not be removed: {disk['why_left']}"
            out.print(sentence, style="yellow", soft_wrap=True)


def _speed(size: int, busy_s: float) -> str:
    """How fast that was while the disk was busy with it."""
    return f"{size / busy_s / (1 << 20):,.0f}" if size else ""


def _fullest(queues: Document) -> Document:
    """Of many queues those with most messages, by name."""

    def messages(name: str) -> int:
        count: int = queues[name]["ready"] + queues[name]["in_flight"]
        return count

    names = sorted(queues, key=messages, reverse=True)[:QUEUES_SHOWN_MAX]
    return {name: queues[name] for name in sorted(names)}


def _node(incarnation: str) -> str:
    return incarnation.rpartition(".")[0]
