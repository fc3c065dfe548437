"""A node is killed with pages in files: what it left is removed at the next start, or kept if it
is marked so, and never becomes part of the life that follows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import tanist as client
from paging.files import KEEP
from perf.node_process import NodeProcess
from tests.system.cluster import Cluster, wait_until
from tests.system.conftest import MakeCluster
from tests.system.test_commands import as_json
from tests.system.test_damaged_pages import BODY, LITTLE, received

pytestmark = pytest.mark.system

BEFORE, AFTER = range(24_000), range(100_000, 124_000)
"""What is published in the life that is killed, and in the next one."""
FILES_MIN = 20


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    """A node alone, killed while most of one queue lay in files."""
    made = make_cluster(nodes=1, extra=LITTLE)
    made.start()
    [node] = made.nodes
    fill_files(made, lives_of(node)[0], BEFORE)
    node.kill()
    return made


def fill_files(cluster: Cluster, life: Path, numbers: range) -> None:
    """Publish more than the node has memory for."""

    async def publish() -> None:
        async with client.connect(cluster.url) as connected:
            await connected.declare("q", spread="one")
            async with connected.producer("q") as producer:
                for number in numbers:
                    await producer.post(number.to_bytes(4, "big") + BODY)
                await producer.flush()

    asyncio.run(publish())
    wait_until(lambda: len(list(life.glob("*/*.page"))) >= FILES_MIN, what="pages in files")


def lives_of(node: NodeProcess) -> list[Path]:
    return sorted((node.log.parent / "data" / "pages").iterdir())


def next_life_of(node: NodeProcess, killed: Path) -> Path:
    """The one whose process runs now."""
    [life] = [life for life in lives_of(node) if life != killed]
    return life


def contents(life: Path) -> dict[str, bytes]:
    return {str(file.relative_to(life)): file.read_bytes() for file in life.glob("*/*.page")}


def test_what_a_killed_node_left_is_removed_and_not_read(cluster: Cluster) -> None:
    # Given page files that a killed node left
    [node] = cluster.nodes
    [killed] = lives_of(node)
    left = contents(killed)

    # When it starts again, and other messages go the same way
    cluster.start()
    fill_files(cluster, next_life_of(node, killed), AFTER)
    wait_until(lambda: not killed.exists(), what="the removal of what was left")

    # Then all that was left was removed, and those messages come back, no others
    lines = [json.loads(line) for line in node.log.read_text().splitlines()]
    [removed] = [line for line in lines if line["event"].startswith("removed the pages")]
    assert removed["files"] == len(left) >= FILES_MIN
    assert removed["bytes"] == sum(map(len, left.values()))
    assert received(cluster, enough=len(AFTER)) == list(AFTER)
    assert as_json(cluster, "queue", "stat", "q")["ready"] == 0


def test_what_is_marked_to_be_kept_stays_and_is_not_read(cluster: Cluster) -> None:
    # Given page files that a killed node left, and a mark beside them
    [node] = cluster.nodes
    [killed] = lives_of(node)
    left = contents(killed)
    (killed / KEEP).touch()

    # When it starts again, other messages go the same way, and it ends
    cluster.start()
    fill_files(cluster, next_life_of(node, killed), AFTER)
    wait_until(lambda: node.logged(f"{killed.name} stays"), what="a word about what is kept")
    got = received(cluster, enough=len(AFTER))
    ready = as_json(cluster, "queue", "stat", "q")["ready"]
    code = node.stop()

    # Then those messages came back, no others, and only what was marked is still there
    assert got == list(AFTER)
    assert ready == 0
    assert code == 0
    assert lives_of(node) == [killed]
    assert len(left) >= FILES_MIN
    assert contents(killed) == left
