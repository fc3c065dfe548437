"""Writing to standard output without stopping the event loop, and knowing who has read it.

A pipe takes 64 KiB that its reader may never look at. So into a pipe we write a little, and
wait until the reader has taken it; the steps grow, from few messages to many.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import stat
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Final, ParamSpec, TypeVar, cast

STEP_FIRST: Final = 8
STEP_MAX: Final = 1024
LOOK_S: Final = 0.001
LOOK_S_MAX: Final = 0.05

P = ParamSpec("P")
T = TypeVar("T")


class Output:
    """A file descriptor that is written to in steps."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
        self._written = False
        self.step = STEP_FIRST if self._is_pipe else STEP_MAX
        """How many messages to write next."""

    async def write(self, data: bytes) -> None:
        """Returns when the reader has it, as far as that can be known. Raises
        `BrokenPipeError` if the reader has gone before."""
        self._written = False
        await aside(self._write, data)
        if self._is_pipe:
            await self._wait_until_taken()
            self.step = min(2 * self.step, STEP_MAX)

    def _write(self, data: bytes) -> None:
        """In the thread that writes: the reader may have it all, and Ctrl-C be pressed, before
        the event loop is told."""
        while data:
            with naming_stdout():
                data = data[os.write(self._fd, data) :]
        self._written = True

    @property
    def taken(self) -> bool:
        """Whether the reader has all of the last write, which may have been interrupted."""
        return self._written and not self._unread()

    async def _wait_until_taken(self) -> None:
        poll = select.poll()
        poll.register(self._fd, 0)
        wait_s = LOOK_S
        while self._unread():
            if poll.poll(0):
                raise BrokenPipeError
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LOOK_S_MAX)

    def _unread(self) -> int:
        if not self._is_pipe:
            return 0
        return int.from_bytes(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)), "little")


@contextlib.contextmanager
def naming_stdout() -> Iterator[None]:
    """Where only standard output is written, an error says that it was that."""
    try:
        yield
    except OSError as error:
        error.filename = "standard output"
        raise


async def aside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what may block in a thread that nobody waits for at the end of the program, unlike
    those of the event loop: Ctrl-C must work while a terminal is read."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def run() -> None:
        result: T | None = None
        failed: BaseException | None = None
        try:
            result = function(*args, **kwargs)
        except OSError as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, daemon=True).start()
    return await done
