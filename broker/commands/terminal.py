"""How commands speak: to a person on the terminal, or to a program with `--json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import orjson
from rich.console import Console

from broker.commands.output import naming_stdout

_JSON: Final = "tanist.json"
_FACTS: Final = "tanist.facts"

# Any: a click callback takes whatever its options are.
F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Adds `--json`, which `wants_json` then knows."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.meta[_JSON] = True

    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Print JSON instead of text.",
    )(command)


def wants_json() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.meta.get(_JSON, False)


def say(text: str) -> None:
    """A line for the person who waits, beside the result. Not said to programs."""
    if not wants_json():
        click.echo(text, err=True)


def show(document: object, text: str) -> None:
    """The result of a command."""
    with naming_stdout():
        if wants_json():
            click.echo(orjson.dumps(document, default=str).decode())
        elif text:
            click.echo(text)


def add_to_error(facts: dict[str, object]) -> None:
    """How far the command came, for the program that is told of its error."""
    click.get_current_context().meta[_FACTS] = facts


def fail(sentence: str, *, code: int) -> click.exceptions.Exit:
    """Say why a command failed. The caller raises what this returns."""
    if wants_json():
        facts = click.get_current_context().meta.get(_FACTS, {})
        document = {"error": sentence, "exit_code": code, **facts}
        click.echo(orjson.dumps(document).decode(), err=True)
    else:
        click.echo(f"error: {sentence}", err=True)
    return click.exceptions.Exit(code)


def must_confirm(question: str) -> None:
    """Ask before what cannot be undone. Who does not want to be asked says `--yes`."""
    if wants_json():
        raise fail("a program must say --yes: nobody can be asked", code=2)
    click.confirm(question, abort=True, err=True)


def console() -> Console:
    """For tables and progress. Without a terminal, rich writes plain text.

    What is printed has names and sentences of others in it, which may look like rich's markup:
    so it has none.
    """
    return Console(highlight=False, markup=False, emoji=False)
