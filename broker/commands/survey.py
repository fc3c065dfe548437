"""The cluster, put together from what each node says.

A node knows the cluster map, but how far its followers are only for streams that it owns, and
what is in a queue only for its own post offices. So all nodes that can be reached are asked,
each for its status and, page by page, for what it has of each queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import tanist

OTHER_NODE_S_MAX: Final = 2.0
TRIES_MAX: Final = 5

# Any: the document is for people; its parts are shown if they are there.
Document = dict[str, Any]


async def ask_all(client: tanist.Client) -> list[Document]:
    """What each node says; first the one by which we entered."""
    first = await _all_of_one(client)
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
            return await _all_of_one(client)
    except (tanist.Error, TimeoutError):
        return None


async def _all_of_one(client: tanist.Client) -> Document:
    """What one node says of itself, and what it has of each queue.

    The client may get to another node between two questions. Then it is begun anew: the same
    messages must not be counted at two nodes.
    """
    for _ in range(TRIES_MAX):
        document: Document = await client.status()
        who = (document["node"], document["incarnation"])
        queues: list[Document] = []
        after = ""
        while True:
            page: Document = await client.queue_status(after)
            if (page["node"], page["incarnation"]) != who:
                break
            queues += page["queues"]
            after = page["go_on_after"]
            if not after:
                return {**document, "queues": queues}
    raise tanist.BrokenError("nodes come and go: ask again")


def put_together(answers: list[Document]) -> Document:
    """One document of those of the nodes."""
    by_node = {answer["node"]: answer for answer in answers}
    voteless = [name for name, answer in by_node.items() if answer["lost_vote"]]
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
        "acceptors": [name for name in newest["acceptors"] if name not in voteless],
        "nodes": {
            name: {**node, "answered": name in by_node, **_own(by_node.get(name))}
            for name, node in newest["nodes"].items()
        },
        "streams": streams,
        "queues": _queues(answers),
        "doubts": _doubts(newest, by_node, voteless),
    }


def _doubts(newest: Document, by_node: dict[str, Document], voteless: list[str]) -> list[str]:
    """Why the map that is shown may not be the one that holds."""
    doubts: list[str] = []
    acceptors = newest["acceptors"]
    answered = [name for name in acceptors if name in by_node and name not in voteless]
    doubts += [
        f"{name} has lost its file of votes: it takes part and does not vote, so a majority of the"
        f" {len(acceptors)} votes must be found without it"
        for name in voteless
    ]
    if 2 * len(answered) <= len(acceptors):
        doubts.append(
            f"{len(answered)} of {len(acceptors)} voting nodes answered, which is no majority:"
            " nothing can be taken over or changed until more are back"
        )
    silent = [
        name
        for name, node in newest["nodes"].items()
        if node["state"] == "up" and name not in by_node
    ]
    if silent:
        doubts.append(
            f"{', '.join(silent)} is shown as up and does not answer: the map may be old"
            if len(silent) == 1
            else f"{', '.join(silent)} are shown as up and do not answer: the map may be old"
        )
    return doubts


def _own(answer: Document | None) -> Document:
    """What only the node itself knows."""
    if answer is None:
        return {}
    return {key: answer[key] for key in ("clients", "memory", "paging")}


def _warnings(sid: str, best: Document, by_node: dict[str, Document]) -> list[str]:
    """The owner's, and what others say of their own copies."""
    warnings = list(best["warnings"])
    for name, answer in by_node.items():
        for warning in answer["streams"].get(sid, {}).get("warnings", []):
            if warning.startswith("waiting for transfer") and warning not in warnings:
                warnings.append(f"{name} is {warning}")
            if warning.startswith("cannot read"):
                warnings.append(f"{name} {warning}")
    return warnings


def _queues(answers: Iterable[Document]) -> dict[str, Document]:
    queues: dict[str, Document] = {}
    for answer in answers:
        for queue in answer["queues"]:
            total = queues.setdefault(
                queue["name"], {"spread": queue["spread"], "ready": 0, "in_flight": 0, "bytes": 0}
            )
            for number in ("ready", "in_flight", "bytes"):
                total[number] += queue[number]
    return dict(sorted(queues.items()))
