"""The storeroom of a node: the pages of all its post offices, owned or followed.

It lends the pager what that does not know: how much of the node's budget pages may take up,
which copies still exist, and which consumers wait for what was brought back from a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from broker.core.desks import Desks
from broker.core.events import DiskDone, DiskJobs, Effect, Level, Log
from broker.core.limits import Limits
from broker.core.post_office import PostOffice
from paging.disk import Job
from paging.pager import ROOM_BYTES_MIN, DiskRecovered, DiskTrouble, PageDamaged, Pager
from paging.traffic import Traffic
from replication.core.member import Member

PAGES_SHARE: Final = 0.75
"""Of the node's budget: with pages in memory, no more than this is used. Publishers get credit
up to a higher share, so that a disk that keeps up never stops them."""


class Storeroom:
    """See the module docstring.

    Args:
        traffic: What the disk did until now.
        pages_bytes_max: Pages take up no more in memory, even if the budget allows it.
    """

    def __init__(
        self,
        limits: Limits,
        traffic: Callable[[], Traffic] = Traffic,
        *,
        pages_bytes_max: int | None = None,
    ) -> None:
        self._limits = limits
        self._pages_bytes_max = limits.budget_bytes if pages_bytes_max is None else pages_bytes_max
        self._traffic = traffic
        self.pager = Pager(
            page_bytes=limits.page_bytes,
            ahead_bytes=limits.read_ahead_bytes,
            part_resident_bytes_max=limits.queue_resident_bytes_max,
            room_bytes_min=min(ROOM_BYTES_MIN, self._pages_bytes_max),
        )

    def new_office(self, sid: int, gen: int) -> PostOffice:
        """A copy of a post office without content."""
        return PostOffice(sid, gen, shelf=self.pager.shelf(sid, gen))

    def handle(self, event: DiskDone, now: float) -> None:
        for done in event.done:
            self.pager.handle(done, now)

    def hand_over(self, desks: Desks) -> None:
        """Tell the desks what was brought back. Before deliveries are planned."""
        for book in self.pager.take_arrived():
            desk = desks.offices.get(book.sid)
            if desk is not None and desk.office.shelf.copy == book.copy:
                desk.pages_arrived(book.part)

    def end_turn(self, now: float, used_bytes: int, outbox: list[Effect]) -> list[PageDamaged]:
        """Have pages written and read. Returns those that were found to be unreadable.

        `used_bytes`: of the whole budget, pages included.
        """
        others = used_bytes - self.pager.resident_bytes
        room = int(PAGES_SHARE * self._limits.budget_bytes) - others
        jobs: list[Job] = []
        self.pager.end_turn(now, min(room, self._pages_bytes_max), jobs)
        if jobs:
            outbox.append(DiskJobs(jobs))
        damaged: list[PageDamaged] = []
        for news in self.pager.take_news():
            match news:
                case DiskTrouble():
                    fields: dict[str, object] = {"fault": news.fault.value, "why": news.sentence}
                    outbox.append(Log(Level.ERROR, "pages cannot be written", fields))
                case DiskRecovered():
                    outbox.append(Log(Level.INFO, "pages can be written again", {}))
                case PageDamaged():
                    damaged.append(news)
                    outbox.append(Log(Level.ERROR, "a page cannot be read", {"why": news.sentence}))
        return damaged

    def sweep(self, member: Member) -> None:
        """Let go of what belonged to copies that are no more."""
        machines = [m for stream in member.streams.values() for m in stream.machines]
        self.pager.retain({m.shelf.tally for m in machines if isinstance(m, PostOffice)})

    @property
    def trouble(self) -> str | None:
        """Why pages cannot be written, if they cannot."""
        trouble = self.pager.trouble
        return trouble.sentence if trouble is not None else None

    def document(self) -> dict[str, object]:
        """For the status of the node."""
        pager, counts = self.pager, self.pager.counts()
        return {
            "pages": counts.pages,
            "pages_in_memory": counts.pages - counts.pages_away,
            "pages_on_disk": counts.pages_away,
            "memory_bytes": pager.resident_bytes - counts.tail_bytes,
            "tail_bytes": counts.tail_bytes,
            "disk_bytes": pager.disk_bytes,
            "writing": counts.writing,
            "reading": counts.reading,
            "read_ahead_hits": counts.hits,
            "read_ahead_misses": counts.misses,
            "damaged": counts.damaged,
            "trouble": self.trouble or "",
            "disk": asdict(self._traffic()),
        }

    def next_deadline(self) -> float | None:
        return self.pager.next_deadline()
