"""The questions that every node answers alike from the same map, and its canonical bytes."""

from __future__ import annotations

import msgspec
import pytest

from replication.core.clustermap import (
    EMPTY_MAP,
    ClusterMap,
    NodeEntry,
    NodeState,
    Settings,
    StreamEntry,
    copies,
    decode_map,
    default_min_copies,
    encode_map,
    is_live,
    order,
    superseded,
    wanted,
)
from replication.core.identity import Incarnation


def a_map(
    *names: str,
    down: str = "",
    witnesses: str = "",
    settings: Settings | None = None,
    home: str | None = "b",
    owner: str = "b",
) -> ClusterMap:
    """Nodes in incarnation 1, all up but those that are `down`, and one stream."""
    who = Incarnation(owner, 1)
    sid = 0 if home is None else 1
    return ClusterMap(
        settings=settings or Settings(),
        nodes={
            name: NodeEntry(
                proc_inc=1,
                state=NodeState.DOWN if name in down else NodeState.UP,
                broker=name not in witnesses,
            )
            for name in names
        },
        streams={sid: StreamEntry(home=home, gen=1, epoch=1, owner=who, isr=(who,))},
        next_sid=2,
    )


def test_succession_begins_after_the_home_and_wraps_round() -> None:
    assert order(a_map(*"dacb"), "b") == ["c", "d", "a", "b"]
    assert order(a_map(*"dacb"), "d") == ["a", "b", "c", "d"]


def test_the_catalog_has_no_home_and_follows_the_names() -> None:
    assert order(a_map(*"dacb"), None) == ["a", "b", "c", "d"]


def test_the_first_brokers_that_are_up_are_wanted_beside_the_owner() -> None:
    assert wanted(a_map(*"abcd"), 1) == ["c", "d"]
    assert wanted(a_map(*"abcd", down="c"), 1) == ["d", "a"]
    assert wanted(a_map(*"abcd", witnesses="d"), 1) == ["c", "a"]
    assert wanted(a_map(*"abc", owner="c"), 1) == ["a", "b"]
    assert wanted(a_map("b"), 1) == []
    assert wanted(a_map(*"abcd", home=None), 0) == ["a", "c"]


@pytest.mark.parametrize(
    ("brokers", "failover_peers", "expected_copies", "expected_min"),
    [(1, 2, 1, 1), (2, 2, 2, 1), (3, 2, 3, 2), (7, 2, 3, 2), (3, 1, 2, 1), (7, 4, 5, 2)],
)
def test_by_default_the_loss_of_one_node_holds_no_stream(
    brokers: int, failover_peers: int, expected_copies: int, expected_min: int
) -> None:
    value = a_map(*"bacdefg"[:brokers], settings=Settings(failover_peers=failover_peers))

    assert copies(value) == expected_copies
    assert default_min_copies(value) == expected_min


def test_a_broker_that_is_down_still_counts_as_a_copy_to_come() -> None:
    assert copies(a_map(*"abc", down="ac")) == 3
    assert copies(a_map(*"abc", witnesses="a")) == 2


@pytest.mark.parametrize(("configured", "expected"), [(1, 1), (3, 3), (9, 3)])
def test_a_configured_number_of_copies_is_taken_as_it_is_up_to_all(
    configured: int, expected: int
) -> None:
    value = a_map(*"abc", settings=Settings(min_copies=configured))

    assert default_min_copies(value) == expected


def test_an_older_life_is_superseded_and_a_node_that_is_down_is_not() -> None:
    value = a_map(*"abc", down="a")

    assert superseded(value, Incarnation("a", 7))
    assert superseded(value, Incarnation("unknown", 1))
    assert not superseded(value, Incarnation("a", 1))
    assert not is_live(value, Incarnation("a", 1))
    assert not is_live(value, Incarnation("b", 7))
    assert is_live(value, Incarnation("b", 1))


def test_equal_maps_have_equal_bytes_whatever_the_order_they_were_made_in() -> None:
    one = a_map(*"abc")
    other = ClusterMap(
        nodes=dict(reversed(one.nodes.items())), streams=one.streams, next_sid=one.next_sid
    )

    assert encode_map(one) == encode_map(other)
    assert decode_map(encode_map(one)) == one
    assert decode_map(encode_map(EMPTY_MAP)) == EMPTY_MAP


def test_bytes_that_are_no_map_are_refused() -> None:
    for damaged in (b"", encode_map(EMPTY_MAP)[:-1], msgspec.msgpack.encode([1, 2, 3, 4, 5])):
        with pytest.raises(msgspec.DecodeError):
            decode_map(damaged)


def test_a_map_notices_that_an_owner_is_not_in_sync() -> None:
    value = a_map(*"abc")
    stream = msgspec.structs.replace(value.streams[1], owner=Incarnation("a", 1))
    broken = msgspec.structs.replace(value, streams={1: stream})

    with pytest.raises(AssertionError, match="in sync with itself"):
        broken.check()
