"""Control groups of the harness: where they are made, and that their limit holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from perf.cgroup import V1, V2, NoGroup, memory_groups, places

MIB = 1 << 20


def test_with_v2_groups_are_made_from_the_root_down_to_our_own() -> None:
    # Given a machine with version 2 only
    mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n/dev/sda / ext4 rw 0 0\n"

    # When it is asked where a group might be made
    found = list(places(mounts, "0::/user.slice/ours.scope\n"))

    # Then the outermost place comes first
    paths = ["/sys/fs/cgroup", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup/user.slice/ours.scope"]
    assert found == [(Path(path), V2) for path in paths]


def test_with_v1_only_the_mount_of_the_memory_controller_counts() -> None:
    # Given a machine with version 1, where each controller has a mount of its own
    mounts = (
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    )

    # When it is asked where a group might be made
    found = list(places(mounts, "3:cpu:/other\n2:memory:/ours\n"))

    # Then that is below the memory controller, by our group there
    assert found == [
        (Path("/sys/fs/cgroup/memory"), V1),
        (Path("/sys/fs/cgroup/memory/ours"), V1),
    ]


def test_a_process_that_takes_more_than_its_limit_is_killed_and_its_group_removed() -> None:
    # Given a group with room for an interpreter, and a program that needs more
    try:
        with memory_groups(["test"], 48 * MIB) as groups:
            group = groups["test"]
            program = [sys.executable, "-c", f"b'x' * {96 * MIB}"]

            # When it runs
            ended = subprocess.run([*group.launcher, *program], check=False, timeout=60)

            # Then the kernel ended it, and nothing of the group is left
            assert ended.returncode == -9
            assert group.killed == 1
            assert group.peak_bytes is None or group.peak_bytes <= 48 * MIB
            directory = Path(group.launcher[-1]).parent
            assert directory.is_dir()
    except NoGroup as why:
        pytest.skip(f"no control group can be made here: {why}")
    assert not directory.exists()
