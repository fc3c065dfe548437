"""`tanist status`: the cluster, put together from what each node says.

A node knows the cluster map, but how far its followers are only for streams that it owns, and
what is in a queue only for its own post offices. So all nodes that can be reached are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import click
from rich.table import Table

import tanist
from broker.commands.connection import url_option, with_client
from broker.commands.terminal import console, json_option, show, wants_json

OTHER_NODE_S_MAX: Final = 2.0

# Any: the document is for people; its parts are shown if they are there.
Document = dict[str, Any]


@click.command()
@url_option
@json_option
def status(url: str) -> None:
    """Show nodes, post offices and their owners, copies, lag, and queues."""
    document = put_together(with_client(url, ask_all))
    if wants_json():
        show(document, "")
    else:
        _print(document)


async def ask_all(client: tanist.Client) -> list[Document]:
    """What each node says; first the one by which we entered."""
    first: Document = await client.status()
    others = [
        node["locators"]
        for name, node in first["nodes"].items()
        if name != first["node"] and node["state"] == "up" and node["locators"]
    ]
    answers = await asyncio.gather(*map(_ask, others))
    return [first, *(answer for answer in answers if answer is not None)]


async def _ask(locators: list[str]) -> Document | None:
    try:
        async with (
            asyncio.timeout(OTHER_NODE_S_MAX),
            tanist.connect(
                f"tanist://{','.join(locators)}", failover_timeout_s=OTHER_NODE_S_MAX
            ) as client,
        ):
            return await client.status()
    except (tanist.Error, TimeoutError):
        return None


def put_together(answers: list[Document]) -> Document:
    """One document of those of the nodes."""
    by_node = {answer["node"]: answer for answer in answers}
    newest = max(answers, key=lambda answer: int(answer["ver"]))
    streams: dict[str, Document] = {}
    for sid, seen in newest["streams"].items():
        owner = by_node.get(seen["owner"].rpartition(".")[0])
        best = owner["streams"].get(sid, seen) if owner is not None else seen
        streams[sid] = {
            **{key: value for key, value in best.items() if key not in ("here", "warnings")},
            "copies": {
                name: answer["streams"][sid]["here"]
                for name, answer in by_node.items()
                if "here" in answer["streams"].get(sid, {})
            },
            "warnings": _warnings(sid, best, by_node),
        }
    return {
        "cluster": newest["cluster"],
        "ver": newest["ver"],
        "acceptors": newest["acceptors"],
        "nodes": {
            name: {**node, "answered": name in by_node, **_own(by_node.get(name))}
            for name, node in newest["nodes"].items()
        },
        "streams": streams,
        "queues": _queues(answers),
    }


def _own(answer: Document | None) -> Document:
    """What only the node itself knows."""
    if answer is None:
        return {}
    return {"clients": answer["clients"], "memory": answer["memory"]}


def _warnings(sid: str, best: Document, by_node: dict[str, Document]) -> list[str]:
    """The owner's, and what others say of their own copies."""
    warnings = list(best["warnings"])
    for name, answer in by_node.items():
        for warning in answer["streams"].get(sid, {}).get("warnings", []):
            if warning.startswith("waiting for transfer") and warning not in warnings:
                warnings.append(f"{name} is {warning}")
    return warnings


def _queues(answers: Iterable[Document]) -> dict[str, Document]:
    queues: dict[str, Document] = {}
    for answer in answers:
        for queue in answer["queues"]:
            total = queues.setdefault(
                queue["name"], {"spread": queue["spread"], "ready": 0, "in_flight": 0, "bytes": 0}
            )
            for part in queue["parts_here"].values():
                for number in ("ready", "in_flight", "bytes"):
                    total[number] += part[number]
    return dict(sorted(queues.items()))


def _print(document: Document) -> None:
    out = console()
    out.print(f"cluster {document['cluster']}, map {document['ver']}")
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
        out.print(f"stream {sid}: {warning}", style="yellow")
    if document["queues"]:
        out.print()
        queues = Table("queue", "spread", box=None)
        for title in ("ready", "in flight", "bytes"):
            queues.add_column(title, justify="right")
        for name, queue in document["queues"].items():
            numbers = (queue["ready"], queue["in_flight"], queue["bytes"])
            queues.add_row(name, queue["spread"], *(f"{n:,}" for n in numbers))
        out.print(queues)


def _node(incarnation: str) -> str:
    return incarnation.rpartition(".")[0]
