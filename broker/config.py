"""A node's file: what stands in it, and errors that an operator can act on.

Sizes and times are integers with the unit in the key. A key that is not known, of the wrong
type or out of its range is an error that names the file, the key with its path, and what
would be right; nothing is guessed.
"""

from __future__ import annotations

import difflib
import tomllib
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal, get_args, get_origin

import msgspec

from broker.core.limits import SIZE_BYTES_MAX, Limits, Timing
from broker.core.settings import NodeSettings
from replication.core.clustermap import OnTooFewCopies
from tanist.errors import ConfigError
from tanist.wire.control import QueueInfo, QueueName, QueueSettings, check_queue_name

CLIENT_PORT: Final = 7472
"""Where clients look for a node if they are told nothing else."""

NOT_LOOPBACK: Final = (
    "encryption comes first: until messages between machines are encrypted, a node listens"
    " on loopback only (127.0.0.1)"
)

NAME_PATTERN: Final = "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
"""Of a node or a cluster."""

_WORDS: Final = {
    f"`str` matching regex {NAME_PATTERN!r}": "letters, digits, - and _, at most 63 of them",
    "Object missing required field": "there must be a table or key",
    "`object`": "a table",
    "Expected `array`": "expected a list of tables",
    "`array`": "a list",
    "`int | null`": "an integer",
    "`int`": "an integer",
    "`float`": "a number with a point",
    "`bool`": "true or false",
    "`str`": "a text in quotes",
}
"""What msgspec says, in the words of the file."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables of the file."""


class Node(Table, frozen=True, kw_only=True):
    name: Name
    """Different on each node of a cluster, and the same for ever: a post office bears it."""

    dir: str = "data"
    """Where the node keeps its vote. Relative to the file."""


class Listen(Table, frozen=True, kw_only=True):
    clients: str = f"127.0.0.1:{CLIENT_PORT}"
    peers: str = "127.0.0.1:7473"
    group: str = "127.0.0.1:7474"


class Cluster(Table, frozen=True, kw_only=True):
    name: Name = "tanist"

    failover_peers: Annotated[int, msgspec.Meta(ge=0, le=16)] = 2
    """How many other nodes hold a shadow of each post office."""

    min_copies: Annotated[int, msgspec.Meta(ge=1, le=17)] | None = None
    """Nothing is confirmed on fewer copies. Left out: 2 where three copies are usual, else 1."""

    on_too_few_copies: OnTooFewCopies = OnTooFewCopies.WAIT
    """wait: publishers wait until there are `min_copies` again. solo: go on, less safely."""

    expected: dict[Name, str] = {}
    """The nodes that found the cluster, and where each listens for the others."""


class Queue(Table, frozen=True, kw_only=True):
    """To be declared when the node starts."""

    name: QueueName
    spread: Literal["every", "one"] = "every"
    when_full: Literal["hold", "refuse"] = "hold"
    bytes_max: Annotated[int, msgspec.Meta(ge=0, le=SIZE_BYTES_MAX)] = 0


class Config(Table, frozen=True, kw_only=True):
    """One node's file."""

    node: Node
    listen: Listen = Listen()
    cluster: Cluster = Cluster()
    timing: Timing = Timing()
    limits: Limits = Limits()
    queue: list[Queue] = []


def node_file(path: Path) -> Path:
    """The file that is meant, where a node's directory may be given."""
    return path / "node.toml" if path.is_dir() else path


def load_config(path: Path) -> Config:
    """Read a node's file. Raises `ConfigError`, whose text is for the operator."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return _with_absolute_dir(config_from(table), path.resolve().parent)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (at byte {error.start})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_from(table: dict[str, object]) -> Config:
    """Check what a file says. Raises `ValueError` naming the key that is wrong."""
    _check_keys(table, Config, "")
    try:
        config = msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        raise ValueError(_in_words_of_the_file(str(error))) from error
    _check_sense(config)
    return config


def node_settings(config: Config) -> NodeSettings:
    """What the core is told. Without `expected` the node is a cluster of its own."""
    expected = config.cluster.expected or {config.node.name: config.listen.peers}
    return NodeSettings(
        name=config.node.name,
        cluster=config.cluster.name,
        # Sorted, so that the order in the file is nothing that has to agree.
        expected=tuple(sorted(expected)),
        peers={name: numeric(address) for name, address in expected.items()},
        peer_address=numeric(config.listen.peers),
        group_address=numeric(config.listen.group),
        locators=(numeric(config.listen.clients),),
        failover_peers=config.cluster.failover_peers,
        min_copies=config.cluster.min_copies,
        on_too_few_copies=config.cluster.on_too_few_copies,
        limits=config.limits,
        timing=config.timing,
        queues=tuple(
            QueueInfo(
                id=0,
                name=queue.name,
                spread=queue.spread,
                settings=QueueSettings(when_full=queue.when_full, bytes_max=queue.bytes_max),
            )
            for queue in config.queue
        ),
    )


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of "host:port". Raises `ValueError` unless it is a loopback address."""
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f'{address!r} is not of the form "127.0.0.1:{CLIENT_PORT}"')
    if host == "localhost":
        host = "127.0.0.1"
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        raise ValueError(f"{address!r} is a name, not an address; {NOT_LOOPBACK}") from None
    if not loopback:
        raise ValueError(f"{address!r} is not a loopback address; {NOT_LOOPBACK}")
    return host, int(port)


def numeric(address: str) -> str:
    """The same address, spelled in one way only: libzmq and the map compare text."""
    host, port = host_and_port(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _with_absolute_dir(config: Config, parent: Path) -> Config:
    directory = str(parent / config.node.dir)
    return msgspec.structs.replace(config, node=msgspec.structs.replace(config.node, dir=directory))


def _check_keys(table: dict[str, object], struct: type[msgspec.Struct], prefix: str) -> None:
    # msgspec refuses an unknown key too, but does not say which ones it knows.
    known = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            names = ", ".join(sorted(known))
            raise ValueError(f"unknown key {prefix}{key}{hint}; known keys: {names}")
        choices = _choices(known[key])
        if choices and value not in choices:
            raise ValueError(f"{prefix}{key}: expected {' or '.join(choices)}, got {value!r}")
        if type(value) is int and (fits := _range(known[key])) and value not in fits:
            raise ValueError(
                f"{prefix}{key}: expected an integer from {fits[0]} to {fits[-1]}, got {value}"
            )
        kind = (get_args(known[key]) or (known[key],))[0]  # X of list[X].
        if not msgspec.inspect.is_struct_type(kind):
            continue
        if isinstance(value, dict):
            _check_keys(value, kind, f"{prefix}{key}.")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                if isinstance(inner, dict):
                    _check_keys(inner, kind, f"{prefix}{key}[{number}].")


def _choices(kind: object) -> tuple[str, ...]:
    """The words that may stand there; none: it is no such key."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return tuple(kind)
    return ()


def _range(kind: object) -> range | None:
    """The integers that may stand there; none: it is no such key."""
    for part in get_args(kind):
        if isinstance(part, msgspec.Meta) and part.ge is not None and part.le is not None:
            return range(int(part.ge), int(part.le) + 1)
        if (inner := _range(part)) is not None:  # Of X in X | None.
            return inner
    return None


def _in_words_of_the_file(sentence: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.limits.window_ops`", path first."""
    what, _, place = sentence.partition(" - at ")
    for theirs, ours in _WORDS.items():
        what = what.replace(theirs, ours)
    path = place.replace("`key` in ", "a name in ").replace("`", "").replace("$.", "")
    return f"{path or 'the file'}: {what[:1].lower()}{what[1:]}"


def _check_sense(config: Config) -> None:
    """What only shows when several keys are read together."""
    listen, expected = config.listen, config.cluster.expected
    places = {f"listen.{key}": getattr(listen, key) for key in ("clients", "peers", "group")}
    places |= {f"cluster.expected.{name}": address for name, address in expected.items()}
    for path, address in places.items():
        try:
            places[path] = numeric(address)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    for path in ("listen.peers", "listen.group"):
        for other in ("listen.clients", "listen.peers"):
            if path != other and places[path] == places[other]:
                raise ValueError(f"{path}: {places[path]} is {other}, too; each needs its own")
    if expected:
        mine = f"cluster.expected.{config.node.name}"
        if mine not in places:
            raise ValueError(
                f"cluster.expected: this node, {config.node.name}, is not among"
                f" {', '.join(sorted(expected))}; the list is the same on all nodes"
            )
        if places[mine] != places["listen.peers"]:
            raise ValueError(
                f"{mine}: {places[mine]} is not listen.peers of this node, {places['listen.peers']}"
            )
        theirs = [places[f"cluster.expected.{name}"] for name in expected]
        if len(set(theirs)) < len(theirs):
            raise ValueError("cluster.expected: two nodes have the same address")
    if config.timing.silence_ms < 3 * config.timing.heartbeat_ms:
        raise ValueError(
            f"timing.silence_ms: {config.timing.silence_ms} is less than three heartbeats"
            f" (heartbeat_ms is {config.timing.heartbeat_ms}): healthy nodes would be suspected"
        )
    names = [queue.name for queue in config.queue]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"queue[{number}].name: {name!r} is declared twice")
        try:
            check_queue_name(name)
        except ValueError as error:
            raise ValueError(f"queue[{number}].name: {error}") from None
