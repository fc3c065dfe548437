"""The simulated network: what the worlds rely on."""

from __future__ import annotations

from functools import partial

from tests.simulation.network import FAIR, Disk, Network


def a_network() -> Network:
    network = Network(seed=1)
    network.weather = FAIR
    return network


def test_a_connection_keeps_its_order_and_what_a_cut_holds_back() -> None:
    network, arrived = a_network(), list[int]()
    network.cut("a", "b")
    for number in range(5):
        network.stream("a", "b", partial(arrived.append, number))
    network.run(until=1.0)
    assert arrived == []

    network.heal()
    network.stream("a", "b", partial(arrived.append, 5))
    network.run(until=2.0)

    assert arrived == [0, 1, 2, 3, 4, 5]


def test_what_a_connection_carried_dies_with_either_end() -> None:
    network, arrived = a_network(), list[str]()
    network.stream("a", "b", partial(arrived.append, "from a dead one"))
    network.stream("c", "a", partial(arrived.append, "to a dead one"))
    network.send("a", "b", partial(arrived.append, "by itself"))

    network.crash("a")
    network.run(until=1.0)

    assert arrived == ["by itself"]


def test_a_timer_with_an_owner_dies_with_it() -> None:
    network, rang = a_network(), list[str]()
    network.after(0.5, partial(rang.append, "owned"), owner="a")
    network.after(0.5, partial(rang.append, "free"))

    network.crash("a")
    network.run(until=1.0)

    assert rang == ["free"]


def test_a_crash_loses_a_suffix_of_the_writes_that_were_not_complete() -> None:
    found = set()
    for seed in range(50):
        network = Network(seed)
        disk, done = Disk(network, "a"), list[int]()
        for number in range(3):
            disk.write(bytes([number]), partial(done.append, number))

        network.crash("a")
        disk.crash()
        network.run(until=100.0)

        assert done == []
        found.add(disk.durable)
    assert found == {None, b"\0", b"\1", b"\2"}


def test_a_broken_disk_completes_nothing() -> None:
    network, done = a_network(), list[str]()
    disk = Disk(network, "a")
    disk.broken = True

    disk.write(b"x", partial(done.append, "x"))
    network.run(until=100.0)

    assert done == []
    assert disk.durable is None
