"""How commands reach the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import click

import tanist
from broker.config import CLIENT_PORT

ANSWER_S_MAX: Final = 5.0
"""A person who waits for an answer wants to know after this that there is none."""

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


def with_client(url: str, work: Callable[[tanist.Client], Awaitable[T]]) -> T:
    """Connect, do the work, and disconnect. Raises what the client raises."""

    async def run() -> T:
        async with tanist.connect(url, failover_timeout_s=ANSWER_S_MAX) as client:
            return await work(client)

    return asyncio.run(run())
