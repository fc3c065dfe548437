"""The pager: which pages go, which come back, and how much is asked of the disk at a time."""

from __future__ import annotations

from collections import Counter

import pytest

from broker.core.events import DiskJobs, Effect
from broker.core.limits import Limits
from broker.core.storeroom import Storeroom
from paging.disk import (
    READS_MAX,
    WRITES_MAX,
    Fault,
    Job,
    ReadBlock,
    ReadPage,
    RemoveBook,
    RemovePages,
    WritePage,
)
from paging.page import Away, Page
from paging.pager import (
    RETRY_S,
    SHORT_TAIL_BYTES_MIN,
    SWEEP_S,
    TAIL_BYTES_MIN,
    DiskRecovered,
    DiskTrouble,
    Pager,
    Peeked,
)
from paging.pages import Pages
from paging.part import Part
from tanist.wire.batch import Batch, seal
from tests.unit.fake_disk import FakeDisk
from tests.unit.test_paging_model import bodies_of

PAGE_BYTES = 20_000
"""Each message fills one page: an offset is a page's number, too."""
OVERHEAD = 1.05
"""What a page takes up in memory is at most so much more than its bytes."""
NOTHING = 0
PLENTY = 1 << 40


class Bench:
    """A pager with a disk that does nothing unless it is told to."""

    def __init__(
        self, *, page_bytes: int = PAGE_BYTES, ahead: int = 2, pages_max: float | None = None
    ) -> None:
        limit = PLENTY if pages_max is None else int(pages_max * PAGE_BYTES)
        self.pager = Pager(
            page_bytes=page_bytes,
            ahead_bytes=ahead * page_bytes,
            part_resident_bytes_max=limit,
            room_bytes_min=0,
        )
        self.shelf = self.pager.shelf(1, 1)
        self.disk = FakeDisk()
        self.now = 100.0
        self.reads: Counter[int] = Counter()
        """Of whole pages, by their first offset."""
        self.deliveries = 0

    def part(self, number: int = 0, *, messages: int = 0, body_bytes: int = PAGE_BYTES) -> Part:
        part = Part(self.shelf.new_pages(number))
        self.publish(part, messages, body_bytes)
        return part

    def publish(self, part: Part, count: int, body_bytes: int = PAGE_BYTES) -> None:
        for at in range(part.end, part.end + count):
            body = b"%08d" % at + bytes(body_bytes - 8)
            part.append(Batch.parse(seal([body], [], flags=0, first_n=at + 1, time_ms=0)))

    def turn(self, room_bytes: int, *, after_s: float = 0.0) -> list[Job]:
        """The end of a turn: what it asks of the disk."""
        self.now += after_s
        jobs: list[Job] = []
        self.pager.end_turn(self.now, room_bytes, jobs)
        self.disk.ask(jobs)
        self.reads.update(job.key.first for job in jobs if isinstance(job, ReadPage))
        self.pager.check()
        return jobs

    def serve(self, fault: Fault | None = None) -> None:
        """The disk does all that it was asked for."""
        for done in self.disk.do_all(fault):
            self.pager.handle(done, self.now)

    def settle(self, room_bytes: int) -> None:
        """Turns, until there is nothing more to do."""
        while self.turn(room_bytes) or self.disk.pending:
            self.serve()

    def take(self, part: Part) -> int | None:
        """Deliver the next message, if it is in memory. Returns its offset."""
        head = part.head(count_max=1, bytes_max=PLENTY)
        if head is None:
            return None
        [body] = bodies_of(head.pieces)
        assert int(body[:8]) == head.run.first
        self.deliveries += 1
        part.deliver(self.deliveries, head.run, "somebody")
        return head.run.first

    def requeue(self, part: Part, offset: int) -> None:
        for number, run in part.held_by("somebody"):
            if run.first == offset:
                part.requeue(number, run, flagged=False, count_attempt=False)

    def ack_all(self, part: Part, *, but: int = 0) -> None:
        """All that is in flight, but every so manyth message."""
        for number, run in part.held_by("somebody"):
            if not but or run.first % but:
                part.ack(number, run)

    @property
    def writes(self) -> list[int]:
        return [job.key.first for job in self.disk.writes]


def in_memory(part: Part) -> list[int]:
    """The sealed pages that are, by their first offset."""
    pages = part.pages
    return [at for at in pages.firsts() if not isinstance(pages.sealed(at), Away)]


# Who goes


def victims(bench: Bench, count: int) -> list[int]:
    """The pages that are written when room for one more is needed, one after another."""
    found = []
    for _ in range(count):
        bench.turn(bench.pager.resident_bytes - 1)
        found += bench.writes
        bench.serve()
    return found


def test_with_a_cursor_at_the_front_the_newest_page_goes_first() -> None:
    # Given ten pages of which nothing was consumed
    bench = Bench(ahead=1)
    part = bench.part(messages=10)

    # When there is too little room, then what comes last goes
    assert victims(bench, 4) == [9, 8, 7, 6]
    assert in_memory(part) == [0, 1, 2, 3, 4, 5]


def test_with_a_cursor_at_the_end_the_oldest_page_goes_first() -> None:
    # Given ten pages that are all in flight
    bench = Bench(ahead=1)
    part = bench.part(messages=10)
    while bench.take(part) is not None:
        pass

    # When there is too little room, then what was delivered first goes
    assert victims(bench, 4) == [0, 1, 2, 3]


def test_with_a_cursor_in_the_middle_pages_go_from_both_ends() -> None:
    # Given ten pages, of which five are in flight
    bench = Bench(ahead=1)
    part = bench.part(messages=10)
    assert [bench.take(part) for _ in range(5)] == [0, 1, 2, 3, 4]

    # When there is too little room, then what is farther from page 5 goes first
    assert victims(bench, 6) == [0, 9, 1, 8, 2, 7]


def test_with_cursors_at_both_ends_pages_go_from_the_middle() -> None:
    # Given ten pages, of which the first was returned and the last was never delivered
    bench = Bench(ahead=1)
    part = bench.part(messages=10)
    for _ in range(9):
        bench.take(part)
    bench.requeue(part, 0)

    # When there is too little room, then what is far from both goes first
    assert victims(bench, 6) == [5, 4, 6, 3, 7, 2]


def test_of_all_parts_the_farthest_page_goes() -> None:
    # Given a part with six pages, and one with three
    bench = Bench(ahead=1)
    long, short = bench.part(0, messages=6), bench.part(1, messages=3)

    # When there is too little room for three of them
    assert victims(bench, 3) == [5, 4, 3]

    # Then the short one still has all of its pages
    assert in_memory(long) == in_memory(short) == [0, 1, 2]


def test_a_page_that_was_read_goes_without_being_written_again() -> None:
    # Given a page that is in memory and in its file
    bench = Bench()
    part = bench.part(messages=1)
    bench.settle(NOTHING)
    assert bench.take(part) is None
    bench.turn(PLENTY)
    bench.serve()
    assert in_memory(part) == [0]

    # When there is no room
    jobs = bench.turn(NOTHING)

    # Then it is let go of at once, and the disk has nothing to do
    assert jobs == []
    assert in_memory(part) == []
    assert [key.version for key in bench.disk.files] == [1]


# What comes back


def test_a_page_that_is_there_before_the_cursor_is_a_hit() -> None:
    # Given ten pages that are all away
    bench = Bench(ahead=2)
    part = bench.part(messages=10)
    bench.settle(NOTHING)
    assert in_memory(part) == []

    # When a consumer takes them, and the disk is quicker than he is
    taken: list[int] = []
    while len(taken) < 10:
        offset = bench.take(part)
        taken += [] if offset is None else [offset]
        bench.turn(PLENTY)
        bench.serve()

    # Then he waited for the first one only, and each was read once
    assert taken == list(range(10))
    counts = bench.pager.counts()
    assert (counts.hits, counts.misses) == (9, 1)
    assert bench.reads == Counter(range(10))


def test_a_page_that_a_consumer_jumps_to_is_a_miss() -> None:
    # Given a consumer that was served the first of ten pages, and two are there beside it
    bench = Bench(ahead=2)
    part = bench.part(messages=10)
    bench.settle(NOTHING)
    bench.take(part)
    bench.turn(PLENTY)
    bench.serve()
    assert bench.take(part) == 0
    assert in_memory(part) == [0, 1, 2]

    # When what comes next is beyond them, since somebody purged the queue up to there
    part.purge(6)
    assert bench.take(part) is None
    bench.turn(PLENTY)
    bench.serve()

    # Then he waited once more, and that page is read with those that follow it
    counts = bench.pager.counts()
    assert (counts.hits, counts.misses) == (0, 2)
    assert in_memory(part) == [0, 7, 8, 9]


# Tails


def test_a_tail_that_did_not_grow_is_sealed_for_its_age() -> None:
    # Given three tails that were seen by a sweep: one large enough, one too small, one that grows
    bench = Bench(page_bytes=1 << 20)
    old = bench.part(0, messages=5, body_bytes=1000)
    small = bench.part(1, messages=2, body_bytes=1000)
    growing = bench.part(2, messages=5, body_bytes=1000)
    assert small.pages.tail_bytes < TAIL_BYTES_MIN < old.pages.tail_bytes
    bench.turn(PLENTY)
    bench.publish(growing, 1, 1000)

    # When the next one comes, and not before
    bench.turn(PLENTY, after_s=0.99 * SWEEP_S)
    before = [part.pages.count for part in (old, small, growing)]
    bench.turn(PLENTY, after_s=0.02 * SWEEP_S)
    after = [part.pages.count for part in (old, small, growing)]

    # Then only the first has a sealed page, and takes up less than before
    assert before == [1, 1, 1]
    assert after == [2, 1, 1]
    assert old.pages.tail_bytes == 0
    assert old.pages.resident_bytes < growing.pages.resident_bytes * 5 / 6


def test_a_tail_is_sealed_early_if_nothing_else_can_go() -> None:
    # Given a large tail, a small one, and a page that may go
    bench = Bench(page_bytes=1 << 20)
    large = bench.part(0, messages=60, body_bytes=1000)
    small = bench.part(1, messages=40, body_bytes=1000)
    page = bench.part(2, messages=10, body_bytes=1000)
    page.pages.seal()
    assert small.pages.tail_bytes < SHORT_TAIL_BYTES_MIN < large.pages.tail_bytes

    # When there is no room, once and again
    bench.turn(NOTHING)
    first = [part.pages.count for part in (large, small, page)]
    for _ in range(4):
        bench.serve()
        bench.turn(NOTHING)
    second = [part.pages.count for part in (large, small, page)]

    # Then at first that page goes, and then the large tail is sealed, which goes, too
    assert first == [1, 1, 2]
    assert second == [2, 1, 2]
    assert in_memory(large) == in_memory(page) == []


# What is asked of the disk at a time


def test_the_disk_is_never_asked_for_more_writes_than_agreed() -> None:
    # Given many more pages than may be written at a time, and no room
    bench = Bench()
    bench.part(messages=3 * WRITES_MAX)

    # When turns go by in which the disk does nothing, and then one write
    for _ in range(3):
        bench.turn(NOTHING)
    waiting = len(bench.writes)
    done = bench.disk.do(bench.disk.next_ones()[0])
    assert done is not None
    bench.pager.handle(done, bench.now)
    jobs = bench.turn(NOTHING)

    # Then as many were asked for as agreed, and then one more
    assert waiting == WRITES_MAX
    assert [type(job) for job in jobs] == [WritePage]


def test_the_disk_is_never_asked_for_more_reads_than_agreed() -> None:
    # Given a window of many more pages than may be read at a time, all of them away
    bench = Bench(ahead=3 * READS_MAX)
    part = bench.part(messages=4 * READS_MAX)
    bench.settle(NOTHING)
    assert bench.take(part) is None

    # When turns go by in which the disk does nothing, and then one read
    for _ in range(3):
        bench.turn(PLENTY)
    waiting = len(bench.disk.reads)
    done = bench.disk.do(bench.disk.next_ones()[0])
    assert done is not None
    bench.pager.handle(done, bench.now)
    jobs = bench.turn(PLENTY)

    # Then as many were asked for as agreed, in the order of the pages, and then one more
    assert waiting == READS_MAX
    assert list(bench.reads) == list(range(READS_MAX + 1))
    assert [type(job) for job in jobs] == [ReadPage]


def test_no_part_is_looked_at_for_victims_while_none_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a disk that has as much to write as may be, and memory that is still too full
    bench = Bench()
    bench.part(messages=3 * WRITES_MAX)
    bench.turn(NOTHING)
    assert len(bench.writes) == WRITES_MAX
    looked_at: list[Pages] = []
    farthest = Pages.farthest

    def watched(self: Pages, busy: frozenset[int] | set[int]) -> tuple[int, int] | None:
        looked_at.append(self)
        return farthest(self, busy)

    monkeypatch.setattr(Pages, "farthest", watched)

    # When a turn ends, and another one after the disk has done its work
    bench.turn(NOTHING)
    while_it_works = len(looked_at)
    bench.serve()
    bench.turn(NOTHING)

    # Then only the second one looks for what may go
    assert while_it_works == 0
    assert looked_at


# How much memory


def test_reading_takes_memory_beyond_its_room_by_the_window_at_most() -> None:
    # Given three parts with most of their pages away, and room for six
    bench = Bench(ahead=4)
    parts = [bench.part(number, messages=30) for number in range(3)]
    room = 6 * PAGE_BYTES
    bench.settle(room)
    assert sum(len(in_memory(part)) for part in parts) <= 6

    # When a consumer of each takes what is there, and acknowledges nothing
    taken: dict[Part, list[int]] = {part: [] for part in parts}
    peak = 0
    for _ in range(400):
        bench.turn(room)
        bench.turn(room)  # The disk is not as quick as turns are.
        bench.serve()
        peak = max(peak, bench.pager.resident_bytes)
        for part in parts:
            while (offset := bench.take(part)) is not None:
                taken[part].append(offset)

    # Then each had all, in order, and memory was never fuller than that
    assert all(each == list(range(30)) for each in taken.values())
    assert room < peak <= room + 4 * PAGE_BYTES * OVERHEAD


def test_a_consumer_gets_its_pages_one_at_a_time_where_no_room_can_be_made() -> None:
    # Given a part with its pages away, one with pages in memory, and a disk that is full
    bench = Bench(ahead=4)
    part = bench.part(0, messages=6)
    bench.settle(NOTHING)
    other = bench.part(1, messages=40)
    assert in_memory(part) == []

    # When a consumer wants all of the first, and is slow to take what has come
    taken: list[int] = []
    most = 0
    for _ in range(20):
        offset = bench.take(part)
        taken += [] if offset is None else [offset]
        bench.turn(NOTHING)
        assert len(bench.disk.reads) <= 1
        bench.serve(Fault.FULL)
        bench.turn(NOTHING)
        most = max(most, len(in_memory(part)))

    # Then he gets it, what he was given went again, and nothing else was let go of
    assert taken == list(range(6))
    assert most == 1
    assert len(in_memory(other)) == 40


# A disk that fails


def test_trouble_is_said_once_and_its_end_once() -> None:
    # Given more pages than there is room for, and a disk that is full
    bench = Bench()
    bench.part(messages=4)
    bench.turn(NOTHING)
    bench.serve(Fault.FULL)
    news = bench.pager.take_news()

    # When it is tried again, in vain and then with success
    bench.turn(NOTHING, after_s=0.9 * RETRY_S)
    too_early = bench.writes
    bench.turn(NOTHING, after_s=0.2 * RETRY_S)
    again = bench.writes
    bench.serve(Fault.FULL)
    nothing_new = bench.pager.take_news()
    bench.turn(NOTHING, after_s=RETRY_S)
    bench.serve()
    recovered = bench.pager.take_news()

    # Then both were said once, and each try was as long after the last one as it should be
    assert news == [DiskTrouble(Fault.FULL, "it could not be written")]
    assert (too_early, sorted(again)) == ([], [0, 1, 2, 3])
    assert nothing_new == []
    assert recovered == [DiskRecovered()]
    assert bench.pager.trouble is None


def test_a_disk_in_trouble_is_tried_with_one_page_although_there_is_room() -> None:
    # Given a disk that could not write four pages
    bench = Bench()
    part = bench.part(messages=4)
    bench.turn(NOTHING)
    bench.serve(Fault.BROKEN)

    # When there is room again before it is tried
    bench.turn(PLENTY, after_s=RETRY_S)
    tried = len(bench.writes)
    bench.serve()

    # Then one page tells that the disk is well
    assert tried == 1
    assert [type(news) for news in bench.pager.take_news()] == [DiskTrouble, DiskRecovered]
    assert len(in_memory(part)) >= 3


# Readers that do not consume


def test_a_peek_moves_nothing_and_keeps_nothing() -> None:
    # Given pages that are all away
    bench = Bench(ahead=2)
    part = bench.part(messages=5)
    bench.settle(NOTHING)
    before = (bench.pager.resident_bytes, bench.pager.counts())

    # When somebody looks into one
    jobs: list[Job] = []
    token = bench.pager.peek(part.pages, 3, jobs)
    bench.disk.ask(jobs)
    bench.serve()
    [peeked] = bench.pager.take_peeked()

    # Then he has its message, and all is as it was: nothing is in memory, wanted or counted
    assert [type(job) for job in jobs] == [ReadBlock]
    assert peeked.token == token
    assert peeked.found is not None
    assert bodies_of([(peeked.found[0], 0, 1)])[0][:8] == b"00000003"
    assert (bench.pager.resident_bytes, bench.pager.counts()) == before
    assert bench.pager.take_arrived() == []
    assert bench.turn(PLENTY) == []
    assert in_memory(part) == []


def test_a_peek_into_memory_asks_nothing_of_the_disk() -> None:
    # Given pages in memory
    bench = Bench()
    part = bench.part(messages=3)

    # When somebody looks into one
    jobs: list[Job] = []
    peeked = bench.pager.peek(part.pages, 2, jobs)

    # Then he has its message at once
    assert isinstance(peeked, Peeked)
    assert peeked.found == part.pages.batch_at(2)
    assert jobs == []


# Pages of which little is needed

MANY, BODY_BYTES = 120, 1000
"""Messages of a page, in two blocks."""


def sparse_page(bench: Bench) -> Part:
    """A page of which every tenth message is needed."""
    part = bench.part(messages=MANY, body_bytes=BODY_BYTES)
    part.pages.seal()
    while bench.take(part) is not None:
        pass
    return part


def test_a_sparse_page_is_packed_anew_before_it_is_written() -> None:
    # Given a page with its blocks in memory because of a few messages
    bench = Bench(page_bytes=1 << 20)
    part = sparse_page(bench)
    bench.ack_all(part, but=10)
    assert part.bytes > MANY * BODY_BYTES

    # When there is no room
    bench.settle(NOTHING)

    # Then its file is of these few
    [data] = bench.disk.files.values()
    assert part.bytes < len(data) < MANY // 10 * BODY_BYTES * 1.1
    assert part.pages.disk_bytes == part.bytes

    # And they can be read there
    for offset in range(0, MANY, 10):
        bench.requeue(part, offset)
    assert bench.take(part) is None
    bench.turn(PLENTY)
    bench.serve()
    assert [bench.take(part) for _ in range(MANY // 10)] == list(range(0, MANY, 10))


@pytest.mark.parametrize("full", [True, False])
def test_a_page_that_became_sparse_in_its_file_is_had_back_when_the_disk_is_full(
    full: bool,
) -> None:
    # Given a page in its file, of which little is needed by now
    bench = Bench(page_bytes=1 << 20)
    part = sparse_page(bench)
    bench.settle(NOTHING)
    bench.ack_all(part, but=10)
    [old] = bench.disk.files
    assert in_memory(part) == []

    # When the disk cannot write another page
    bench.part(1, messages=1, body_bytes=100_000).pages.seal()
    bench.turn(NOTHING)
    bench.serve(Fault.FULL if full else None)
    bench.turn(PLENTY)
    bench.serve()
    bench.turn(PLENTY)
    bench.serve()

    # Then the page is in memory, packed, and its file is gone; else nothing of that happens
    assert (old not in bench.disk.files) == full
    assert in_memory(part) == ([0] if full else [])
    assert (part.bytes < MANY * BODY_BYTES // 5) == full


# What is needed no more


def test_pages_that_went_before_their_part_did_are_removed_before_its_book() -> None:
    # Given a part with pages in files
    bench = Bench()
    part = bench.part(messages=5)
    bench.settle(NOTHING)
    assert bench.disk.files

    # When some are needed no more, and in the same turn the part is gone
    part.purge(2)
    bench.pager.retain(set())
    jobs = bench.turn(PLENTY)
    bench.serve()

    # Then no removal is of what went with the book
    assert [type(job) for job in jobs] == [RemovePages, RemoveBook]
    assert not bench.disk.files


# What one part may have


def test_a_part_above_its_limit_lets_go_of_its_own_pages_although_there_is_room() -> None:
    # Given a part with three times as many pages as it may have in memory, and one below it
    bench = Bench(ahead=2, pages_max=10)
    part, other = bench.part(0, messages=30), bench.part(1, messages=9)

    # When a turn ends, and the disk has done what it was asked for
    bench.settle(PLENTY)

    # Then the first has its oldest pages in memory, as many as may be, and the other all
    assert in_memory(part) == list(range(9))
    assert part.pages.resident_bytes <= 10 * PAGE_BYTES
    assert in_memory(other) == list(range(9))
    assert len(bench.disk.files) == 21


def test_each_page_that_a_part_gets_beyond_its_limit_lets_one_go() -> None:
    # Given a part at its limit
    bench = Bench(ahead=2, pages_max=10)
    part = bench.part(messages=9)
    assert bench.turn(PLENTY) == []

    # When one page comes after another, and the disk is not as quick as that
    asked = []
    for _ in range(10):
        bench.publish(part, 1)
        jobs = bench.turn(PLENTY)
        asked.append([job.key.first for job in jobs if isinstance(job, WritePage)])
    bench.serve()

    # Then each time the one that is farthest was written, and no other
    assert asked == [[at] for at in range(9, 19)]
    assert part.pages.resident_bytes <= 10 * PAGE_BYTES


def test_if_a_consumer_came_near_a_page_while_it_was_written_another_goes() -> None:
    # Given a part at its limit, one page of which is being written
    bench = Bench(ahead=2, pages_max=10)
    part = bench.part(messages=10)
    bench.turn(PLENTY)
    assert bench.writes == [9]

    # When a consumer comes near before that is done
    assert [bench.take(part) for _ in range(8)] == list(range(8))
    bench.serve()
    assert in_memory(part) == list(range(10))
    bench.settle(PLENTY)

    # Then that page stays, and what is farther from him goes
    assert in_memory(part) == list(range(1, 10))


@pytest.mark.parametrize("pages_max", [0.0001, 1, 4, 6, 12, 24])
@pytest.mark.parametrize("returned", [False, True])
def test_a_part_at_its_limit_is_read_to_its_end_and_each_page_once(
    pages_max: float, returned: bool
) -> None:
    # Given a part with many more pages than its limit, of which half were delivered and,
    # perhaps, returned
    bench = Bench(ahead=4, pages_max=pages_max)
    part = bench.part(messages=60)
    for _ in range(30):
        bench.take(part)
    if returned:
        for at in range(20):
            bench.requeue(part, at)
    bench.settle(PLENTY)
    there = in_memory(part)

    # When a consumer takes the rest, and acknowledges nothing
    taken: list[int] = []
    most = 0
    for _ in range(200):
        offset = bench.take(part)
        taken += [] if offset is None else [offset]
        bench.settle(PLENTY)
        most = max(most, part.pages.resident_bytes)

    # Then he has it in order, no page was let go of that he was about to read, and the part
    # was never above its limit by more than it says
    assert taken == [*range(20 if returned else 0), *range(30, 60)]
    assert set(taken) - set(there) <= set(bench.reads)
    assert max(bench.reads.values(), default=1) == 1
    assert most <= (max(pages_max, 4) + 3) * PAGE_BYTES * OVERHEAD


def test_a_part_above_its_limit_waits_for_a_slow_disk() -> None:
    # Given a part far above its limit, and a disk that does nothing
    bench = Bench(ahead=1, pages_max=6)
    part = bench.part(messages=3 * WRITES_MAX)
    for _ in range(3):
        bench.turn(PLENTY)
    waiting = len(bench.writes)

    # When the disk does what it was asked for, turn after turn
    bench.settle(PLENTY)

    # Then no more was asked for than agreed, and in the end the part is within its limit
    assert waiting == WRITES_MAX
    assert part.pages.resident_bytes <= 6 * PAGE_BYTES


def test_a_part_above_its_limit_tries_again_after_the_disk_failed() -> None:
    # Given a part above its limit, and a disk that is full
    bench = Bench(ahead=1, pages_max=6)
    part = bench.part(messages=10)
    bench.turn(PLENTY)
    bench.serve(Fault.FULL)
    at_once = bench.turn(PLENTY)

    # When it has space again, a while later
    bench.turn(PLENTY, after_s=RETRY_S)
    bench.serve()

    # Then the part is within its limit, and was above it until then
    assert at_once == []
    assert part.pages.resident_bytes <= 6 * PAGE_BYTES
    assert len(bench.disk.files) == 5


def test_a_part_that_is_gone_while_it_is_above_its_limit_leaves_nothing_to_do() -> None:
    # Given a part above its limit, with all writes on their way that may be
    bench = Bench(ahead=1, pages_max=6)
    part = bench.part(messages=3 * WRITES_MAX)
    bench.turn(PLENTY)

    # When it is no more, and the writes are done or have failed
    part.pages.close()
    bench.pager.check()
    bench.turn(PLENTY)
    bench.serve(Fault.FULL)
    bench.turn(PLENTY, after_s=RETRY_S)

    # Then nothing is in memory or on the disk
    assert bench.pager.resident_bytes == 0
    assert bench.disk.files == {}
    assert bench.disk.pending == []


def test_a_mended_page_counts_towards_the_limit() -> None:
    # Given a part at its limit, with a page that is away and cannot be read
    bench = Bench(ahead=2, pages_max=10)
    part = bench.part(messages=12)
    bench.settle(PLENTY)
    [key] = [key for key in bench.disk.files if key.first == 11]
    bench.disk.damage(key)
    part.purge(8)
    bench.take(part)
    bench.settle(PLENTY)
    assert bench.pager.is_damaged(part.pages, 11)
    bench.publish(part, 7)
    bench.settle(PLENTY)
    before = in_memory(part)

    # When its message is had from another copy
    page = Page(11)
    page.append(Batch.parse(seal([bytes(PAGE_BYTES)], [], flags=0, first_n=12, time_ms=0)))
    page.seal()
    bench.pager.mended(part.pages, 11, page)
    bench.settle(PLENTY)

    # Then another page goes for it
    assert in_memory(part) == [*before[: before.index(12)], 11, *before[before.index(12) : -1]]
    assert part.pages.resident_bytes <= 10 * PAGE_BYTES


def test_the_limit_of_a_queue_is_that_of_the_file() -> None:
    # Given a storeroom with a limit in its node's file
    limits = Limits(page_bytes=64 << 10, queue_resident_bytes_max=1 << 20)
    storeroom = Storeroom(limits)
    part = Part(storeroom.pager.shelf(1, 1).new_pages(0))

    # When a part takes up twice as much, far below what all pages may
    while part.bytes < 2 << 20:
        part.append(Batch.parse(seal([bytes(64 << 10)], [], flags=0, first_n=1, time_ms=0)))
    outbox: list[Effect] = []
    storeroom.end_turn(100.0, storeroom.pager.resident_bytes, outbox)

    # Then pages of it are written
    [asked] = outbox
    assert isinstance(asked, DiskJobs)
    assert 0 < len(asked.jobs) <= WRITES_MAX
    assert all(isinstance(job, WritePage) for job in asked.jobs)
