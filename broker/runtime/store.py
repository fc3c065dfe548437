"""Writes a node's vote to the disk, in a thread: the loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

from broker.core.events import Event, Persist, Persisted, PersistFailed


class Store:
    """Answers each `Persist` with `Persisted`, of itself or of a later one.

    A later blob holds all that an earlier one did, so of several that wait only the last one
    is written. After an error nothing is written any more: a file system may forget what it
    could not write, and then report success for the next.

    Args:
        write: Returns when the blob is on the disk.
        feed: Takes the answers, on the loop.
    """

    def __init__(self, write: Callable[[bytes], None], feed: Callable[[Event], None]) -> None:
        self._write = write
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._waiting: SimpleQueue[Persist] = SimpleQueue()
        # Not waited for at the end of the process: a disk may hang for ever.
        Thread(target=self._work, name="tanist-store", daemon=True).start()

    def persist(self, effect: Persist) -> None:
        self._waiting.put(effect)

    def _work(self) -> None:
        answer: Event | None = None
        while not isinstance(answer, PersistFailed):
            newest = self._newest()
            try:
                self._write(newest.blob)
                answer = Persisted(newest.token)
            except Exception as error:
                answer = PersistFailed(f"{type(error).__name__}: {error}")
            with suppress(RuntimeError):  # The loop is closed: nobody wants to know.
                self._loop.call_soon_threadsafe(self._feed, answer)

    def _newest(self) -> Persist:
        newest = self._waiting.get()
        with suppress(Empty):
            while True:
                newest = self._waiting.get_nowait()
        return newest
