"""A whole node, alone, one of whose page files was altered: what its clients and operator see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from broker.core.events import Level, Log
from paging.disk import Done as DiskAnswer, Job, JobFailed, ReadPage
from paging.files import FileFault
from tanist.wire.control import Purge, Stat, Status
from tests.unit.test_node_paging import Paged


class Damaged(Paged):
    """A node whose disk says so when a file is not what was written."""

    def __init__(self, directory: Path) -> None:
        self.logs: list[str] = []
        super().__init__(directory)

    def keeps(self, effect: object) -> bool:
        if isinstance(effect, Log) and effect.level is Level.ERROR:
            self.logs.append(effect.event)
        return super().keeps(effect)  # type: ignore[arg-type]  # It takes any effect.

    def _done(self, job: Job) -> DiskAnswer | None:
        try:
            return super()._done(job)
        except FileFault as fault:
            assert isinstance(job, ReadPage)
            return JobFailed(job, fault.fault, str(fault))

    def alter_a_page(self) -> tuple[int, int]:
        """Of those in files, one in the middle. Returns its first offset, and the next one's."""
        files = sorted(self.directory.glob("pages/*/*/*.page"))
        file = files[len(files) // 2]
        data = bytearray(file.read_bytes())
        data[40] ^= 1
        file.write_bytes(data)
        first, end = (int(f.name.partition(".")[0], 16) for f in files[len(files) // 2 :][:2])
        return first, end

    def take_all(self) -> list[int]:
        self.consume()
        for _ in range(1_000):
            self.hear_all()
        self.ack_all()
        return self.got

    # Any: the status is a JSON object for people.
    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = msgspec.json.decode(self.asks(Status(req=20)).status)
        stream: dict[str, Any] = document["streams"]["1"]
        return stream


def test_what_is_lost_is_reported_and_skipped_and_all_else_goes_on(tmp_path: Path) -> None:
    # Given a node without others, and of its page files one is altered
    node = Damaged(tmp_path)
    node.publish_bytes(30 << 20)
    first, end = node.alter_a_page()

    # When a consumer takes everything
    got = node.take_all()

    # Then it has all but that page, and the operator is told what to do
    assert got == [*range(first), *range(end, node.published)]
    assert "messages are lost" in node.logs
    status = node.status()
    [damaged] = status["here"]["damaged"]
    assert (damaged["first"], damaged["end"], damaged["state"]) == (first, end, "lost")
    assert any("tanist queue skip-lost 'q'" in warning for warning in status["warnings"])
    stat = node.asks(Stat(req=21, sid=1, queue_id=node.queue_id)).stat
    assert stat is not None
    assert (stat.ready, stat.lost) == (end - first, end - first)

    # And when that is skipped, nothing is left, on the disk neither
    skip = Purge(req=22, sid=1, queue_id=node.queue_id, lost=True)
    assert node.asks(skip).purged == end - first
    assert node.asks(msgspec.structs.replace(skip, req=23)).purged == 0
    assert node.status()["here"]["damaged"] == []
    assert node.on_disk == 0


def test_nothing_is_skipped_that_can_be_read(tmp_path: Path) -> None:
    # Given a node with messages in files, none of which is altered
    node = Damaged(tmp_path)
    node.publish_bytes(30 << 20)

    # When what is lost is to be skipped
    skipped = node.asks(Purge(req=22, sid=1, queue_id=node.queue_id, lost=True)).purged

    # Then nothing is
    assert skipped == 0
    assert node.take_all() == list(range(node.published))
