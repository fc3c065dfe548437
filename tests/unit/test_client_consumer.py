"""Consumers: deliveries, acks and requeues as ranges, and what is presented at a resume."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tanist.core.consumer import ConsumerCore
from tanist.core.leg import Stale
from tanist.core.run import Run
from tanist.core.settings import ClientSettings
from tanist.core.spans import Spans
from tanist.errors import ClosedError, FailoverTimeout
from tanist.events import ConnectionLost, Lost, Resumed
from tanist.message import Message
from tanist.wire import control, hot
from tanist.wire.batch import Batch, flags_of, seal
from tanist.wire.frames import SETTLED_MORE, Frame, Verb
from tanist.wire.hot import Cause
from tests.unit.client_bench import Bench
from tests.unit.fake_node import FakeCluster, FakeConnection


def started(
    *nodes: str, post_offices: int = 1, prefetch: int = 100, failover_timeout_s: float = 30
) -> tuple[FakeCluster, Bench, ConsumerCore]:
    """A consumer of queue q, with its legs open."""
    cluster = FakeCluster(*(nodes or ("a",)), post_offices=post_offices)
    cluster.add_queue("q")
    bench = Bench(cluster, settings=ClientSettings(failover_timeout_s=failover_timeout_s))
    bench.enter()
    return cluster, bench, bench.consumer("q", prefetch=prefetch)


def taken(bench: Bench, consumer: ConsumerCore) -> list[tuple[Run, int]]:
    bench.run()
    return bench.take_all(consumer)


def bodies(messages: list[tuple[Run, int]]) -> list[bytes]:
    return [run.body(index) for run, index in messages]


def settlements(cluster: FakeCluster, node: str = "a") -> list[hot.Settlement]:
    return [
        hot.read_settlement(received.payload)
        for _, received in cluster.nodes[node].seen
        if received.verb in (Verb.ACK, Verb.REQUEUE)
    ]


def opens(cluster: FakeCluster, node: str) -> list[control.OpenConsumer]:
    messages = cluster.nodes[node].messages(Verb.OPEN_CONSUMER)
    return [message for message in messages if isinstance(message, control.OpenConsumer)]


def flush(bench: Bench, consumer: ConsumerCore) -> object:
    return bench.ask(consumer.flush)


def fail_over(cluster: FakeCluster, bench: Bench, to: str, *, gen: int | None = None) -> None:
    """The owner dies with everything that it has not said, and `to` takes over."""
    owner = cluster.nodes[cluster.offices[1].owner]
    owner.kill()
    for connection in owner.connections.values():
        connection.take()
    cluster.move(1, to, gen=gen)
    bench.hold.clear()
    bench.advance(1)


# Deliveries


def test_messages_come_in_order_with_all_that_the_producer_gave() -> None:
    _, bench, consumer = started()
    producer = bench.producer("q")
    producer.post(b"plain")
    producer.post(b"with", b'{"k":"v"}')
    producer.post(b"without", b'{"k":"w"}')
    bench.flush(producer)

    messages = [Message(run, index) for run, index in taken(bench, consumer)]

    assert [message.body for message in messages] == [b"plain", b"with", b"without"]
    assert [m.properties for m in messages] == [{}, {"k": "v"}, {"k": "w"}]
    assert [message.id for message in messages] == ["1.1.1.0", "1.1.1.1", "1.1.1.2"]
    assert [message.offset for message in messages] == [0, 1, 2]
    assert not any(message.redelivered for message in messages)
    assert {message.attempts for message in messages} == {0}
    assert {(m.sid, m.gen, m.epoch, m.time_ms) for m in messages} == {(1, 1, 1, 1234)}


def test_a_run_from_the_middle_of_a_batch_has_its_own_bodies_and_properties() -> None:
    _, bench, consumer = started()
    flags = flags_of(persistent=False)
    bodies_in, properties = [b"one", b"two", b"", b"four"], [b'{"n":%d}' % n for n in range(4)]
    batch = Batch.parse(seal(bodies_in, properties, flags=flags, first_n=1, time_ms=5))
    parts = hot.deliver(
        number=1,
        first=10,
        time_ms=5,
        count=3,
        part=7,
        flags=hot.REDELIVERED,
        batch_flags=batch.flags,
        cut=batch.cut(1, 3),
    )

    run = Run(consumer.legs[1], hot.read_deliver(b"".join(parts)), at=bench.now)
    messages = [Message(run, index) for index in range(3)]

    assert [message.body for message in messages] == [b"two", b"", b"four"]
    assert [message.properties["n"] for message in messages] == [1, 2, 3]
    assert [message.id for message in messages] == ["1.1.7.10", "1.1.7.11", "1.1.7.12"]
    assert (run.size, run.bytes_of(0, 1), run.bytes_of(1, 3)) == (7, 3, 4)
    assert messages[0].redelivered
    assert not messages[0].persistent


def test_a_run_cut_out_of_a_batch_has_its_own_bodies() -> None:
    cluster, bench, consumer = started(prefetch=4)
    cluster.put("q", *(b"message %d" % n for n in range(7)))

    first = taken(bench, consumer)
    for run, index in first:
        consumer.ack(run, index)
    second = taken(bench, consumer)

    assert bodies(first) + bodies(second) == [b"message %d" % n for n in range(7)]
    assert all(run.size == sum(len(run.body(i)) for i in range(run.count)) for run, _ in first)


# Settling


def test_acks_of_one_turn_leave_as_one_range() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", *([b"x"] * 50))
    messages = taken(bench, consumer)

    for run, index in messages:
        consumer.ack(run, index)
    bench.run()

    assert [s.ranges for s in settlements(cluster)] == [[(1, 0, 50)]]
    assert cluster.states("q") == ["done"] * 50
    assert consumer.held == 0


def test_the_fast_path_of_ack_counts_as_ack_does() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", *([b"x"] * 5))
    messages = taken(bench, consumer)

    run, first = messages[0]
    consumer.ack(run, first)
    while consumer.ack_run is run and consumer.ack_end < 4:
        consumer.ack_end += 1
    bench.run()

    assert settlements(cluster)[0].ranges == [(1, 0, 4)]
    assert consumer.ack_run is None
    assert consumer.held == 1


def test_acks_in_any_order_are_ranges_of_what_was_acked() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", *([b"x"] * 6))
    messages = taken(bench, consumer)

    for place in (5, 0, 1, 3):
        consumer.ack(*messages[place])
    flushed = flush(bench, consumer)

    assert flushed == []
    assert cluster.states("q") == ["done", "done", "in flight", "done", "in flight", "done"]


def test_to_ack_twice_does_no_harm() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", b"x", b"y")
    messages = taken(bench, consumer)

    for _ in range(3):
        for run, index in messages:
            consumer.ack(run, index)
    flushed = flush(bench, consumer)

    assert flushed == []
    assert [s.ranges for s in settlements(cluster)] == [[(1, 0, 2)]]
    assert consumer.held == 0


def test_a_requeued_message_comes_back_flagged_with_its_attempts() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", b"x", b"y")
    messages = taken(bench, consumer)

    consumer.requeue(*messages[0], Cause.FAILED)
    consumer.requeue(*messages[1], Cause.RETURNED)
    again = [Message(run, index) for run, index in taken(bench, consumer)]

    assert [(m.body, m.redelivered, m.attempts) for m in again] == [
        (b"x", True, 1),
        (b"y", True, 0),
    ]


def test_flush_waits_for_the_answers_and_says_what_was_not_ours() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", b"x", b"y", b"z")
    messages = taken(bench, consumer)
    part = cluster.offices[1].parts[consumer.info.id]
    part[1].number = 99  # Another consumer has it by now.
    bench.hold.add(bench.connection_to("a"))

    for run, index in messages:
        consumer.ack(run, index)
    token = bench.begin(consumer.flush)
    bench.run()
    early = token in bench.results
    bench.hold.clear()
    bench.run()

    assert not early
    assert bench.results[token] == [Stale(1, 1, 1, 1, 1)]
    assert Stale(1, 1, 1, 1, 2).ids == ["1.1.1.1", "1.1.1.2"]
    assert flush(bench, consumer) == [], "told once"


def test_flush_with_nothing_to_settle_is_answered_at_once() -> None:
    _, bench, consumer = started()

    flushed = flush(bench, consumer)

    assert flushed == []


def test_to_ack_and_then_to_requeue_a_message_is_to_ack_it() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", b"x")
    messages = taken(bench, consumer)

    consumer.ack(*messages[0])
    consumer.requeue(*messages[0], Cause.FAILED)
    flush(bench, consumer)

    assert cluster.states("q") == ["done"]


def test_numbers_of_acks_begin_anew_when_they_have_no_more_bits() -> None:
    cluster, bench, consumer = started()
    consumer.legs[1]._a = (1 << 32) - 3
    cluster.put("q", *([b"x"] * 4))
    messages = taken(bench, consumer)
    bench.hold.add(bench.connection_to("a"))

    for run, index in messages:
        consumer.ack(run, index)
        bench.run()
    token = bench.begin(consumer.flush)
    bench.hold.clear()
    bench.run()

    assert [s.a for s in settlements(cluster)] == [(1 << 32) - 2, (1 << 32) - 1, 1, 2]
    assert bench.results[token] == []


# Resuming


def test_at_a_resume_everything_held_is_presented_and_kept_without_a_redelivery() -> None:
    cluster, bench, consumer = started("a", "b")
    cluster.put("q", *(b"%d" % n for n in range(6)))
    messages = taken(bench, consumer)
    consumer.ack(*messages[0])
    bench.run()
    cluster.put("q", b"buffered")
    bench.run()

    fail_over(cluster, bench, "b")
    for run, index in messages[1:]:
        consumer.ack(run, index)
    late = taken(bench, consumer)

    opened = opens(cluster, "b")[-1]
    assert opened.held == [(1, 1, 5), (2, 6, 1)]
    assert (opened.acked, opened.requeued) == ([], [])
    assert bodies(late) == [b"buffered"]
    assert not late[0][0].redelivered
    assert flush(bench, consumer) == []
    assert cluster.states("q") == ["done"] * 6 + ["in flight"]
    resumed = bench.events(Resumed)[0]
    assert (resumed.held, resumed.in_doubt) == (6, 0)


def test_unanswered_acks_and_requeues_are_presented_with_their_numbers() -> None:
    cluster, bench, consumer = started("a", "b")
    cluster.put("q", b"w", b"x", b"y", b"z")
    messages = taken(bench, consumer)
    bench.deaf.add(bench.connection_to("a"))
    consumer.ack(*messages[0])
    consumer.requeue(*messages[1], Cause.FAILED)
    bench.run()
    consumer.ack(*messages[2])
    token = bench.begin(consumer.flush)
    bench.run()

    fail_over(cluster, bench, "b")

    opened = opens(cluster, "b")[-1]
    assert opened.acked == [(1, 0, 1), (1, 2, 1)]
    assert opened.requeued == [(1, 1, 1, Cause.FAILED)]
    assert opened.held == [(1, 3, 1)]
    assert bench.results[token] == []
    assert cluster.states("q") == ["done", "in flight", "done", "in flight"]
    again = [Message(run, index) for run, index in taken(bench, consumer)]
    assert [(m.body, m.redelivered, m.attempts) for m in again] == [(b"x", True, 1)]


def test_an_ack_that_was_done_and_not_answered_is_a_good_answer_after_the_resume() -> None:
    cluster, bench, consumer = started("a", "b")
    cluster.put("q", b"x")
    messages = taken(bench, consumer)
    bench.hold.add(bench.connection_to("a"))
    consumer.ack(*messages[0])
    token = bench.begin(consumer.flush)
    bench.run()
    done_before = cluster.states("q")

    fail_over(cluster, bench, "b")

    assert done_before == ["done"]
    assert opens(cluster, "b")[-1].acked == [(1, 0, 1)]
    assert bench.results[token] == []


def test_an_ack_that_a_resume_finds_to_be_of_no_effect_is_told_by_flush() -> None:
    cluster, bench, consumer = started("a", "b")
    cluster.put("q", b"x", b"y")
    messages = taken(bench, consumer)
    bench.deaf.add(bench.connection_to("a"))
    for run, index in messages:
        consumer.ack(run, index)
    token = bench.begin(consumer.flush)
    bench.run()
    part = cluster.offices[1].parts[consumer.info.id]
    part[1].number, part[1].holder = 99, ("another", "consumer")

    fail_over(cluster, bench, "b")

    assert bench.results[token] == [Stale(1, 1, 1, 1, 1)]


def test_what_is_held_and_not_in_flight_any_more_is_dropped_wherever_it_is() -> None:
    cluster, bench, consumer = started("a", "b", prefetch=4)
    cluster.put("q", b"handed out", b"ready")
    messages = taken(bench, consumer)
    cluster.put("q", b"buffered 1", b"buffered 2")
    bench.run()
    part = cluster.offices[1].parts[consumer.info.id]
    part[0].number, part[0].holder = 99, ("another", "consumer")
    part[2].state = "done"

    fail_over(cluster, bench, "b")
    buffered = taken(bench, consumer)
    for run, index in messages + buffered:
        consumer.ack(run, index)
    flushed = flush(bench, consumer)

    assert bodies(buffered) == [b"buffered 2"]
    assert flushed == [Stale(1, 1, 1, 0, 1)]
    assert consumer.held == 0
    assert cluster.states("q") == ["in flight", "done", "done", "done"]


def test_what_is_in_flight_to_us_and_never_arrived_goes_back_and_comes_again() -> None:
    cluster, bench, consumer = started("a", "b")
    bench.hold.add(bench.connection_to("a"))
    cluster.put("q", b"on its way")
    in_flight = cluster.states("q")

    fail_over(cluster, bench, "b")
    messages = taken(bench, consumer)

    assert in_flight == ["in flight"]
    assert bodies(messages) == [b"on its way"]
    assert messages[0][0].redelivered


def test_acks_made_while_the_leg_is_being_opened_leave_when_it_is_open() -> None:
    cluster, bench, consumer = started("a", "b")
    cluster.put("q", b"x", b"y")
    messages = taken(bench, consumer)
    parked: list[tuple[FakeConnection, Frame]] = []

    def park(connection: FakeConnection, received: Frame) -> bool:
        if received.verb != Verb.OPEN_CONSUMER:
            return False
        parked.append((connection, received))
        return True

    cluster.nodes["b"].intercept = park
    cluster.nodes["a"].kill()
    cluster.move(1, "b")
    bench.advance(0.5)
    consumer.ack(*messages[0])
    token = bench.begin(consumer.flush)
    bench.run()
    cluster.nodes["b"].intercept = None
    cluster.nodes["b"].handle(*parked[-1])
    bench.run()

    presented = control.read_control(parked[-1][1])
    assert isinstance(presented, control.OpenConsumer)
    assert presented.held == [(1, 0, 2)], "it was held when the OPEN was sent"
    assert settlements(cluster, "b")[0].ranges == [(1, 0, 1)]
    assert bench.results[token] == []
    assert cluster.states("q") == ["done", "in flight"]


def test_a_resume_that_is_sent_on_by_moved_presents_everything_again() -> None:
    cluster, bench, consumer = started("a", "b", "c")
    cluster.put("q", b"x", b"y")
    messages = taken(bench, consumer)
    bench.deaf.add(bench.connection_to("a"))
    consumer.ack(*messages[0])
    bench.run()

    cluster.nodes["a"].kill()
    cluster.move(1, "c", push=False)
    cluster.ver -= 1  # Nobody is told but by MOVED.
    bench.advance(2)

    sent = [m for node in ("b", "c") for m in opens(cluster, node)]
    assert len(sent) >= 2
    assert {tuple(m.acked) for m in sent} == {((1, 0, 1),)}
    assert {tuple(m.held) for m in sent} == {((1, 1, 1),)}
    assert cluster.states("q") == ["done", "in flight"]


def test_a_redelivery_that_overtakes_the_answer_to_its_requeue_is_not_given_away() -> None:
    cluster, bench, consumer = started("a", "b")
    cluster.put("q", b"x")
    messages = taken(bench, consumer)

    def without_settled(connection: FakeConnection, received: Frame) -> bool:
        if received.verb != Verb.REQUEUE:
            return False
        cluster.nodes["a"].intercept = None
        before = len(connection.out)
        cluster.nodes["a"].handle(connection, received)
        settled = hot.settled(1, [], [])
        del connection.out[before : before + 8 + len(settled)]
        return True

    cluster.nodes["a"].intercept = without_settled
    consumer.requeue(*messages[0], Cause.FAILED)
    bench.run()
    fail_over(cluster, bench, "b")
    again = taken(bench, consumer)

    opened = opens(cluster, "b")[-1]
    assert opened.requeued == [], "the new delivery tells that it was done"
    assert opened.held == [(2, 0, 1)]
    assert bodies(again) == [b"x"]


def test_an_answer_that_comes_in_several_frames_is_one_answer() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", b"x", b"y", b"z")
    messages = taken(bench, consumer)

    def in_two_frames(connection: FakeConnection, received: Frame) -> bool:
        if received.verb != Verb.ACK:
            return False
        first = hot.settled(1, [], [(0, 1)])
        connection.hot(Verb.SETTLED, received.channel, first, flags=SETTLED_MORE)
        connection.hot(Verb.SETTLED, received.channel, hot.settled(1, [], [(2, 1)]))
        return True

    cluster.nodes["a"].intercept = in_two_frames
    for run, index in messages:
        consumer.ack(run, index)

    assert flush(bench, consumer) == [Stale(1, 1, 1, 0, 1), Stale(1, 1, 1, 2, 1)]
    assert consumer.legs[1].is_idle


def test_an_older_copy_of_what_is_delivered_again_is_dropped() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", b"x", b"y")
    bench.run()
    part = cluster.offices[1].parts[consumer.info.id]
    # The node gave it back without us: a grace that ended, for instance.
    part[0].state, part[0].redelivered = "ready", True
    cluster.hand_out(1)

    messages = taken(bench, consumer)

    assert sorted(bodies(messages)) == [b"x", b"y"]
    assert {run.number for run, _ in messages if run.first == 0 and run.redelivered} == {2}
    assert consumer.held == 2


def test_after_the_content_was_lost_what_is_held_is_handed_out_and_acked_here() -> None:
    cluster, bench, consumer = started("a", "b")
    cluster.put("q", b"x", b"y")
    messages = taken(bench, consumer)
    consumer.ack(*messages[0])
    bench.hold.add(bench.connection_to("a"))
    bench.run()
    cluster.put("q", b"never read")

    fail_over(cluster, bench, "b", gen=2)
    consumer.ack(*messages[1])
    flushed = flush(bench, consumer)
    cluster.put("q", b"new life")
    new = taken(bench, consumer)

    assert flushed == []
    assert not settlements(cluster, "b")
    second = opens(cluster, "b")[-1]
    assert (second.gen, second.held, second.acked) == (2, [], [])
    lost = bench.events(Lost)[0]
    assert (lost.role, lost.gen, lost.in_doubt) == ("consumer", 2, 1)
    assert bodies(new) == [b"new life"]
    assert new[0][0].gen == 2
    assert consumer.held == 1


def test_more_than_fits_into_one_open_is_let_go_from_the_end_of_the_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tanist.core.leg.RUNS_MAX", 3)
    cluster, bench, consumer = started("a", "b")
    for n in range(5):
        cluster.put("q", b"%d" % n)
        bench.run()

    fail_over(cluster, bench, "b")
    messages = taken(bench, consumer)

    assert opens(cluster, "b")[-1].held == [(1, 0, 1), (2, 1, 1), (3, 2, 1)]
    assert bodies(messages) == [b"0", b"1", b"2", b"3", b"4"]
    assert [run.redelivered for run, _ in messages] == [False, False, False, True, True]


def test_closing_sends_what_is_settled_and_returns_the_rest() -> None:
    cluster, bench, consumer = started()
    cluster.put("q", b"x", b"y")
    messages = taken(bench, consumer)

    consumer.ack(*messages[0])
    bench.close_channels(consumer)
    consumer.ack(*messages[1])
    bench.run()

    assert cluster.states("q") == ["done", "ready"]
    assert isinstance(consumer.take_error(), ClosedError)


def test_a_leg_without_an_owner_is_told_once_and_tried_on() -> None:
    cluster, bench, consumer = started("a", "b", failover_timeout_s=5)
    cluster.put("q", b"x")
    messages = taken(bench, consumer)
    consumer.ack(*messages[0])
    cluster.nodes["a"].kill()
    cluster.waits.add(1)
    bench.deaf.add(1)
    token = bench.begin(consumer.flush)

    bench.advance(6)
    told = [consumer.take_error(), consumer.take_error()]
    cluster.waits.clear()
    cluster.move(1, "b")
    cluster.nodes["b"].open_connections()[0].closed = True
    bench.advance(3)

    assert isinstance(told[0], FailoverTimeout)
    assert told[1] is None
    assert isinstance(bench.results[token], FailoverTimeout)
    assert consumer.legs[1].is_open


def test_a_consumer_that_could_not_be_opened_in_time_takes_no_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = FakeCluster("a", post_offices=2)
    cluster.add_queue("q")
    bench = Bench(cluster, settings=ClientSettings(failover_timeout_s=5))
    bench.enter()
    # What is asked of post office 2 is not answered at all.
    monkeypatch.setattr(cluster.nodes["a"], "_is_owner", lambda _, sid, *__: sid != 2)

    token = bench.begin_consumer("q")
    bench.advance(6)
    monkeypatch.undo()
    cluster.put("q", b"x")
    bench.advance(3)

    assert isinstance(bench.error_of(token), FailoverTimeout)
    assert cluster.states("q") == ["ready"]


def test_a_flush_after_a_leg_was_given_up_fails_in_time_too() -> None:
    cluster, bench, consumer = started("a", "b", failover_timeout_s=5)
    cluster.put("q", b"x")
    messages = taken(bench, consumer)
    cluster.nodes["a"].kill()
    cluster.waits.add(1)
    bench.advance(6)

    consumer.ack(*messages[0])
    token = bench.begin(consumer.flush)
    bench.advance(4.5)
    early = token in bench.results
    bench.advance(1)

    assert not early
    error = bench.error_of(token)
    assert isinstance(error, FailoverTimeout)
    assert error.in_doubt == 1


def test_a_frame_that_no_consumer_gets_ends_the_connection() -> None:
    cluster, bench, consumer = started()
    connection = cluster.nodes["a"].open_connections()[0]

    connection.hot(Verb.CONFIRM, consumer.legs[1].number, hot.confirm(1, 1))
    bench.run()

    assert "CONFIRM on a consumer's channel" in bench.events(ConnectionLost)[0].why


# Spans


@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)), max_size=20),
)
def test_spans_are_a_set_from_which_indexes_are_taken(
    count: int, cuts: list[tuple[int, int]]
) -> None:
    spans = Spans(count)
    model = set(range(count))

    for first, length in cuts:
        taken = spans.take(first, first + length)
        expected = model & set(range(first, first + length))
        model -= expected
        assert {i for a, b in taken for i in range(a, b)} == expected
        spans.check()
        assert {i for a, b in spans for i in range(a, b)} == model
        assert all((i in spans) == (i in model) for i in range(count))
    assert spans.size == len(model)
    assert bool(spans) == bool(model)
