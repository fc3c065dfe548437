"""`tanist send` and `tanist receive`: messages from and to a terminal, a file or a pipe."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

import tanist
from broker.commands.connection import FLOW_S_MAX, not_there, url_option, with_client
from broker.commands.output import Output, aside
from broker.commands.terminal import add_to_error, fail, json_option, say, show, wants_json
from broker.commands.waiting import Waiting

READ_BYTES: Final = 1 << 18
PREFETCH: Final = 4096
PROGRESS_S: Final = 0.2


@dataclass(slots=True)
class _Sending:
    """How far `send` is."""

    waiting: Waiting
    posted: int = 0
    unanswered: int = 0
    made: bool = False
    sid: int = 0
    began: float | None = None
    """When the first line was read."""
    seconds: float = 0.0
    """From then to the last confirm."""

    @property
    def stored(self) -> int:
        return self.posted - self.unanswered - self.waiting.refused

    def document(self, queue: str) -> dict[str, object]:
        return {
            "queue": queue,
            "sent": self.posted,
            "stored": self.stored,
            "in_doubt": self.unanswered,
            "made": self.made,
            "sid": self.sid,
            "seconds": round(self.seconds, 3),
        }


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
    sending = _Sending(Waiting())

    async def work(client: tanist.Client) -> None:
        sending.made = await _ensure(client, queue)
        async with client.producer(queue) as producer:
            sending.sid = producer.sid
            await _send_all(producer, source, sending)

    try:
        with_client(url, work, answer_s_max=FLOW_S_MAX, waiting=sending.waiting)
    except (tanist.Error, KeyboardInterrupt) as error:
        if sending.posted or isinstance(error, KeyboardInterrupt):
            doubt = f"; {sending.unanswered:,} in doubt" if sending.unanswered else ""
            say(f"{sending.stored:,} of {sending.posted:,} sent are stored in {queue}{doubt}")
        if isinstance(error, KeyboardInterrupt):
            show(sending.document(queue), "")
            raise click.exceptions.Exit(1) from None
        add_to_error(sending.document(queue))
        raise
    sent = sending.posted
    show(
        sending.document(queue),
        f"{sent:,} {_messages(sent)} stored in {queue} in {sending.seconds:.1f} s",
    )
    if sent:
        say(f"next: tanist receive {shlex.quote(queue)}")


async def _ensure(client: tanist.Client, queue: str) -> bool:
    """Whether the queue had to be made."""
    try:
        await client.describe(queue)
    except tanist.QueueNotFound:
        await client.declare(queue)
        say(f"there was no queue {queue}: it is made now, with a part in every post office")
        return True
    return False


async def _send_all(producer: tanist.Producer, source: BinaryIO, sending: _Sending) -> None:
    noting = asyncio.create_task(_note_answers(producer, sending))
    try:
        too_long = await _send_lines(producer, source, sending)
        sending.waiting.expecting = True
        await producer.flush()
        if sending.began is not None:
            sending.seconds = time.monotonic() - sending.began
    finally:
        noting.cancel()
        sending.unanswered = producer.unanswered
    if too_long is not None:
        add_to_error(sending.document(producer.queue))
        raise fail(
            f"{sending.stored:,} stored; line {sending.posted + 1:,} is too long: {too_long}",
            code=1,
        )


async def _note_answers(producer: tanist.Producer, sending: _Sending) -> None:
    """Progress is what is confirmed, not what was read."""
    while True:
        sending.waiting.progress = sending.posted - producer.unanswered
        # Who types, or a pipe that is quiet, is nobody's fault.
        sending.waiting.expecting = producer.unanswered > 0
        await asyncio.sleep(PROGRESS_S)


async def _send_lines(
    producer: tanist.Producer, source: BinaryIO, sending: _Sending
) -> tanist.LocalProtocolError | None:
    """Post all lines. Returns what is wrong with the first one that cannot be a message."""
    with _progress(source) as progress:
        task = progress.add_task("sending", total=_size(source), sent=0)
        async for lines in _lines(source):
            if sending.began is None:
                sending.began = time.monotonic()
            for line in lines:
                try:
                    room = producer.post(line)
                except tanist.LocalProtocolError as error:
                    return error
                sending.posted += 1
                await room
            size = sum(map(len, lines)) + len(lines)
            progress.update(task, advance=size, sent=sending.posted)
    return None


async def _lines(source: BinaryIO) -> AsyncIterator[list[bytes]]:
    """The lines that are there, as soon as they are; without their ends."""
    rest = b""
    while chunk := await aside(os.read, source.fileno(), READ_BYTES):
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
    """Print the messages of QUEUE, one a line, and acknowledge each once it is printed.

    A message may come again, here or elsewhere, if this stops before its acknowledgement has
    reached the cluster. Into a pipe, messages are acknowledged once the reader has taken them.
    """
    waiting = Waiting()
    acked = 0
    untaken = 0

    async def work(client: tanist.Client) -> None:
        nonlocal acked, untaken
        async with client.consumer(queue, prefetch=min(PREFETCH, count or PREFETCH)) as consumer:
            waiting.expecting = False
            if sys.stdout.isatty():
                say(f"waiting for messages of {queue}; Ctrl-C ends")
            out = Output(sys.stdout.fileno())
            while count is None or acked < count:
                step = min(out.step, count - acked if count is not None else out.step)
                messages = await consumer.take_ready(step)
                # What is acknowledged has left this process; the rest goes back to the queue.
                try:
                    await out.write(b"".join(map(_line, messages)))
                finally:
                    if out.taken:
                        consumer.ack_many(messages)
                        acked += len(messages)
                        waiting.progress = acked
                    else:
                        untaken = len(messages)
            stale = await consumer.flush()
            if stale:
                again = sum(run.count for run in stale)
                say(f"{again} {_messages(again)} may be delivered again: the ack came too late")

    try:
        with_client(url, work, answer_s_max=FLOW_S_MAX, waiting=waiting)
    except KeyboardInterrupt:
        say("")
        if untaken:
            say(
                f"up to {untaken:,} more {_messages(untaken)} written, which the reader has not"
                f" taken: not acknowledged, they stay in {queue}"
            )
    except tanist.QueueNotFound:
        raise not_there(queue) from None
    except BrokenPipeError:
        say(
            f"the reader has gone: {acked:,} {_messages(acked)} of {queue} acknowledged,"
            " the others stay in the queue"
        )
        raise
    say(f"{acked:,} {_messages(acked)} received from {queue}")


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
