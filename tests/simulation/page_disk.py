"""Page files on a simulated machine: slow, and gone with the process.

Jobs are answered in any order, but those of one page in the order in which they came. What is
written is encoded as in a file, and verified when it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, assert_never

from paging.disk import (
    BlockRead,
    Done,
    Job,
    PageRead,
    ReadBlock,
    ReadPage,
    RemoveBook,
    RemovePages,
    WritePage,
    Written,
)
from paging.pagefile import LIFE_BYTES, PageImage, PageKey, decode, encode
from tests.simulation.network import Action, Network

LIFE: Final = bytes(LIFE_BYTES)


class PageDisk:
    """The page files of one life of a node.

    Args:
        answer: Takes what became of a job.
    """

    def __init__(
        self,
        network: Network,
        node: str,
        answer: Callable[[Done], None],
    ) -> None:
        self._network = network
        self._node = node
        self._answer = answer
        self._files: dict[PageKey, bytes] = {}
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

    def _later(self, key: PageKey, action: Action) -> None:
        chance = self._network.chance
        took_s = self._network.weather.disk_s * min(chance.paretovariate(1.5), 20.0)
        at = self._free_at[key] = max(self._free_at.get(key, 0.0), self._network.now + took_s)
        self._network.after(at - self._network.now, action, owner=self._node)

    def _remove(self, key: PageKey) -> None:
        self._files.pop(key, None)
        if self._free_at[key] <= self._network.now:
            del self._free_at[key]

    def _finish(self, job: WritePage | ReadPage | ReadBlock) -> None:
        match job:
            case WritePage():
                assert job.key not in self._files, "a page is written once"
                data = b"".join(encode(job.key, LIFE, job.end, job.blocks))
                self._files[job.key] = data
                self._answer(Written(job.key, len(data)))
            case ReadPage():
                self._answer(PageRead(job.key, self._read(job.key)))
            case ReadBlock():
                blocks = self._read(job.key).blocks
                block = next(b for b in blocks if b.first <= job.offset < b.end)
                self._answer(BlockRead(job.key, job.token, block))
            case _:
                assert_never(job)

    def _read(self, key: PageKey) -> PageImage:
        assert key in self._files, "a page is read before it is written, or after it is removed"
        return decode(self._files[key], key, LIFE)
