"""What `tanist dev` leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.commands.dev import remove_unless_used
from broker.runtime.node_lock import node_lock


def a_cluster(directory: Path) -> list[Path]:
    """The directories of its nodes, each with a vote; the last node was never started."""
    made = [directory / name / "data" for name in ("node1", "node2")]
    for data in made:
        data.mkdir(parents=True)
        (data / "vote").write_bytes(b"promised")
    (directory / "node3").mkdir()
    return made


def test_a_cluster_whose_nodes_have_all_stopped_leaves_nothing(tmp_path: Path) -> None:
    # Given the files of a cluster, one of whose nodes ran until now
    directory = tmp_path / "dev"
    first, _ = a_cluster(directory)
    with node_lock(first):
        pass

    # When they are to go
    remove_unless_used(directory)

    # Then they are gone
    assert not directory.exists()


def test_the_files_stay_while_one_of_the_nodes_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given the files of a cluster, one of whose nodes was started by somebody else
    directory = tmp_path / "dev"
    first, second = a_cluster(directory)

    # When they are to go
    with node_lock(second):
        remove_unless_used(directory)

    # Then all are there, and it is said who runs, and how they go later
    assert (first / "vote").exists()
    assert (second / "vote").exists()
    said = capsys.readouterr().err
    assert "started by somebody else: node2." in said
    assert f"rm -r {directory}" in said


def test_a_lock_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    # Given a directory that somebody has; when another one wants it, then that one may not
    with node_lock(tmp_path), pytest.raises(BlockingIOError), node_lock(tmp_path):
        pass

    # But may as soon as it is free
    with node_lock(tmp_path):
        assert (tmp_path / "lock").exists()
