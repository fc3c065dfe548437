"""What an application says of a queue, looked at before any of it is sent.

A node answers a frame that breaks its schema by ending the connection, which looks like an
outage: the client would dial again and repeat it until its time is over. So what the schema
refuses is refused here, with a sentence for whoever wrote the call.
"""

from __future__ import annotations

from typing import Final, Literal

from tanist.errors import ConfigError
from tanist.wire import control
from tanist.wire.limits import NUMBER_END

U32_END: Final = 1 << 32
_SHOWN_CHARACTERS_MAX = 80


def declaration(
    queue: str,
    *,
    spread: Literal["every", "one"],
    when_full: Literal["hold", "refuse"],
    bytes_max: int,
    at: int,
) -> control.Declare:
    """The request that declares this queue. Raises `ConfigError`."""
    check_name(queue)
    check_number("bytes_max", bytes_max, NUMBER_END)
    check_number("at", at, U32_END)
    if spread not in ("every", "one"):
        raise ConfigError(f'spread is "every" or "one", not {_shown(spread)}')
    if when_full not in ("hold", "refuse"):
        raise ConfigError(f'when_full is "hold" or "refuse", not {_shown(when_full)}')
    settings = control.QueueSettings(when_full=when_full, bytes_max=bytes_max)
    return control.Declare(req=0, queue=queue, spread=spread, at=at, settings=settings)


def check_name(queue: str) -> None:
    """Raises `ConfigError` for what cannot be a queue's name."""
    if not isinstance(queue, str):
        raise ConfigError(f"a queue's name is a str, not {_shown(queue)}")
    try:
        control.check_queue_name(queue)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_number(name: str, value: int, end: int) -> None:
    """Raises `ConfigError` for what is no whole number from 0 to below `end`."""
    # True is an int for Python, and not for JSON.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < end:
        raise ConfigError(f"{name} is a whole number from 0 to {end - 1}, not {_shown(value)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}…"
