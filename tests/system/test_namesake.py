"""Two processes under one name: only the one that was there first goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from broker.commands.local_cluster import free_ports
from tests.system.cluster import Cluster

pytestmark = pytest.mark.system

END_S_MAX = 20.0


def test_a_second_process_of_a_name_ends_and_the_first_one_serves_on(tmp_path: Path) -> None:
    # Given a node at work, and a copy of its directory with other addresses to listen at
    cluster = Cluster(tmp_path, nodes=1)
    try:
        cluster.start()
        file = tmp_path / "second" / "node.toml"
        (file.parent / "data").mkdir(parents=True)
        vote = (tmp_path / "node1" / "data" / "vote").read_bytes()
        (file.parent / "data" / "vote").write_bytes(vote)
        clients, peers, group = free_ports(3, above=31_000)
        file.write_text(
            f'[node]\nname = "node1"\ndir = "data"\n\n'
            f'[listen]\nclients = "127.0.0.1:{clients}"\npeers = "127.0.0.1:{peers}"\n'
            f'group = "127.0.0.1:{group}"\n\n'
            f'[cluster.expected]\nnode1 = "127.0.0.1:{peers}"\n',
            encoding="utf-8",
        )

        # When it is started
        second = subprocess.run(
            [sys.executable, "-m", "broker.cli", "run", str(file)],
            capture_output=True,
            text=True,
            timeout=END_S_MAX,
            check=False,
        )

        # Then it says that its name is taken and ends, and nothing happened to the first one
        assert second.returncode == 1
        assert "another process runs as node node1" in second.stdout + second.stderr
        assert cluster["node1"].is_running
        assert cluster.status()["streams"]
    finally:
        cluster.close()
