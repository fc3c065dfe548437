"""Producers that are forgotten because they did not come for long."""

from __future__ import annotations

from broker.core.limits import Limits
from broker.core.ops import PassTime, Publish
from broker.core.post_office import PostOffice, Standing
from tests.unit.post_offices import Office, batch_of
from tests.unit.test_desk import Bench

IDLE_S = 240
STEP_S = 10
ONE, TWO, THREE = (bytes([i]) * 16 for i in (1, 2, 3))
PRODUCER = b"\xaa" * 16


def bench_with_a_producer_that_left() -> Bench:
    """It has published, and its channel is closed."""
    bench = Bench(Limits(producer_idle_s=IDLE_S))
    bench.desk.wake(0.0, bench.outbox)
    bench.produce()
    bench.turn()
    bench.publish(1, b"a")
    bench.desk.producers.forget(bench.producer)
    return bench


def pass_time(bench: Bench, *, since: int, until: int) -> None:
    """The desk wakes up each ten seconds of the owner's clock."""
    for now in range(since + STEP_S, until + STEP_S, STEP_S):
        bench.desk.wake(float(now), bench.outbox)


def standing(bench: Bench) -> Standing:
    found, _ = bench.office.expected(PRODUCER, 1)
    return found


def test_who_was_not_used_for_long_is_named_in_the_order_of_use() -> None:
    # Given three producers, of which one was used again later
    office = Office()
    for producer in (ONE, TWO, THREE):
        office.publish(b"a", producer=producer)
    office.append(PassTime(60))
    office.publish(b"b", producer=TWO)
    office.append(PassTime(40))

    # When it is asked who was idle for so long
    idle = [office.state.producers_idle(seconds) for seconds in (101, 100, 40)]

    # Then time counts from the last use
    assert idle == [[], [ONE, THREE], [ONE, THREE, TWO]]
    assert office.state.producers_idle(40, in_use={ONE}) == [THREE, TWO]


def test_served_time_is_the_same_on_all_copies() -> None:
    # Given a post office in which time passed between publishes, and its copy
    office = Office()
    office.publish(b"a", producer=ONE)
    office.append(PassTime(60))
    office.publish(b"b", producer=TWO)
    copy = PostOffice(1, 1)

    # When the copy is told the same ops by their records
    for op in office.log:
        record = b"".join(op.parts())
        copy.apply(copy.decode(op.kind, record, 0, len(record)))

    # Then it would forget the same producers, and one that missed the time would not
    assert copy.digest() == office.state.digest()
    assert copy.producers_idle(60) == [ONE]
    deaf = PostOffice(1, 1)
    for op in office.log:
        if not isinstance(op, PassTime):
            deaf.apply(op)
    assert deaf.digest() != copy.digest()
    deaf.check()


def test_what_clients_say_of_the_time_does_not_count() -> None:
    # Given a producer
    office = Office()
    office.publish(b"a", producer=ONE)

    # When another one publishes with a clock that is years ahead
    office.publish(b"b", producer=TWO)
    ahead = batch_of([b"c"], first_n=2)
    part = office.state.part_of(office.state.queue_ids()[0])
    assert part is not None
    office.append(Publish(part, TWO, 1, office.state.end_of(part), ahead))

    # Then no time has passed for the first
    assert office.state.served_s == 0
    assert office.state.producers_idle(1) == []


def test_a_producer_is_forgotten_after_a_day_without_it() -> None:
    # Given a producer that left
    bench = bench_with_a_producer_that_left()

    # When time passes
    pass_time(bench, since=0, until=IDLE_S - STEP_S)
    before = standing(bench)
    pass_time(bench, since=IDLE_S - STEP_S, until=IDLE_S + STEP_S)

    # Then it is forgotten at the end of its time, and not before
    assert before is Standing.KNOWN
    assert standing(bench) is Standing.UNKNOWN


def test_time_goes_on_under_the_next_owner() -> None:
    # Given a producer that left, half of its time ago
    bench = bench_with_a_producer_that_left()
    pass_time(bench, since=0, until=IDLE_S // 2)

    # When another node, whose clock stands elsewhere, owns the post office from then on
    bench.desk = bench.new_desk(now=9_000.0)
    bench.desk.wake(9_000.0, bench.outbox)
    at_first = standing(bench)
    pass_time(bench, since=9_000, until=9_000 + IDLE_S // 2 + STEP_S)

    # Then it is forgotten when both halves are over
    assert at_first is Standing.KNOWN
    assert standing(bench) is Standing.UNKNOWN


def test_a_producer_with_a_channel_is_not_forgotten_nor_right_after_it_was_lost() -> None:
    # Given a producer that is connected, and publishes nothing
    bench = Bench(Limits(producer_idle_s=IDLE_S))
    bench.desk.wake(0.0, bench.outbox)
    bench.produce()
    bench.turn()
    pass_time(bench, since=0, until=2 * IDLE_S)

    # When its connection is lost, and it needs a while to come back
    bench.desk.producers.forget(bench.producer)
    pass_time(bench, since=2 * IDLE_S, until=2 * IDLE_S + STEP_S)
    on_its_way = standing(bench)
    pass_time(bench, since=2 * IDLE_S + STEP_S, until=2 * IDLE_S + 2 * STEP_S)

    # Then it is known while it may be on its way, and no longer
    assert on_its_way is Standing.KNOWN
    assert standing(bench) is Standing.UNKNOWN


def test_where_nobody_is_known_no_time_is_told() -> None:
    # Given a post office without producers
    bench = Bench(Limits(producer_idle_s=IDLE_S))

    # When time passes
    pass_time(bench, since=0, until=IDLE_S)

    # Then its stream stays as it is
    assert bench.stream.log_end == 1
