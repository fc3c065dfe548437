"""The command line: `tanist`.

Exit codes: 0, done; 1, failed; 2, the command line or a node's file is wrong; 3, no node
answers; 4, refused. A node that ends by a bug of its own: 70.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import click

from broker.commands.config import config, init
from broker.commands.declare_lost import declare_lost
from broker.commands.dev import dev
from broker.commands.messages import receive, send
from broker.commands.queues import queue
from broker.commands.run import run
from broker.commands.status import status
from broker.commands.terminal import fail, json_option, say
from tanist.errors import (
    BrokenError,
    ConfigError,
    Error,
    FailoverTimeout,
    QueueNotFound,
    RefusedError,
)

FAILED, USAGE, NO_NODE, REFUSED = 1, 2, 3, 4


class Commands(click.Group):
    """Turns errors into sentences and exit codes, for all commands."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        # Any: what click hands on to the context.
        **extra: Any,
    ) -> click.Context:
        with _in_words():  # This prints --help and --version.
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        with _in_words():
            return super().invoke(ctx)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise fail(str(error), code=USAGE) from None
    except QueueNotFound as error:
        raise fail(f"there is no queue {error.queue!r}", code=REFUSED) from None
    except RefusedError as error:
        raise fail(str(error), code=REFUSED) from None
    except FailoverTimeout as error:
        hint = "which nodes are missing: tanist status"
        raise fail(f"{error}\n{hint}", code=NO_NODE) from None
    except BrokenError as error:
        raise fail(f"{error}\nto start a cluster: tanist dev --nodes 3", code=NO_NODE) from None
    except Error as error:
        raise fail(str(error), code=FAILED) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _give_up_stdout()
        raise click.exceptions.Exit(FAILED) from None
    except OSError as error:
        _give_up_stdout()
        why = error.strerror or str(error)
        sentence = f"{error.filename}: {why}" if error.filename else why
        raise fail(sentence, code=FAILED) from None
    except KeyboardInterrupt:
        say("")  # The terminal shows ^C in this line.
        raise fail("stopped", code=FAILED) from None


def _give_up_stdout() -> None:
    """What is still to be written is thrown away: Python must not try it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("tanist"), prog_name="tanist")
@json_option
def main() -> None:
    """Tanist, a message broker whose backups already hold every message.

    Try it:  tanist dev --nodes 3
    """


for command in (run, init, dev, send, receive, queue, status, declare_lost, config):
    main.add_command(command)

if __name__ == "__main__":
    main()
