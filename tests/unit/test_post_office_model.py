"""Whatever happens at a post office, it agrees with a model that looks at every message.

The owner is driven by arbitrary events, through its dispatcher. A shadow applies the same ops
from their records, with pages of another size. After each step both check themselves and
their digests are equal; and each message is in the one place where the model has it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.core.ops import ExpireProducer, Producer, Publish
from broker.core.post_office import Holder, PostOffice
from paging.pages import Shelf
from paging.ranges import Range
from tanist.wire.batch import Batch
from tests.unit.post_offices import Office, batch_of, holder, queue_info

QUEUES = 2
PRODUCERS = 3
LEGS = 3


@dataclass
class Letter:
    """One message, as the model knows it."""

    body: bytes
    flagged: bool
    attempts: int = 0
    held: tuple[int, Holder] | None = None
    """(delivery number, by whom), or it waits."""


@dataclass
class Client:
    """A producer that keeps its last batch, to repeat it."""

    id: bytes
    epoch: int = 1
    bound: bool = False
    next_n: int = 1
    last: Batch | None = None


@dataclass
class World:
    """An owner, its shadow, and the model."""

    office: Office = field(default_factory=Office)
    shadow: PostOffice = field(
        default_factory=lambda: PostOffice(1, 1, shelf=Shelf.in_memory(page_bytes=100))
    )
    mailbox: dict[int, dict[int, Letter]] = field(default_factory=dict)
    """By queue number, by offset; what is done with is not there."""
    ends: dict[int, int] = field(default_factory=dict)
    clients: list[Client] = field(
        default_factory=lambda: [Client(bytes([i]) * 16) for i in range(PRODUCERS)]
    )
    replayed: int = 0
    legs: dict[int, int] = field(default_factory=dict)
    """The queue of each leg that is open."""
    allowed: dict[int, int] = field(default_factory=dict)
    incarnation: int = 1
    """Of the queues: one that is deleted comes again under another id."""
    digests: list[bytes] = field(default_factory=list)

    # Events

    def publish(self, producer: int, queue: int, sizes: list[int], in_doubt: bool) -> None:
        client = self.clients[producer]
        state = self.office.state
        info = queue_info(queue + QUEUES * self.incarnation)
        part = state.part_of(info.id) or self.office.open(info)
        standing, n = state.expected(client.id, client.epoch)
        assert standing == ("known" if client.bound else "unknown")
        assert n == client.next_n
        if not client.bound:
            self.office.append(Producer(client.id, client.epoch))
            client.bound = True
        bodies = [b"%d" % n + b"x" * size for size in sizes]
        client.last = batch_of(bodies, first_n=n, in_doubt=in_doubt)
        client.next_n += len(bodies)
        first = self.ends.get(queue, 0)
        run = self.office.append(
            Publish(part, client.id, client.epoch, state.end_of(part), client.last)
        )
        assert run == Range(first, first + len(bodies))
        letters = self.mailbox.setdefault(queue, {})
        for offset, body in enumerate(bodies, first):
            letters[offset] = Letter(body, in_doubt)
        self.ends[queue] = first + len(bodies)
        self.office.dispatcher.touched(info.id)

    def repeat(self, producer: int) -> None:
        client = self.clients[producer]
        standing, n = self.office.state.expected(client.id, client.epoch)
        if client.last is not None and client.bound:
            assert standing == "known"
            assert client.last.end_n <= n, "a repeat would be stored twice"

    def bind(self, producer: int) -> None:
        client = self.clients[producer]
        client.epoch += 1
        client.bound, client.next_n, client.last = True, 1, None
        self.office.append(Producer(client.id, client.epoch))
        assert self.office.state.expected(client.id, client.epoch - 1)[0] == "fenced"

    def expire(self, most: int) -> None:
        for producer in self.office.state.producers_to_expire(most):
            self.office.append(ExpireProducer(producer))
            client = self.clients[producer[0]]
            client.bound, client.next_n, client.last = False, 1, None

    def open_leg(self, leg: int, queue: int) -> None:
        if leg in self.legs:
            return
        self.legs[leg] = queue
        self.allowed[leg] = 0
        self.office.add_leg(leg, queue=queue_info(queue + QUEUES * self.incarnation))

    def allow(self, leg: int, messages: int, bytes_: int) -> None:
        if leg in self.legs:
            self.allowed[leg] += messages
            self.office.dispatcher.credit(leg, self.allowed[leg], bytes_)

    def end_turn(self) -> None:
        for planned in self.office.plan():
            letters = self.mailbox[self.legs[planned.leg]]
            waiting = sorted(offset for offset, letter in letters.items() if not letter.held)
            offsets = range(planned.first, planned.first + planned.count)
            assert waiting[: planned.count] == list(offsets), "not the next messages"
            for offset in offsets:
                assert letters[offset].flagged == planned.redelivered
                letters[offset].held = (planned.number, holder(planned.leg))
        self.office.dispatcher.ready_legs(0.0)

    def settle(self, queue: int, run: tuple[int, int, int], how: tuple[bool, bool, bool]) -> None:
        """An ack, or a requeue: (ack, flagged, failed)."""
        part = self._part(queue)
        number, first, count = run
        count = min(count, self.ends.get(queue, 0) - first)
        if part is None or count <= 0:
            return
        letters = self.mailbox[queue]
        offsets = range(first, first + count)
        mine = [o for o in offsets if o in letters and (letters[o].held or [0])[0] == number]
        gone = [o for o in offsets if o not in letters]
        others = [o for o in offsets if o in letters and o not in mine]
        acknowledged, flagged, failed = how
        expected = self.office.state.claim(part, number, Range(first, first + count))
        if acknowledged:
            (answer,) = self.office.ack((number, first, count), part=part)
        else:
            (answer,) = self.office.requeue(
                (number, first, count), part=part, flagged=flagged, failed=failed
            )
        assert _offsets(answer.done) == mine
        assert _offsets(answer.already_done) == gone
        assert _offsets(answer.not_yours) == others
        assert _offsets(expected.done) == mine
        for offset in mine:
            letter = letters[offset]
            letter.held = None
            letter.flagged |= flagged and not acknowledged
            letter.attempts += failed and not acknowledged
            if acknowledged:
                del letters[offset]

    def close_leg(self, leg: int, flagged: bool) -> None:
        """The consumer leaves, and what it holds returns."""
        if leg not in self.legs:
            return
        self.office.dispatcher.remove_leg(leg)
        queue = self.legs.pop(leg)
        part = self._part(queue)
        if part is not None:
            held = self.office.state.in_flight_of(part, holder(leg))
            if held:
                runs = [(number, run.first, run.size) for number, run in held]
                self.office.requeue(*runs, part=part, flagged=flagged)
        for letter in self.mailbox.get(queue, {}).values():
            if letter.held and letter.held[1] == holder(leg):
                letter.held = None
                letter.flagged |= flagged
        if self.office.state.is_attached(holder(leg)):
            self.office.detach(holder(leg))

    def purge(self, queue: int, through: int) -> None:
        part = self._part(queue)
        if part is not None:
            letters = self.mailbox.get(queue, {})
            gone = [o for o, letter in letters.items() if not letter.held and o <= through]
            assert self.office.purge(through, part) == len(gone)
            for offset in gone:
                del letters[offset]

    def skip(self, queue: int, first: int, count: int) -> None:
        part = self._part(queue)
        if part is not None:
            end = min(first + count, self.office.state.end_of(part))
            letters = self.mailbox.get(queue, {})
            gone = [o for o, letter in letters.items() if not letter.held and first <= o < end]
            if first < end:
                assert self.office.skip(Range(first, end), part) == len(gone)
            for offset in gone:
                del letters[offset]

    def delete_all(self) -> None:
        for leg in list(self.legs):
            self.office.dispatcher.remove_leg(leg)
        for queue in range(QUEUES):
            part = self._part(queue)
            if part is not None:
                self.office.drop(part)
        self.incarnation += 1
        self.legs.clear()
        self.mailbox.clear()
        self.ends.clear()

    # What must hold

    def check(self) -> None:
        for op in self.office.log[self.replayed :]:
            record = b"".join(op.parts())
            around = b"before" + record + b"after"
            self.shadow.apply(self.shadow.decode(op.kind, around, 6, 6 + len(record)))
        self.replayed = len(self.office.log)
        self.office.dispatcher.check()
        self.digests.append(self.office.state.digest())
        for state in (self.office.state, self.shadow):
            state.check()
            assert state.digest() == self.digests[-1]
            for queue in range(QUEUES):
                self._check_queue(state, queue)

    def _check_queue(self, state: PostOffice, queue: int) -> None:
        letters = self.mailbox.get(queue, {})
        info = queue_info(queue + QUEUES * self.incarnation)
        stat = state.stat(info.id)
        held = {o: letter.held for o, letter in letters.items() if letter.held}
        assert stat.in_flight == len(held)
        assert stat.ready == len(letters) - len(held)
        number = state.part_of(info.id)
        if number is None:
            assert not letters
            return
        part = state.part(number)
        assert part.end == self.ends.get(queue, 0)
        found = {
            offset: (delivery, who)
            for who in state.holders()
            for delivery, run in state.in_flight_of(number, who)
            for offset in range(*run)
        }
        assert found == held
        for offset, letter in letters.items():
            (piece,) = part.pages.pieces(Range(offset, offset + 1))
            batch, index, _ = piece
            at = batch.bodies_at + batch.end_of(index - 1)
            assert batch.data[at : batch.bodies_at + batch.end_of(index)] == letter.body
            counted = part.attempts(Range(offset, offset + 1))
            assert sum(value for _, value in counted) == letter.attempts
            assert bool(part.flagged(Range(offset, offset + 1))) == letter.flagged

    def _part(self, queue: int) -> int | None:
        return self.office.state.part_of(queue_info(queue + QUEUES * self.incarnation).id)


def _offsets(runs: Iterable[Range]) -> list[int]:
    return [offset for run in runs for offset in range(*run)]


producers = st.integers(0, PRODUCERS - 1)
queues = st.integers(0, QUEUES - 1)
legs = st.integers(1, LEGS)
yes_or_no = st.booleans()
runs = st.tuples(st.integers(1, 12), st.integers(0, 30), st.integers(1, 12))


class PostOfficeMachine(RuleBasedStateMachine):
    """Arbitrary events, and the world's own checks after each."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(
        producer=producers,
        queue=queues,
        sizes=st.lists(st.integers(0, 60), min_size=1, max_size=9),
        in_doubt=st.sampled_from([False, False, False, True]),
    )
    def publish(self, producer: int, queue: int, sizes: list[int], in_doubt: bool) -> None:
        self.world.publish(producer, queue, sizes, in_doubt)

    @rule(producer=producers)
    def repeat(self, producer: int) -> None:
        self.world.repeat(producer)

    @rule(producer=producers)
    def bind(self, producer: int) -> None:
        self.world.bind(producer)

    @rule(most=st.integers(0, PRODUCERS))
    def expire(self, most: int) -> None:
        self.world.expire(most)

    @rule(leg=legs, queue=queues, messages=st.integers(1, 20), bytes_=st.integers(0, 10_000))
    def open_leg(self, leg: int, queue: int, messages: int, bytes_: int) -> None:
        self.world.open_leg(leg, queue)
        self.world.allow(leg, messages, bytes_)
        self.world.end_turn()

    @rule(leg=legs, messages=st.integers(0, 20), bytes_=st.integers(0, 10_000))
    def allow(self, leg: int, messages: int, bytes_: int) -> None:
        self.world.allow(leg, messages, bytes_)

    @rule()
    def end_turn(self) -> None:
        self.world.end_turn()

    @rule(queue=queues, run=runs, how=st.tuples(yes_or_no, yes_or_no, yes_or_no))
    def settle(self, queue: int, run: tuple[int, int, int], how: tuple[bool, bool, bool]) -> None:
        self.world.settle(queue, run, how)

    @rule(leg=legs, flagged=yes_or_no)
    def close_leg(self, leg: int, flagged: bool) -> None:
        self.world.close_leg(leg, flagged)

    @rule(queue=queues, through=st.integers(0, 40))
    def purge(self, queue: int, through: int) -> None:
        self.world.purge(queue, through)

    @rule(queue=queues, first=st.integers(0, 40), count=st.integers(1, 9))
    def skip(self, queue: int, first: int, count: int) -> None:
        self.world.skip(queue, first, count)

    @rule(sure=st.integers(0, 9))
    def delete_all(self, sure: int) -> None:
        if not sure:
            self.world.delete_all()

    @invariant()
    def all_copies_are_as_the_model_has_it(self) -> None:
        self.world.check()


TestPostOffice = PostOfficeMachine.TestCase
TestPostOffice.settings = settings(max_examples=200, stateful_step_count=50)


def story(seed: int) -> World:
    """A long life with something of everything. The seed tells all of it."""
    random = Random(seed)
    world = World()
    for _ in range(400):
        queue, leg = random.randrange(QUEUES), random.randint(1, LEGS)
        producer = random.randrange(PRODUCERS)
        match random.randrange(12):
            case 0 | 1 | 2:
                sizes = [random.randrange(60) for _ in range(random.randint(1, 9))]
                world.publish(producer, queue, sizes, random.random() < 0.1)
            case 3 | 4:
                world.open_leg(leg, queue)
                world.allow(leg, random.randint(1, 20), random.randrange(100_000))
            case 5 | 6 | 7:
                world.end_turn()
            case 8 | 9:
                held = [
                    (letter.held[0], offset, random.randint(1, 9))
                    for offset, letter in world.mailbox.get(queue, {}).items()
                    if letter.held
                ]
                if held:
                    how = (random.random() < 0.7, random.random() < 0.5, random.random() < 0.5)
                    world.settle(queue, random.choice(held), how)
            case 10:
                world.close_leg(leg, random.random() < 0.5)
            case 11:
                if random.random() < 0.5:
                    world.bind(producer)
                elif random.random() < 0.5:
                    world.expire(random.randint(0, PRODUCERS))
                else:
                    world.purge(queue, random.randrange(100))
        world.check()
    return world


def test_a_long_life_visits_everything() -> None:
    # Given the kinds of ops there are
    kinds = {"OpenPart", "Publish", "Deliver", "Ack", "Requeue", "Attach", "Detach"}
    kinds |= {"Producer", "ExpireProducer", "Purge"}

    # When a story is told
    world = story(1)

    # Then it has all of them, and many deliveries
    assert {type(op).__name__ for op in world.office.log} == kinds
    assert world.office.state.next_delivery > 50


def test_the_state_does_not_depend_on_how_a_process_hashes() -> None:
    # Given the same story in two processes with different seeds for hashes
    program = (
        "from tests.unit.test_post_office_model import story\n"
        "print(*(digest.hex() for digest in story(2).digests))"
    )

    # When both have told it
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]

    # Then their digests were equal after each step
    assert len(told[0]) == 400
    assert told[0] == told[1]
