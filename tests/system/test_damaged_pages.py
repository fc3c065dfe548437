"""Page files are altered under running nodes: had again from others, or reported and skipped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import tanist as client
from perf.node_process import NodeProcess
from tests.system.cluster import Cluster, wait_until
from tests.system.conftest import MakeCluster
from tests.system.test_commands import as_json, tanist

pytestmark = pytest.mark.system

LITTLE = """
[limits]
budget_bytes = 16_777_216
page_bytes = 262_144
read_ahead_bytes = 1_048_576
disk_free_bytes_min = 1
"""
MESSAGES = 24_000
BODY = bytes(996)
PATIENCE_S = 30.0
"""After so long without a message a consumer has all that there is."""


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    """Three nodes, on all of which most of one queue lies in files."""
    made = make_cluster(nodes=3, extra=LITTLE)
    made.start()

    async def publish() -> None:
        async with client.connect(made.nodes[0].url) as connected:
            await connected.declare("q", spread="one")
            async with connected.producer("q") as producer:
                for n in range(MESSAGES):
                    await producer.post(n.to_bytes(4, "big") + BODY)
                await producer.flush()

    asyncio.run(publish())
    wait_until(lambda: all(len(pages_of(node)) >= 20 for node in made.nodes), what="pages in files")
    return made


def pages_of(node: NodeProcess) -> dict[int, Path]:
    """The page files of a node, by the offset of the first message."""
    files = (node.log.parent / "data").glob("pages/*/*/*.page")
    return dict(sorted((int(file.name.partition(".")[0], 16), file) for file in files))


def alter(file: Path) -> None:
    """A bit of its header is another one."""
    with file.open("r+b") as page:
        page.seek(30)
        byte = page.read(1)[0]
        page.seek(30)
        page.write(bytes([byte ^ 0x10]))


def received(cluster: Cluster, *, enough: int) -> list[int]:
    """What a consumer gets until it has so much, or nothing comes any more."""

    async def consume() -> list[int]:
        got: list[int] = []
        async with (
            client.connect(cluster.url) as connected,
            connected.consumer("q", prefetch=500) as consumer,
        ):
            while len(got) < enough:
                messages = await consumer.fetch(min(500, enough - len(got)), timeout=PATIENCE_S)
                if not messages:
                    break
                got += [int.from_bytes(message.body[:4], "big") for message in messages]
                consumer.ack_many(messages)
            await consumer.flush()
        return got

    return asyncio.run(consume())


def test_what_the_owner_cannot_read_comes_from_another_node(cluster: Cluster) -> None:
    # Given an owner, all of whose page files are altered
    owner = cluster.owner_of("node1")
    for file in pages_of(owner).values():
        alter(file)

    # When a consumer takes everything
    got = received(cluster, enough=MESSAGES)

    # Then nothing is missing, and all of it came in order
    assert got == list(range(MESSAGES))
    assert owner.logged("a page was had again from another copy")
    assert as_json(cluster, "queue", "stat", "q")["lost"] == 0


def test_what_no_node_can_read_is_reported_until_it_is_skipped(cluster: Cluster) -> None:
    # Given messages whose pages are altered on every node
    firsts = list(pages_of(cluster.owner_of("node1")))
    first, end = firsts[10], firsts[12]
    for node in cluster.nodes:
        pages = pages_of(node)
        before = max(at for at in pages if at <= first)
        for at, file in pages.items():
            if before <= at < end:
                alter(file)

    # When a consumer takes everything else
    got = received(cluster, enough=MESSAGES - (end - first))

    # Then that came in order, and the status says what is lost and what to do
    assert got == [*range(first), *range(end, MESSAGES)]
    assert as_json(cluster, "queue", "stat", "q")["lost"] == end - first
    status = tanist(cluster, "status").stdout.decode()
    assert f"{end - first:,} of queue 'q' cannot be read on any node" in " ".join(status.split())
    copies = [
        copy["damaged"]
        for stream in cluster.status()["streams"].values()
        for copy in stream["copies"].values()
        if copy["damaged"]
    ]
    assert {damaged["state"] for one in copies for damaged in one} == {"lost"}

    # And when the operator has it skipped, after a question
    tanist(cluster, "queue", "skip-lost", "q", given=b"n\n", code=1)
    asked = tanist(cluster, "queue", "skip-lost", "q", given=b"y\n")
    assert f"{end - first:,} messages" in asked.stdout.decode()

    # Then nothing is left of it, neither there nor after a takeover
    assert as_json(cluster, "queue", "stat", "q")["ready"] == 0
    assert as_json(cluster, "queue", "skip-lost", "q", "--yes")["skipped"] == 0
    cluster.owner_of("node1").kill()
    cluster.wait_for_status(
        lambda status: all("node1." not in s["owner"] for s in status["streams"].values()),
        what="a takeover",
    )
    assert as_json(cluster, "queue", "stat", "q")["ready"] == 0
