"""A node's file: what is accepted, and what the errors say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from broker.app import SEGMENT_BYTES
from broker.commands.config import TEMPLATE
from broker.config import (
    Config,
    Queue,
    config_from,
    host_and_port,
    load_config,
    node_settings,
    numeric,
)
from broker.core.limits import Limits, Timing
from replication.core.clustermap import OnTooFewCopies
from tanist.errors import ConfigError

NODE = '[node]\nname = "n1"\n'
THREE = '[cluster.expected]\nn1 = "127.0.0.1:7473"\nn2 = "127.0.0.1:7483"\nn3 = "127.0.0.1:7493"\n'


def read(text: str) -> Config:
    return config_from(tomllib.loads(text))


def struct_keys(struct: type[msgspec.Struct], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for field in msgspec.structs.fields(struct):
        path = f"{prefix}{field.encode_name}"
        if field.encode_name == "queue":
            keys.append(path)
        elif msgspec.inspect.is_struct_type(field.type):
            keys += struct_keys(field.type, f"{path}.")
        else:
            keys.append(path)
    return keys


def test_a_name_is_all_that_must_be_given() -> None:
    # Given a file with the node's name only
    config = read(NODE)

    # When the core's settings are made of it
    settings = node_settings(config)

    # Then the node is a cluster of its own, on loopback
    assert settings.expected == ("n1",)
    assert settings.peers == {"n1": "127.0.0.1:7473"}
    assert settings.locators == ("127.0.0.1:7472",)
    assert settings.on_too_few_copies is OnTooFewCopies.WAIT


def test_all_that_is_in_the_file_reaches_the_core() -> None:
    # Given a file that says something of everything
    config = read(
        NODE
        + '[cluster]\nname = "prod"\nfailover_peers = 1\nmin_copies = 2\n'
        + 'on_too_few_copies = "solo"\n'
        + THREE
        + "[timing]\nsilence_ms = 600\n[limits]\nwindow_ops = 700\n"
        + '[[queue]]\nname = "orders"\nspread = "one"\nwhen_full = "refuse"\nbytes_max = 9\n'
    )

    # When the core's settings are made of it
    settings = node_settings(config)

    # Then they say the same
    assert (settings.cluster, settings.failover_peers, settings.min_copies) == ("prod", 1, 2)
    assert settings.on_too_few_copies is OnTooFewCopies.SOLO
    assert settings.expected == ("n1", "n2", "n3")
    assert settings.peers["n3"] == "127.0.0.1:7493"
    assert (settings.timing.silence_ms, settings.limits.window_ops) == (600, 700)
    queue = settings.queues[0]
    assert (queue.name, queue.spread) == ("orders", "one")
    assert (queue.settings.when_full, queue.settings.bytes_max) == ("refuse", 9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there must be a table or key `node`"),
        ("[nod]\nname = 'n1'", r"unknown key nod \(did you mean node\?\); known keys: cluster"),
        (NODE + "[limits]\nwindow_op = 1", r"limits\.window_op \(did you mean window_ops\?\)"),
        (NODE + "[limits]\nxyzzy = 1", "unknown key limits.xyzzy; known keys: before_welcome_s"),
        (
            NODE + "[limits]\nwindow_ops = 0",
            "window_ops: expected an integer from 100 to 2147483647, got 0$",
        ),
        (
            NODE + '[limits]\nwindow_bytes = "64 MiB"',
            "limits.window_bytes: expected an integer, got a text",
        ),
        (NODE + "[limits]\nwindow_ops = 1.5", "expected an integer, got a number with a point"),
        (NODE + "[limits]\nwindow_ops = true", "expected an integer, got true or false"),
        ("limits = 1\n" + NODE, "limits: expected a table, got an integer"),
        ("queue = 1\n" + NODE, "queue: expected a list of tables"),
        (NODE + '[cluster]\nexpected = ["a"]\n', "expected: expected a table, got a list$"),
        ("[node]\nname = 'a b'", "node.name: expected letters, digits"),
        (NODE + '[[queue]]\nname = "q"\nspred = "one"', r"queue\[0\]\.spred \(did you mean spr"),
        (
            NODE + '[[queue]]\nname = "q"\nspread = "two"',
            "spread: expected every or one, got 'two'",
        ),
        (NODE + '[[queue]]\nname = ""', r"queue\[0\]\.name: expected"),
        (NODE + '[[queue]]\nname = "q"\n[[queue]]\nname = "q"', r"queue\[1\].*declared twice"),
        (NODE + '[[queue]]\nname = "a\\nb"', r"queue\[0\]\.name: .* cannot be seen"),
        (NODE + '[cluster]\non_too_few_copies = "no"', "expected wait or solo, got 'no'"),
        (
            NODE + "[cluster]\nmin_copies = 0",
            "min_copies: expected an integer from 1 to 17, got 0$",
        ),
        (
            NODE + '[[queue]]\nname = "q"\nbytes_max = 99999999999999999999',
            r"queue\[0\]\.bytes_max: .* 0 to 4611686018427387904, got 99999999999999999999$",
        ),
        (
            NODE + "[limits]\nbudget_bytes = 1",
            "limits.budget_bytes: .* from 16777216 to .*, got 1$",
        ),
        (NODE.replace('"n1"', "9" * 30), "node.name: expected a text in quotes, got an integer"),
        (NODE + '[cluster.expected]\n"a b" = "127.0.0.1:1"', "a name in cluster.expected"),
        (NODE + '[cluster.expected]\nn2 = "127.0.0.1:7483"', "this node, n1, is not among n2"),
        (
            NODE + '[cluster.expected]\nn1 = "127.0.0.1:1"',
            "cluster.expected.n1: 127.0.0.1:1 is not listen.peers",
        ),
        (
            NODE + '[cluster.expected]\nn1 = "127.0.0.1:7473"\nn2 = "127.0.0.1:7473"',
            "two nodes have the same address",
        ),
        (
            NODE + '[listen]\ngroup = "127.0.0.1:7473"',
            "listen.group: 127.0.0.1:7473 is listen.peers",
        ),
        (NODE + '[listen]\npeers = "127.0.0.1:7472"', "listen.peers: .* is listen.clients"),
        (NODE + "[timing]\nheartbeat_ms = 500", "timing.silence_ms: 900 is less than three"),
        ("[node", "Expected ']'"),
    ],
)
def test_what_is_wrong_is_named_with_its_path_and_what_would_be_right(
    text: str, says: str, tmp_path: Path
) -> None:
    # Given a file with a mistake
    file = tmp_path / "node.toml"
    file.write_text(text)

    # When it is read
    with pytest.raises(ConfigError) as caught:
        load_config(file)

    # Then the error begins with the file, and says what the operator has to mend
    assert str(caught.value).startswith(f"{file}: ")
    assert re.search(says, str(caught.value)), str(caught.value)


INTEGERS = [
    path
    for path in [*struct_keys(Config), *struct_keys(Queue, "queue.")]
    if path.split(".")[-1].endswith(("_ms", "_s", "_max", "_min", "_bytes", "_ops", "_messages"))
    or path in ("cluster.failover_peers", "cluster.min_copies")
]


@pytest.mark.parametrize("path", INTEGERS)
@pytest.mark.parametrize("value", [-1, 1 << 63, 10**400])
def test_no_integer_is_accepted_that_a_node_could_not_work_with(path: str, value: int) -> None:
    # Given a file with an integer that fits nowhere
    table, key = path.split(".")
    head = '[[queue]]\nname = "q"' if table == "queue" else f"[{table}]"
    text = f"{NODE}{head}\n{key} = {value}\n"

    # When it is read
    with pytest.raises(ValueError, match="expected an integer from") as caught:
        read(text)

    # Then the key and the value are named
    assert key in str(caught.value)
    assert str(caught.value).endswith(f"got {value}")


def test_all_integers_of_the_file_are_tried() -> None:
    # Given all keys that hold integers; when those that are tried are looked at
    kinds = {
        **{f"limits.{field.name}": field.type for field in msgspec.structs.fields(Limits)},
        **{f"timing.{field.name}": field.type for field in msgspec.structs.fields(Timing)},
    }

    # Then none is missing
    assert set(kinds) <= set(INTEGERS)
    assert "queue.bytes_max" in INTEGERS


def test_the_greatest_of_everything_is_nothing_that_breaks_a_node() -> None:
    # Given a file with the greatest integers that are accepted
    most = {"ms": 2**31 - 1, "s": 2**31 - 1, "bytes": 2**62}
    timing = "".join(f"{field.name} = {most['ms']}\n" for field in msgspec.structs.fields(Timing))
    timing = timing.replace(f"heartbeat_ms = {most['ms']}", "heartbeat_ms = 100")
    text = f"{NODE}[timing]\n{timing}[limits]\nbudget_bytes = {most['bytes']}\n"
    text += f'window_bytes = {1 << 40}\n[[queue]]\nname = "q"\nbytes_max = {most["bytes"]}\n'

    # When a node is told them, and what travels is encoded
    settings = node_settings(read(text))

    # Then it can be
    assert msgspec.msgpack.encode(settings.timing)
    assert msgspec.msgpack.encode(settings.queues)
    assert settings.limits.window_bytes // SEGMENT_BYTES < 1 << 31


@pytest.mark.parametrize("key", ["clients", "peers", "group"])
@pytest.mark.parametrize("address", ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "broker.example:1"])
def test_only_loopback_is_accepted_and_encryption_is_said_to_come_first(
    key: str, address: str
) -> None:
    # Given a listener where others could listen in
    text = f'{NODE}[listen]\n{key} = "{address}"'

    # When it is read
    with pytest.raises(ValueError, match="encryption comes first") as caught:
        read(text)

    # Then the key is named
    assert str(caught.value).startswith(f"listen.{key}: ")


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:99999"]
)
def test_an_address_needs_a_port(address: str) -> None:
    # Given an address without a usable port

    # When it is read
    with pytest.raises(ValueError, match="not of the form") as caught:
        host_and_port(address)

    # Then an example is given
    assert "127.0.0.1:7472" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "spelled"),
    [
        ("localhost:1", "127.0.0.1:1"),
        ("127.0.0.2:7472", "127.0.0.2:7472"),
        ("[::1]:5", "[::1]:5"),
        ("127.0.0.1:007", "127.0.0.1:7"),
    ],
)
def test_an_address_is_spelled_in_one_way(address: str, spelled: str) -> None:
    # Given the ways to write an address

    # When it is made numeric
    result = numeric(address)

    # Then equal addresses are equal texts
    assert result == spelled


def test_the_directory_is_relative_to_the_file(tmp_path: Path) -> None:
    # Given a file somewhere else than where the node is started
    file = tmp_path / "node.toml"
    file.write_text('[node]\nname = "n1"\ndir = "mine"\n')

    # When it is read
    config = load_config(file)

    # Then the directory is beside the file
    assert Path(config.node.dir) == tmp_path / "mine"


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    # Given no file
    file = tmp_path / "node.toml"

    # When it is read
    with pytest.raises(ConfigError) as caught:
        load_config(file)

    # Then the error is a sentence about it
    assert str(caught.value) == f"{file}: No such file or directory"


def test_the_file_that_init_writes_has_every_key_with_its_default() -> None:
    # Given the file as it is written, and with every example taken as meant
    written = read(TEMPLATE)
    uncommented = re.sub(r"(?m)^# (?=[a-z_0-9]+ = |\[)", "", TEMPLATE)

    # When the examples are read, too
    table = tomllib.loads(uncommented)
    everything = config_from(table)

    # Then what stands there is what holds without it, and no key is missing
    assert node_settings(written) == node_settings(read('[node]\nname = "node1"'))
    assert everything.limits == written.limits
    assert everything.timing == written.timing
    assert everything.cluster.failover_peers == written.cluster.failover_peers
    for path in struct_keys(Config):
        part: object = table
        for key in path.split("."):
            assert isinstance(part, dict)
            assert key in part, path
            part = part[key]


def test_the_pages_for_operators_tell_of_every_key() -> None:
    # Given the page about the file, and the table of limits that it refers to
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "operations.md").read_text() + (docs / "limits.md").read_text()
    page = page.replace("### [[queue]]", "`queue`")

    # When they are searched for every key of the file
    paths = [*struct_keys(Config), *struct_keys(Queue, "queue.")]
    missing = [path for path in paths if f"`{path.split('.')[-1]}`" not in page]

    # Then none is missing
    assert missing == []


def test_a_file_that_is_no_text_is_said_so(tmp_path: Path) -> None:
    # Given a file in another encoding
    file = tmp_path / "node.toml"
    file.write_bytes('name = "ü"'.encode("latin-1"))

    # When it is read

    # Then the error is about that
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(file)
