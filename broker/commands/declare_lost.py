"""`tanist declare-lost`: the operator's word that no copy of a stream will come back.

The nodes declare a stream lost by themselves when every process that held a copy has a
successor: then it is proven that the content is gone. A node that stays down proves nothing; it
may have been cut off, with its copy in memory. So somebody who knows better must say so.
"""

from __future__ import annotations

import click

import tanist
from broker.commands.connection import url_option, with_client
from broker.commands.survey import Document, ask_all, put_together
from broker.commands.terminal import fail, json_option, must_confirm, show


@click.command("declare-lost")
@click.argument("stream")
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
@json_option
def declare_lost(stream: str, yes: bool, url: str) -> None:
    """Give up the content of a post office whose copies cannot be reached.

    STREAM is the name of its home, "catalog", or a stream's number as `tanist status` shows it.
    It goes on at once, empty. Do this only if no node that held a copy comes back with it.
    """
    document = put_together(with_client(url, ask_all))
    sid = _find(document, stream)
    entry = document["streams"][sid]
    alive = [who for who in _holders(entry) if _state(document, who) in ("up", "drain")]
    if alive:
        one = len(alive) == 1
        raise fail(
            f"{', '.join(alive)} {'counts' if one else 'count'} as up and may still hold"
            f" {_name(sid, entry)}. Stop {'that node' if one else 'these nodes'} first, if"
            f" {'its copy is' if one else 'their copies are'} to be given up",
            code=4,
        )
    if not yes:
        must_confirm(f"{_consequences(document, sid)}\nDeclare it lost?")

    async def work(client: tanist.Client) -> None:
        await client.declare_lost(int(sid), entry["gen"])

    with_client(url, work)
    show(
        {"sid": int(sid), "lost_gen": entry["gen"], "declared": True},
        f"{_name(sid, entry)} is declared lost: it goes on empty, in gen {entry['gen'] + 1}",
    )


def _find(document: Document, stream: str) -> str:
    for sid, entry in document["streams"].items():
        if stream in (sid, entry["home"]) or (stream == "catalog" and entry["home"] is None):
            found: str = sid
            return found
    homes = [entry["home"] or "catalog" for entry in document["streams"].values()]
    raise fail(f"there is no stream {stream!r}; there are {', '.join(homes)}", code=4)


def _consequences(document: Document, sid: str) -> str:
    """What is lost, for the person who decides."""
    entry = document["streams"][sid]
    copies = ", ".join(
        f"{who.rpartition('.')[0]} ({_state(document, who)})" for who in _holders(entry)
    )
    if entry["home"] is None:
        lost = (
            "The definitions of all queues are lost. Those that a node's file declares, or of"
            " which a post office has messages, come back."
        )
    else:
        lost = (
            "All messages in it are lost for good, also those that were confirmed and those that"
            " consumers hold and have not acknowledged. Producers repeat what was not confirmed."
        )
    return (
        f"{_name(sid, entry)} was held by {copies}.\n{lost} Should one of these processes come"
        " back, its copy is thrown away."
    )


def _holders(entry: Document) -> list[str]:
    return [*entry["in_sync"], *entry["shed"]]


def _state(document: Document, who: str) -> str:
    node, _, inc = who.rpartition(".")
    entry = document["nodes"].get(node)
    if entry is None or entry["incarnation"] != inc:
        return "was started again since, and has nothing of it"
    return str(entry["state"])


def _name(sid: str, entry: Document) -> str:
    return "the catalog" if entry["home"] is None else f"post office {sid} of {entry['home']}"
