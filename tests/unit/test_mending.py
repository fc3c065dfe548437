"""Damaged pages: had again from other copies, or reported, passed over and skipped."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from broker.core.copies import Copy
from broker.core.events import DiskJobs, Effect, Level, Log
from broker.core.lending import WAITING_MAX
from broker.core.mending import ANSWER_S_MAX, LOST_AGAIN_S, PAUSE_S, ROUNDS_MAX, Mending
from broker.core.mending_messages import Found, Wanted, encode_found, encode_wanted, read
from broker.core.ops import Ack, Attach, Deliver, OpenPart, PostOfficeOp, Producer, Publish, Skip
from broker.core.post_office import PostOffice
from paging.disk import Fault, Job, JobFailed, ReadBlock
from paging.page import Away
from paging.pager import PageDamaged, Pager
from paging.part import Part
from paging.ranges import Range
from replication.core.identity import Incarnation
from replication.core.member import SaidAside
from tests.unit.fake_disk import FakeDisk
from tests.unit.post_offices import PRODUCER, QUEUE, batch_of, holder

SID, GEN, EPOCH = 3, 2, 7
PAGE_BYTES = {"a": 64 << 10, "b": 48 << 10, "c": 80 << 10}
"""No two nodes cut their pages alike."""
ROOM_BYTES = 128 << 10
BODY_BYTES = 1_000
ALL = 600
"""Messages."""
STEP_S = 0.25
PATIENCE_S = 60.0


@dataclass
class FakeNode:
    """A copy with its pages, its disk, and what it says."""

    world: World
    me: Incarnation
    epoch: int = EPOCH
    silent: bool = False
    """It gets no answer out."""
    pager: Pager = field(init=False)
    office: PostOffice = field(init=False)
    mending: Mending = field(init=False)
    disk: FakeDisk = field(default_factory=FakeDisk)
    logs: list[Log] = field(default_factory=list)
    arrived: int = 0

    def __post_init__(self) -> None:
        page_bytes = PAGE_BYTES[self.me.node]
        self.pager = Pager(page_bytes=page_bytes, ahead_bytes=page_bytes, room_bytes_min=ROOM_BYTES)
        self.office = PostOffice(SID, GEN, shelf=self.pager.shelf(SID, GEN))
        self.mending = Mending(self, self.pager)

    # Copies

    def here(self, sid: int) -> Copy | None:
        assert sid == SID
        return Copy(self.office, GEN, self.epoch, self.me == self.world.nodes[0].me)

    def others(self, sid: int) -> list[Incarnation]:
        return [node.me for node in self.world.nodes if node is not self]

    def say(
        self, who: Incarnation, sid: int, gen: int, payload: bytes, outbox: list[Effect]
    ) -> None:
        if not self.silent:
            self.world.mail.append((who, SaidAside(self.me, sid, gen, payload)))

    # The node

    @property
    def part(self) -> Part:
        return self.office.part(1)

    def turn(self, now: float) -> None:
        """What the disk was asked for is done, and everything else of a turn."""
        outbox: list[Effect] = []
        for done in self.disk.do_all():
            self.pager.handle(done, now)
        jobs: list[Job] = []
        self.pager.end_turn(now, 0, jobs)
        for news in self.pager.take_news():
            if isinstance(news, PageDamaged):
                self.mending.damaged(news, now)
        self.mending.end_turn(now, outbox)
        self.arrived += len(self.pager.take_arrived())
        for effect in outbox:
            if isinstance(effect, DiskJobs):
                jobs += effect.jobs
            else:
                assert isinstance(effect, Log)
                self.logs.append(effect)
        self.disk.ask(jobs)
        self.pager.check()
        self.office.check()

    def hear(self, said: SaidAside, now: float) -> None:
        outbox: list[Effect] = []
        self.mending.heard(said, now, outbox)
        self.logs += [effect for effect in outbox if isinstance(effect, Log)]

    # What a test does, and looks at

    def firsts(self) -> list[int]:
        """Where the pages begin that are in files only."""
        pages = self.part.pages
        return [at for at in pages.firsts() if isinstance(pages.sealed(at), Away)]

    def damage(self, run: Range) -> None:
        """The files of all pages with messages of a run are altered."""
        for key in self.disk.files:
            if key.first < run.end and self.page_at(key.first).end > run.first:
                self.disk.damage(key)

    def page_at(self, first: int) -> Range:
        page = self.part.pages.sealed(first)
        assert page is not None
        return Range(first, page.end)

    def page_with(self, offset: int) -> Range:
        found = self.part.pages.page_with(offset)
        assert found is not None
        return self.page_at(found[0])

    def wants(self, page: Range) -> None:
        """As a consumer does whose cursor has come there."""
        self.part.pages.resident_end(page.first, page.end)

    def says(self, level: Level) -> list[str]:
        return [log.event for log in self.logs if log.level is level]

    @property
    def reported(self) -> list[dict[str, object]]:
        return self.mending.document(SID)


class World:
    """Three copies of a post office; the first one's node owns it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.mail: list[tuple[Incarnation, SaidAside]] = []
        self.nodes: list[FakeNode] = []
        self.nodes += [FakeNode(self, Incarnation(name, 1)) for name in "abc"]
        self.asked: list[tuple[str, Wanted]] = []
        self.answers: list[Found] = []
        self.apply(OpenPart(1, QUEUE), Producer(PRODUCER, 1), Attach(1, 1, *holder(), False))

    @property
    def owner(self) -> FakeNode:
        return self.nodes[0]

    def apply(self, *ops: PostOfficeOp, at: Sequence[FakeNode] | None = None) -> None:
        for op in ops:
            for node in self.nodes if at is None else at:
                node.office.apply(op)

    def publish(self, count: int, *, each: int = 5) -> None:
        """So many messages, each of which is its number."""
        for n in range(1, count, each):
            bodies = [(n + i - 1).to_bytes(4, "big") * (BODY_BYTES // 4) for i in range(each)]
            batch = batch_of(bodies, first_n=n)
            self.apply(Publish(1, PRODUCER, 1, n - 1, batch))
        self.run(until=1.0)

    def run(self, *, until: float) -> None:
        """Let so much time pass."""
        end = self.now + until
        while self.now < end:
            self.turn()

    def turn(self) -> None:
        self.now += STEP_S
        mail, self.mail = self.mail, []
        for who, said in mail:
            message = read(said.payload)
            if isinstance(message, Wanted):
                self.asked.append((who.node, message))
            else:
                self.answers.append(message)
            next(node for node in self.nodes if node.me == who).hear(said, self.now)
        for node in self.nodes:
            node.turn(self.now)

    def damage(self, *, everywhere: bool = False) -> Range:
        """A page of the owner is altered, or whatever has a message of it."""
        page = self.owner.page_at(self.owner.firsts()[1])
        for node in self.nodes if everywhere else self.nodes[:1]:
            node.damage(page)
        return page

    def drain(self) -> list[int]:
        """A consumer of the owner takes all that it gets, in order, and acknowledges it."""
        got: list[int] = []
        patience = self.now + PATIENCE_S
        part, office = self.owner.part, self.owner.office
        while part.ready and self.now < patience:
            head = part.head(count_max=50, bytes_max=1 << 20)
            if head is None:
                self.turn()
                continue
            run = head.run
            got += numbers(part, run)
            number = office.next_delivery
            self.apply(
                Deliver(1, run.first, run.size, 1, number), Ack(1, [(number, run.first, run.size)])
            )
            patience = self.now + PATIENCE_S
        return got

    def read(self, node: FakeNode, run: Range) -> bool:
        """Whether a copy has these messages, as they were published."""
        self.until(lambda: node.part.pages.resident_end(run.first, run.end) >= run.end)
        return numbers(node.part, run) == list(range(*run))

    def until(self, condition: Callable[[], object]) -> None:
        end = self.now + PATIENCE_S
        while not condition():
            assert self.now < end, "it does not happen"
            self.turn()


def numbers(part: Part, run: Range) -> list[int]:
    found: list[int] = []
    for batch, index, count in part.pages.pieces(run):
        ends = array("I", [0, *batch.ends()])
        bodies = [batch.data[batch.bodies_at + end :][:4] for end in ends[index : index + count]]
        found += [int.from_bytes(body, "big") for body in bodies]
    return found


def filled() -> World:
    """Copies of 600 messages, most of them in files."""
    made = World()
    made.publish(ALL)
    assert all(len(node.firsts()) >= 3 for node in made.nodes)
    return made


@pytest.fixture
def world() -> World:
    return filled()


def test_a_page_that_another_copy_has_is_read_from_there(world: World) -> None:
    # Given a page of the owner whose file is altered
    world.damage()

    # When a consumer takes everything
    got = world.drain()

    # Then nothing is missing, and all of it came in order
    assert got == list(range(ALL))
    assert world.owner.says(Level.INFO) == ["a page was had again from another copy"]
    assert world.owner.reported == []


def test_a_page_is_put_together_from_what_several_copies_can_read(world: World) -> None:
    # Given a page that the owner cannot read, and of which each other copy can read a part
    page = world.damage()
    middle = (page.first + page.end) // 2
    world.nodes[1].damage(Range(page.first, page.first + 1))
    world.nodes[2].damage(Range(page.end - 1, page.end))
    assert world.nodes[1].page_with(page.first).end < middle + 10
    assert world.nodes[2].page_with(page.end - 1).first > page.first

    # When a consumer takes everything
    got = world.drain()

    # Then nothing is missing
    assert sorted(got) == list(range(ALL))
    assert {name for name, _ in world.asked} >= {"b", "c"}


def test_what_no_copy_can_read_is_reported_and_the_rest_goes_on(world: World) -> None:
    # Given a page that no copy can read
    page = world.damage(everywhere=True)

    # When a consumer takes everything
    got = world.drain()

    # Then all other messages came, in order, and those of the page stay, reported
    assert got == [*range(page.first), *range(page.end, ALL)]
    [report] = world.owner.reported
    assert (report["first"], report["end"], report["messages"]) == (*page, page.size)
    assert (report["queue"], report["state"]) == (QUEUE.name, "lost")
    assert world.owner.says(Level.ERROR) == ["messages are lost"]
    assert world.owner.mending.lost(SID) == {QUEUE.name: page.size}
    assert world.owner.office.stat(QUEUE.id).lost == page.size


def test_nothing_is_lost_but_what_no_copy_can_read(world: World) -> None:
    # Given a message, and on each copy the page with it is altered
    owner = world.owner.page_at(world.owner.firsts()[1])
    message = (owner.first + owner.end) // 2
    pages = [node.page_with(message) for node in world.nodes]
    for node in world.nodes:
        node.damage(Range(message, message + 1))
    lost = Range(max(page.first for page in pages), min(page.end for page in pages))
    assert owner.first < lost.first or lost.end < owner.end

    # When a consumer takes everything
    got = world.drain()
    world.run(until=PATIENCE_S)

    # Then only what is in all of these pages is lost
    assert sorted(got) == [*range(lost.first), *range(lost.end, ALL)]
    [report] = world.owner.reported
    assert (report["first"], report["end"]) == lost

    # And when that is skipped, nothing is left
    world.apply(Skip(1, world.owner.part.lost))
    world.run(until=1.0)
    assert [node.part.ready for node in world.nodes] == [0, 0, 0]
    assert world.owner.reported == []


def test_a_page_that_was_split_is_not_read_as_a_whole_any_more(world: World) -> None:
    # Given a page that one reader found damaged while another had asked for it
    owner, jobs = world.owner, list[Job]()
    pages, page = owner.part.pages, owner.page_at(owner.firsts()[1])
    owner.pager.peek(pages, page.first, jobs)
    owner.wants(page)
    owner.pager.end_turn(world.now, 0, jobs)
    peek, read = jobs
    assert isinstance(peek, ReadBlock)
    owner.pager.handle(JobFailed(peek, Fault.DAMAGED, "it seems altered"), world.now)

    # When it is split, and then it could be read after all
    middle = (page.first + page.end) // 2
    owner.pager.split(pages, page.first, [middle])
    owner.disk.ask([read])
    for done in owner.disk.do_all():
        owner.pager.handle(done, world.now)

    # Then both pieces are still asked for
    assert owner.pager.is_damaged(pages, page.first)
    assert owner.pager.is_damaged(pages, middle)
    owner.pager.check()


def test_what_is_lost_can_be_skipped_on_all_copies(world: World) -> None:
    # Given a page that no copy can read, and a queue that is drained but for it
    world.damage(everywhere=True)
    world.drain()

    # When the owner appends that it is skipped
    world.apply(Skip(1, world.owner.part.lost))
    world.run(until=2 * LOST_AGAIN_S)

    # Then nothing is left of it, on no copy
    assert [node.part.ready for node in world.nodes] == [0, 0, 0]
    assert len({node.office.digest() for node in world.nodes}) == 1
    assert [node.reported for node in world.nodes] == [[], [], []]
    assert all(not node.disk.kept for node in world.nodes)


def test_what_is_with_a_consumer_is_not_skipped(world: World) -> None:
    # Given a lost page of which five messages were delivered before it was
    first, _ = world.damage(everywhere=True)
    world.apply(Deliver(1, first, 5, 1, 1))
    world.drain()

    # When it is skipped
    world.apply(Skip(1, world.owner.part.lost))

    # Then these five are still there, to be acknowledged
    assert world.owner.part.live.within(Range(0, ALL)) == [Range(first, first + 5)]
    assert world.owner.mending.lost(SID) == {}
    world.apply(Ack(1, [(1, first, 5)]))
    assert world.owner.reported == []


def test_a_copy_of_another_epoch_is_not_believed(world: World) -> None:
    # Given a page that only copies of another epoch can read
    page = world.damage()
    for node in world.nodes[1:]:
        node.epoch = EPOCH - 1

    # When a consumer takes everything
    got = world.drain()

    # Then nothing was taken from them
    assert got == [*range(page.first), *range(page.end, ALL)]
    assert world.owner.says(Level.ERROR) == ["messages are lost"]


def test_what_turns_up_later_is_lost_no_more(world: World) -> None:
    # Given a page that is lost, since the others do not follow this epoch
    world.damage()
    for node in world.nodes[1:]:
        node.epoch = EPOCH - 1
    before = world.drain()

    # When one of them does
    world.nodes[2].epoch = EPOCH
    world.run(until=LOST_AGAIN_S + ANSWER_S_MAX)
    after = world.drain()

    # Then its messages are there again
    assert sorted(before + after) == list(range(ALL))
    assert world.owner.reported == []


def test_a_new_map_is_a_reason_to_ask_again_at_once(world: World) -> None:
    # Given a page that is lost
    world.damage()
    for node in world.nodes[1:]:
        node.epoch = EPOCH - 1
    world.drain()

    # When there is a new map, and another copy follows by then
    world.nodes[2].epoch = EPOCH
    world.owner.mending.map_changed(world.now)
    world.run(until=LOST_AGAIN_S / 6)

    # Then nobody had to wait
    assert world.owner.reported == []


def test_a_copy_that_does_not_answer_costs_time_and_nothing_else(world: World) -> None:
    # Given a damaged page, and the first copy that is asked is silent
    world.damage()
    world.nodes[1].silent = True

    # When a consumer takes everything
    before = world.now
    got = world.drain()

    # Then it waited for one answer in vain, and nothing is missing
    assert got == list(range(ALL))
    assert [name for name, _ in world.asked].count("b") == 1
    assert ANSWER_S_MAX <= world.now - before < 5 * ANSWER_S_MAX


def test_a_page_is_not_given_up_before_all_rounds_are_over(world: World) -> None:
    # Given a page that nobody can read
    page = world.damage(everywhere=True)

    # When it is found
    before = world.now
    world.owner.wants(page)
    world.until(lambda: world.owner.reported)
    assert [report["state"] for report in world.owner.reported] == ["asking"]
    world.until(lambda: world.owner.mending.lost(SID))

    # Then others had time to come back before it was
    assert world.now - before >= (ROUNDS_MAX - 1) * PAUSE_S


def test_a_page_that_is_acknowledged_meanwhile_is_needed_no_more(world: World) -> None:
    # Given a page that nobody can read, which is asked for
    page = world.damage(everywhere=True)
    world.apply(Deliver(1, page.first, page.size, 1, 1))
    world.owner.wants(page)
    world.until(lambda: world.owner.reported)

    # When its consumer acknowledges it
    world.apply(Ack(1, [(1, page.first, page.size)]))
    world.run(until=PATIENCE_S)

    # Then nobody speaks of a loss
    assert world.owner.says(Level.ERROR) == []
    assert world.owner.mending.next_deadline() is None


def test_only_what_is_needed_of_a_page_is_had_again(world: World) -> None:
    # Given a damaged page, of which the beginning and every other message of the end are done with
    first, end = world.damage()
    gone = [Range(first, first + 12), *(Range(n, n + 1) for n in range(end - 9, end, 2))]
    for number, run in enumerate(gone, 1):
        world.apply(Deliver(1, run.first, run.size, 1, number))
        world.apply(Ack(1, [(number, run.first, run.size)]))

    # When a consumer takes everything else
    got = world.drain()

    # Then that is what it gets
    done = {n for run in gone for n in range(*run)}
    assert got == [n for n in range(ALL) if n not in done]
    assert min(wanted.first for _, wanted in world.asked) == first + 12


def test_a_copy_that_is_ahead_is_no_obstacle(world: World) -> None:
    # Given a shadow with a damaged page, half of which the others have acknowledged already
    shadow = world.nodes[1]
    page = shadow.page_at(shadow.firsts()[1])
    half = page.size // 2
    shadow.damage(page)
    ahead = (Deliver(1, page.first, half, 1, 1), Ack(1, [(1, page.first, half)]))
    world.apply(*ahead, at=[world.owner, world.nodes[2]])
    shadow.wants(page)
    world.until(lambda: shadow.reported)
    world.run(until=1.0)

    # When these acknowledgements come to the shadow
    world.apply(*ahead, at=[shadow])
    world.run(until=2.0)

    # Then it has the rest
    assert shadow.reported == []
    assert world.read(shadow, Range(page.first + half, page.end))


def test_a_shadow_is_mended_from_the_owner(world: World) -> None:
    # Given a shadow that cannot read a page
    shadow = world.nodes[2]
    page = shadow.page_at(shadow.firsts()[1])
    shadow.damage(page)

    # When it wants to
    shadow.wants(page)
    world.until(lambda: shadow.says(Level.INFO))

    # Then it has it again, and the owner was the first to be asked
    assert world.read(shadow, page)
    assert {name for name, _ in world.asked} == {"a"}


def test_a_shadow_reports_what_it_alone_has_lost_and_the_owner_goes_on(world: World) -> None:
    # Given a shadow that cannot read a page, and hears nobody who can
    shadow = world.nodes[2]
    page = shadow.page_at(shadow.firsts()[1])
    shadow.damage(page)
    for node in world.nodes[:2]:
        node.silent = True
    shadow.wants(page)
    world.until(lambda: shadow.mending.lost(SID))

    # When a consumer of the owner takes everything
    got = world.drain()

    # Then nothing is missing, and nothing to be reported is left at the shadow
    assert got == list(range(ALL))
    assert world.owner.part.lost == []
    assert shadow.reported == []


def test_many_damaged_pages_are_asked_for_and_nothing_is_lost(world: World) -> None:
    # Given an owner all of whose files are altered
    world.owner.damage(Range(0, ALL))

    # When a consumer takes everything
    got = world.drain()

    # Then nothing is missing, and all of it came in order
    assert got == list(range(ALL))


def test_a_file_is_read_for_others_by_the_block_and_not_into_memory(world: World) -> None:
    # Given a page that must come from the file of another copy
    world.damage()

    # When it was had from there
    world.drain()

    # Then each answer had no more than a block, and no page there came back into memory
    sizes = [sum(batch.size for _, batch in found.pieces) for found in world.answers]
    assert 0 < max(sizes) <= 64 << 10
    assert all(node.pager.counts().wanted == 0 for node in world.nodes[1:])
    assert all(not node.arrived for node in world.nodes[1:])


def test_what_a_peer_gives_beyond_what_was_asked_is_dropped(world: World) -> None:
    # Given an owner that waits for an answer
    world.owner.wants(world.damage())
    world.until(lambda: world.mail)
    [(who, said)] = world.mail
    wanted = read(said.payload)
    assert isinstance(wanted, Wanted)

    # When it comes with messages of another page
    batch = batch_of([b"not asked for"], first_n=1)
    found = Found(wanted.token, EPOCH, wanted.end + 1, [(wanted.end, batch)])
    world.owner.hear(SaidAside(who, SID, GEN, encode_found(found)), world.now)

    # Then that is said, and the next copy is asked
    assert world.owner.says(Level.WARNING) == ["a peer gave what nobody asked for"]
    assert world.mail[-1][0] != who


def test_a_word_that_is_none_is_dropped(world: World) -> None:
    # Given a node; when a peer says what cannot be understood
    world.owner.hear(SaidAside(world.nodes[1].me, SID, GEN, b"\x07"), world.now)

    # Then that is said, and nothing else happens
    assert world.owner.says(Level.WARNING) == ["dropped what a peer said of a page"]


def test_questions_beyond_the_bound_are_told_to_come_again(world: World) -> None:
    # Given a node; when it is asked for more at once than it keeps in mind
    asker = world.nodes[1].me
    for token in range(1, 100):
        wanted = encode_wanted(Wanted(token, EPOCH, 1, 0, ALL))
        world.owner.hear(SaidAside(asker, SID, GEN, wanted), world.now)
    told = [read(said.payload) for _, said in world.mail]

    # Then those that are too many are told that nothing was looked at, and the others answered
    assert len(told) == 99 - WAITING_MAX
    assert all(isinstance(found, Found) and found.through == 0 for found in told)
    world.run(until=10.0)
    assert len({found.token for found in world.answers}) == 99
