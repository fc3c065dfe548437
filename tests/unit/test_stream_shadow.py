from __future__ import annotations

import pytest
from msgspec.structs import replace

from replication.core.changes import Shrink, ShrinkWhy
from replication.core.identity import Incarnation
from replication.core.messages import (
    Aligned,
    Join,
    Nak,
    NewEpoch,
    Receipt,
    Segments,
    Tick,
    Void,
    decode,
    encode,
)
from replication.core.segment import Segment
from replication.core.stream import Role, Stream, StreamLimits
from replication.core.stream_events import (
    Behind,
    CopyVoid,
    Effect,
    FromGroup,
    FromPeer,
    GroupDrained,
    MapChanged,
    Send,
    Wake,
)
from tests.unit.stream_setup import (
    CLUSTER8,
    SID,
    A,
    B,
    C,
    Cluster,
    Line,
    Lines,
    a_map,
    a_stream,
    check_all,
)

HEAD = (CLUSTER8, SID, 1, 1, A.inc)


class Follower:
    """B's copy, and what A says to it, message by message."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self.now = 10.0
        self.stream: Stream[Line, int] = a_stream(B, limits)
        self.outbox: list[Effect] = []
        self.stream.handle(MapChanged(a_map(A, B), 1), self.now, self.outbox)
        history = a_stream(A)
        history.handle(MapChanged(a_map(A, B), 1), self.now, [])
        self.hear(NewEpoch(*HEAD, history.copy.history, 1, 0, 1))
        self.now += 1.0
        self.outbox.clear()

    def hear(self, message: NewEpoch | Segments | Tick) -> None:
        self.stream.handle(FromPeer(A, message), self.now, self.outbox)

    def hear_group(self, message: Segments | Tick, *, drained: bool = True) -> None:
        self.stream.handle(FromGroup(message), self.now, self.outbox)
        if drained:
            self.stream.handle(GroupDrained(), self.now, self.outbox)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (deadline := self.stream.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.stream.handle(Wake(), self.now, self.outbox)
        self.now = until

    def sent(self, kind: type[Receipt] | type[Nak]) -> list[Receipt | Nak]:
        messages = [effect.message for effect in self.outbox if isinstance(effect, Send)]
        return [message for message in messages if isinstance(message, kind)]

    def receipts(self) -> list[int]:
        return [m.contig for m in self.sent(Receipt) if isinstance(m, Receipt)]

    def naks(self) -> list[tuple[int, int]]:
        return [(m.first, m.last) for m in self.sent(Nak) if isinstance(m, Nak)]

    @property
    def lines(self) -> list[bytes]:
        machine = self.stream.machine
        assert isinstance(machine, Lines)
        return machine.lines


def segments(*texts: bytes) -> list[Segments]:
    """What an owner sends, an op in each. Nothing is committed by it."""
    owner = a_stream(A)
    outbox: list[Effect] = []
    owner.handle(MapChanged(a_map(A, B), 1), 1.0, outbox)
    for text in texts:
        owner.append(Line(text))
        owner.seal(1.0, outbox)
    made = owner.copy.log.between(1, owner.log_end)
    return [said(segment) for segment in made]


class Broken(Lines):
    """A machine that cannot apply anything."""

    def apply(self, op: Line, /) -> int:
        raise ArithmeticError


def cannot_apply(cluster: Cluster, who: Incarnation, *, ever: bool = False) -> None:
    """From now on this node's copy fails; with `ever` each fresh one, too."""
    cluster[who].machine.apply = Broken(1).apply  # type: ignore[method-assign]
    if ever:
        cluster[who]._following._make = Broken


def said(*made: Segment, commit: int = 0, repair: bool = False) -> Segments:
    read = decode(b"".join(encode(Segments(*HEAD, commit, repair, made))))
    assert isinstance(read, Segments)
    return read


def tick(log_end: int, *, commit: int = 0, number: int = 1, release: int = 0) -> Tick:
    return Tick(*HEAD, commit, log_end, release, number, 0)


def test_ops_are_applied_when_they_are_known_to_be_committed() -> None:
    follower = Follower()
    one, two = segments(b"one", b"two")

    follower.hear_group(one)
    follower.hear_group(two)
    held = list(follower.lines)
    follower.hear(tick(3, commit=1))

    assert held == []
    assert follower.lines == [b"one"]
    assert (follower.stream.log_end, follower.stream.applied) == (3, 1)


def test_the_first_segment_of_an_idle_stream_is_confirmed_at_once() -> None:
    follower = Follower()

    follower.hear_group(segments(b"one")[0])

    assert follower.receipts() == [1]


def test_under_load_there_is_a_receipt_each_millisecond() -> None:
    # Given a hundred segments within two milliseconds, of which nothing is committed
    follower = Follower()
    for message in segments(*[b"x"] * 100):
        follower.hear_group(message)
        follower.pass_time(0.00002)

    # When it is quiet
    follower.pass_time(0.01)

    # Then few receipts went out, and the last one is for all
    assert len(follower.receipts()) <= 4
    assert follower.receipts()[-1] == 100


def test_much_that_is_received_is_confirmed_sooner() -> None:
    follower = Follower(StreamLimits(receipt_bytes=1_000))
    messages = segments(*[bytes(600)] * 4)

    for message in messages:
        follower.hear_group(message)

    assert follower.receipts() == [1, 3]


def test_a_receipt_is_repeated_at_each_tick_and_once_for_both_roads() -> None:
    follower = Follower()
    follower.hear_group(segments(b"one")[0])

    follower.hear(tick(2, number=1))
    follower.hear_group(tick(2, number=1))
    follower.hear(tick(2, number=2))

    assert follower.receipts() == [1, 1, 1]
    assert [m.tick for m in follower.sent(Receipt) if isinstance(m, Receipt)] == [0, 1, 2]


def test_segments_in_any_order_and_twice_make_the_same_log() -> None:
    follower = Follower()
    messages = segments(b"one", b"two", b"three", b"four")

    for index in (2, 0, 0, 3, 2, 1):
        follower.hear_group(messages[index])
    follower.hear(tick(5, commit=4))

    assert follower.lines == [b"one", b"two", b"three", b"four"]
    assert follower.naks() == []
    follower.stream.check()


def test_what_is_missing_is_asked_for_after_a_moment_and_again() -> None:
    # Given that the first of three segments is lost
    follower = Follower()
    one, two, three = segments(b"one", b"two", b"three")
    follower.hear_group(two)
    follower.hear_group(three)

    # When nothing more comes
    follower.pass_time(0.001)
    at_once = follower.naks()
    follower.pass_time(0.4)

    # Then it asks only for what it has not, less and less often
    assert at_once == []
    assert set(follower.naks()) == {(1, 1)}
    assert 6 <= len(follower.naks()) <= 9

    # And stops when it has it
    follower.outbox.clear()
    follower.hear(said(*one.segments, repair=True))
    follower.pass_time(0.4)
    assert follower.naks() == []
    assert follower.stream.log_end == 4


def test_the_last_segment_is_missed_because_of_the_tick() -> None:
    follower = Follower()

    follower.hear(tick(4))
    follower.pass_time(0.003)

    assert follower.naks() == [(1, 3)]


def test_nothing_is_asked_for_while_the_group_has_more_to_read() -> None:
    # Given a gap, and a group socket that was not read until it was empty
    follower = Follower()
    _, two = segments(b"one", b"two")
    follower.hear_group(two, drained=False)

    # When much time passes
    follower.pass_time(1.0)
    busy = follower.naks()
    follower.stream.handle(GroupDrained(), follower.now, follower.outbox)
    follower.pass_time(0.003)

    # Then what is missing may well be in there
    assert busy == []
    assert follower.naks() == [(1, 1)]


def test_what_is_far_ahead_is_not_kept_beyond_the_window() -> None:
    follower = Follower(StreamLimits(window_bytes=2_000))
    messages = segments(*[bytes(600)] * 6)

    for message in messages[1:]:
        follower.hear_group(message)
    follower.hear(messages[0])

    assert follower.stream.log_end == 5
    assert follower.stream.counts["too far ahead"] == 2


def test_a_damaged_segment_of_the_group_is_dropped_and_repaired() -> None:
    follower = Follower()
    (one,) = segments(b"one")
    segment = one.segments[0]
    damaged = Segment(1, 1, 1, 0, segment.chain_after ^ 1, segment.size, segment.parts)

    follower.hear_group(Segments(*HEAD, 0, False, (damaged,)))
    follower.pass_time(0.01)
    follower.hear(one)

    assert follower.stream.counts["damaged"] == 1
    assert follower.naks()[0] == (1, 1)
    assert follower.stream.log_end == 2


def test_an_owner_whose_log_differs_is_not_followed() -> None:
    # Given a copy that holds an op
    follower = Follower()
    follower.hear(segments(b"one")[0])
    follower.outbox.clear()

    # When the owner itself sends the next one, and it does not follow upon that
    _, other = segments(b"another", b"two")
    follower.hear(other)
    follower.hear(tick(3))

    # Then no receipt is given for whatever this copy is
    assert follower.stream.role is Role.VOID
    assert "differs" in follower.stream.why
    assert follower.receipts() == []
    assert any(isinstance(e, Send) and isinstance(e.message, Void) for e in follower.outbox)


@pytest.mark.parametrize(
    "change", [{"epoch": 0}, {"gen": 9}, {"inc": 77}, {"cluster8": b"another!"}], ids=str
)
def test_what_is_not_of_this_owner_is_dropped(change: dict[str, int]) -> None:
    follower = Follower()
    (one,) = segments(b"one")

    follower.hear_group(replace(one, **change))
    follower.hear(replace(one, **change))

    assert follower.stream.log_end == 1
    assert follower.outbox == []


def test_a_higher_epoch_by_the_group_is_a_reason_to_look_at_the_map_and_no_more() -> None:
    # Given that anybody may have damaged what comes by the group
    follower = Follower()
    (one,) = segments(b"one")

    follower.hear_group(replace(one, epoch=1 << 30))
    follower.hear(one)

    assert isinstance(follower.outbox[0], Behind)
    assert follower.stream.log_end == 2


@pytest.mark.parametrize(
    "message",
    [
        Receipt(CLUSTER8, SID, 1, 1 << 30, A.inc, 1, 0, 0, 0, 0),
        Nak(CLUSTER8, SID, 1, 1 << 30, A.inc, 1, 1),
        Join(CLUSTER8, SID, 1, 1 << 30, A.inc, (), 1, 0, ""),
        Aligned(CLUSTER8, SID, 1, 1 << 30, A.inc, 0, 0),
        Void(CLUSTER8, SID, 1, 1 << 30, A.inc),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_no_owner_says_is_a_reason_to_look_at_the_map_and_no_more(
    message: Receipt | Nak | Join | Aligned | Void,
) -> None:
    # Given that such a word, of a higher epoch, cannot be true
    follower = Follower()
    (one,) = segments(b"one")

    # When it comes over a link
    follower.stream.handle(FromPeer(A, message), follower.now, follower.outbox)
    follower.hear(one)

    # Then the map will tell, and until then this copy goes on
    assert isinstance(follower.outbox[0], Behind)
    assert follower.receipts() == [1]


def test_no_receipt_is_given_once_a_higher_epoch_was_seen() -> None:
    # Given a copy that follows epoch 1
    follower = Follower()

    # When it learns of epoch 2, and its owner of before goes on
    follower.stream.handle(MapChanged(a_map(B, C, owner=C, epoch=2), 2), 20.0, follower.outbox)
    for message in segments(b"one"):
        follower.hear(message)
        follower.hear_group(message)
    follower.hear(tick(2))
    follower.pass_time(1.0)

    # Then it is as if it were not there
    assert follower.receipts() == []
    assert follower.stream.log_end == 1


def test_a_greeting_of_a_lower_epoch_than_was_seen_is_nobodys() -> None:
    # Given a copy that learned of epoch 2 and follows nobody yet
    follower = Follower()
    history = follower.stream.copy.history
    follower.stream.handle(MapChanged(a_map(B, C, owner=C, epoch=2), 2), 20.0, follower.outbox)

    # When the owner of epoch 1 greets it, late
    follower.hear(NewEpoch(*HEAD, history, 1, 0, 1))

    # Then it is not followed again
    assert follower.stream.epoch == 0
    assert follower.receipts() == []


def test_a_copy_that_cannot_apply_is_void_and_says_so() -> None:
    # Given an op that the owner could apply, and this copy cannot
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cannot_apply(cluster, B)

    # When it is committed
    cluster.append(A, b"one")
    cluster.run(0.009)

    # Then the copy counts no more, and the others go on
    assert len(cluster.said_by(B, CopyVoid)) == 1
    assert [m for who, _, m in cluster.sent if isinstance(m, Void)]
    assert [f.why for f in cluster.proposed if isinstance(f, Shrink)] == [ShrinkWhy.VOID]
    assert cluster.entry.shed == ()
    assert cluster.released(A) == [b"one"]
    cluster.append(A, b"two")
    cluster.run(0.3)
    assert cluster.released(A) == [b"one", b"two"]


def test_a_void_copy_is_filled_anew_and_comes_back_by_itself() -> None:
    # Given a copy in sync that could not apply an op, as long as nobody may let it go
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.register_answers = False
    cannot_apply(cluster, B)
    cluster.append(A, b"one")
    cluster.run(2.0)
    void_at_first = cluster[B].role

    # When it is let go, and time passes
    cluster.register_answers = True
    cluster.answer()
    cluster.run(3.0)

    # Then it is in sync again, with what the others have
    assert void_at_first is Role.VOID, "no candidate, until it is filled"
    assert cluster.entry.isr == (A, B, C)
    assert cluster[B].role is Role.SHADOW
    assert cluster[B].counts["refilled"] == 1
    check_all(cluster)


def test_a_copy_whose_log_differs_is_filled_anew_too() -> None:
    # Given a copy in sync whose log is not the owner's
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cluster.append(A, b"one")
    cluster[B].copy.log.chain += 1

    # When the owner sends more
    cluster.append(A, b"two")
    cluster.run(3.0)

    # Then it says that it is void, is let go, and comes back
    assert len(cluster.said_by(B, CopyVoid)) == 1
    assert [f.why for f in cluster.proposed if isinstance(f, Shrink)] == [ShrinkWhy.VOID]
    assert cluster.entry.isr == (A, B, C)
    check_all(cluster)


def test_a_copy_that_is_void_again_stays_so_until_another_epoch() -> None:
    # Given a node that cannot apply what the owner could
    cluster = Cluster(a_map(A, B, C), A, B, C)
    cluster.run(0.2)
    cannot_apply(cluster, B, ever=True)
    cluster.append(A, b"one")

    # When it was filled once
    cluster.run(5.0)
    tried = cluster[B].counts["refills"]
    cluster.run(5.0)

    # Then it is not filled again and again
    assert tried == 1
    assert cluster[B].counts["refills"] == 1
    assert cluster[B].role is Role.VOID
    assert cluster.entry.isr == (A, C)


def test_a_shadow_forgets_old_segments_and_none_that_it_has_not_applied() -> None:
    cluster = Cluster(a_map(A, B), A, B, limits=StreamLimits(repair_bytes=2_000))
    cluster.run(0.2)

    for _ in range(20):
        cluster.append(A, bytes(500))
        cluster.run(0.15)

    assert cluster[B].first_kept > 10
    assert cluster[A].first_kept > 10
    assert cluster[B].kept_bytes < 4_000
    check_all(cluster)


def test_lost_segments_come_by_repair() -> None:
    # Given a group that carries nothing
    cluster = Cluster(a_map(A, B, C), A, B, C, group_works=False)
    cluster.run(0.2)

    # When more is appended than one answer carries
    for _ in range(40):
        cluster[A].append(Line(bytes(20_000)))
    cluster.seal(A)
    cluster.run(0.2)

    # Then all of it arrives all the same, in frames that heartbeats can pass
    check_all(cluster)
    repairs = [m for _, _, m in cluster.sent if isinstance(m, Segments) and m.repair]
    assert repairs
    assert all(sum(s.wire_bytes for s in m.segments) < 70_000 for m in repairs)
    assert cluster[A].commit == 40
    assert cluster[B].counts["repair not needed"] == 0
