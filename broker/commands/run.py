"""`tanist run`: one node."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from broker.commands.terminal import fail, say
from broker.config import CLIENT_PORT, Config, Node, load_config, node_file
from broker.runtime.huge_pages import use_huge_pages
from broker.runtime.logs import Form, Logs, form_for_stderr
from replication.core.events import Level


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--log",
    "log_form",
    type=click.Choice([form.value for form in Form]),
    help="Form of the log; default: short on a terminal, else json.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info")
@click.option("--asyncio", is_flag=True, help="Use Python's own event loop instead of uvloop.")
@click.option("--with-parent", is_flag=True, hidden=True)
def run(
    file: Path | None, log_form: str | None, log_level: str, asyncio: bool, with_parent: bool
) -> None:
    """Run the node of FILE (node.toml), until Ctrl-C.

    Without FILE: a node alone on loopback, with defaults, and a temporary directory.
    """
    configured = None if file is None else load_config(node_file(file))
    use_huge_pages()
    # Here, since the other commands need neither uvloop nor libzmq.
    from broker.app import StartError, run_node

    with ExitStack() as held:
        config = configured or _alone(
            held.enter_context(tempfile.TemporaryDirectory(prefix="tanist-"))
        )
        form = Form(log_form) if log_form else form_for_stderr()
        logs = Logs(
            config.node.name,
            form=form,
            level=Level[log_level.upper()],
            colours=form is Form.SHORT and sys.stderr.isatty() and "NO_COLOR" not in os.environ,
        )
        logs.take_over_logging()
        held.callback(logs.close)
        try:
            code = run_node(config, logs, plain_asyncio=asyncio, with_parent=with_parent)
        except StartError as error:
            raise fail(str(error), code=1) from None
    raise click.exceptions.Exit(code)


def _alone(directory: str) -> Config:
    say(
        f"starting one node alone, at tanist://127.0.0.1:{CLIENT_PORT}: every message is in one"
        " copy, in its memory (unprotected)\n"
        "in another terminal:\n"
        "  echo hello | tanist send greetings\n"
        "  tanist receive greetings\n"
        "several nodes: tanist dev --nodes 3\n"
        "a file to configure one: tanist init DIR"
    )
    return Config(node=Node(name="node1", dir=directory))
