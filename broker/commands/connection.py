"""How commands reach the cluster."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import click

import tanist
from broker.commands.terminal import fail
from broker.commands.waiting import Waiting
from broker.config import CLIENT_PORT

ENTER_S_MAX: Final = 5.0
"""A person wants to know after this that no node answers."""

ANSWER_S_MAX: Final = 10.0
"""Once in, an owner that is being replaced is waited for so long."""

FLOW_S_MAX: Final = 30.0
"""The same for what may have run for hours."""

# Any: a click command takes whatever its options are.
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def url_option(command: F) -> F:
    """Adds `--url`."""
    return click.option(
        "--url",
        envvar="TANIST_URL",
        default=f"tanist://127.0.0.1:{CLIENT_PORT}",
        show_default=True,
        show_envvar=True,
        help="tanist://host:port,host:port… of any nodes of the cluster.",
    )(command)


def not_there(queue: str) -> click.exceptions.Exit:
    """Said of a queue that the command would have used. The caller raises what this returns."""
    return fail(
        f"there is no queue {queue!r}; to make it: tanist queue create {shlex.quote(queue)}", code=4
    )


def with_client(
    url: str,
    work: Callable[[tanist.Client], Awaitable[T]],
    *,
    answer_s_max: float = ANSWER_S_MAX,
    waiting: Waiting | None = None,
) -> T:
    """Connect, do the work, and disconnect; say why if it has to wait. Raises what the client
    raises."""
    told = waiting if waiting is not None else Waiting()

    async def run() -> T:
        client = tanist.connect(
            url, name="tanist command", failover_timeout_s=answer_s_max, listener=told.hear
        )
        try:
            async with asyncio.timeout(ENTER_S_MAX):
                await client
        except TimeoutError:
            raise tanist.BrokenError(f"no node answers at {url}") from None
        watch = asyncio.create_task(told.watch(client))
        try:
            return await work(client)
        finally:
            watch.cancel()
            await client.close()

    return asyncio.run(run())
