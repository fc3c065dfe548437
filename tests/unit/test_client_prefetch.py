"""How the prefetch of one consumer is shared by its legs."""

from __future__ import annotations

from tanist.core.consumer import ConsumerCore
from tanist.wire import hot
from tanist.wire.frames import CREDIT_BACK, Frame, Verb
from tests.unit.client_bench import Bench
from tests.unit.fake_node import FakeCluster


def started(
    post_offices: int, prefetch: int, prefetch_bytes: int = 1 << 20
) -> tuple[FakeCluster, Bench, ConsumerCore]:
    cluster = FakeCluster("a", post_offices=post_offices)
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    return cluster, bench, bench.consumer("q", prefetch=prefetch, prefetch_bytes=prefetch_bytes)


def credits(cluster: FakeCluster, *, back: bool = False) -> list[Frame]:
    """The CREDIT frames that clients sent."""
    flags = CREDIT_BACK if back else 0
    return [f for f in cluster.nodes["a"].frames(Verb.CREDIT) if f.flags == flags]


def granted(consumer: ConsumerCore) -> list[int]:
    return [leg.granted_messages for leg in consumer.legs.values()]


def test_a_consumer_has_a_leg_to_every_post_office_and_none_to_the_catalog() -> None:
    _, _, consumer = started(3, 60)

    assert sorted(consumer.legs) == [1, 2, 3]
    assert all(leg.is_open for leg in consumer.legs.values())


def test_a_consumer_of_a_queue_with_spread_one_has_a_leg_to_its_post_office_only() -> None:
    cluster = FakeCluster("a", post_offices=3)
    cluster.add_queue("q", spread="one", sid=2)
    bench = Bench(cluster)
    bench.enter()

    consumer = bench.consumer("q")

    assert list(consumer.legs) == [2]


def test_legs_come_and_go_with_post_offices() -> None:
    cluster, bench, consumer = started(2, 60)
    del cluster.offices[1]
    office = FakeCluster("a", post_offices=3).offices[3]
    cluster.offices[3] = office
    cluster.ver += 1

    cluster.push()
    bench.run()

    assert sorted(consumer.legs) == [2, 3]
    assert consumer.legs[3].is_open
    assert len(cluster.nodes["a"].frames(Verb.CLOSE)) == 1


def test_each_leg_gets_its_standing_share_at_once() -> None:
    _, _, consumer = started(3, 60)

    assert granted(consumer) == [10, 10, 10]


def test_the_rest_goes_to_legs_for_which_messages_wait() -> None:
    cluster, bench, consumer = started(3, 60)

    cluster.put("q", *([b"x"] * 100), sid=2)
    bench.run()

    assert consumer.held == 40, "all but the two shares of the others"
    assert granted(consumer) == [10, 40, 10]


def test_what_is_held_and_what_is_granted_never_exceed_the_prefetch() -> None:
    cluster, bench, consumer = started(3, 60)

    for sid in (1, 2, 3):
        cluster.put("q", *([b"x"] * 100), sid=sid)
        bench.advance(0.1)

    outstanding = sum(leg.outstanding_messages for leg in consumer.legs.values())
    assert consumer.held + outstanding == 60


def test_acks_make_room_for_more() -> None:
    cluster, bench, consumer = started(1, 10)
    cluster.put("q", *(b"%d" % n for n in range(35)))
    bench.run()

    got: list[bytes] = []
    for _ in range(10):
        for run, index in bench.take_all(consumer):
            got.append(run.body(index))
            consumer.ack(run, index)
        bench.run()

    assert got == [b"%d" % n for n in range(35)]
    assert cluster.states("q") == ["done"] * 35


def test_bytes_are_counted_like_messages_and_one_message_may_go_beyond() -> None:
    cluster, bench, consumer = started(1, 100, prefetch_bytes=1000)

    cluster.put("q", *([b"x" * 400] * 10))
    bench.run()
    held = consumer.held
    for run, index in bench.take_all(consumer):
        consumer.ack(run, index)
    bench.run()

    assert held == 3
    assert len(bench.take_all(consumer)) == 3


def test_a_message_larger_than_the_prefetch_still_comes() -> None:
    cluster, bench, consumer = started(1, 100, prefetch_bytes=10)

    cluster.put("q", b"x" * 400, b"y" * 400)
    bench.run()
    first = bench.take_all(consumer)
    for run, index in first:
        consumer.ack(run, index)
    bench.run()

    assert [run.body(index)[:1] for run, index in first] == [b"x"]
    assert [run.body(index)[:1] for run, index in bench.take_all(consumer)] == [b"y"]


def test_five_legs_share_a_prefetch_of_one() -> None:
    cluster, bench, consumer = started(5, 1)
    for sid in range(1, 6):
        cluster.put("q", b"%d" % sid, sid=sid)

    got: list[bytes] = []
    start = bench.now
    while len(got) < 5 and bench.now < start + 1:
        bench.advance(0.01)
        taken = bench.take_all(consumer)
        assert len(taken) <= 1
        for run, index in taken:
            got.append(run.body(index))
            consumer.ack(run, index)

    assert sorted(got) == [b"1", b"2", b"3", b"4", b"5"]


def test_credit_of_the_leg_that_is_idle_for_longest_is_called_back_after_20_ms() -> None:
    cluster, bench, consumer = started(2, 1)
    cluster.put("q", b"taken by another", sid=1)
    cluster.offices[1].parts[consumer.info.id][0].state = "done"  # Before the credit comes.
    bench.run()
    idle = consumer.legs[1].outstanding_messages
    begin = bench.now
    cluster.put("q", b"waits", sid=2)
    bench.run()

    bench.advance(0.019)
    early = len(credits(cluster, back=True))
    bench.advance(0.002)

    assert (idle, early) == (1, 0)
    assert len(credits(cluster, back=True)) == 1
    assert bench.now - begin < 0.03
    assert [run.body(0) for run, _ in bench.take_all(consumer)] == [b"waits"]


def test_of_several_idle_legs_the_one_that_is_idle_for_longest_gives_its_credit_back() -> None:
    cluster, bench, consumer = started(3, 6)
    for sid in (3, 1, 2):
        cluster.put("q", b"x", sid=sid)
        bench.advance(0.1)
        for run, index in bench.take_all(consumer):
            consumer.ack(run, index)
        bench.run()
    # All is free or allowed; one leg takes the rest, and wants more.
    cluster.put("q", *([b"x"] * 20), sid=2)

    bench.advance(0.03)

    called = credits(cluster, back=True)
    assert [frame.channel for frame in called[:1]] == [consumer.legs[3].number]


def test_legs_for_which_messages_wait_take_turns() -> None:
    cluster, bench, consumer = started(3, 1)
    for sid in (1, 2, 3):
        cluster.put("q", *([b"x"] * 30), sid=sid)
    bench.run()

    sids: list[int] = []
    for _ in range(30):
        for run, index in bench.take_all(consumer):
            sids.append(run.sid)
            consumer.ack(run, index)
        bench.advance(0.021)

    assert min(sids.count(sid) for sid in (1, 2, 3)) >= 5


def test_what_was_planned_before_the_credit_went_back_still_counts() -> None:
    cluster, bench, consumer = started(1, 10)
    leg = consumer.legs[1]
    connection = cluster.nodes["a"].open_connections()[0]
    bench.deaf.add(bench.connection_to("a"))
    drained = bench.begin(consumer.drain)
    bench.run()

    connection.hot(Verb.CREDIT, leg.number, hot.credit(2, 50), flags=CREDIT_BACK)
    bench.run()
    waiting = drained not in bench.results
    bench.deaf.clear()
    connection.channels[leg.number].credit = (2, 50)
    cluster.put("q", b"x", b"y", b"z")
    bench.run()

    assert waiting, "two messages are still to come"
    assert drained in bench.results
    assert [run.count for run, _ in bench.take_all(consumer)] == [2, 2]


def test_a_drained_consumer_is_sent_nothing_until_it_wants_something() -> None:
    cluster, bench, consumer = started(2, 10)
    drained = bench.ask(consumer.drain)
    cluster.put("q", b"x", sid=1)
    bench.advance(1)
    before = bench.take_all(consumer)

    consumer.want()
    bench.run()

    assert drained is None
    assert before == []
    assert len(bench.take_all(consumer)) == 1


def test_held_messages_count_over_a_failover_and_are_not_granted_twice() -> None:
    cluster = FakeCluster("a", "b")
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    consumer = bench.consumer("q", prefetch=10)
    cluster.put("q", *([b"x"] * 30))
    bench.run()

    cluster.nodes["a"].kill()
    cluster.move(1, "b")
    bench.advance(1)

    assert consumer.held == 10
    assert consumer.legs[1].granted_messages == 0


def test_a_slow_application_is_not_sent_one_message_for_each_that_it_acks() -> None:
    cluster, bench, consumer = started(1, 80)
    cluster.put("q", *([b"x"] * 400))
    bench.run()
    before = len(credits(cluster))

    run = consumer.take()
    assert run is not None
    for index in range(run.count):
        consumer.ack(run, index)
        bench.run()

    assert run.count > 10
    assert len(credits(cluster)) - before <= run.count // 5


def test_deadlines_always_find_work() -> None:
    cluster, bench, consumer = started(3, 2)
    for sid in (1, 2, 3):
        cluster.put("q", b"x", b"y", sid=sid)

    bench.advance(10)

    assert bench.wakes < 100
    assert consumer.held == 2
