"""A stream of which nothing leaves for long: what is asked of it waits, and nothing is lost."""

from __future__ import annotations

import pytest

from broker.core import holdings
from broker.core.ops import Ack, Deliver, Detach, PostOfficeOp, Requeue
from tanist.errors import RemoteProtocolError
from tanist.wire import hot
from tanist.wire.frames import Verb
from tests.unit.test_desk import Bench, served


def full_after_two_deliveries() -> tuple[Bench, list[PostOfficeOp]]:
    """Messages 0 and 1 are with a consumer, as delivery 1, and message 2 waits.

    Returns the ops from here on, too.
    """
    bench = served()
    bench.stream.is_full = True
    ops: list[PostOfficeOp] = []
    append = bench.stream.append

    def noted(op: PostOfficeOp) -> object:
        ops.append(op)
        return append(op)

    bench.stream.append = noted  # type: ignore[method-assign]
    return bench, ops


def settled_through(bench: Bench) -> list[int]:
    """What SETTLED frames the client was written say of how far they answer."""
    frames = [frame for frame in bench.heard() if frame.verb == Verb.SETTLED]
    return [hot.read_settled(frame.payload).a for frame in frames]


def test_what_is_acknowledged_while_the_stream_is_full_is_settled_when_it_is_not() -> None:
    # Given a stream that is full
    bench, ops = full_after_two_deliveries()

    # When a consumer acknowledges, message by message
    bench.settle(Verb.ACK, 1, 0, 1)
    bench.settle(Verb.REQUEUE, 1, 1, 1)
    bench.turn()
    meanwhile, answered = ops.copy(), settled_through(bench)
    parked = bench.desk.holdings.parked_bytes
    bench.stream.is_full = False
    bench.turn()

    # Then that waits in order, counts as memory, and is answered when there is room
    assert meanwhile == []
    assert answered == []
    assert parked > 0
    assert [type(op) for op in ops[:2]] == [Ack, Requeue]
    assert settled_through(bench) == [1]
    assert bench.desk.holdings.parked_bytes == 0


def test_what_comes_after_something_parked_does_not_overtake_it() -> None:
    # Given an ack that is parked
    bench, ops = full_after_two_deliveries()
    bench.settle(Verb.ACK, 1, 0, 1)

    # When there is room again, and another one comes before the turn ends
    bench.stream.is_full = False
    bench.settle(Verb.ACK, 1, 1, 1)
    before_the_end = ops.copy()
    bench.turn()

    # Then it is settled after the first
    assert before_the_end == []
    assert [op.runs for op in ops if isinstance(op, Ack)] == [((1, 0, 1),), ((1, 1, 1),)]


@pytest.mark.parametrize("way", ["close", "lost"])
def test_an_ack_before_the_end_of_its_channel_counts(way: str) -> None:
    # Given an ack that is parked
    bench, ops = full_after_two_deliveries()
    bench.settle(Verb.ACK, 1, 0, 2)

    # When the channel ends
    if way == "close":
        bench.desk.close(bench.consumer(), 9)
    else:
        bench.desk.lost(bench.consumer(), 0.0)

    # Then what was acknowledged does not return
    assert [type(op) for op in ops] == [Ack, Detach]
    assert bench.office.stat(7).ready == 1
    assert bench.desk.holdings.parked_bytes == 0


def test_nothing_is_delivered_while_the_stream_is_full() -> None:
    # Given a consumer that has room for one more
    bench, ops = full_after_two_deliveries()
    bench.desk.consumers.credit(bench.consumer(), hot.credit(3, 1 << 20), back=False)

    # When turns end, before and after there is room
    bench.turn()
    meanwhile = ops.copy()
    bench.stream.is_full = False
    bench.turn()
    bench.turn()

    # Then the message that waits is handed out afterwards
    assert meanwhile == []
    assert [op.first for op in ops if isinstance(op, Deliver)] == [2]


def test_credit_called_back_while_the_stream_is_full_is_answered_later() -> None:
    # Given a stream that is full, and a consumer that calls its credit back and gives new one
    bench, _ = full_after_two_deliveries()
    channel = bench.consumer()
    bench.desk.consumers.credit(channel, hot.credit(0, 0), back=True)
    bench.desk.consumers.credit(channel, hot.credit(2, 1 << 20), back=False)

    # When there is room
    bench.turn()
    meanwhile = bench.verbs()
    bench.stream.is_full = False
    bench.turn()

    # Then the answer comes, and the new credit holds
    assert meanwhile == []
    assert Verb.CREDIT in bench.verbs()


def test_who_acknowledges_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a stream that is full, and little that may be parked
    monkeypatch.setattr(holdings, "PARKED_BYTES_MAX", 1_000)
    bench, _ = full_after_two_deliveries()
    for _ in range(6):
        bench.settle(Verb.ACK, 1, 0, 1)

    # When a client repeats the same ack once too often
    with pytest.raises(RemoteProtocolError) as caught:
        bench.settle(Verb.ACK, 1, 0, 1)

    # Then its connection ends for that
    assert caught.value.code == "limit"


def test_an_ack_of_what_cannot_be_is_refused_at_once_all_the_same() -> None:
    # Given a stream that is full
    bench, _ = full_after_two_deliveries()

    # When a client acknowledges an offset that does not exist
    with pytest.raises(RemoteProtocolError) as caught:
        bench.settle(Verb.ACK, 1, 40, 1)

    # Then it is told so
    assert caught.value.code == "bad_state"
