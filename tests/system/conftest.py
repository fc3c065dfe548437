"""Clusters for the tests here: ended after each test, with their logs shown if it failed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.system.cluster import Cluster

# A shell lets what it starts in the background ignore Ctrl-C, and whatever that starts, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_failed = pytest.StashKey[bool]()

MakeCluster = Callable[..., Cluster]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_failed] = report.failed
    return report


@pytest.fixture
def make_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeCluster]:
    """Makes clusters: `make_cluster(nodes=3)`, then `start()`."""
    made: list[Cluster] = []
    numbers = count(1)

    def make(*, nodes: int, extra: str = "") -> Cluster:
        cluster = Cluster(tmp_path / f"cluster{next(numbers)}", nodes=nodes, extra=extra)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.close()
        if request.node.stash.get(_failed, True):
            cluster.show_logs()


@pytest.fixture
def three_nodes(make_cluster: MakeCluster) -> Cluster:
    """A cluster of three that serves, with all copies in sync."""
    cluster = make_cluster(nodes=3)
    cluster.start()
    return cluster


@pytest.fixture
def one_node(make_cluster: MakeCluster) -> Cluster:
    """A node that is a cluster of its own, and serves."""
    cluster = make_cluster(nodes=1)
    cluster.start()
    return cluster
