"""The benchmark of a part with many pages: what it measures is what it says."""

from __future__ import annotations

from pathlib import Path
from random import Random

from paging.files import PageFiles
from perf.pages import BLOCKS, Index, Plan, look_ups, reads


def test_what_is_timed_is_the_message_that_was_asked_for(tmp_path: Path) -> None:
    # Given a part of 40 pages, of which every second one has a file
    index = Index(PageFiles.open(tmp_path, bytes(16)), pages=40, with_file=20)
    plan = Plan(pages=40, files=20, messages=0, look_ups=200, rounds=2, directory=tmp_path)
    last = BLOCKS * index.block.count - 1

    # When the last message of each page that is away is fetched, and all is timed
    firsts = index.in_files()
    found = {index.fetch(first + last)[:2] for first in firsts}
    us = look_ups(index, plan.look_ups, Random(1)) | reads(index, plan, Random(1))

    # Then it is the last one of its batch, and nothing took no time
    assert len(firsts) == len(list(tmp_path.rglob("*.page"))) > 8
    assert found == {(index.block.count - 1).to_bytes(2, "big")}
    assert len(us) == 6
    assert all(0 < times.median <= times.p99 for times in us.values())
