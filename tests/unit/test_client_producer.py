"""Producers: batches, credit, the window, and what is repeated, renumbered or given back."""

from __future__ import annotations

from typing import Literal

import pytest

from tanist.core.producer import FLAGS_DEFAULT, Confirmed, ProducerCore
from tanist.core.settings import ClientSettings
from tanist.errors import (
    ClosedError,
    FailoverTimeout,
    LocalProtocolError,
    OverloadedError,
    RefusedError,
)
from tanist.events import ConnectionLost, Failed, Lost, Refused, Resumed
from tanist.wire import control, hot
from tanist.wire.batch import IN_DOUBT, Batch, flags_of
from tanist.wire.frames import Frame, Verb
from tanist.wire.limits import BODIES_BYTES_MAX, COUNT_MAX, MESSAGE_BYTES_MAX
from tests.unit.client_bench import Bench
from tests.unit.fake_node import FakeCluster, FakeConnection, FakeNode, Intercept


def started(
    *nodes: str, settings: ClientSettings | None = None, credit: tuple[int, int] | None = None
) -> tuple[FakeCluster, Bench, ProducerCore]:
    """A producer of queue q, open at the first node."""
    cluster = FakeCluster(*(nodes or ("a",)))
    cluster.add_queue("q")
    if credit is not None:
        cluster.producer_credit = credit
    bench = Bench(cluster, settings=settings)
    bench.enter()
    return cluster, bench, bench.producer("q")


def batches(cluster: FakeCluster, node: str = "a") -> list[Batch]:
    return [Batch.parse(received.payload) for received in cluster.nodes[node].frames(Verb.PUBLISH)]


def swallow(verb: Verb, times: int = 1 << 30) -> Intercept:
    """Have frames of this verb come to nothing."""
    left = times

    def intercept(connection: FakeConnection, received: Frame) -> bool:
        nonlocal left
        if received.verb != verb or not left:
            return False
        left -= 1
        return True

    return intercept


def test_what_one_turn_posts_leaves_as_one_batch() -> None:
    cluster, bench, producer = started()

    for n in range(600):
        producer.post(b"%d" % n)
    flushed = bench.flush(producer)

    assert flushed is None
    (batch,) = batches(cluster)
    assert (batch.count, batch.first_n) == (600, 1)
    assert batch.time_ms == int((bench.now + 1e9) * 1000)
    assert cluster.bodies("q") == [b"%d" % n for n in range(600)]


def test_the_fast_path_counts_as_post_does() -> None:
    cluster, bench, producer = started()

    producer.post(b"first")
    while producer.room > 1000:
        producer.room -= 1001
        producer.append(b"x" * 1000)
    posted = producer.unanswered
    producer.post(b"x" * 2000)
    bench.flush(producer)

    assert posted == 1 + (BODIES_BYTES_MAX - 5 - 1) // 1001
    assert [batch.count for batch in batches(cluster)] == [posted, 1]
    assert producer.unanswered == 0


def test_no_fast_path_is_offered_before_the_first_post_of_a_turn() -> None:
    _, bench, producer = started()

    producer.post(b"one")
    offered = producer.room
    bench.run()

    assert offered > 0
    assert producer.room == 0


def test_a_batch_ends_at_its_limit_and_where_the_kind_of_message_changes() -> None:
    cluster, bench, producer = started(credit=(100_000, 10 << 20))

    producer.post(b"a" * BODIES_BYTES_MAX)
    producer.post(b"b")
    producer.post(b"c", b'{"k":1}')
    producer.post(b"d", b'{"k":2}')
    producer.post(b"e", flags=flags_of(persistent=False))
    producer.post(b"f", flags=flags_of(persistent=True, lane=9))
    bench.flush(producer)

    sent = batches(cluster)
    assert [batch.count for batch in sent] == [1, 1, 2, 1, 1]
    assert [batch.first_n for batch in sent] == [1, 2, 3, 5, 6]
    assert [batch.persistent for batch in sent] == [True, True, True, False, True]


def test_a_batch_has_no_more_messages_than_its_table_may() -> None:
    cluster, bench, producer = started(credit=(1 << 20, 10 << 20))

    producer.post(b"")
    for _ in range(COUNT_MAX):
        producer.post(b"")
    bench.flush(producer)

    assert [batch.count for batch in batches(cluster)] == [COUNT_MAX, 1]


def test_a_message_larger_than_a_batch_travels_alone() -> None:
    cluster, bench, producer = started(credit=(100, 10 << 20))

    producer.post(b"small")
    producer.post(b"x" * (BODIES_BYTES_MAX + 1))
    room = producer.room
    producer.post(b"")
    bench.flush(producer)

    assert room == 0
    assert [batch.count for batch in batches(cluster)] == [1, 1, 1]


def test_a_message_above_the_limit_is_refused_here() -> None:
    _, _, producer = started()

    with pytest.raises(LocalProtocolError, match="above the limit"):
        producer.post(b"x" * (MESSAGE_BYTES_MAX + 1))

    assert producer.unanswered == 0


def test_confirms_resolve_batches_in_order_and_say_on_how_many_copies() -> None:
    cluster, bench, producer = started()
    cluster.copies = 2

    producer.post(b"one")
    producer.open_batch().token = "first"
    bench.run()

    assert bench.results["first"] == Confirmed(2, 1, 1, 1, bench.now)


def test_without_credit_batches_grow_and_wait() -> None:
    cluster, bench, producer = started(credit=(1, 1 << 20))
    cluster.nodes["a"].intercept = swallow(Verb.PUBLISH)

    producer.post(b"one")
    bench.run()
    for _ in range(3):
        producer.post(b"two")
        bench.run()

    assert [batch.count for batch in batches(cluster)] == [1]
    cluster.nodes["a"].intercept = None
    channel = producer.number
    cluster.nodes["a"].open_connections()[0].hot(Verb.CREDIT, channel, hot.credit(2, 1 << 20))
    bench.run()
    assert [batch.count for batch in batches(cluster)] == [1, 3]


def test_credit_allows_one_whole_batch_beyond_it_and_never_falls() -> None:
    cluster, bench, producer = started(credit=(1, 1 << 20))
    cluster.nodes["a"].intercept = swallow(Verb.PUBLISH)
    connection = cluster.nodes["a"].open_connections()[0]
    connection.hot(Verb.CREDIT, producer.number, hot.credit(0, 0))
    bench.run()

    for _ in range(10):
        producer.post(b"x")
    bench.run()
    producer.post(b"y")
    bench.run()

    assert [batch.count for batch in batches(cluster)] == [10]


def test_the_window_tells_to_wait_and_bounds_what_is_kept() -> None:
    settings = ClientSettings(window_messages=100)
    cluster, bench, producer = started(settings=settings, credit=(0, 0))

    for _ in range(99):
        producer.post(b"x")
    before = producer.full
    producer.post(b"x")
    at_window = producer.full
    for _ in range(100):
        producer.post(b"x")
    with pytest.raises(OverloadedError) as caught:
        producer.post(b"x")
    token = bench.begin(lambda token: producer.wait_for_room(token, bench.now))
    bench.run()
    waiting = token not in bench.results
    cluster.producer_credit = (1000, 1 << 20)
    connection = cluster.nodes["a"].open_connections()[0]
    channel = connection.channels[producer.number]
    channel.credit = (1000, 1 << 20)
    connection.hot(Verb.CREDIT, producer.number, hot.credit(1000, 1 << 20))
    bench.run()

    assert (before, at_window, waiting) == (False, True, True)
    assert caught.value.retryable
    assert token in bench.results
    assert not producer.full


def test_bytes_fill_the_window_as_messages_do() -> None:
    settings = ClientSettings(window_bytes=10_000)
    _, _, producer = started(settings=settings, credit=(0, 0))

    producer.post(b"x" * 6000)
    producer.post(b"x" * 6000)

    assert producer.full
    assert producer.room == 0


def test_what_was_not_confirmed_is_repeated_byte_for_byte_in_order() -> None:
    cluster, bench, producer = started("a", "b")
    cluster.nodes["a"].intercept = swallow(Verb.PUBLISH)
    for turn in range(3):
        producer.post(b"turn %d" % turn)
        bench.run()

    cluster.nodes["a"].kill()
    cluster.move(1, "b")
    bench.advance(1)

    first = [received.payload for received in cluster.nodes["a"].frames(Verb.PUBLISH)]
    again = [received.payload for received in cluster.nodes["b"].frames(Verb.PUBLISH)]
    assert first == again
    assert cluster.bodies("q") == [b"turn 0", b"turn 1", b"turn 2"]
    resumed = bench.events(Resumed)[0]
    assert (resumed.old_owner, resumed.new_owner, resumed.in_doubt) == ("a", "b", 3)


def test_a_batch_that_was_stored_and_not_confirmed_is_stored_once() -> None:
    cluster, bench, producer = started("a", "b")
    bench.hold.add(bench.connection_to("a"))
    producer.post(b"stored")
    producer.open_batch().token = "send"
    bench.run()
    stored = list(cluster.bodies("q"))

    cluster.nodes["a"].kill()
    cluster.nodes["a"].connections[1].take()
    cluster.move(1, "b")
    bench.hold.clear()
    producer.post(b"next")
    bench.advance(1)

    assert stored == [b"stored"]
    assert cluster.bodies("q") == [b"stored", b"next"]
    assert isinstance(bench.results["send"], Confirmed)


def test_the_next_number_that_an_owner_expects_is_no_confirm() -> None:
    cluster, bench, producer = started("a", "b")
    bench.hold.add(bench.connection_to("a"))
    producer.post(b"stored")
    producer.open_batch().token = "send"
    bench.run()
    cluster.nodes["a"].kill()
    cluster.nodes["a"].connections[1].take()
    cluster.move(1, "b")
    bench.hold.clear()
    cluster.nodes["b"].intercept = swallow(Verb.PUBLISH)

    bench.advance(1)

    assert producer.is_open
    assert len(cluster.nodes["b"].frames(Verb.PUBLISH)) == 1
    assert "send" not in bench.results
    assert producer.in_doubt == 1


def test_after_the_content_was_lost_what_is_in_doubt_is_repeated_in_a_new_producer_epoch() -> None:
    cluster, bench, producer = started("a", "b")
    producer.post(b"confirmed")
    bench.run()
    cluster.nodes["a"].intercept = swallow(Verb.PUBLISH)
    producer.post(b"in doubt")
    producer.open_batch().token = "send"
    bench.run()

    cluster.nodes["a"].kill()
    cluster.move(1, "b", gen=2)
    bench.advance(1)
    producer.post(b"new")
    bench.flush(producer)

    doubtful, new = batches(cluster, "b")
    assert (doubtful.first_n, bool(doubtful.flags & IN_DOUBT)) == (1, True)
    assert (new.first_n, bool(new.flags & IN_DOUBT)) == (2, False)
    opens = cluster.nodes["b"].messages(Verb.OPEN_PRODUCER)
    epochs = [m.producer_epoch for m in opens if isinstance(m, control.OpenProducer)]
    assert epochs == [1, 2]
    assert isinstance(bench.results["send"], Confirmed)
    lost = bench.events(Lost)[0]
    assert (lost.role, lost.gen, lost.in_doubt) == ("producer", 2, 1)


def test_an_owner_that_forgot_the_producer_is_treated_like_one_that_lost_everything() -> None:
    cluster, bench, producer = started("a")
    producer.post(b"confirmed")
    bench.run()
    cluster.nodes["a"].intercept = swallow(Verb.PUBLISH, 1)
    producer.post(b"in doubt")
    bench.run()
    cluster.offices[1].producers.clear()

    cluster.nodes["a"].open_connections()[0].closed = True
    bench.advance(1)

    repeated = batches(cluster)[-1]
    assert (repeated.first_n, bool(repeated.flags & IN_DOUBT)) == (1, True)
    assert cluster.bodies("q") == [b"confirmed", b"in doubt"]
    assert bench.events(Lost)[0].gen == 1


def test_a_refusal_gives_one_batch_back_and_the_rest_is_numbered_anew() -> None:
    cluster, bench, producer = started(credit=(1000, 1 << 20))
    node = cluster.nodes["a"]

    def refuse_the_second(connection: FakeConnection, received: Frame) -> bool:
        if received.verb != Verb.PUBLISH:
            return False
        batch = Batch.parse(received.payload)
        if batch.first_n != 2 or connection.channels.get(received.channel) is None:
            return False
        node.intercept = None
        del connection.channels[received.channel]  # What comes behind it is not read.
        refused = control.Refused(n=2, code="full", sentence="no room", retry_after_ms=250)
        connection.say(refused, received.channel)
        return True

    node.intercept = refuse_the_second
    bench.hold.add(bench.connection_to("a"))
    for name in ("first", "second", "third", "fourth"):
        producer.post(name.encode())
        producer.open_batch().token = name
        bench.run()
    bench.hold.clear()
    bench.run()

    assert cluster.bodies("q") == [b"first", b"third", b"fourth"]
    assert isinstance(bench.results["first"], Confirmed)
    error = bench.results["second"]
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 0.25
    assert isinstance(bench.results["third"], Confirmed)
    assert isinstance(bench.results["fourth"], Confirmed)
    resent = batches(cluster)[-2:]
    assert [batch.first_n for batch in resent] == [2, 3]
    assert not any(batch.flags & IN_DOUBT for batch in resent), "they were not read"
    assert [(e.sid, e.messages) for e in bench.events(Refused)] == [(1, 1)]


def refuse_the_first(node: FakeNode, code: Literal["full", "rights"]) -> None:
    """Have a node refuse the batch that comes next."""

    def refuse(connection: FakeConnection, received: Frame) -> bool:
        if received.verb != Verb.PUBLISH:
            return False
        node.intercept = None
        del connection.channels[received.channel]
        connection.say(control.Refused(n=1, code=code, sentence="no"), received.channel)
        return True

    node.intercept = refuse


def test_flush_tells_of_the_first_refusal_since_the_last_one() -> None:
    cluster, bench, producer = started()
    refuse_the_first(cluster.nodes["a"], "rights")
    producer.post(b"refused")
    first = bench.flush(producer)
    second = bench.flush(producer)

    assert isinstance(first, RefusedError)
    assert first.code == "rights"
    assert second is None
    assert producer.unanswered == 0


def test_a_refusal_that_somebody_waited_for_is_not_told_again_by_flush() -> None:
    cluster, bench, producer = started()
    refuse_the_first(cluster.nodes["a"], "full")
    token = object()
    producer.post(b"refused").token = token
    bench.run()

    assert isinstance(bench.results[token], RefusedError)
    assert bench.flush(producer) is None


def test_a_refusal_of_nothing_that_was_sent_ends_the_connection() -> None:
    cluster, bench, producer = started()
    connection = cluster.nodes["a"].open_connections()[0]

    connection.say(control.Refused(n=7, code="full", sentence="?"), producer.number)
    bench.run()

    assert "none of those in doubt" in bench.events(ConnectionLost)[0].why


def test_a_confirm_of_what_was_never_sent_ends_the_connection() -> None:
    cluster, bench, producer = started()
    connection = cluster.nodes["a"].open_connections()[0]

    connection.hot(Verb.CONFIRM, producer.number, hot.confirm(5, 3))
    bench.run()

    assert "message 5 is confirmed" in bench.events(ConnectionLost)[0].why


def test_what_a_deposed_owner_says_late_is_recognised_by_its_channel() -> None:
    cluster, bench, producer = started("a", "b")
    late = producer.number
    cluster.nodes["a"].intercept = swallow(Verb.PUBLISH)
    cluster.nodes["b"].intercept = swallow(Verb.PUBLISH)
    producer.post(b"one")
    producer.open_batch().token = "send"
    bench.run()
    cluster.move(1, "b")
    bench.run()

    cluster.nodes["a"].open_connections()[0].hot(Verb.CONFIRM, late, hot.confirm(1, 3))
    bench.run()

    assert producer.owner == "b"
    assert "send" not in bench.results


def test_a_flush_without_an_owner_fails_in_time_and_the_next_one_still_gets_its_confirm() -> None:
    settings = ClientSettings(failover_timeout_s=5)
    cluster, bench, producer = started("a", "b", settings=settings)
    cluster.nodes["a"].kill()
    cluster.waits.add(1)
    producer.post(b"kept")
    producer.open_batch().token = "send"
    token = bench.begin(lambda token: producer.flush(token, bench.now))

    bench.advance(5.5)
    failed = bench.error_of(token)
    again = bench.begin(lambda token: producer.flush(token, bench.now))
    bench.advance(4.5)
    early = again in bench.results
    cluster.waits.clear()
    cluster.move(1, "b")
    bench.advance(3.5)
    cluster.nodes["b"].open_connections()[0].closed = True  # Its parked OPEN was never answered.
    bench.advance(1)

    assert isinstance(failed, FailoverTimeout)
    assert (failed.in_doubt, failed.retryable) == (1, False)
    assert isinstance(bench.results["send"], FailoverTimeout)
    assert not early
    assert bench.events(Failed)[0].role == "producer"
    assert cluster.bodies("q") == [b"kept"]


def test_a_call_that_arrives_exactly_at_the_failure_is_carried_over() -> None:
    cluster, bench, producer = started("a", "b")

    producer.post(b"before")
    cluster.nodes["a"].kill()
    cluster.move(1, "b")
    producer.post(b"after")
    token = bench.begin(lambda token: producer.flush(token, bench.now))
    bench.advance(1)

    assert bench.results[token] is None
    assert cluster.bodies("q") == [b"before", b"after"]


def test_two_failovers_in_a_row_lose_nothing() -> None:
    cluster, bench, producer = started("a", "b", "c")
    producer.post(b"one")
    cluster.nodes["a"].kill()
    cluster.move(1, "b")
    bench.run()
    producer.post(b"two")
    cluster.nodes["b"].kill()
    cluster.move(1, "c")

    bench.advance(2)

    assert cluster.bodies("q") == [b"one", b"two"]
    assert producer.owner == "c"


def test_closing_a_producer_leaves_what_it_has_in_doubt() -> None:
    cluster, bench, producer = started()
    cluster.nodes["a"].intercept = swallow(Verb.PUBLISH)
    producer.post(b"in doubt")
    producer.open_batch().token = "send"
    bench.run()

    bench.close_channels(producer)

    assert isinstance(bench.results["send"], ClosedError)
    assert cluster.nodes["a"].frames(Verb.CLOSE)
    with pytest.raises(ClosedError):
        producer.post(b"late", b"", FLAGS_DEFAULT)


def test_a_producer_whose_post_office_is_retired_goes_to_another_one() -> None:
    cluster = FakeCluster("a", "b", post_offices=2)
    cluster.add_queue("q")
    bench = Bench(cluster)
    bench.enter()
    producer = bench.producer("q")
    producer.post(b"first")
    bench.flush(producer)

    del cluster.offices[1]
    cluster.ver += 1
    cluster.nodes["a"].here = 2
    cluster.nodes["a"].open_connections()[0].closed = True
    bench.advance(1)
    cluster.push()
    producer.post(b"second")
    bench.flush(producer)

    assert producer.office == 2
    assert cluster.bodies("q", 2) == [b"second"]
