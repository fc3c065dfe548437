from __future__ import annotations

import pytest

from replication.core.log import OpLog
from replication.core.segment import LENT_PART_BYTES, OpenSegment


def add(log: OpLog, count: int = 1, size: int = 10) -> None:
    segment = OpenSegment(log.end)
    for number in range(count):
        segment.add(1, (bytes([number]) * size,), size)
    log.append(segment.close(1, log.chain))


def a_log(*counts: int, size: int = 10) -> OpLog:
    log = OpLog()
    for count in counts:
        add(log, count, size)
    log.check()
    return log


def test_ops_are_numbered_from_one() -> None:
    log = a_log(2, 3)

    assert log.end == 6
    assert log.first_kept == 1


def test_a_cut_takes_back_ops_and_their_chain() -> None:
    # Given a log, and another one that is the beginning of it
    log, beginning = a_log(2, 3, 1), a_log(2)

    # When it is cut where the other one ends
    gone = log.cut(3)

    # Then they are the same
    assert gone == 4
    assert (log.end, log.chain, log.bytes_kept) == (3, beginning.chain, beginning.bytes_kept)
    log.check()


def test_a_log_is_cut_between_segments_only() -> None:
    log = a_log(2, 3)

    with pytest.raises(AssertionError):
        log.cut(4)


def test_a_repair_starts_with_the_segment_that_holds_the_op() -> None:
    log = a_log(2, 3, 4)

    found = log.from_(4, 1 << 20)

    assert [segment.first_seq for segment in found] == [3, 6]


def test_a_repair_is_one_segment_however_large_that_is() -> None:
    log = a_log(5, 1)

    assert len(log.from_(1, 1)) == 1


def test_the_chain_is_known_between_kept_segments() -> None:
    log = a_log(2, 3)

    assert log.chain_at(3) == a_log(2).chain
    assert log.chain_at(6) == log.chain
    assert log.chain_at(4) is None
    assert log.chain_at(7) is None


def test_the_oldest_segments_are_forgotten_first_and_none_that_is_needed() -> None:
    # Given ten segments of 100 bytes, of which 300 bytes may be kept
    log = a_log(*[1] * 10, size=94)

    # When somebody may still need op 6
    log.trim(bytes_max=300, below=6)

    # Then only those before it are gone
    assert log.first_kept == 6
    assert log.bytes_kept == 500
    assert log.bytes_from(9) == 200
    assert log.chain_at(5) is None
    log.check()


def test_a_log_of_which_all_is_forgotten_still_knows_its_end() -> None:
    log = a_log(*[1] * 10, size=94)

    log.trim(bytes_max=1, below=log.end)

    assert log.first_kept == log.end == 11
    assert log.bytes_kept == 0
    add(log)
    log.check()


def test_segments_between_two_ops_are_whole() -> None:
    log = a_log(2, 3, 4)

    assert [segment.first_seq for segment in log.between(3, 10)] == [3, 6]
    assert log.between(3, 3) == []
    with pytest.raises(AssertionError):
        log.between(3, 7)


def test_what_is_lent_is_known_of_what_is_kept() -> None:
    # Given a log of large and small ops
    log = OpLog()
    for size in (LENT_PART_BYTES, 10, LENT_PART_BYTES, 2 * LENT_PART_BYTES):
        add(log, 1, size)
    all_of_it = log.bytes_lent

    # When its end is cut, and its beginning is forgotten
    log.cut(4)
    after_cut = log.bytes_lent
    log.trim(bytes_max=LENT_PART_BYTES, below=3)

    # Then what is lent is that of the rest
    assert all_of_it == 4 * LENT_PART_BYTES
    assert after_cut == 2 * LENT_PART_BYTES
    assert log.bytes_lent == LENT_PART_BYTES
    log.check()
