"""Page files on a simulated machine: slow, with faults, and gone with the process.

Jobs are answered in any order, but those of one page in the order in which they came.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from paging.disk import (
    Done,
    Fault,
    Job,
    JobFailed,
    ReadBlock,
    ReadPage,
    RemoveBook,
    RemovePages,
    WritePage,
    Written,
)
from paging.pagefile import PageKey
from tests.simulation.network import Action, Network
from tests.unit.files_in_memory import FilesInMemory

SLOWER: Final = 40.0
"""So much longer a slow disk takes for everything."""


@dataclass(slots=True)
class DiskHealth:
    """How the disk of one machine is. It outlives the processes there.

    Attributes:
        full: How many faults there are because of which nothing can be written.
        deaf: How many there are because of which nothing can be read.
        slow: How many there are because of which everything takes longer.
        spoils: This share of what is written can never be read again.
        counts: What became of the jobs.
    """

    full: int = 0
    deaf: int = 0
    slow: int = 0
    spoils: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def fill(self, faults: int) -> None:
        self.full += faults

    def deafen(self, faults: int) -> None:
        self.deaf += faults

    def slow_down(self, faults: int) -> None:
        self.slow += faults

    def heal(self) -> None:
        """What passes is over. What was spoiled stays so, and so does a disk that spoils."""
        self.full = self.deaf = self.slow = 0


class PageDisk:
    """The page files of one life of a node.

    Args:
        answer: Takes what became of a job.
    """

    def __init__(
        self,
        network: Network,
        node: str,
        *,
        health: DiskHealth,
        answer: Callable[[Done], None],
    ) -> None:
        self._network = network
        self._node = node
        self._health = health
        self._answer = answer
        self._files = FilesInMemory()
        self._unreadable: set[PageKey] = set()
        """There, and the system has nothing but errors for whoever reads them."""
        self._free_at: dict[PageKey, float] = {}

    def do(self, jobs: list[Job]) -> None:
        for job in jobs:
            match job:
                case RemovePages():
                    for key in job.keys:
                        self._later(key, partial(self._remove, key))
                case RemoveBook():
                    for key in [key for key in self._free_at if key.book == job.book]:
                        self._later(key, partial(self._remove, key))
                case _:
                    self._later(job.key, partial(self._finish, job))

    @property
    def files(self) -> list[PageKey]:
        """The pages that are there."""
        return list(self._files.files)

    def spoil(self) -> None:
        """Some of what is there is altered, or cannot be read any more."""
        for key in self.files:
            if self._network.chance.random() < 0.5:
                self._spoil(key)

    def clear(self) -> None:
        """Somebody removes all files."""
        for key in self.files:
            self._files.remove(key)

    def _spoil(self, key: PageKey) -> None:
        if self._network.chance.random() < 0.5:
            self._files.damage(key)
        else:
            self._unreadable.add(key)
        self._health.counts["disk: spoiled"] += 1

    def _later(self, key: PageKey, action: Action) -> None:
        chance = self._network.chance
        took_s = self._network.weather.disk_s * min(chance.paretovariate(1.5), 20.0)
        if self._health.slow:
            took_s *= SLOWER
        at = self._free_at[key] = max(self._free_at.get(key, 0.0), self._network.now + took_s)
        self._network.after(at - self._network.now, action, owner=self._node)

    def _remove(self, key: PageKey) -> None:
        if key in self._files.files:  # Else it goes with its book, and was removed before.
            self._files.finish(RemovePages([key]))
        if self._free_at.get(key, math.inf) <= self._network.now:
            del self._free_at[key]

    def _finish(self, job: WritePage | ReadPage | ReadBlock) -> None:
        done = self._files.finish(job, self._fault(job))
        assert done is not None
        what = type(done).__name__
        if isinstance(done, JobFailed):
            what = f"{type(job).__name__} failed, {done.fault}"
        self._health.counts[f"disk: {what}"] += 1
        spoils = self._health.spoils
        if isinstance(done, Written) and spoils and self._network.chance.random() < spoils:
            self._spoil(done.key)
        self._answer(done)

    def _fault(self, job: WritePage | ReadPage | ReadBlock) -> Fault | None:
        if isinstance(job, WritePage):
            return Fault.FULL if self._health.full else None
        return Fault.BROKEN if self._health.deaf or job.key in self._unreadable else None
