"""Structured logs: a line for each event, for programs or for people."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from queue import Full, Queue
from threading import Thread
from typing import Final

import orjson

from broker.core.events import Level

LINES_MAX: Final = 10_000
"""Lines that wait for a slow reader of the log. Further ones are dropped and counted."""

FLUSH_S_MAX: Final = 1.0

_COLOURS: Final = {Level.DEBUG: "2", Level.INFO: "0", Level.WARNING: "33", Level.ERROR: "31;1"}


class Form(Enum):
    JSON = "json"
    """One object a line: time, level, event, node, and the event's values by name."""

    SHORT = "short"
    """For a person who watches."""


class Logs:
    """Writes lines to a file descriptor, in a thread.

    A terminal that was stopped, or a pipe that nobody reads, must not stop the node: its
    peers would take it for dead.
    """

    def __init__(
        self,
        node: str,
        *,
        form: Form,
        level: Level = Level.INFO,
        descriptor: int = 2,
        colours: bool = False,
    ) -> None:
        self._node = node
        self._form = form
        self._level = level
        self._descriptor = descriptor
        self._colours = colours
        self._lines: Queue[bytes | None] = Queue(LINES_MAX)
        self._dropped = 0
        self._thread = Thread(target=self._work, name="tanist-logs", daemon=True)
        self._thread.start()

    def write(self, level: Level, event: str, fields: Mapping[str, object] | None = None) -> None:
        """A sentence, and the values in it by name."""
        if level < self._level:
            return
        if self._dropped:
            fields = {**(fields or {}), "lines_dropped_before": self._dropped}
        try:
            self._lines.put_nowait(self._line(level, event, fields or {}))
            self._dropped = 0
        except Full:
            self._dropped += 1

    def error(self, event: str, error: BaseException) -> None:
        """With the stack: for our own mistakes."""
        lines = traceback.format_exception(error)
        self.write(Level.ERROR, event, {"error": repr(error), "stack": "".join(lines)})

    def take_over_logging(self) -> None:
        """What libraries log through `logging` comes here, too."""
        logging.basicConfig(handlers=[_Bridge(self)], level=logging.WARNING, force=True)

    def close(self) -> None:
        """Write what waits, if somebody reads it."""
        with suppress(Full):
            self._lines.put_nowait(None)
            self._thread.join(FLUSH_S_MAX)

    def _line(self, level: Level, event: str, fields: Mapping[str, object]) -> bytes:
        now = datetime.now(UTC)
        if self._form is Form.JSON:
            line = {
                "time": now.isoformat(timespec="milliseconds"),
                "level": level.name.lower(),
                "node": self._node,
                "event": event,
                **fields,
            }
            return orjson.dumps(
                line, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
            )
        values = "".join(
            f" {name}={value}" for name, value in fields.items() if name not in ("stack", "error")
        )
        text = f"{now:%H:%M:%S}.{now.microsecond // 1000:03} {level.name:<7} {event}{values}"
        if "stack" in fields:
            text += f"\n{fields['stack']}".rstrip()
        if self._colours:
            text = f"\x1b[{_COLOURS[level]}m{text}\x1b[0m"
        return text.encode() + b"\n"

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                continue  # The reader is gone. The node does not need him.


class _Bridge(logging.Handler):
    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        level = Level(max(10, min(40, record.levelno // 10 * 10)))
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info is not None and record.exc_info[1] is not None:
            fields["stack"] = "".join(traceback.format_exception(record.exc_info[1]))
        self._logs.write(level, record.getMessage(), fields)


def form_for_stderr() -> Form:
    return Form.SHORT if sys.stderr.isatty() else Form.JSON
