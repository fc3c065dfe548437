"""`tanist send` and `tanist receive`: messages from and to a terminal, a file or a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import BinaryIO, Final

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

import tanist
from broker.commands.connection import FLOW_S_MAX, url_option, with_client
from broker.commands.terminal import json_option, say, show, wants_json

READ_BYTES: Final = 1 << 18
PREFETCH: Final = 4096


@click.command()
@click.argument("queue")
@click.option(
    "--file",
    "source",
    type=click.File("rb"),
    default="-",
    show_default=True,
    help="Where to read; - is standard input.",
)
@url_option
@json_option
def send(queue: str, source: BinaryIO, url: str) -> None:
    """Send each line as one message to QUEUE, which is made if there is none."""
    if source.fileno() == 0 and source.isatty():
        say("type messages, one a line; Ctrl-D ends")
    began = time.monotonic()

    async def work(client: tanist.Client) -> tuple[int, bool, int]:
        made = await _ensure(client, queue)
        async with client.producer(queue) as producer:
            sent = await _send_lines(producer, source)
            await producer.flush()
            return sent, made, producer.sid

    sent, made, sid = with_client(url, work, answer_s_max=FLOW_S_MAX)
    seconds = time.monotonic() - began
    show(
        {"queue": queue, "sent": sent, "made": made, "sid": sid, "seconds": round(seconds, 3)},
        f"{sent:,} {_messages(sent)} stored in {queue} in {seconds:.1f} s",
    )
    say(f"next: tanist receive {queue}")


async def _ensure(client: tanist.Client, queue: str) -> bool:
    """Whether the queue had to be made."""
    try:
        await client.describe(queue)
    except tanist.QueueNotFound:
        await client.declare(queue)
        say(f"there was no queue {queue}: it is made now, with a part in every post office")
        return True
    return False


async def _send_lines(producer: tanist.Producer, source: BinaryIO) -> int:
    sent = 0
    with _progress(source) as progress:
        task = progress.add_task("sending", total=_size(source), sent=0)
        async for lines in _lines(source):
            for line in lines:
                await producer.post(line)
            sent += len(lines)
            size = sum(map(len, lines)) + len(lines)
            progress.update(task, advance=size, sent=sent)
    return sent


async def _lines(source: BinaryIO) -> AsyncIterator[list[bytes]]:
    """The lines that are there, as soon as they are; without their ends."""
    rest = b""
    while chunk := await asyncio.to_thread(os.read, source.fileno(), READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


def _size(source: BinaryIO) -> int | None:
    """None: nobody knows, as of a pipe."""
    return os.fstat(source.fileno()).st_size or None


def _progress(source: BinaryIO) -> Progress:
    shown = sys.stderr.isatty() and not source.isatty() and not wants_json()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[sent]:,} messages"),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
    )


@click.command()
@click.argument("queue")
@click.option("--count", type=click.IntRange(min=1), help="End after so many; default: Ctrl-C.")
@url_option
@json_option
def receive(queue: str, count: int | None, url: str) -> None:
    """Print the messages of QUEUE, one a line, and acknowledge each once it is printed."""
    received = 0

    async def work(client: tanist.Client) -> None:
        nonlocal received
        async with client.consumer(queue, prefetch=min(PREFETCH, count or PREFETCH)) as consumer:
            if sys.stdout.isatty():
                say(f"waiting for messages of {queue}; Ctrl-C ends")
            async for message in consumer:
                # Unbuffered: what is acknowledged has left this process.
                os.write(sys.stdout.fileno(), _line(message))
                consumer.ack(message)
                received += 1
                if received == count:
                    break
            stale = await consumer.flush()
            if stale:
                again = sum(run.count for run in stale)
                say(f"{again} {_messages(again)} may be delivered again: the ack came too late")

    try:
        with_client(url, work, answer_s_max=FLOW_S_MAX)
    except KeyboardInterrupt:
        say("")
    say(f"{received:,} {_messages(received)} received from {queue}")


def _line(message: tanist.Message) -> bytes:
    if not wants_json():
        return message.body + b"\n"
    document: dict[str, object] = {
        "id": message.id,
        "properties": message.properties,
        "time_ms": message.time_ms,
        "redelivered": message.redelivered,
        "attempts": message.attempts,
    }
    try:
        document["body"] = message.body.decode()
    except UnicodeDecodeError:
        document["body_base64"] = b64encode(message.body).decode()
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def _messages(count: int) -> str:
    return "message" if count == 1 else "messages"
