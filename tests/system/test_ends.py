"""How commands end that cannot go on: interrupted, refused, or with nowhere to write."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.cluster import Cluster, wait_until
from tests.system.test_commands import as_json, tanist

pytestmark = pytest.mark.system


@contextmanager
def started(url: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on beside the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "broker.cli", *arguments],
        env={**os.environ, "TANIST_URL": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def unread_bytes(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["queue", "ls"],
        ["queue", "stat", "full"],
        ["status", "--json"],
        ["receive", "full"],
    ],
    ids=" ".join,
)
def test_output_that_cannot_be_written_is_said_in_one_sentence(
    one_node: Cluster, command: list[str]
) -> None:
    # Given a message, and a disk that is full
    tanist(one_node, "send", "full", given=b"x\n")

    # When a command writes there
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "broker.cli", *command],
            env={**os.environ, "TANIST_URL": one_node.url},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )

    # Then it says so and nothing else, and the message has stayed
    said = done.stderr.decode()
    if "--json" in command:
        said = f"error: {json.loads(said)['error']}\n"
    assert done.returncode == 1
    assert said == "error: standard output: No space left on device\n"
    assert as_json(one_node, "queue", "stat", "full")["ready"] == 1


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["queue", "ls", "--help"]])
def test_help_that_cannot_be_written_is_no_stack(command: list[str]) -> None:
    # Given a disk that is full

    # When help is written there
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "broker.entry", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )

    # Then it is said in a sentence
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


def test_ctrl_c_while_modules_are_loaded_ends_without_a_stack(tmp_path: Path) -> None:
    # Given a module that is loaded for ever
    (tmp_path / "click.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(60)\n"
    )

    # When Ctrl-C is pressed meanwhile
    done = subprocess.run(
        [sys.executable, "-m", "broker.entry", "status"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=60,
        check=False,
    )

    # Then the program has ended by that, in silence
    assert done.returncode == -signal.SIGINT
    assert done.stderr == b""


def test_ctrl_c_in_a_command_is_an_object_for_a_program() -> None:
    # Given a node that is there and does not answer
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"tanist://127.0.0.1:{silent.getsockname()[1]}"
        with started(url, "queue", "ls", "--json") as listing:
            connection, _ = silent.accept()

            # When the command that waits for it is interrupted
            with connection:
                listing.send_signal(signal.SIGINT)
                shown, said = listing.communicate(timeout=30)

    # Then there is nothing but an object on standard error
    assert shown == b""
    assert json.loads(said) == {"error": "stopped", "exit_code": 1}
    assert listing.returncode == 1


def test_ctrl_c_in_send_tells_a_program_how_far_it_came(one_node: Cluster) -> None:
    # Given a program that has more to send, of which two messages are stored
    tanist(one_node, "queue", "create", "some")
    with started(one_node.url, "send", "some", "--json") as sending:
        assert sending.stdin is not None
        sending.stdin.write(b"a\nb\n")
        sending.stdin.flush()
        wait_until(
            lambda: as_json(one_node, "queue", "stat", "some")["ready"] == 2, what="two messages"
        )

        # When it is interrupted
        sending.send_signal(signal.SIGINT)
        shown, said = sending.communicate(timeout=30)

    # Then it says what it has done
    document = json.loads(shown)
    assert (document["sent"], document["stored"], document["in_doubt"]) == (2, 2, 0)
    assert (sending.returncode, said) == (1, b"")


def test_send_that_is_refused_tells_a_program_how_many_are_stored(one_node: Cluster) -> None:
    # Given a queue that is soon full, and then refuses
    tanist(one_node, "queue", "create", "small", "--when-full", "refuse", "--bytes-max", "10000")
    given = (b"x" * 1000 + b"\n") * 5000

    # When more is sent
    done = tanist(one_node, "send", "small", "--json", given=given, code=4)

    # Then the error has the number of those that are there
    document = json.loads(done.stderr)
    assert done.stdout == b""
    assert document["exit_code"] == 4
    assert document["stored"] == as_json(one_node, "queue", "stat", "small")["ready"]
    assert 0 < document["stored"] < document["sent"]


def test_a_line_that_is_too_long_tells_a_program_how_many_are_stored(one_node: Cluster) -> None:
    # Given three lines, and one that cannot be a message
    given = b"x\n" * 3 + b"y" * 1_044_481

    # When they are sent
    done = tanist(one_node, "send", "long", "--json", given=given, code=1)

    # Then the error has the number
    document = json.loads(done.stderr)
    assert (document["stored"], document["in_doubt"]) == (3, 0)


def test_receive_says_what_it_wrote_that_nobody_has_read(one_node: Cluster) -> None:
    # Given three messages in a pipe that nobody reads
    tanist(one_node, "send", "unread", given=b"a\nb\nc\n")
    with started(one_node.url, "receive", "unread") as receiving:
        wait_until(
            lambda: as_json(one_node, "queue", "stat", "unread")["in_flight"] == 3,
            what="three messages in flight",
        )
        assert receiving.stdout is not None
        pipe = receiving.stdout.fileno()
        wait_until(lambda: unread_bytes(pipe) == 6, what="three lines in the pipe")

        # When it is interrupted
        receiving.send_signal(signal.SIGINT)
        receiving.wait(timeout=30)
        _, said = receiving.communicate(timeout=30)

    # Then it counts them apart, and they have stayed
    assert b"up to 3 more messages written, which the reader has not taken" in said
    assert b"\n0 messages received from unread" in said
    assert as_json(one_node, "queue", "stat", "unread")["ready"] == 3


def test_what_is_not_there_and_what_is_there_otherwise_is_said_with_the_way_out(
    one_node: Cluster,
) -> None:
    # Given a queue
    tanist(one_node, "queue", "create", "orders", "--bytes-max", "5000000")

    # When others are used, and another one of its name is made
    used = [
        tanist(one_node, *command, "no such", code=4).stderr.decode()
        for command in (("receive",), ("queue", "stat"))
    ]
    removed = [
        tanist(one_node, "queue", command, "no such", code=4).stderr.decode()
        for command in ("rm", "purge", "skip-lost")
    ]
    otherwise = tanist(one_node, "queue", "create", "orders", "--spread", "one", code=4)

    # Then who would use one is told how to make it, others are not; and what differs is named
    there_is_none = "error: there is no queue 'no such'"
    assert used == [f"{there_is_none}; to make it: tanist queue create 'no such'\n"] * 2
    assert removed == [f"{there_is_none}\n"] * 3
    assert otherwise.stderr.decode() == (
        "error: queue 'orders' exists otherwise:"
        " --spread every, not one; --bytes-max 5000000, not 0\n"
    )
