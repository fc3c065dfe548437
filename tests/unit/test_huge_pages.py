"""A node starts itself once more, to have its memory in huge pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from broker.runtime.huge_pages import TUNABLE, VARIABLE

PROGRAM = (
    "import os, sys\n"
    "from broker.runtime.huge_pages import use_huge_pages\n"
    "print(os.getpid(), flush=True)\n"
    "use_huge_pages()\n"
    f"print(os.environ[{VARIABLE!r}], sys.argv[1:])\n"
)


def lines(*arguments: str, tunables: str | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if tunables is not None:
        environment[VARIABLE] = tunables
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.splitlines()


@pytest.mark.parametrize("others", [None, "glibc.malloc.tcache_count=7"])
def test_a_node_begins_anew_once_as_the_same_process(others: str | None) -> None:
    # Given an environment that says nothing of huge pages, when a node starts
    pid, same_pid, said = lines("a", "b c", tunables=others)

    # Then it starts once more, with the same id and arguments, and what was set stays
    assert pid == same_pid
    both = f"{others}:{TUNABLE}=1" if others else f"{TUNABLE}=1"
    assert said == f"{both} ['a', 'b c']"


def test_what_an_operator_decided_stays() -> None:
    # Given a node that shall not use them, when it starts
    said = lines(tunables=f"{TUNABLE}=0")

    # Then it does so once
    assert said[1:] == [f"{TUNABLE}=0 []"]
