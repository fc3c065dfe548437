"""A post office with its dispatcher, as a test of either wants to speak of them."""

from __future__ import annotations

from collections.abc import Sequence

from broker.core.dispatcher import BOOKKEEPING_BYTES_MAX, Dispatcher, Planned
from broker.core.ops import (
    Ack,
    Attach,
    Deliver,
    Detach,
    DropPart,
    OpenPart,
    PostOfficeOp,
    Producer,
    Publish,
    Purge,
    Requeue,
    Skip,
)
from broker.core.post_office import Holder, PostOffice, Result
from paging.part import Answer
from paging.ranges import Range
from tanist.wire.batch import Batch, flags_of, seal
from tanist.wire.control import QueueInfo
from tanist.wire.hot import Run

PRODUCER = b"P" * 16
PLENTY = 1 << 40


def queue_info(number: int = 1) -> QueueInfo:
    return QueueInfo(id=1 << 32 | number, name=f"queue-{number}")


QUEUE = queue_info()


def batch_of(
    bodies: Sequence[bytes], *, first_n: int, in_doubt: bool = False, properties: bool = False
) -> Batch:
    return Batch.parse(
        seal(
            list(bodies),
            [b'{"i":%d}' % i for i in range(len(bodies))] if properties else [],
            flags=flags_of(persistent=False, in_doubt=in_doubt),
            first_n=first_n,
            time_ms=first_n,
        )
    )


def holder(number: int = 1) -> Holder:
    """A session with one consumer."""
    return number.to_bytes(16, "little"), (1_000 + number).to_bytes(16, "little")


def spans(planned: Sequence[Planned]) -> list[tuple[int, int, int]]:
    """(leg, first offset, count) of each."""
    return [(p.leg, p.first, p.count) for p in planned]


class Office:
    """A post office as its owner has it. All that it appends is kept."""

    def __init__(
        self,
        *,
        unacked_max: int | None = None,
        bookkeeping_bytes_max: int = BOOKKEEPING_BYTES_MAX,
    ) -> None:
        self.state = PostOffice(1, 1)
        self.dispatcher = Dispatcher(
            self.state, unacked_max=unacked_max, bookkeeping_bytes_max=bookkeeping_bytes_max
        )
        self.log: list[PostOfficeOp] = []

    def append(self, op: PostOfficeOp) -> Result:
        self.log.append(op)
        return self.state.apply(op)

    def open(self, queue: QueueInfo = QUEUE) -> int:
        part = self.state.next_part
        self.append(OpenPart(part, queue))
        return part

    def publish(
        self,
        *bodies: bytes,
        queue: QueueInfo = QUEUE,
        producer: bytes = PRODUCER,
        epoch: int = 1,
        in_doubt: bool = False,
        properties: bool = False,
    ) -> Result:
        part = self.state.part_of(queue.id) or self.open(queue)
        standing, n = self.state.expected(producer, epoch)
        if standing == "unknown":
            self.append(Producer(producer, epoch))
        batch = batch_of(bodies, first_n=n, in_doubt=in_doubt, properties=properties)
        result = self.append(Publish(part, producer, epoch, self.state.end_of(part), batch))
        self.dispatcher.touched(queue.id)
        return result

    def attach(self, part: int = 1, who: Holder | None = None) -> int:
        number = self.state.next_consumer
        self.append(Attach(number, part, *(who or holder()), False))
        return number

    def detach(self, who: Holder | None = None) -> None:
        self.append(Detach(*(who or holder())))

    def deliver(self, first: int, count: int, *, consumer: int = 1, part: int = 1) -> int:
        number = self.state.next_delivery
        self.append(Deliver(part, first, count, consumer, number))
        return number

    def ack(self, *runs: Run, part: int = 1) -> list[Answer]:
        return self.state.answers(self.append(Ack(part, runs)))

    def requeue(
        self, *runs: Run, part: int = 1, flagged: bool = True, failed: bool = False
    ) -> list[Answer]:
        answers = self.state.answers(self.append(Requeue(part, runs, flagged, failed)))
        self.dispatcher.touched(self.state.queue_of(part))
        return answers

    def purge(self, through: int, part: int = 1) -> int:
        return self.state.purged(self.append(Purge(part, through)))

    def skip(self, run: Range, part: int = 1) -> int:
        return self.state.purged(self.append(Skip(part, [run])))

    def drop(self, part: int = 1) -> None:
        self.append(DropPart(part))

    def add_leg(
        self,
        leg: int,
        *,
        queue: QueueInfo = QUEUE,
        messages: int = 0,
        bytes_: int = PLENTY,
        automatic: bool = False,
    ) -> None:
        """A leg of consumer `holder(leg)`, with this credit if it is any."""
        session, consumer = holder(leg)
        self.dispatcher.add_leg(
            leg, queue_id=queue.id, session=session, consumer=consumer, automatic=automatic
        )
        if messages:
            self.dispatcher.credit(leg, messages, bytes_)

    def plan(self) -> list[Planned]:
        planned = self.dispatcher.plan(self.append)
        self.dispatcher.check()
        return planned
