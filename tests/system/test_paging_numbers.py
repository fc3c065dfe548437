"""What a real node says of its pages and its disk, before and after a queue is drained."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import tanist as client
from tests.system.cluster import Cluster, wait_until
from tests.system.conftest import MakeCluster
from tests.system.test_commands import as_json, tanist
from tests.system.test_damaged_pages import LITTLE

pytestmark = pytest.mark.system

MESSAGES = 24_000
BODY = bytes(1_000)
PREFETCH = 100
"""Less than a page has: a cursor that passes over a page at once does not count it."""


async def publish(url: str) -> None:
    async with client.connect(url) as connected:
        await connected.declare("q", spread="one")
        async with connected.producer("q") as producer:
            for _ in range(MESSAGES):
                await producer.post(BODY)
            await producer.flush()


async def consume(url: str) -> None:
    async with (
        client.connect(url) as connected,
        connected.consumer("q", prefetch=PREFETCH) as consumer,
    ):
        left = MESSAGES
        while left:
            messages = await consumer.fetch(min(PREFETCH, left), timeout=30)
            assert messages
            consumer.ack_many(messages)
            left -= len(messages)
        await consumer.flush()


# Any: a JSON document.
def paging_of(cluster: Cluster) -> dict[str, Any]:
    paging: dict[str, Any] = cluster.status()["nodes"]["node1"]["paging"]
    return paging


def test_what_went_to_files_and_came_back_is_told(make_cluster: MakeCluster) -> None:
    # Given a node with a queue that does not fit into its memory
    cluster = make_cluster(nodes=1, extra=LITTLE)
    cluster.start()
    asyncio.run(publish(cluster.url))

    # When it is asked for its numbers, by programs and people
    node: dict[str, Any] = {}
    queue: dict[str, Any] = {}

    def agree() -> bool:
        """Not between two questions of which the open page is sealed, or a page written."""
        node.update(paging_of(cluster))
        queue.update(as_json(cluster, "queue", "stat", "q")["paging"])
        return queue.items() <= node.items() and not node["writing"]

    wait_until(agree, what="the queue and its node to say the same")
    page = tanist(cluster, "status").stdout.decode()

    # Then they say how much of it is where, and that the disk wrote that
    assert queue["pages_on_disk"] > 20
    assert queue["pages"] == queue["pages_in_memory"] + queue["pages_on_disk"]
    disk = node["disk"]
    assert disk["files_written"] >= queue["pages_on_disk"]
    assert disk["bytes_written"] > queue["disk_bytes"]
    assert disk["writing_s"] > 0
    assert disk["files_read"] == disk["failed"] == disk["left"] == 0
    assert "MiB/s" in page, page

    # And when all is consumed, nothing is left of it but what was counted
    asyncio.run(consume(cluster.url))

    def none_left() -> bool:
        now = paging_of(cluster)["disk"]
        return bool(now["files_removed"] == now["files_written"])

    wait_until(none_left, what="the files to be removed")
    after = paging_of(cluster)
    assert after["pages"] == after["disk_bytes"] == after["tail_bytes"] == 0
    assert after["read_ahead_hits"] + after["read_ahead_misses"] >= queue["pages_on_disk"]
    assert after["disk"]["bytes_read"] > queue["disk_bytes"]
    assert after["disk"]["reading_s"] > 0
