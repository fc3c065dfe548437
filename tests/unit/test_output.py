"""Writing to standard output, and knowing who has read it."""

from __future__ import annotations

import asyncio
import os

import pytest

from broker.commands import output
from broker.commands.output import Output


def test_what_was_read_counts_as_taken_though_the_loop_was_interrupted_before_it_knew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a pipe, and an event loop that is not told any more when a write has ended
    reader, writer = os.pipe()
    out = Output(writer)

    async def interrupted(function: object, *args: object) -> None:
        assert callable(function)
        function(*args)
        raise asyncio.CancelledError

    monkeypatch.setattr(output, "aside", interrupted)

    # When a line is written, and read after the interruption
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(out.write(b"a line\n"))
    taken_unread = out.taken
    read = os.read(reader, 100)
    taken_read = out.taken
    os.close(reader)
    os.close(writer)

    # Then it is taken as soon as it is read
    assert read == b"a line\n"
    assert (taken_unread, taken_read) == (False, True)
