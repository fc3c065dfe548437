"""How far ahead of what is stored producers are let, one of them and many."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count

import pytest

from broker.core.channels import ProducerChannel
from broker.core.limits import Limits
from broker.core.producers import GRANT_BYTES_FIRST, GRANT_BYTES_MIN
from tanist.wire.control import Opened, OpenProducer, QueueInfo, QueueSettings, Wait
from tests.unit.test_desk import QUEUE, Bench, batch_of, client


def open_producers(bench: Bench, producers: int, *, start: int = 0) -> None:
    """Numbered from `start`, on the channels of one more than that."""
    for number in range(start, start + producers):
        asked = OpenProducer(
            req=1,
            sid=1,
            queue_id=QUEUE.id,
            producer=f"{number:032x}",
            producer_epoch=1,
            lowest_n=1,
        )
        bench.desk.open(bench.connection, number + 1, asked, QUEUE, bench.outbox)


def test_a_producer_gets_no_more_credit_than_its_queue_may_hold() -> None:
    # Given a queue that holds producers above 100,000 bytes, and one of them
    bench = Bench()
    queue = QueueInfo(id=8, name="h", settings=QueueSettings(bytes_max=100_000))
    bench.produce(queue=queue)
    bench.turn()

    # When that publishes as long as it may
    published = 0
    while bench.producer.has_credit:
        published += 1
        assert published < 1_000, "the queue is never full"
        bench.publish(published, bytes(1_000))
        bench.turn()

    # Then the queue is full, and beyond its bound by little more than a batch
    part = bench.office.part_of(queue.id)
    assert part is not None
    assert 100_000 <= bench.office.bytes_of(part) < 100_000 + GRANT_BYTES_MIN + 2_000


def test_a_small_queue_is_shared_by_its_producers_and_none_is_left_without() -> None:
    # Given a queue that holds little, and a producer that has credit and does not use it
    bench = Bench()
    queue = QueueInfo(id=8, name="h", settings=QueueSettings(bytes_max=100_000))
    bench.produce(queue=queue)
    other = client(2)
    asked = OpenProducer(req=1, sid=1, queue_id=8, producer="c" * 32, producer_epoch=1, lowest_n=1)

    # When another one comes
    bench.desk.open(other, 1, asked, queue, bench.outbox)
    bench.turn()

    # Then that has half, and the first one keeps what it has
    channel = other.channels[1]
    assert isinstance(channel, ProducerChannel)
    assert channel.granted_bytes == 50_000
    assert bench.producer.granted_bytes == GRANT_BYTES_FIRST


def test_in_a_queue_of_a_few_bytes_a_producer_has_credit_for_a_batch() -> None:
    # Given a queue that may hold ten bytes
    bench = Bench()
    queue = QueueInfo(id=8, name="h", settings=QueueSettings(bytes_max=10))

    # When a producer comes, and publishes
    bench.produce(queue=queue)
    bench.turn()
    granted = bench.producer.granted_bytes
    bench.publish(1, bytes(10 * GRANT_BYTES_MIN))
    bench.turn()

    # Then it had credit for this one, and has none for another
    assert granted == GRANT_BYTES_MIN
    assert bench.office.stat(queue.id).ready == 1
    assert not bench.producer.has_credit


def test_many_producers_share_what_memory_there_is() -> None:
    # Given a node that may give its publishers 1 MiB in all
    bench = Bench()
    left = 1 << 20
    bench.desk = bench.new_desk(
        grantable_bytes=lambda: max(0, left - bench.desk.producers.credit_out_bytes)
    )

    # When a hundred producers open
    open_producers(bench, 100)
    bench.let_go()

    # Then what they may send together is within it, and the first ones have not got all
    credits = [m.credit[1] for m in bench.messages() if isinstance(m, Opened)]
    assert len(credits) == 100
    assert sum(credits) <= left
    assert sum(1 for credit in credits if credit) > 20


def test_a_producer_is_let_the_farther_ahead_the_faster_it_is() -> None:
    # Given a producer that publishes a little each second
    bench = Bench(Limits(producer_credit_bytes=1 << 20))
    bench.produce()
    bench.turn()
    numbers = count(1)

    def publish_for(turns: int, *, each_s: float, start_s: float) -> None:
        for turn in range(turns):
            bench.publish(next(numbers), bytes(30_000))
            bench.turn(start_s + turn * each_s)

    # When it goes on for long, then as fast as it can, and then slowly again
    publish_for(20, each_s=1.0, start_s=0.0)
    slow = bench.producer.unused_bytes
    publish_for(40, each_s=0.001, start_s=20.0)
    fast = bench.producer.unused_bytes
    publish_for(100, each_s=1.0, start_s=30.0)
    slow_again = bench.producer.unused_bytes

    # Then it was let far ahead only while it was fast
    assert slow <= GRANT_BYTES_FIRST
    assert (1 << 20) // 2 <= fast <= 1 << 20
    assert slow_again <= GRANT_BYTES_FIRST


def test_a_slow_producer_does_not_become_a_fast_one_by_being_given_little() -> None:
    # Given a producer that publishes a little ten times a second, while memory is short
    bench = Bench()
    bench.grantable_bytes = 8 * 8_000
    bench.produce()
    bench.turn()
    for n in range(1, 200):
        bench.publish(n, bytes(10))
        bench.turn(n / 10)

    # When there is room again, and it goes on so
    bench.grantable_bytes = 1 << 30
    for n in range(200, 400):
        bench.publish(n, bytes(10))
        bench.turn(n / 10)

    # Then it is let ahead as a slow one
    assert bench.producer.unused_bytes <= 2 * GRANT_BYTES_FIRST


def test_thousands_of_idle_producers_leave_credit_for_one_that_publishes() -> None:
    # Given a node that may give its publishers 1 GiB, and 5,000 of them that do nothing
    bench = Bench()
    bench.desk = bench.new_desk(
        grantable_bytes=lambda: max(0, (1 << 30) - bench.desk.producers.credit_out_bytes)
    )
    open_producers(bench, 5_000)

    # When one more publishes as fast as it can
    bench.connection = client(2)
    bench.produce()
    bench.turn()
    for n in range(1, 200):
        bench.publish(n, bytes(60_000))
        bench.turn(n / 1_000)

    # Then it is let as far ahead as if it were alone
    assert bench.producer.window_bytes == bench.limits.producer_credit_bytes
    assert bench.producer.unused_bytes >= bench.limits.producer_credit_bytes // 2


@pytest.mark.parametrize("seed", range(20))
def test_what_is_out_and_parked_is_the_sum_of_what_the_producers_have(seed: int) -> None:
    # Given some producers, and room that comes and goes
    chance = random.Random(seed)
    bench = Bench(Limits(producer_credit_bytes=100_000))
    producers = bench.desk.producers
    next_n: dict[ProducerChannel, int] = {}
    now = 0.0

    # When they come, publish and go
    for step in range(300):
        now += chance.choice((0.01, 2.0))
        bench.stream.room_bytes = chance.choice((0, 10_000, 1 << 30))
        bench.grantable_bytes = chance.choice((0, 100_000, 1 << 30))
        channels = list(producers)
        if len(channels) < 5 and chance.random() < 0.3:
            open_producers(bench, 1, start=step)
        elif channels and chance.random() < 0.1:
            bench.desk.close(chance.choice(channels), 1)
        elif channels:
            channel = chance.choice(channels)
            if channel.has_credit:
                n = next_n[channel] = next_n.get(channel, 0) + 1
                producers.publish(channel, batch_of(n, bytes(chance.choice((10, 70_000)))))
        bench.turn(now)

        # Then after each step the sums that are kept are right
        assert producers.credit_out_bytes == sum(each.unused_bytes for each in producers)
        assert producers.parked_bytes == sum(batch.size for _, batch in producers._parked)
        assert dict(producers._sharing) == Counter(each.queue.id for each in producers)


def test_a_producer_that_waits_for_room_is_told_for_which_and_again_when_it_waits_again() -> None:
    # Given a queue that is full, and a producer that used up its credit
    bench = Bench()
    queue = QueueInfo(id=8, name="h", settings=QueueSettings(bytes_max=1_000))
    bench.produce(queue=queue)
    bench.turn()
    bench.publish(1, bytes(10_000))
    bench.turn(1.0)
    bench.heard()

    # When it has waited for a second, and longer
    bench.desk.wake(1.9, bench.outbox)
    early = bench.messages()
    bench.desk.wake(2.0, bench.outbox)
    then = bench.messages()
    bench.desk.wake(9.0, bench.outbox)
    later = bench.messages()

    # Then it is told once, and whoever asks for the status is told, too
    full = "queue 'h' is full in post office 1"
    assert early == later == []
    [wait] = then
    assert isinstance(wait, Wait)
    assert (wait.why, wait.since_ms) == (f"held: {full}", 1000)
    assert bench.desk.producers.dry(8.0) == {full: 1}

    # And when there is room again, and none once more
    bench.desk.purge(bench.connection, 9, queue.id)
    bench.turn(10.0)
    room_again = bench.desk.producers.dry(100.0)
    bench.desk.wake(10.0, bench.outbox)
    bench.publish(2, bytes(10_000))
    bench.turn(11.0)
    bench.heard()
    bench.desk.wake(12.0, bench.outbox)
    assert not room_again
    assert [type(message) for message in bench.messages()] == [Wait]


@pytest.mark.parametrize(
    ("room_bytes", "grantable_bytes", "trouble", "why"),
    [
        (0, 1 << 30, None, "a copy of post office 1 has no room for more"),
        (1 << 30, 0, None, "the memory of post office 1 is full"),
        (1 << 30, 0, "no space", "the memory of post office 1 is full: no space"),
    ],
)
def test_why_there_is_no_credit_names_what_is_full(
    room_bytes: int, grantable_bytes: int, trouble: str | None, why: str
) -> None:
    bench = Bench()
    bench.produce()
    bench.turn()
    bench.publish(1, bytes(100_000))

    bench.stream.room_bytes = room_bytes
    bench.grantable_bytes = grantable_bytes
    bench.disk_trouble = trouble
    bench.turn(1.0)

    assert bench.desk.producers.dry(1.0) == {why: 1}
