"""Samples of where a program spends its time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perf.sampled import ELSEWHERE, SYSTEM, WRITE_EACH, shares

LIMIT_S = 60
BATCHES = """
from tanist.wire.batch import seal
from time import process_time
until = process_time() + 1
while process_time() < until:
    for _ in range(100):
        seal([b"x" * 100] * 600, [], flags=0, first_n=1, time_ms=0)
"""


def test_each_sample_counts_for_the_layer_that_its_module_belongs_to() -> None:
    found = shares(
        {
            "tanist.wire.batch:seal": 1,
            "tanist.producer:Producer.post": 2,
            "broker.core.desk:Desk.wake": 3,
            "broker.runtime.shell:Shell.turn": 1,
            ELSEWHERE: 1,
            SYSTEM: 0.5,
        }
    )

    assert {name: share for name, share in found.items() if share} == pytest.approx(
        {"wire": 1 / 8, "client": 2 / 8, "post offices": 3 / 8, "sockets, the loop": 2 / 8}
    )


def test_a_program_is_run_with_its_arguments_and_its_samples_name_our_function(
    tmp_path: Path,
) -> None:
    # Given a program that does little but seal batches
    out = tmp_path / "samples"
    command = [sys.executable, "-m", "perf.sampled", str(out)]

    # When it runs with samples taken
    subprocess.run(
        [*command, sys.executable, "-m", "timeit", "-n", "1", "-r", "1", BATCHES],
        check=True,
        timeout=LIMIT_S,
        capture_output=True,
    )

    # Then most of them say so
    samples: dict[str, float] = json.loads(out.read_text())
    assert 0 <= samples.pop(SYSTEM) <= 1
    assert sum(samples.values()) > WRITE_EACH
    assert max(samples, key=lambda place: samples[place]).startswith("tanist.wire.batch:")
