"""The command line against real nodes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tanist as client
from broker.commands.local_cluster import free_ports
from broker.runtime.huge_pages import TUNABLE, VARIABLE
from tanist.wire.limits import QUEUES_PAGE_MAX
from tests.system.cluster import Cluster, wait_until
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system


def tanist(
    cluster: Cluster, *arguments: str, given: bytes = b"", code: int = 0
) -> subprocess.CompletedProcess[bytes]:
    """Run a command against the cluster; it ends with this exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "broker.cli", *arguments],
        env={**os.environ, "TANIST_URL": cluster.url},
        input=given,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    return done


# Any: what a command prints as JSON; the tests look at parts of it.
def as_json(cluster: Cluster, *arguments: str, given: bytes = b"") -> Any:
    return json.loads(tanist(cluster, *arguments, "--json", given=given).stdout)


def test_what_is_sent_is_received_once_and_in_order(three_nodes: Cluster) -> None:
    # Given lines, one of them empty and one without an end
    lines = [b"line %d" % number for number in range(5000)] + [b"", "ü".encode()]

    # When they are sent to a queue that is not there, and received elsewhere
    sent = tanist(three_nodes, "send", "lines", given=b"\n".join(lines))
    received = tanist(three_nodes, "receive", "lines", "--count", "5002")
    left = as_json(three_nodes, "queue", "stat", "lines")

    # Then all have come, the queue was made aloud, and nothing is left
    assert received.stdout.splitlines() == lines
    assert b"there was no queue lines: it is made now" in sent.stderr
    assert b"5,002 messages stored in lines" in sent.stdout
    assert (left["ready"], left["in_flight"]) == (0, 0)


def test_a_file_is_sent_and_its_end_is_the_end(one_node: Cluster, tmp_path: Path) -> None:
    # Given a file
    file = tmp_path / "file"
    file.write_bytes(b"one\ntwo\n")

    # When it is sent, and received as JSON
    document = as_json(one_node, "send", "files", "--file", str(file))
    received = tanist(one_node, "receive", "files", "--count", "2", "--json").stdout

    # Then there are two messages, with what is known of them
    assert (document["sent"], document["made"]) == (2, True)
    first, second = map(json.loads, received.splitlines())
    assert (first["body"], second["body"]) == ("one", "two")
    assert first["redelivered"] is False
    assert first["id"] != second["id"]


def test_queues_are_made_seen_emptied_and_removed(three_nodes: Cluster) -> None:
    # Given a queue with one part
    made = as_json(three_nodes, "queue", "create", "orders", "--spread", "one")
    tanist(three_nodes, "send", "orders", given=b"a\nb\nc\n")

    # When it is listed, emptied and removed
    listed = as_json(three_nodes, "queue", "ls")
    again = as_json(three_nodes, "queue", "create", "orders", "--spread", "one")
    purged = as_json(three_nodes, "queue", "purge", "orders")
    removed = as_json(three_nodes, "queue", "rm", "orders")

    # Then each command says what it found
    assert (made["made"], made["spread"], again["made"]) == (True, "one", False)
    assert [(queue["name"], queue["ready"]) for queue in listed] == [("orders", 3)]
    assert purged["purged"] == 3
    assert (removed["removed"], removed["messages"]) == (True, 0)
    assert as_json(three_nodes, "queue", "ls") == []


def test_what_is_refused_exits_with_4_and_a_sentence(one_node: Cluster) -> None:
    # Given a queue
    tanist(one_node, "queue", "create", "orders")

    # When something is asked for that cannot be
    missing = tanist(one_node, "receive", "nothing", code=4)
    different = tanist(one_node, "queue", "create", "orders", "--spread", "one", code=4)
    as_document = tanist(one_node, "queue", "stat", "nothing", "--json", code=4)

    # Then it is said in a sentence, to programs as an object, and never with a stack
    assert missing.stderr.startswith(b"error: there is no queue 'nothing'")
    assert different.stderr.startswith(b"error: ")
    assert json.loads(as_document.stderr)["exit_code"] == 4
    for done in (missing, different, as_document):
        assert b"Traceback" not in done.stderr


def test_status_shows_nodes_owners_copies_and_depths(three_nodes: Cluster) -> None:
    # Given messages
    tanist(three_nodes, "send", "orders", given=b"a\nb\n")

    # When the status is asked for, by a program and by a person
    status = as_json(three_nodes, "status")
    page = tanist(three_nodes, "status").stdout.decode()

    # Then it is that of all nodes together
    assert set(status["nodes"]) == {"node1", "node2", "node3"}
    assert all(node["answered"] for node in status["nodes"].values())
    assert sorted(str(stream["home"]) for stream in status["streams"].values()) == [
        "None",
        "node1",
        "node2",
        "node3",
    ]
    assert all(len(stream["in_sync"]) == 3 for stream in status["streams"].values())
    assert status["queues"]["orders"]["ready"] == 2
    assert re.search(r"orders +every +2 +0", page)


def test_queues_that_fill_several_pages_are_all_seen(one_node: Cluster) -> None:
    # Given more queues than come in one answer, and messages in the last one
    names = [f"q{number:04}" for number in range(QUEUES_PAGE_MAX + 100)]

    async def declare_all() -> None:
        async with client.connect(one_node.url) as connected:
            await asyncio.gather(*map(connected.declare, names))

    asyncio.run(declare_all())
    tanist(one_node, "send", names[-1], given=b"a\nb\n")

    # When they are listed, and the status is asked for by a program and by a person
    listed = as_json(one_node, "queue", "ls")
    status = as_json(one_node, "status")
    page = tanist(one_node, "status").stdout.decode()

    # Then all are there with what is in them; a person sees those with most messages
    assert [queue["name"] for queue in listed] == names
    assert listed[-1]["ready"] == 2
    assert list(status["queues"]) == names
    assert status["queues"][names[-1]]["ready"] == 2
    assert re.search(names[-1] + r" +every +2 +0", page)
    assert "and 1,060 queues with fewer messages" in page


def test_the_operator_declares_lost_what_nobody_can_prove_to_be(
    make_cluster: MakeCluster,
) -> None:
    # Given a post office with two copies, of which one node is dead and one was started again
    cluster = make_cluster(nodes=3, extra="[cluster]\nfailover_peers = 1\n")
    cluster.start()
    cluster["node1"].kill()
    cluster["node2"].kill()
    cluster["node2"].start()
    cluster.wait_for_status(
        lambda status: [node["state"] for node in status["nodes"].values()] == ["down", "up", "up"],
        what="node1 to count as down",
    )

    # When the operator says that the content is gone
    said = tanist(cluster, "declare-lost", "node1", "--yes")
    streams = as_json(cluster, "status")["streams"].values()

    # Then the post office goes on, empty, at a node that is up
    assert b"it goes on empty, in gen 2" in said.stdout
    [stream] = [stream for stream in streams if stream["home"] == "node1"]
    assert stream["gen"] == 2
    assert stream["owner"].partition(".")[0] in ("node2", "node3")


def test_a_node_alone_says_that_it_is_unprotected(one_node: Cluster) -> None:
    # Given a node that is a cluster of its own

    # When its status is asked for
    page = tanist(one_node, "status").stdout.decode()

    # Then it is said
    assert "UNPROTECTED: there is one copy" in page


def test_a_message_waits_for_whoever_comes_later_and_ctrl_c_ends_receive(
    one_node: Cluster,
) -> None:
    # Given somebody who waits for messages without end
    tanist(one_node, "queue", "create", "news")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "broker.cli", "receive", "news"],
        env={**os.environ, "TANIST_URL": one_node.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert waiting.stdout is not None

    # When a message comes, and then Ctrl-C
    tanist(one_node, "send", "news", given=b"hello\n")
    line = waiting.stdout.readline()
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=30)

    # Then the message was printed, and the end is no error
    assert line == b"hello\n"
    assert b"1 message received from news" in said
    assert waiting.returncode == 0


def test_who_has_seen_enough_of_the_output_is_no_error_with_a_stack(one_node: Cluster) -> None:
    # Given many messages
    tanist(one_node, "send", "many", given=b"x\n" * 5000)

    # When the reader of what is received goes away
    done = subprocess.run(
        f"{sys.executable} -m broker.cli receive many | head -1",
        shell=True,
        env={**os.environ, "TANIST_URL": one_node.url},
        capture_output=True,
        timeout=60,
        check=True,
    )

    # Then it got what it wanted, and nothing is said about pipes
    assert done.stdout == b"x\n"
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`tanist dev --nodes 3 --json`; its temporary directory is made in `tmp_path`."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "broker.cli", "dev", "--nodes", "3", "--json"),
            *("--port", str(free_ports(1, above=16_000 + os.getpid() * 31 % 15_000)[0])),
        ],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_dev_runs_a_cluster_whose_nodes_do_not_outlive_it(dev: subprocess.Popen[bytes]) -> None:
    # Given a cluster in one terminal
    assert dev.stdout is not None
    readable, _, _ = select.select([dev.stdout], [], [], 30)
    assert readable, "the cluster does not serve"
    nodes = json.loads(dev.stdout.readline())["nodes"]

    # When its terminal is killed, not even asked
    dev.kill()

    # Then the nodes have ended by themselves
    assert set(nodes) == {"node1", "node2", "node3"}
    for node in nodes.values():
        wait_until(lambda pid=node["pid"]: is_over(pid), what="nodes to end")  # type: ignore[misc]


def is_over(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # An orphan that has ended may wait for its new parent.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_ctrl_c_in_dev_stops_all_nodes(dev: subprocess.Popen[bytes], tmp_path: Path) -> None:
    # Given a cluster in one terminal
    assert dev.stdout is not None
    readable, _, _ = select.select([dev.stdout], [], [], 30)
    assert readable, "the cluster does not serve"
    nodes = json.loads(dev.stdout.readline())["nodes"]

    # When Ctrl-C is pressed
    dev.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = dev.communicate(timeout=30)

    # Then all nodes have ended, in good order and soon, and their files are gone
    assert dev.returncode == 0
    assert list(tmp_path.glob("tanist-dev-*")) == []
    assert all(is_over(node["pid"]) for node in nodes.values())
    assert said.count(b"the node has ended exit_code=0") == 3
    assert time.monotonic() - began < 5


def test_dev_leaves_the_files_of_a_node_that_was_started_again_by_hand(
    dev: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    # Given a cluster in one terminal, one of whose nodes was killed, and started again by hand
    assert dev.stdout is not None
    readable, _, _ = select.select([dev.stdout], [], [], 30)
    assert readable, "the cluster does not serve"
    nodes = json.loads(dev.stdout.readline())["nodes"]
    os.kill(nodes["node1"]["pid"], signal.SIGKILL)
    wait_until(lambda: is_over(nodes["node1"]["pid"]), what="the node to end")
    (file,) = tmp_path.glob("tanist-dev-*/node1/node.toml")
    again = subprocess.Popen(
        [sys.executable, "-m", "broker.cli", "run", str(file), "--log", "short"],
        stderr=subprocess.PIPE,
    )
    try:
        assert again.stderr is not None
        assert again.stderr.readline(), "the node does not start"

        # When the others are killed, too
        for name in ("node2", "node3"):
            os.kill(nodes[name]["pid"], signal.SIGKILL)
        _, said = dev.communicate(timeout=30)

        # Then it ends, says who still runs, and leaves that node its vote
        assert b"still running, started by somebody else: node1." in said
        assert (file.parent / "data" / "vote").exists()
        assert again.poll() is None
    finally:
        again.kill()
        again.communicate()


def test_a_node_has_its_memory_in_huge_pages(one_node: Cluster) -> None:
    # Given a node that runs
    pid = one_node.nodes[0].pid

    # Then its allocator was told so when it started
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"{VARIABLE}={TUNABLE}=1".encode() in environment


def test_two_nodes_with_one_directory_or_address_do_not_run(one_node: Cluster) -> None:
    # Given a node that runs
    running = one_node.nodes[0]

    # When it is started a second time
    second = tanist(one_node, "run", str(running.log.parent), code=1)

    # Then the second one says why it cannot be, and the first one goes on
    assert b"belongs to a node that is running" in second.stderr
    assert running.serves()


def test_a_node_stops_in_good_order(one_node: Cluster) -> None:
    # Given a node that runs
    node = one_node.nodes[0]

    # When the operator stops it
    code = node.stop()

    # Then it says so, and that all is well
    assert code == 0
    assert node.logged('"event":"the node has ended"')
    assert not node.logged('"level":"error"')


def test_what_the_reader_of_a_pipe_did_not_take_stays_in_the_queue(one_node: Cluster) -> None:
    # Given many messages
    tanist(one_node, "send", "left", given=b"x\n" * 5000)

    # When the reader of a pipe has enough after five
    done = subprocess.run(
        f"{sys.executable} -m broker.cli receive left | head -5",
        shell=True,
        env={**os.environ, "TANIST_URL": one_node.url},
        capture_output=True,
        timeout=60,
        check=True,
    )
    left = as_json(one_node, "queue", "stat", "left")

    # Then few are gone, as many as were said to be, and all others can be had
    found = re.search(rb"the reader has gone: ([0-9,]+) messages? of left", done.stderr)
    assert found is not None, done.stderr
    acked = int(found[1].replace(b",", b""))
    assert acked < 100
    assert (left["ready"], left["in_flight"]) == (5000 - acked, 0)


def test_a_line_that_is_too_long_is_named_and_those_before_it_are_stored(
    one_node: Cluster,
) -> None:
    # Given five lines, and a sixth that cannot be a message
    given = b"x\n" * 5 + b"y" * 1_044_481 + b"\nz\n"

    # When they are sent
    done = tanist(one_node, "send", "long", given=given, code=1)

    # Then it is said how far it came, and that is so
    assert b"5 stored; line 6 is too long: " in done.stderr
    assert as_json(one_node, "queue", "stat", "long")["ready"] == 5
