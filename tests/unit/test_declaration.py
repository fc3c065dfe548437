"""Arguments that no queue can have are refused before anything is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from click.testing import CliRunner

import tanist
from broker.cli import main
from tanist.wire import control
from tanist.wire.frames import Verb
from tests.unit.fake_node import FakeCluster
from tests.unit.fake_server import FakeServer
from tests.unit.test_blocking import ServerThread

# Any: these arguments are wrong on purpose.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"spread": "two"}, r"spread is \"every\" or \"one\", not 'two'"),
    ({"spread": None}, r"spread is .* not None"),
    ({"when_full": "x"}, r"when_full is \"hold\" or \"refuse\", not 'x'"),
    ({"bytes_max": 1.5}, r"bytes_max is a whole number from 0 to 9223372036854775807, not 1\.5"),
    ({"bytes_max": 2**70}, r"bytes_max .* not 1180591620717411303424"),
    ({"bytes_max": 2**63}, r"bytes_max .* not 9223372036854775808"),
    ({"bytes_max": -1}, r"bytes_max .* not -1"),
    ({"bytes_max": True}, r"bytes_max .* not True"),
    ({"bytes_max": "1"}, r"bytes_max .* not '1'"),
    ({"at": -1}, r"at is a whole number from 0 to 4294967295, not -1"),
    ({"at": 2**32}, r"at .* not 4294967296"),
    ({"queue": "half \ud800"}, r"'half \\ud800' has halves of characters"),
    ({"queue": "ä" * 128}, r"'ä+' has 256 bytes as UTF-8: 1 to 255 are allowed"),
    ({"queue": ""}, r"'' has 0 bytes"),
    ({"queue": 5}, r"a queue's name is a str, not 5"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_a_wrong_argument_is_refused_at_once_and_nothing_is_sent(
    arguments: dict[str, Any], sentence: str
) -> None:
    async def scenario() -> None:
        # Given a client in a cluster
        cluster = FakeCluster("a")
        async with (
            FakeServer(cluster) as server,
            asyncio.timeout(5),
            tanist.connect(server.url) as client,
        ):
            # When it declares a queue as there can be none
            with pytest.raises(tanist.ConfigError, match=sentence):
                await client.declare(**{"queue": "new", **arguments})

            # Then no node has heard of it, and the connection is as good as before
            assert await client.queues() == []
            assert cluster.nodes["a"].frames(Verb.DECLARE) == []
            assert len(cluster.nodes["a"].frames(Verb.HELLO)) == 1

    asyncio.run(scenario())


def test_the_largest_arguments_that_are_allowed_are_sent() -> None:
    async def scenario() -> None:
        # Given a client in a cluster
        cluster = FakeCluster("a")
        async with (
            FakeServer(cluster) as server,
            asyncio.timeout(5),
            tanist.connect(server.url) as client,
        ):
            # When it declares a queue with as much of everything as there may be
            info = await client.declare("ä" * 127 + "a", bytes_max=2**63 - 1)

            # Then the node is asked for that
            (declared,) = cluster.nodes["a"].messages(Verb.DECLARE)
            assert isinstance(declared, control.Declare)
            assert declared.settings.bytes_max == 2**63 - 1
            assert len(info.name.encode()) == 255

    asyncio.run(scenario())


@pytest.mark.parametrize(("sid", "gen"), [(-1, 1), (2**32, 1), (1, -1), (1, 2**63)])
def test_a_stream_that_cannot_be_is_not_declared_lost(sid: int, gen: int) -> None:
    async def scenario() -> None:
        # Given a client in a cluster
        cluster = FakeCluster("a")
        async with (
            FakeServer(cluster) as server,
            asyncio.timeout(5),
            tanist.connect(server.url) as client,
        ):
            # When it gives up a stream whose numbers no stream can have
            with pytest.raises(tanist.ConfigError, match="is a whole number from 0"):
                await client.declare_lost(sid, gen)

            # Then no node has heard of it
            assert cluster.nodes["a"].frames(Verb.DECLARE_LOST) == []

    asyncio.run(scenario())


def test_the_command_line_says_which_number_is_too_large() -> None:
    # Given a cluster
    server = ServerThread()
    try:
        # When a queue is made there with more bytes than can be counted
        arguments = ("queue", "create", "new", "--bytes-max", "9" * 20, "--url", server.url)
        result = CliRunner().invoke(main, arguments)
    finally:
        server.stop()

    # Then that is a mistake of usage, which names the number and what is allowed
    assert result.exit_code == 2
    assert f"bytes_max is a whole number from 0 to {2**63 - 1}, not {'9' * 20}" in result.stderr
    assert "new" not in server.cluster.queues
