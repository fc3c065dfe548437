"""Parts larger than memory against plain lists: wherever their pages are, they agree.

Each part has its pages in one pager with the others, which may keep next to nothing in memory.
The disk answers in any order, late, or with an error. The model has one entry for each message
and knows nothing of pages. At the end of each example the disk is well again, and then what
waits must be delivered, with nobody asking twice: a consumer asks when the pager tells it that
something arrived, as in the broker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from random import Random
from typing import ClassVar, Literal
from unittest.mock import patch

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from paging import page as page_module, pager as pager_module
from paging.disk import Done, Fault, Job
from paging.page import Away, Page, Piece
from paging.pagefile import PageKey
from paging.pager import DiskRecovered, DiskTrouble, PageDamaged, Pager
from paging.pages import Pages
from paging.part import Part
from paging.ranges import Range
from tanist.wire.batch import Batch, seal
from tests.unit.fake_disk import FakeDisk

FRESH, RETURNED, GONE = "fresh", "returned", "gone"
NOTHING = 0
PLENTY = 1 << 30

WHICH = st.integers(0, 7)
COPY = st.integers(0, 1)
LUCK = st.integers(0, 1 << 20)
LIVE_MAX = 200

EXAMPLES = 160
STEPS_MIN = 50_000
"""Of all machines together: a rule is a step, and all is checked after each."""
SEEN_MIN = 25
"""Of each thing that a machine is there for."""


def runs(offsets: Iterable[int]) -> list[Range]:
    """Sorted offsets as the runs that they form."""
    found: list[Range] = []
    for offset in offsets:
        if found and found[-1].end == offset:
            found[-1] = Range(found[-1].first, offset + 1)
        else:
            found.append(Range(offset, offset + 1))
    return found


def body_of(batch: Batch, index: int) -> bytes:
    at = batch.bodies_at
    return batch.data[at + batch.end_of(index - 1) : at + batch.end_of(index)]


def bodies_of(pieces: Iterable[Piece]) -> list[bytes]:
    return [
        body_of(batch, at) for batch, index, count in pieces for at in range(index, index + count)
    ]


class Copy:
    """A part, and what it must be."""

    def __init__(self, pager: Pager, sid: int) -> None:
        self.shelf = pager.shelf(sid, 1)
        self.pages: Pages = self.shelf.new_pages(0)
        self.part = Part(self.pages)
        self.bodies: list[bytes] = []
        self.places: list[str | int] = []
        self.numbers = 0

    def within(self, *places: str | int) -> list[int]:
        return [at for at, place in enumerate(self.places) if place in places]

    @property
    def held(self) -> list[int]:
        return [at for at, place in enumerate(self.places) if isinstance(place, int)]

    @property
    def live(self) -> list[int]:
        return [at for at, place in enumerate(self.places) if place != GONE]

    def move(self, offsets: Iterable[int], place: str | int) -> None:
        for offset in offsets:
            self.places[offset] = place

    def head(self, count_max: int, bytes_max: int) -> Range | None:
        """What a part would give that is all in memory."""
        lost = {at for run in self.pages.lost for at in range(*run)}
        offsets = [at for at in self.within(RETURNED) if at not in lost]
        offsets = offsets or [at for at in self.within(FRESH) if at not in lost]
        if not offsets:
            return None
        first = end = offsets[0]
        for offset in offsets:
            bytes_max -= len(self.bodies[offset])
            if offset != end or end - first == count_max or (bytes_max < 0 and end > first):
                break
            end += 1
        return Range(first, end)

    def page_again(self, first: int, end: int) -> Page:
        """A page as the messages of another copy would make it."""
        page = Page(first)
        for run in runs(at for at in self.live if first <= at < end):
            page.skip(run.first)
            made = seal(self.bodies[run.first : run.end], [], flags=0, first_n=1, time_ms=0)
            page.append(Batch.trusted(made))
        page.seal()
        page.skip(end)
        return page


class PagerAgainstLists(RuleBasedStateMachine):
    """What is drawn most is what makes pages come and go."""

    PAGE_BYTES: ClassVar = 1000
    BLOCK_BYTES: ClassVar = 400
    AHEAD_BYTES: ClassVar = 2000
    ROOMS: ClassVar[tuple[int, ...]] = (NOTHING, 3000, 8000, PLENTY)
    FAULTS: ClassVar[tuple[Fault, ...]] = tuple(Fault)
    FAULTS_SHARE: ClassVar = 0.3
    MUST_SEE: ClassVar[frozenset[str]] = frozenset(
        {"delivered", "away", "peeked", "Written", "PageRead", "BlockRead"}
    )
    seen: ClassVar[Counter[str]] = Counter()
    """Of all examples together: that they do not just pass by what they are for."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        for module, name, value in (
            (page_module, "BLOCK_BYTES", self.BLOCK_BYTES),
            (page_module, "SMALL_BYTES", 200),
            (pager_module, "WRITES_MAX", 3),
            (pager_module, "READS_MAX", 4),
            (pager_module, "TAIL_BYTES_MIN", 300),
            (pager_module, "SHORT_TAIL_BYTES_MIN", 500),
            (pager_module, "SPARSE_BYTES_MIN", 1500),
        ):
            self.patches.enter_context(patch.object(module, name, value))
        self.pager = Pager(
            page_bytes=self.PAGE_BYTES, ahead_bytes=self.AHEAD_BYTES, room_bytes_min=0
        )
        self.disk = FakeDisk()
        self.now = 100.0
        self.room = PLENTY
        self.copies = [Copy(self.pager, 0), Copy(self.pager, 1)]
        self.peeks: dict[int, bytes] = {}
        self.damaged: dict[tuple[Copy, int], int] = {}  # Where such a page ends.
        self.in_trouble = False
        self.read: list[tuple[list[Piece], list[bytes]]] = []

    def teardown(self) -> None:
        try:
            self._all_is_well_in_the_end()
        finally:
            self.patches.close()

    # Publishers

    @rule(
        copy=COPY,
        count=st.sampled_from([3, 10, 25, 60]),
        size=st.sampled_from([0, 10, 60, 300]),
        singly=st.booleans(),
        luck=LUCK,
    )
    def publish(self, copy: int, count: int, size: int, singly: bool, luck: int) -> None:
        its = self.copies[copy]
        count = min(count, max(1, LIVE_MAX - its.part.live.count))
        first = len(its.bodies)
        made = [b"%d:%d." % (copy, first + at) + b"." * size for at in range(count)]
        each = 1 if singly else count
        for at in range(0, count, each):
            data = seal(made[at : at + each], [], flags=0, first_n=first + at + 1, time_ms=0)
            its.part.append(Batch.parse(data))
        its.bodies += made
        its.places += [FRESH] * count
        self._time_passes(luck)

    @rule(copy=COPY, luck=LUCK)
    def seal_the_tail(self, copy: int, luck: int) -> None:
        self.copies[copy].pages.seal()
        self._time_passes(luck)

    # Consumers

    @precondition(lambda self: self.copies[0].part.ready or self.copies[1].part.ready)
    @rule(
        copy=COPY,
        times=st.integers(1, 4),
        count_max=st.sampled_from([1, 4, 15, 60]),
        bytes_max=st.sampled_from([0, 100, 20_000, 20_000]),
        luck=LUCK,
    )
    def deliver(self, copy: int, times: int, count_max: int, bytes_max: int, luck: int) -> None:
        its = self._some(copy, "ready")
        while times and self._deliver(its, count_max, bytes_max):
            times -= 1
        self._time_passes(luck)

    @precondition(lambda self: self._held())
    @rule(copy=COPY, skip=WHICH, size=st.sampled_from([1, 3, 20, 100]), luck=LUCK)
    def ack(self, copy: int, skip: int, size: int, luck: int) -> None:
        its = self._some(copy, "in_flight")
        self._ack(its, its.held[skip : skip + size])
        self._time_passes(luck)

    @precondition(lambda self: self._held())
    @rule(copy=COPY, keep=st.sampled_from([2, 5, 11]), luck=LUCK)
    def ack_most(self, copy: int, keep: int, luck: int) -> None:
        """Here and there a message stays: pages become sparse."""
        its = self._some(copy, "in_flight")
        self._ack(its, [at for at in its.held if at % keep])
        self._time_passes(luck)

    @precondition(lambda self: self._held())
    @rule(copy=COPY, skip=WHICH, size=st.sampled_from([1, 3, 20, 500]), luck=LUCK)
    def requeue(self, copy: int, skip: int, size: int, luck: int) -> None:
        """By a consumer, or all that it has because it is gone."""
        its = self._some(copy, "in_flight")
        self._requeue(its, its.held[::-1][skip : skip + size][::-1])
        self._time_passes(luck)

    @precondition(lambda self: any(copy.part.ready > 60 for copy in self.copies))
    @rule(copy=COPY, eighths=st.sampled_from([3, 6, 7, 8]), luck=LUCK)
    def purge(self, copy: int, eighths: int, luck: int) -> None:
        its = self._some(copy, "ready")
        self._purge(its, len(its.bodies) * eighths // 8)
        self._time_passes(luck)

    @precondition(lambda self: self.pager.can_peek and any(its.part.live for its in self.copies))
    @rule(copy=COPY, which=st.integers(0, 100), luck=LUCK)
    def peek(self, copy: int, which: int, luck: int) -> None:
        its = self.copies[copy] if self.copies[copy].part.live else self.copies[1 - copy]
        live = its.live
        offset = live[which * len(live) // 101]
        jobs: list[Job] = []
        found = self.pager.peek(its.pages, offset, jobs)
        if isinstance(found, int):
            self.peeks[found] = its.bodies[offset]
            self.disk.ask(jobs)
        elif found.found is not None:
            batch, first = found.found
            assert body_of(batch, offset - first) == its.bodies[offset]
        else:
            at = its.pages.page_with(offset)
            assert at is not None
            assert at[1].version == 0, "it has a file"
            assert self.pager.is_damaged(its.pages, at[0])
        self._time_passes(luck)

    # The node

    @rule(luck=LUCK)
    def nobody_does_anything(self, luck: int) -> None:
        for its in self.copies:
            for run in runs(its.live):
                for offset in range(*run):
                    at = its.pages.page_with(offset)
                    if at is None or not isinstance(at[1], Away):
                        batch, first = its.pages.batch_at(offset)
                        assert body_of(batch, offset - first) == its.bodies[offset]
        self._time_passes(luck)

    @precondition(lambda self: self.damaged)
    @rule(which=WHICH, luck=LUCK)
    def a_page_is_mended(self, which: int, luck: int) -> None:
        self._mend(list(self.damaged)[which % len(self.damaged)])
        self._time_passes(luck)

    @precondition(lambda self: self.damaged)
    @rule(which=WHICH, percent=st.integers(0, 99), luck=LUCK)
    def a_page_is_split(self, which: int, percent: int, luck: int) -> None:
        """Both halves have something that is needed."""
        place = list(self.damaged)[which % len(self.damaged)]
        (copy, first), end = place, self.damaged[place]
        live = [at for at in copy.live if first <= at < end]
        if self.pager.is_damaged(copy.pages, first) and len(live) > 1:
            cut = live[max(1, percent * len(live) // 100)]
            self.pager.split(copy.pages, first, [cut])
            self.damaged |= {place: cut, (copy, cut): end}
            self.seen["split"] += 1
        self._time_passes(luck)

    @precondition(lambda self: self.damaged)
    @rule(which=WHICH, luck=LUCK)
    def a_page_is_given_up(self, which: int, luck: int) -> None:
        copy, first = list(self.damaged)[which % len(self.damaged)]
        self.pager.give_up(copy.pages, first)
        self._time_passes(luck)

    @rule(copy=COPY, really=st.integers(0, 9), luck=LUCK)
    def a_copy_is_no_more(self, copy: int, really: int, luck: int) -> None:
        if really == 7:
            gone = self.copies[copy]
            self.pager.retain({its.shelf.tally for its in self.copies if its is not gone})
            self.damaged = {at: end for at, end in self.damaged.items() if at[0] is not gone}
            self.copies[copy] = Copy(self.pager, copy)
        self._time_passes(luck)

    # What holds after each step

    @invariant()
    def all_agree(self) -> None:
        self._hear()
        for copy in self.copies:
            part = copy.part
            part.check()
            assert part.end == len(copy.bodies)
            assert list(part.live) == runs(copy.live)
            assert part.ready == len(copy.within(FRESH, RETURNED))
        self.pager.check()
        for pieces, expected in self.read:
            assert bodies_of(pieces) == expected, "what was read cannot be read any more"
        self._check_the_files()
        self.seen["check"] += 1

    def _check_the_files(self) -> None:
        expected = set()
        for copy in self.copies:
            book = self.pager.book_of(copy.pages)
            for first in copy.pages.firsts():
                page = copy.pages.sealed(first)
                assert page is not None
                if page.version:
                    expected.add(PageKey(book, first, page.version))
        kept = self.disk.kept - {*self.pager._removed}
        kept = {key for key in kept if key.book not in self.pager._closed}
        assert kept == expected - self.disk.removed_by_others

    # How it is done

    def _time_passes(self, luck: int) -> None:
        """The end of each rule: the disk does a few jobs in some order, and perhaps a turn ends.
        With 0, nothing."""
        self.seen["step"] += 1
        if not luck:
            return
        chance = Random(luck)
        for _ in range(chance.choice((0, 1, 2, 6))):
            jobs = self.disk.next_ones()
            if jobs:
                fails = self.FAULTS and chance.random() < self.FAULTS_SHARE
                done = self.disk.do(
                    chance.choice(jobs), chance.choice(self.FAULTS) if fails else None
                )
                if done is not None:
                    self._handle(done)
        if chance.random() < 0.8:
            self.room = chance.choice(self.ROOMS)
            self._end_turn(chance.choice((0.0, 0.3, 1.0, 6.0)))

    def _held(self) -> bool:
        return any(copy.part.in_flight for copy in self.copies)

    def _some(self, copy: int, having: Literal["ready", "in_flight"]) -> Copy:
        """That copy, or the other one if nothing of that is there."""
        its = self.copies[copy]
        return its if getattr(its.part, having) else self.copies[1 - copy]

    def _handle(self, done: Done) -> None:
        self.seen[type(done).__name__] += 1
        self.pager.handle(done, self.now)

    def _deliver(self, copy: Copy, count_max: int, bytes_max: int) -> bool:
        expected = copy.head(count_max, bytes_max)
        head = copy.part.head(count_max=count_max, bytes_max=bytes_max)
        self.seen["delivered" if head else "away" if expected else "nothing waits"] += 1
        if head is None:
            if expected is not None:
                self._check_it_will_come(copy, expected.first)
            return False
        assert expected is not None
        run, pieces = head.run, [*head.pieces]
        assert run.first == expected.first < run.end <= expected.end
        if run.end < expected.end:
            at = copy.pages.page_with(run.end)
            assert at is not None
            assert isinstance(at[1], Away)
        self.read = [*self.read[-3:], (pieces, copy.bodies[run.first : run.end])]
        assert bodies_of(pieces) == copy.bodies[run.first : run.end]
        copy.part.deliver(copy.numbers, run, "somebody")
        copy.move(range(*run), copy.numbers)
        copy.numbers += 1
        return True

    def _check_it_will_come(self, copy: Copy, offset: int) -> None:
        at = copy.pages.page_with(offset)
        assert at is not None
        first, page = at
        assert isinstance(page, Away)
        place = (copy.pages, first)
        key = PageKey(self.pager.book_of(copy.pages), first, page.version)
        wanted = place in self.pager._wanted or key in self.pager._reading
        assert wanted or place in self.pager._damaged

    def _ack(self, copy: Copy, offsets: list[int]) -> None:
        for run in runs(offsets):
            for number in {copy.places[at] for at in range(*run)}:
                assert isinstance(number, int)
                mine = [at for at in range(*run) if copy.places[at] == number]
                assert copy.part.ack(number, run).done == runs(mine)
                copy.move(mine, GONE)

    def _requeue(self, copy: Copy, offsets: list[int]) -> None:
        for run in runs(offsets):
            for number in {copy.places[at] for at in range(*run)}:
                assert isinstance(number, int)
                mine = [at for at in range(*run) if copy.places[at] == number]
                answer = copy.part.requeue(number, run, flagged=False, count_attempt=True)
                assert answer.done == runs(mine)
                copy.move(mine, RETURNED)

    def _purge(self, copy: Copy, end: int) -> None:
        waiting = [at for at in copy.within(FRESH, RETURNED) if at < end]
        assert copy.part.purge(end - 1).dropped == len(waiting)
        copy.move(waiting, GONE)

    def _end_turn(self, passed_s: float) -> None:
        self.now += passed_s
        jobs: list[Job] = []
        self.pager.end_turn(self.now, self.room, jobs)
        self.disk.ask(jobs)
        deadline = self.pager.next_deadline()
        assert deadline is None or deadline > self.now, "a timer that finds nothing to do"

    def _hear(self) -> None:
        for news in self.pager.take_news():
            self.seen[type(news).__name__] += 1
            match news:
                case PageDamaged():
                    copy = next(
                        its for its in self.copies if self.pager.book_of(its.pages) == news.book
                    )
                    self.damaged[copy, news.first] = news.end
                case DiskTrouble():
                    assert not self.in_trouble, "said twice"
                    self.in_trouble = True
                case DiskRecovered():
                    assert self.in_trouble, "there was none"
                    self.in_trouble = False
        for peeked in self.pager.take_peeked():
            body = self.peeks.pop(peeked.token)
            if peeked.found is not None:
                batch, _ = peeked.found
                self.seen["peeked"] += 1
                assert body in bodies_of([(batch, 0, batch.count)])

    def _mend(self, place: tuple[Copy, int]) -> None:
        copy, first = place
        self.pager.mended(copy.pages, first, copy.page_again(first, self.damaged.pop(place)))

    def _all_is_well_in_the_end(self) -> None:
        """The disk fails for the last time; then it works, the other copies help, and consumers
        take what waits."""
        again = [self.pager.book_of(copy.pages) for copy in self.copies]
        self._hear()
        for turn in range(1000):
            for copy in self.copies:
                if self.pager.book_of(copy.pages) in again:
                    while self._deliver(copy, 30, 20_000):
                        pass
            if not any(copy.head(1, 1) for copy in self.copies):
                break
            self._end_turn(1.0)
            fails = turn == 0 and Fault.BROKEN in self.FAULTS
            for done in self.disk.do_all(Fault.BROKEN if fails else None):
                self._handle(done)
            self._hear()
            for place in list(self.damaged):
                self._mend(place)
            again = self.pager.take_arrived()
        else:
            raise AssertionError("something waits for ever")
        self.all_agree()

        for copy in self.copies:
            self._purge(copy, len(copy.bodies))  # Of what was given up.
            self._ack(copy, copy.held)
            copy.part.check()
        for done in self.disk.do_all():
            self._handle(done)
        self._end_turn(0.0)
        for done in self.disk.do_all():
            self._handle(done)
        self._hear()
        self.pager.check()
        assert self.pager.resident_bytes == self.pager.disk_bytes == 0
        assert not self.disk.files, "a file that nobody needs"
        assert not self.peeks, "somebody waits for a peek"
        assert self.pager.counts().damaged == self.pager.counts().wanted == 0


TROUBLE = frozenset({"JobFailed", "DiskTrouble", "DiskRecovered"})


class HealthyDisk(PagerAgainstLists):
    """Nothing fails: what is wanted comes, in whatever order."""

    FAULTS = ()
    seen: ClassVar[Counter[str]] = Counter()


class AnyFault(PagerAgainstLists):
    """All that can fail does."""

    MUST_SEE = PagerAgainstLists.MUST_SEE | TROUBLE | {"PageDamaged", "split"}
    seen: ClassVar[Counter[str]] = Counter()


class FullDisk(PagerAgainstLists):
    """What cannot be written stays in memory."""

    FAULTS = (Fault.FULL,)
    ROOMS = (NOTHING, 2000)
    MUST_SEE = PagerAgainstLists.MUST_SEE | TROUBLE
    seen: ClassVar[Counter[str]] = Counter()


class LargePages(PagerAgainstLists):
    """Many blocks in a page, hardly any room, and the window is one page."""

    PAGE_BYTES = 4000
    BLOCK_BYTES = 300
    AHEAD_BYTES = 1
    ROOMS = (NOTHING, 5000)
    MUST_SEE = AnyFault.MUST_SEE
    seen: ClassVar[Counter[str]] = Counter()


MACHINES: list[type[PagerAgainstLists]] = [HealthyDisk, AnyFault, FullDisk, LargePages]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_parts_agree_with_lists_wherever_their_pages_are(
    machine: type[PagerAgainstLists],
) -> None:
    # Given a machine that has seen nothing yet
    # (An example that fails is not made smaller: that takes minutes, and here nobody waits.)
    machine.seen.clear()
    bounds = settings(max_examples=EXAMPLES, stateful_step_count=100, phases=[Phase.generate])

    # When it makes its share of the steps
    run_state_machine_as_test(machine, settings=bounds)

    # Then all checks held, one after each step, and what it is there for happened often
    assert machine.seen["step"] * len(MACHINES) >= STEPS_MIN
    assert machine.seen["check"] >= machine.seen["step"]
    assert min(machine.seen[what] for what in machine.MUST_SEE) >= SEEN_MIN, machine.seen
