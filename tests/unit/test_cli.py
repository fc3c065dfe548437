"""The command line, as far as it needs no node: what it says, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from broker.cli import main
from broker.commands.survey import put_together
from broker.commands.waiting import Waiting
from broker.config import load_config
from paging.traffic import Traffic
from tanist import QueueStat, connect
from tanist.events import Held
from tanist.wire.control import Paging, PartStat, QueueInfo, QueueSettings


def run(*arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(main, arguments, input=given)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL at which no node answers, and little patience."""
    monkeypatch.setattr("broker.commands.connection.ENTER_S_MAX", 0.1)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"tanist://127.0.0.1:{bound.getsockname()[1]}"


COMMANDS = [
    ["run"],
    ["init"],
    ["dev"],
    ["send"],
    ["receive"],
    ["queue"],
    ["queue", "ls"],
    ["queue", "create"],
    ["queue", "rm"],
    ["queue", "purge"],
    ["queue", "skip-lost"],
    ["queue", "stat"],
    ["status"],
    ["declare-lost"],
    ["config", "check"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    # Given a command

    # When it is asked what it does
    result = run(*command, "--help")

    # Then it says so
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("command", [["status"], ["queue", "ls"], ["receive", "q"], ["send", "q"]])
def test_without_a_node_the_code_is_3_and_the_way_out_is_named(
    command: list[str], nobody: str, tmp_path: Path
) -> None:
    # Given a URL at which nobody answers
    source = tmp_path / "lines"
    source.write_text("a line\n")
    if command[0] == "send":
        command = [*command, "--file", str(source)]

    # When a command needs a node
    result = run(*command, "--url", nobody)

    # Then it fails with the code for that, in a sentence
    assert result.exit_code == 3
    assert result.stderr.startswith("error: ")
    assert "tanist dev" in result.stderr


def test_a_url_of_another_kind_is_a_mistake_of_usage() -> None:
    # Given a URL that is none of ours

    # When it is used
    result = run("status", "--url", "http://127.0.0.1")

    # Then the code is that of a wrong command line
    assert result.exit_code == 2
    assert "tanist://" in result.stderr


def test_an_error_is_an_object_for_a_program(nobody: str) -> None:
    # Given a program that wants JSON

    # When the command fails
    result = run("status", "--json", "--url", nobody)

    # Then it can be read by a program, and standard output is empty
    assert json.loads(result.stderr)["exit_code"] == 3
    assert result.stdout == ""


def test_an_unknown_option_is_a_mistake_of_usage() -> None:
    # Given an option that is none

    # When it is used
    result = run("status", "--colour")

    # Then the code is that of a wrong command line
    assert result.exit_code == 2


def test_init_writes_a_file_that_is_right_and_never_over_another(tmp_path: Path) -> None:
    # Given a directory that is not there yet
    directory = tmp_path / "a" / "node"

    # When a file is written there, twice
    first = run("init", str(directory))
    second = run("init", str(directory))

    # Then the first one can be read, and the second one is refused
    assert first.exit_code == 0
    assert load_config(directory / "node.toml").node.name == "node1"
    assert f"tanist run {directory / 'node.toml'}" in first.stderr
    assert second.exit_code == 1
    assert "exists already" in second.stderr


def test_config_check_says_what_may_surprise(tmp_path: Path) -> None:
    # Given a file for two nodes with more copies wanted than there can be
    file = tmp_path / "node.toml"
    file.write_text(
        '[node]\nname = "n1"\n[cluster]\nmin_copies = 3\n'
        '[cluster.expected]\nn1 = "127.0.0.1:7473"\nn2 = "127.0.0.1:7483"\n'
    )

    # When it is checked
    text = run("config", "check", str(file))
    document = json.loads(run("config", "check", str(file), "--json").stdout)

    # Then it is right, and yet there is something to say
    assert text.exit_code == 0
    assert "neither can take over" in text.stdout
    assert "min_copies is above the 2 copies" in text.stdout
    assert document["expected"] == ["n1", "n2"]
    assert len(document["notes"]) == 2


@pytest.mark.parametrize("command", [["config", "check"], ["run"]])
def test_a_wrong_file_exits_with_2(command: list[str], tmp_path: Path) -> None:
    # Given a file with a mistake
    file = tmp_path / "node.toml"
    file.write_text('[node]\nnam = "n1"\n')

    # When it is used
    result = run(*command, str(file))

    # Then the mistake is named
    assert result.exit_code == 2
    assert f"error: {file}: unknown key node.nam (did you mean name?)" in result.stderr


# Any: the document of `tanist status`.
def seen_by(node: str, *, ver: int, owner: str, **stream: Any) -> dict[str, Any]:
    """What a node of a cluster of two says of itself."""
    return {
        "node": node,
        "cluster": "tanist",
        "ver": ver,
        "acceptors": ["a", "b"],
        "lost_vote": False,
        "nodes": {name: {"state": "up", "locators": []} for name in ("a", "b")},
        "streams": {
            "1": {"home": "a", "owner": owner, "warnings": [], "here": {"role": node}, **stream}
        },
        "queues": [
            {
                "name": "q",
                "spread": "every",
                "ready": 2,
                "in_flight": 1,
                "bytes": 10,
            }
        ],
        "clients": 1,
        "memory": {},
        "paging": {"pages": 1},
    }


def test_status_takes_each_thing_from_the_node_that_knows_it() -> None:
    # Given two nodes, one of them with an older map
    owner = seen_by(
        "b", ver=7, owner="b.1f", followers={"a.2": {"lag_ops": 3}}, warnings=["HELD: why"]
    )
    behind = seen_by("a", ver=6, owner="a.2", warnings=["waiting for transfer: cut off"])

    # When what they say is put together
    document = put_together([behind, owner])

    # Then the newest map holds, the owner speaks of lag, and depths are added up
    stream = document["streams"]["1"]
    assert document["ver"] == 7
    assert stream["owner"] == "b.1f"
    assert stream["followers"] == {"a.2": {"lag_ops": 3}}
    assert stream["warnings"] == ["HELD: why", "a is waiting for transfer: cut off"]
    assert set(stream["copies"]) == {"a", "b"}
    assert document["queues"]["q"] == {"spread": "every", "ready": 4, "in_flight": 2, "bytes": 20}


def seen_without_copies() -> dict[str, Any]:
    """A post office whose owner is down, and whose other copy came up again, empty."""
    document = seen_by("b", ver=7, owner="a.1", in_sync=["a.1", "b.1"], shed=[], gen=3)
    document["nodes"]["a"] |= {"state": "down", "incarnation": "1"}
    document["nodes"]["b"] |= {"incarnation": "2"}
    return document


def test_who_declares_a_stream_lost_is_told_first_what_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a post office without a copy that lives
    asked: list[object] = []

    def with_client(url: str, work: object) -> list[dict[str, Any]]:
        asked.append(work)
        return [seen_without_copies()]

    monkeypatch.setattr("broker.commands.declare_lost.with_client", with_client)

    # When it is to be declared lost, and the question is answered with no; and then by a program
    result = CliRunner().invoke(main, ["declare-lost", "a"], input="n\n")
    by_program = run("declare-lost", "a", "--json")

    # Then the question says what is lost, and nothing was said to the cluster but to ask it
    assert "post office 1 of a was held by a (down), b (was started again since" in result.stderr
    assert "All messages in it are lost for good" in result.stderr
    assert result.exit_code == 1
    assert by_program.exit_code == 2
    assert len(asked) == 2


def test_what_a_node_that_is_up_may_hold_is_not_declared_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a post office with a copy on a node that is up
    document = seen_without_copies()
    document["nodes"]["b"]["incarnation"] = "1"
    monkeypatch.setattr("broker.commands.declare_lost.with_client", lambda url, work: [document])

    # When it is to be declared lost
    result = run("declare-lost", "a", "--yes")

    # Then the command says which node that is
    assert result.exit_code == 4
    assert "b.1 counts as up and may still hold post office 1 of a. Stop that" in result.stderr


def test_several_nodes_that_are_up_are_named_in_the_plural(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a post office with copies on two nodes that are up
    document = seen_without_copies()
    document["nodes"]["b"]["incarnation"] = "1"
    document["nodes"]["a"]["state"] = "up"
    monkeypatch.setattr("broker.commands.declare_lost.with_client", lambda url, work: [document])

    # When it is to be declared lost
    result = run("declare-lost", "a", "--yes")

    # Then the sentence speaks of both
    assert (
        "a.1, b.1 count as up and may still hold post office 1 of a. Stop these nodes first,"
        in (result.stderr)
    )


def test_status_shows_a_node_that_did_not_answer() -> None:
    # Given two nodes, one of which does not answer
    answer = seen_by("a", ver=1, owner="b.1")

    # When the status is put together
    document = put_together([answer])

    # Then it is there, and that is said
    assert document["nodes"]["a"]["answered"]
    assert not document["nodes"]["b"]["answered"]
    assert document["nodes"]["a"]["paging"] == {"pages": 1}
    assert "paging" not in document["nodes"]["b"]


def test_status_says_when_what_it_shows_may_not_hold() -> None:
    # Given three voters that are shown as up, of which one answers
    answer = seen_by("n1", ver=1, owner="n1.1")
    answer["acceptors"] = ["n1", "n2", "n3"]
    answer["nodes"] = {name: {"state": "up"} for name in ("n1", "n2", "n3")}

    # When that is put together
    doubts = put_together([answer])["doubts"]

    # Then it is said that there is no majority, and that the map may be old
    assert doubts[0].startswith("1 of 3 voting nodes answered, which is no majority")
    assert doubts[1] == "n2, n3 are shown as up and do not answer: the map may be old"


def test_a_node_that_lost_its_vote_is_no_voter_and_not_part_of_a_majority() -> None:
    # Given three voters, one of which does not answer, and another one lost its file of votes
    answers = [seen_by(name, ver=1, owner="a.1") for name in "ab"]
    for answer in answers:
        answer["acceptors"] = ["a", "b", "c"]
    answers[1]["lost_vote"] = True

    # When that is put together
    document = put_together(answers)

    # Then it is said of it, and one of three is no majority
    assert document["acceptors"] == ["a", "c"]
    assert document["doubts"][0].startswith("b has lost its file of votes")
    assert document["doubts"][1].startswith("1 of 3 voting nodes answered")


def test_status_says_which_copy_cannot_read_what_others_can() -> None:
    # Given a shadow that cannot read messages which the owner still has
    owner, shadow = (seen_by(name, ver=1, owner="a.1") for name in "ab")
    shadow["streams"]["1"]["warnings"] = ["cannot read 3 messages of queue 'q' in its copy"]

    # When what both say is put together
    warnings = put_together([owner, shadow])["streams"]["1"]["warnings"]

    # Then that is said of the shadow
    assert warnings == ["b cannot read 3 messages of queue 'q' in its copy"]


def no_pages() -> dict[str, Any]:
    """What a node says of its disk that never wrote a page."""
    numbers = ("pages_on_disk", "disk_bytes", "read_ahead_hits", "read_ahead_misses")
    return {**dict.fromkeys(numbers, 0), "trouble": "", "disk": asdict(Traffic())}


def on_page(monkeypatch: pytest.MonkeyPatch, **paging: Any) -> str:
    """The page of `tanist status` for people: one node, and what it says of its disk."""
    answer = seen_by("a", ver=1, owner="a.1", epoch=1, gen=1, in_sync=[])
    answer["acceptors"] = ["a"]
    answer["nodes"] = {"a": {"state": "up", "locators": []}}
    answer["memory"] = {"used_bytes": 0, "budget_bytes": 1 << 30}
    disk = {**asdict(Traffic()), **paging.pop("disk", {})}
    answer["paging"] = {**no_pages(), "disk": disk, **paging}
    monkeypatch.setattr("broker.commands.status.with_client", lambda url, work: [answer])
    result = CliRunner(env={"COLUMNS": "120"}).invoke(main, ["status"])
    assert result.exit_code == 0
    return " ".join(result.stdout.split())


def test_status_tells_people_how_fast_a_disk_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a node that wrote 600 MiB in 2 s, and read half of that in 4

    # When people look at the status
    disk = {"files_written": 600, "bytes_written": 600 << 20, "writing_s": 2.0}
    disk |= {"bytes_read": 300 << 20, "reading_s": 4.0}
    places = {"pages_on_disk": 300, "disk_bytes": 300 << 20}
    ahead = {"read_ahead_hits": 7, "read_ahead_misses": 2}
    page = on_page(monkeypatch, **places, **ahead, disk=disk)

    # Then both are there, and nothing that worries
    assert "a 300 300 7 2 600 300 300 75" in page
    assert "cannot" not in page
    assert "failed" not in page


def test_status_is_silent_about_a_disk_that_nobody_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a node that never wrote a page; when people look at the status
    page = on_page(monkeypatch)

    # Then there is no word of its disk
    assert "MiB on disk" not in page
    assert "a up" in page


def test_status_tells_people_what_a_disk_does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a disk that is full, on which something stays; when people look at the status
    disk = {"failed": 3, "left": 2, "why_left": "notes stays: it is not a page"}
    page = on_page(monkeypatch, trouble="No space left on device", disk=disk)

    # Then it says so
    assert "a: pages cannot be written: No space left on device" in page
    assert "a: 3 writes or reads of pages failed" in page
    assert "a: 2 files could not be removed: notes stays: it is not a page" in page


def test_queue_stat_shows_the_pages_of_each_part_and_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a queue with two parts, of one of which most is on disk
    little = PartStat(ready=1, in_flight=0, bytes=100, consumers=0, paging=Paging(tail_bytes=512))
    places = Paging(
        pages_in_memory=9,
        pages_on_disk=1_040,
        memory_bytes=9 << 20,
        disk_bytes=1_040 << 20,
        tail_bytes=1024,
        read_ahead_hits=70,
        read_ahead_misses=2,
    )
    much = PartStat(ready=5_000, in_flight=0, bytes=1 << 30, consumers=0, lost=3, paging=places)
    info = QueueInfo(id=1, name="q")
    stat = QueueStat(
        ready=5_001, in_flight=0, bytes=1, consumers=0, parts={1: little, 2: much}, lost=3
    )
    monkeypatch.setattr("broker.commands.queues.with_client", lambda url, work: (info, stat))

    # When people look at it, and a program
    page = " ".join(
        CliRunner(env={"COLUMNS": "120"}).invoke(main, ["queue", "stat", "q"]).output.split()
    )
    document = json.loads(run("queue", "stat", "q", "--json").stdout)

    # Then each part is there, and all together
    assert "1 0 0 0 0.0 0.0 0.5 0 0" in page
    assert "2 1,049 9 1,040 9.0 1,040.0 1.0 70 2" in page
    assert "all 1,049 9 1,040 9.0 1,040.0 1.5 70 2" in page
    assert "3 messages cannot be read on any node" in page
    assert document["parts"]["2"]["paging"]["pages"] == 1_049
    assert document["paging"] == {**document["parts"]["2"]["paging"], "tail_bytes": 1536}


def test_a_limit_of_its_own_is_shown_with_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a queue with a limit of its own, and one without
    limited = QueueInfo(
        id=1, name="q", settings=QueueSettings(when_full="refuse", bytes_max=10_000)
    )
    free, stat = QueueInfo(id=2, name="r"), stat_with(lost=0)
    found: list[object] = [(limited, stat), [(limited, stat), (free, stat)]]
    monkeypatch.setattr("broker.commands.queues.with_client", lambda url, work: found.pop())

    # When people look at them
    runner = CliRunner(env={"COLUMNS": "120"})
    listed = [
        " ".join(line.split()) for line in runner.invoke(main, ["queue", "ls"]).stdout.splitlines()
    ]
    page = runner.invoke(main, ["queue", "stat", "q"]).stdout

    # Then the limit is there, where there is one
    assert listed[1:] == [
        "q every refuse at 10,000 bytes of a part 9 0 1 0",
        "r every hold 9 0 1 0",
    ]
    assert "queue q: every; when full: refuse at 10,000 bytes of a part\n" in page


NAMES_LIKE_MARKUP = ["a[/]b", "[red]x[/red]", "[", "\\[b]", ":warning:"]


@pytest.mark.parametrize("name", NAMES_LIKE_MARKUP)
def test_names_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # Given a queue, a node and a warning that look like markup
    info, stat = QueueInfo(id=1, name=name), stat_with(lost=0)
    found: list[object] = [[seen_with(name)], (info, stat), [(info, stat)]]
    for module in ("queues", "status"):
        monkeypatch.setattr(f"broker.commands.{module}.with_client", lambda url, work: found.pop())

    # When people look at them
    runner = CliRunner(env={"COLUMNS": "120"})
    listed = runner.invoke(main, ["queue", "ls"])
    page = runner.invoke(main, ["queue", "stat", name])
    status = runner.invoke(main, ["status"])

    # Then each name is there, letter by letter
    assert [result.exit_code for result in (listed, page, status)] == [0, 0, 0]
    assert f"{name} " in listed.stdout
    assert f"queue {name}: every" in page.stdout
    assert f"cluster {name}, map 1" in status.stdout
    assert f"stream 1: why {name}" in status.stdout
    assert status.stdout.count(f"{name} ") >= 4, "node, home, owner and queue"


def seen_with(name: str) -> dict[str, Any]:
    """What a node says that alone is a cluster, in which all has this name."""
    answer = seen_by(name, ver=1, owner=f"{name}.1", epoch=1, gen=1, in_sync=[f"{name}.1"])
    answer |= {"cluster": name, "acceptors": [name], "paging": no_pages()}
    answer["nodes"] = {name: {"state": "up", "locators": []}}
    answer["memory"] = {"used_bytes": 0, "budget_bytes": 1 << 30}
    answer["streams"]["1"] |= {"home": name, "warnings": [f"why {name}"]}
    answer["queues"][0]["name"] = name
    return answer


def stat_with(lost: int) -> QueueStat:
    return QueueStat(ready=9, in_flight=0, bytes=1, consumers=0, parts={}, lost=lost)


@pytest.mark.parametrize(
    ("lost", "arguments", "code", "asked"),
    [(0, [], 0, 1), (5, [], 1, 1), (5, ["--yes"], 0, 2), (5, ["--json"], 2, 1)],
)
def test_nothing_is_skipped_unasked(
    monkeypatch: pytest.MonkeyPatch, lost: int, arguments: list[str], code: int, asked: int
) -> None:
    # Given a queue with so many messages that are lost
    answers: list[object] = [lost, stat_with(lost)]
    monkeypatch.setattr("broker.commands.queues.with_client", lambda url, work: answers.pop())

    # When they are to be skipped, and a question is answered with no
    result = run("queue", "skip-lost", "q", *arguments, given="n\n")

    # Then the cluster is told only if that is sure
    assert result.exit_code == code
    assert 2 - len(answers) == asked


def test_a_queue_without_a_name_is_a_mistake_of_usage(nobody: str) -> None:
    # Given no name

    # When a queue of it is to be made
    result = run("queue", "create", "", "--url", nobody)

    # Then nobody is asked
    assert result.exit_code == 2
    assert "queue name" in result.stderr


def test_config_check_takes_a_directory_and_quotes_what_it_says(tmp_path: Path) -> None:
    # Given a node's directory whose name has a space
    directory = tmp_path / "a node"
    run("init", str(directory))

    # When the directory is checked
    result = run("config", "check", str(directory))

    # Then its file is, and what is said to be next can be typed
    assert result.exit_code == 0
    assert f"tanist run '{directory / 'node.toml'}'" in result.stderr


def test_a_command_says_once_why_it_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a post office that is held, and somebody with no patience
    monkeypatch.setattr("broker.commands.waiting.QUIET_S", 0)
    waiting = Waiting()
    waiting.hear(Held(2, "1 copy in sync, 2 asked for", 0.0))

    async def watch() -> None:
        # The reason was heard, so that the client is not asked.
        watching = asyncio.create_task(waiting.watch(connect("tanist://127.0.0.1")))
        for _ in range(10):
            await asyncio.sleep(0)
        watching.cancel()

    # When nothing goes on
    asyncio.run(watch())

    # Then the reason is said, once
    said = capsys.readouterr().err
    assert said == (
        "waiting: post office 2 is held: 1 copy in sync, 2 asked for; see tanist status\n"
    )
