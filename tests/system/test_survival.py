"""Nodes die under load, and nothing is lost: a short form of `make torture`."""

from __future__ import annotations

import asyncio

import pytest

from perf.torture import Kind, episode

pytestmark = pytest.mark.system


@pytest.mark.parametrize("kind", ["kill", "stop", "pair", "consumer"])
def test_nothing_is_lost_reordered_or_handed_out_twice(kind: Kind) -> None:
    # Given a cluster of real processes under load, which records what applications see
    # When a node is killed, stopped for 5 s, or killed with a backup, or a consumer is killed
    line = asyncio.run(episode(kind, seed=7))

    # Then the history has no violation, and was about something
    assert line.violations == []
    assert line.messages > 1000
    if kind != "consumer":
        assert line.unconfirmed + line.in_flight > 0
        assert line.rejoined in ("rejoined by ops", "waiting for transfer")
