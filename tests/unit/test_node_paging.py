"""A node whose queues do not fit into its memory, with a disk that does as the test says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import msgspec

from broker.core.events import ClientWrite, DiskDone, DiskJobs, Effect
from broker.core.limits import Limits
from broker.core.storeroom import Storeroom
from paging.disk import (
    Done,
    Fault,
    Job,
    JobFailed,
    PageRead,
    ReadPage,
    RemoveBook,
    RemovePages,
    WritePage,
    Written,
)
from paging.files import PageFiles
from paging.pagefile import LIFE_BYTES
from paging.traffic import Traffic
from tanist.wire import hot
from tanist.wire.batch import flags_of, seal
from tanist.wire.control import Delete, Done as Answer, Paging, Ping, Purge, Stat, Status
from tanist.wire.frames import FRAME_BYTES_MAX, FrameReader, Verb, frame
from tests.unit.test_node import Alone, open_consumer, open_producer

BUDGET = 16 << 20
BODY_BYTES = 60_000
SMALL = Limits(budget_bytes=BUDGET, page_bytes=256 << 10, read_ahead_bytes=1 << 20)
PRODUCING, CONSUMING = 5, 6


class Paged(Alone):
    """A node with a little memory, and a client that publishes and consumes."""

    def __init__(self, directory: Path) -> None:
        self.files = PageFiles.open(directory, bytes(LIFE_BYTES))
        self.directory = directory
        self.full = False
        self.slow: list[Job] | None = None
        """Jobs that are not done yet, if the disk does none."""
        self.credit = 0
        self.published = 0
        self.got: list[int] = []
        self.acks = 0
        self.spans: list[tuple[int, int, int]] = []
        super().__init__(SMALL)
        self.connect(1)
        self.queue_id = self.declare(1)
        self.say(1, open_producer(self.queue_id), PRODUCING)
        self.hear_all()

    def turn(self) -> None:
        super().turn()
        jobs = [job for e in self.outbox if isinstance(e, DiskJobs) for job in e.jobs]
        self.outbox = [e for e in self.outbox if not isinstance(e, DiskJobs)]
        if self.slow is not None:
            self.slow += jobs
        else:
            self.do(jobs)

    def keeps(self, effect: Effect) -> bool:
        return super().keeps(effect) or isinstance(effect, DiskJobs)

    def do(self, jobs: list[Job]) -> None:
        done = [answer for job in jobs if (answer := self._done(job)) is not None]
        if done:
            self.node.handle(DiskDone(done), self.now, self.outbox)

    def _done(self, job: Job) -> Done | None:
        match job:
            case WritePage() if self.full:
                return JobFailed(job, Fault.FULL, "No space left on device")
            case WritePage():
                return Written(job.key, self.files.write(job.key, job.end, job.blocks))
            case ReadPage():
                return PageRead(job.key, self.files.read(job.key))
            case RemovePages():
                self.files.remove(job.keys)
            case RemoveBook():
                self.files.remove_book(job.book)
        return None

    @property
    def on_disk(self) -> int:
        return len(list(self.directory.glob("pages/*/*/*.page")))

    def paging(self) -> dict[str, object]:
        return self.node.storeroom.document()

    # The client

    def hear_all(self) -> None:
        self.say(1, Ping(time_ms=0))
        for _ in range(3):
            self.turn()
        reader = FrameReader(FRAME_BYTES_MAX)
        heard = [e for e in self.outbox if isinstance(e, ClientWrite)]
        self.outbox = [e for e in self.outbox if not isinstance(e, ClientWrite)]
        for effect in heard:
            for received in reader.feed(b"".join(effect.parts)):
                if received.verb == Verb.DELIVER:
                    delivery = hot.read_deliver(received.payload)
                    self.spans.append((delivery.number, delivery.first, delivery.count))
                    at = delivery.bodies_at  # Each batch has one message.
                    self.got.append(int(delivery.data[at : at + 8]))

    def asks(self, message: Stat | Purge | Status) -> Answer:
        self.say(1, message)
        [done] = [m for m in self.hear(1) if isinstance(m, Answer) and m.req == message.req]
        return done

    def publish(self) -> bool:
        """One more message, if the node gives credit for it."""
        [channel] = self.node.desks.offices[1].producers
        if not channel.has_credit:
            return False
        body = b"%08d" % self.published + bytes(BODY_BYTES - 8)
        batch = seal(
            [body], [], flags=flags_of(persistent=True), first_n=self.published + 1, time_ms=0
        )
        self.send(1, frame(Verb.PUBLISH, PRODUCING, batch))
        self.published += 1
        self.hear_all()
        return True

    def publish_bytes(self, size: int) -> None:
        end = self.published + size // BODY_BYTES
        while self.published < end and self.publish():
            pass

    def consume(self) -> None:
        self.say(1, open_consumer(self.queue_id), CONSUMING)
        self.hear_all()
        self.send(1, frame(Verb.CREDIT, CONSUMING, hot.credit(1_000_000, 1 << 40)))
        self.hear_all()

    def ack_all(self) -> None:
        runs = [(number, first, count) for number, first, count in self.spans]
        self.spans.clear()
        self.acks += 1
        self.send(1, frame(Verb.ACK, CONSUMING, hot.settlement(self.acks, 0, runs)))
        self.hear_all()


def test_a_queue_grows_beyond_memory_and_comes_out_again_in_order(tmp_path: Path) -> None:
    # Given a node with a budget of 16 MiB
    node = Paged(tmp_path)

    # When 40 MiB are published
    node.publish_bytes(40 << 20)

    # Then no publisher had to wait, and memory stayed within the budget
    assert node.published == (40 << 20) // BODY_BYTES
    assert node.on_disk > 100
    assert node.node.desks.used_bytes() < BUDGET

    # And a consumer gets them all in their order
    node.consume()
    for _ in range(1_000):
        node.hear_all()
    assert node.got == list(range(node.published))
    assert node.paging()["read_ahead_hits"]
    node.ack_all()
    assert node.on_disk == 0
    assert node.paging()["disk_bytes"] == 0


def test_a_full_disk_stops_publishers_and_nobody_else(tmp_path: Path) -> None:
    # Given a node whose disk is full
    node = Paged(tmp_path)
    node.full = True

    # When more is published than fits into memory
    node.publish_bytes(40 << 20)

    # Then at some time there is no credit, and the status says why
    stopped_at = node.published
    assert BUDGET // 2 < stopped_at * BODY_BYTES < BUDGET
    assert node.paging()["trouble"] == "No space left on device"

    # And consumers get what is there, which makes room
    node.consume()
    for _ in range(100):
        node.hear_all()
    assert node.got == list(range(stopped_at))
    node.ack_all()
    assert node.publish()

    # And when there is space again pages are written
    node.full = False
    node.publish_bytes(40 << 20)
    assert node.paging()["trouble"] == ""


def test_a_slow_disk_makes_publishers_wait_within_the_budget(tmp_path: Path) -> None:
    # Given a node whose disk does nothing yet
    node = Paged(tmp_path)
    node.slow = []

    # When more is published than fits into memory
    node.publish_bytes(40 << 20)

    # Then publishers wait, and no more was asked of the disk than may be
    stopped_at = node.published
    assert stopped_at * BODY_BYTES < BUDGET
    assert 0 < len([job for job in node.slow if isinstance(job, WritePage)]) <= 16

    # And when the disk has done its jobs they go on
    jobs, node.slow = node.slow, None
    node.do(jobs)
    node.hear_all()
    node.publish_bytes(10 << 20)
    assert node.published > stopped_at


def test_a_deleted_queue_leaves_no_pages(tmp_path: Path) -> None:
    # Given a queue with pages on the disk
    node = Paged(tmp_path)
    node.publish_bytes(30 << 20)
    assert node.on_disk

    # When it is deleted
    node.say(1, Delete(req=9, queue="q"))
    for _ in range(5):
        node.hear_all()

    # Then they are gone, and memory is free
    assert node.on_disk == 0
    assert node.paging()["memory_bytes"] == 0


def test_what_a_queue_says_of_its_pages_adds_up_to_what_the_node_says(tmp_path: Path) -> None:
    # Given a queue of which most is in files, another one, and one that nobody used
    node = Paged(tmp_path)
    node.publish_bytes(30 << 20)
    other = node.declare(1, "other")
    [desk] = node.node.desks.offices.values()
    number = desk.office.part_of(node.queue_id)
    assert number is not None
    part = desk.office.part(number)
    opening = msgspec.structs.replace(open_producer(other), producer="c" * 32)
    node.say(1, opening, PRODUCING + 2)
    node.hear_all()
    body = bytes(1_000)
    batch = seal([body], [], flags=flags_of(persistent=True), first_n=1, time_ms=0)
    node.send(1, frame(Verb.PUBLISH, PRODUCING + 2, batch))
    node.hear_all()
    unused = node.declare(1, "unused")

    # When a consumer has taken half of the first one, and all are asked for in one turn
    node.consume()
    while len(node.got) < node.published // 2:
        node.hear_all()
    for req, queue_id in enumerate((node.queue_id, other, unused), start=50):
        node.say(1, Stat(req=req, sid=1, queue_id=queue_id))
    of_node, away = node.paging(), part.pages.away
    found = [m.stat.paging for m in node.hear(1) if isinstance(m, Answer) and m.stat is not None]

    # Then the first has pages in both places, the second an open page, the third nothing
    first, second, third = found
    assert first.pages_in_memory
    assert first.pages_on_disk == away > 0
    assert first.disk_bytes > away * BODY_BYTES
    assert first.read_ahead_hits + first.read_ahead_misses > 0
    assert second == Paging(tail_bytes=second.tail_bytes)
    assert len(body) < second.tail_bytes < 2 * len(body)
    assert third == Paging()

    # And together they are what the node says of itself
    for name in Paging.__struct_fields__:
        assert sum(getattr(paging, name) for paging in found) == of_node[name], name


def test_the_status_of_a_node_tells_what_its_disk_did() -> None:
    # Given a node whose disk did something
    traffic = Traffic(files_written=2, bytes_written=300, writing_s=0.5)
    storeroom = Storeroom(Limits(), lambda: traffic)

    # When more is done
    before = storeroom.document()["disk"]
    traffic.removed(1, 200, ["notes stays"], busy_s=0.25)

    # Then the status tells it as of now
    assert before == asdict(Traffic(files_written=2, bytes_written=300, writing_s=0.5))
    assert storeroom.document()["disk"] == {
        **before,
        "files_removed": 1,
        "bytes_removed": 200,
        "removing_s": 0.25,
        "left": 1,
        "why_left": "notes stays",
    }
