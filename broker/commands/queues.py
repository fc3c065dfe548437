"""`tanist queue`: what queues there are, and making, emptying and removing them."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from typing import Final, Literal

import click
import msgspec
from rich.table import Table

import tanist
from broker.commands.connection import not_there, url_option, with_client
from broker.commands.output import naming_stdout
from broker.commands.terminal import (
    console,
    fail,
    json_option,
    must_confirm,
    say,
    show,
    wants_json,
)
from tanist.wire.control import Paging, PartStat, check_queue_name

ASKED_AT_ONCE: Final = 100
"""Queues whose content is asked for at the same time."""

_PAGE_COLUMNS: Final = (
    "pages",
    "in memory",
    "on disk",
    "MiB in memory",
    "MiB on disk",
    "KiB open",
    "in time",
    "late",
)


@click.group()
def queue() -> None:
    """See, make, empty and remove queues."""


@queue.command("ls")
@url_option
@json_option
def list_(url: str) -> None:
    """List all queues, with what is in them."""

    found = with_client(url, _all_with_content)
    if wants_json():
        show([_document(info, stat) for info, stat in found], "")
        return
    if not found:
        say("there are no queues; make one: tanist queue create NAME")
        return
    table = Table("queue", "spread", "when full", box=None)
    _number_columns(table)
    for info, stat in found:
        table.add_row(info.name, _where(info), _when_full(info), *_numbers(stat))
    with naming_stdout():
        console().print(table)


async def _all_with_content(
    client: tanist.Client,
) -> list[tuple[tanist.QueueInfo, tanist.QueueStat]]:
    found: list[tuple[tanist.QueueInfo, tanist.QueueStat]] = []
    queues = await client.queues()
    for at in range(0, len(queues), ASKED_AT_ONCE):
        some = queues[at : at + ASKED_AT_ONCE]
        stats = await asyncio.gather(
            *(client.stat(info.name) for info in some), return_exceptions=True
        )
        for info, stat in zip(some, stats, strict=True):
            if isinstance(stat, tanist.QueueNotFound):
                continue  # Deleted meanwhile.
            if isinstance(stat, BaseException):
                raise stat
            found.append((info, stat))
    return found


@queue.command()
@click.argument("name")
@click.option(
    "--spread",
    type=click.Choice(["every", "one"]),
    default="every",
    show_default=True,
    help="every: a part in each post office. one: one part, one total order.",
)
@click.option(
    "--when-full",
    type=click.Choice(["hold", "refuse"]),
    default="hold",
    show_default=True,
    help="hold: producers wait. refuse: they get an error.",
)
@click.option(
    "--bytes-max", type=click.IntRange(min=0), default=0, help="Of a part, about; 0: no bound."
)
@url_option
@json_option
def create(
    name: str,
    spread: Literal["every", "one"],
    when_full: Literal["hold", "refuse"],
    bytes_max: int,
    url: str,
) -> None:
    """Make the queue NAME."""
    try:
        check_queue_name(name)
    except ValueError as error:
        raise fail(str(error), code=2) from None

    async def work(client: tanist.Client) -> tuple[bool, tanist.QueueInfo]:
        there = await _is_there(client, name)
        try:
            info = await client.declare(
                name, spread=spread, when_full=when_full, bytes_max=bytes_max
            )
        except tanist.QueueExistsDifferently:
            asked = {"spread": spread, "when-full": when_full, "bytes-max": bytes_max}
            raise _exists_differently(await client.describe(name), asked) from None
        return there, info

    there, info = with_client(url, work)
    show(
        {"queue": name, "id": info.id, "spread": info.spread, "sid": info.sid, "made": not there},
        f"queue {name} {'was there already' if there else 'is made'}: {_where(info)}",
    )
    say(f"next: tanist send {shlex.quote(name)}")


@queue.command()
@click.argument("name")
@url_option
@json_option
def rm(name: str, url: str) -> None:
    """Remove the queue NAME with all its messages."""

    async def work(client: tanist.Client) -> tanist.QueueStat:
        stat = await client.stat(name)
        await client.delete(name)
        return stat

    stat = with_client(url, work)
    gone = stat.ready + stat.in_flight
    show(
        {"queue": name, "removed": True, "messages": gone},
        f"queue {name} is removed, and {gone:,} messages with it",
    )


@queue.command()
@click.argument("name")
@url_option
@json_option
def purge(name: str, url: str) -> None:
    """Remove the messages that wait in queue NAME; those in flight stay."""
    purged = with_client(url, lambda client: client.purge(name))
    show({"queue": name, "purged": purged}, f"{purged:,} messages removed from {name}")


@queue.command("skip-lost")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
@json_option
def skip_lost(name: str, yes: bool, url: str) -> None:
    """Give up the messages in queue NAME that no node can read any more.

    They are passed over already, and reported by `tanist status`; from then on they count as
    done with. What can be read is not touched.
    """
    lost = with_client(url, lambda client: client.stat(name)).lost
    if lost and not yes:
        must_confirm(f"{lost:,} messages of {name} cannot be read on any node. Give them up?")
    skipped = with_client(url, lambda client: client.skip_lost(name)) if lost else 0
    show(
        {"queue": name, "skipped": skipped},
        f"{skipped:,} messages of {name} are given up"
        if skipped
        else f"no message of {name} is lost: nothing to give up",
    )


@queue.command("stat")
@click.argument("name")
@url_option
@json_option
def stat_(name: str, url: str) -> None:
    """Say what is in queue NAME, in which post office, and how much of it is on disk."""

    async def work(client: tanist.Client) -> tuple[tanist.QueueInfo, tanist.QueueStat]:
        return await client.describe(name), await client.stat(name)

    try:
        info, stat = with_client(url, work)
    except tanist.QueueNotFound:
        raise not_there(name) from None
    if wants_json():
        show(_document(info, stat), "")
        return
    with naming_stdout():
        _print_stat(info, stat)
    if stat.lost:
        say(f"{stat.lost:,} messages cannot be read on any node: see tanist queue skip-lost")


def _print_stat(info: tanist.QueueInfo, stat: tanist.QueueStat) -> None:
    out = console()
    table = Table("post office", box=None)
    _number_columns(table)
    for sid, part in sorted(stat.parts.items()):
        table.add_row(str(sid), *_numbers(part))
    table.add_row("all", *_numbers(stat))
    out.print(f"queue {info.name}: {_where(info)}; when full: {_when_full(info)}")
    out.print(table)
    pages = Table("post office", box=None)
    for title in _PAGE_COLUMNS:
        pages.add_column(title, justify="right")
    for sid, part in sorted(stat.parts.items()):
        pages.add_row(str(sid), *_page_numbers(part.paging))
    pages.add_row("all", *_page_numbers(stat.paging))
    out.print("\nits pages at each owner, and how often they were read ahead in time:")
    out.print(pages)


def _exists_differently(
    info: tanist.QueueInfo, asked: Mapping[str, str | int]
) -> click.exceptions.Exit:
    """Say in what the queue that is there is another one."""
    has: dict[str, str | int] = {
        "spread": info.spread,
        "when-full": info.settings.when_full,
        "bytes-max": info.settings.bytes_max,
    }
    different = [
        f"--{key} {has[key]}, not {value}" for key, value in asked.items() if has[key] != value
    ]
    return fail(f"queue {info.name!r} exists otherwise: {'; '.join(different)}", code=4)


async def _is_there(client: tanist.Client, name: str) -> bool:
    try:
        await client.describe(name)
    except tanist.QueueNotFound:
        return False
    return True


def _number_columns(table: Table) -> None:
    for title in ("ready", "in flight", "bytes", "consumers"):
        table.add_column(title, justify="right")


def _numbers(stat: tanist.QueueStat | PartStat) -> list[str]:
    return [f"{n:,}" for n in (stat.ready, stat.in_flight, stat.bytes, stat.consumers)]


def _page_numbers(paging: Paging) -> list[str]:
    return [
        f"{paging.pages:,}",
        f"{paging.pages_in_memory:,}",
        f"{paging.pages_on_disk:,}",
        f"{paging.memory_bytes / (1 << 20):,.1f}",
        f"{paging.disk_bytes / (1 << 20):,.1f}",
        f"{paging.tail_bytes / (1 << 10):,.1f}",
        f"{paging.read_ahead_hits:,}",
        f"{paging.read_ahead_misses:,}",
    ]


def _where(info: tanist.QueueInfo) -> str:
    return "every" if info.spread == "every" else f"one (post office {info.sid})"


def _when_full(info: tanist.QueueInfo) -> str:
    most = info.settings.bytes_max
    return info.settings.when_full + (f" at {most:,} bytes of a part" if most else "")


def _document(info: tanist.QueueInfo, stat: tanist.QueueStat) -> dict[str, object]:
    return {
        "name": info.name,
        "id": info.id,
        "spread": info.spread,
        "sid": info.sid,
        "when_full": info.settings.when_full,
        "bytes_max": info.settings.bytes_max,
        "ready": stat.ready,
        "in_flight": stat.in_flight,
        "bytes": stat.bytes,
        "consumers": stat.consumers,
        "lost": stat.lost,
        "paging": _paging(stat.paging),
        "parts": {
            str(sid): {
                "ready": part.ready,
                "in_flight": part.in_flight,
                "bytes": part.bytes,
                "consumers": part.consumers,
                "lost": part.lost,
                "paging": _paging(part.paging),
            }
            for sid, part in stat.parts.items()
        },
    }


def _paging(paging: Paging) -> dict[str, int]:
    return {"pages": paging.pages, **msgspec.structs.asdict(paging)}
