"""A part against a plain list: whatever is done to both, they agree, and so do two copies.

The model has one entry for each message and loops over all of them at each step. Two parts
get the same ops: one seals a page after every few messages, the other never does.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paging.page import Piece
from paging.pages import Pages
from paging.part import Answer, Part
from paging.ranges import Range
from tanist.wire.batch import IN_DOUBT, Batch, seal

HOLDERS = [("anna", 1), ("bert", 1), ("bert", 2)]
NUMBERS = st.sampled_from([0, 0, 0, 1, 2, 3, 4, 9, 1000])
FRESH, RETURNED, GONE = "fresh", "returned", "gone"


@dataclass
class Message:
    body: bytes
    flagged: bool
    place: str | int = FRESH  # Or the number under which it is held.
    attempts: int = 0


def runs(offsets: Iterable[int]) -> list[Range]:
    """Sorted offsets as the runs that they form."""
    found: list[Range] = []
    for offset in offsets:
        if found and found[-1].end == offset:
            found[-1] = Range(found[-1].first, offset + 1)
        else:
            found.append(Range(offset, offset + 1))
    return found


def bodies(pieces: Iterable[Piece]) -> list[bytes]:
    found = []
    for batch, index, count in pieces:
        ends = array("I", [0, *batch.ends()])
        blob = batch.data[batch.bodies_at : batch.bodies_at + batch.bodies_len]
        found += [blob[ends[at] : ends[at + 1]] for at in range(index, index + count)]
    return found


class PartAgainstList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.parts = [Part(Pages(page_bytes=400)), Part()]
        self.messages: list[Message] = []
        self.holders: dict[int, tuple[str, int]] = {}  # By delivery number, all ever given.

    @rule(
        count=st.sampled_from([1, 2, 8, 25]),
        size=st.sampled_from([0, 1, 100, 2500]),
        doubt=st.sampled_from([False, False, False, True]),
        aged=st.booleans(),
    )
    def publish(self, count: int, size: int, doubt: bool, aged: bool) -> None:
        if aged:
            self.parts[1].pages.seal()  # One node does this by its clock, and the others not.
        first = len(self.messages)
        made = [bytes([65 + (first + at) % 26]) * (size + at % 3) for at in range(count)]
        flags = IN_DOUBT if doubt else 0
        data = seal(made, [], flags=flags, first_n=first + 1, time_ms=first)
        for part in self.parts:
            assert part.append(Batch.parse(data)) == Range(first, first + len(made))
        self.messages += [Message(body, doubt) for body in made]

    @precondition(lambda self: self._in(FRESH, RETURNED))
    @rule(
        count_max=st.sampled_from([1, 3, 9, 30]),
        bytes_max=st.sampled_from([0, 150, 20_000, 20_000]),
        holder=st.sampled_from(HOLDERS),
    )
    def deliver_head(self, count_max: int, bytes_max: int, holder: tuple[str, int]) -> None:
        expected = self._head(count_max, bytes_max)
        found = [message.body for message in self.messages[slice(*expected)]]
        for part in self.parts:
            head = part.head(count_max=count_max, bytes_max=bytes_max)
            assert head is not None
            assert head.run == expected
            assert bodies(head.pieces) == found
            assert head.bodies_len == sum(map(len, found))
        self._deliver(expected, holder)

    @precondition(lambda self: self._in(FRESH))
    @rule(
        skip=st.sampled_from([0, 1, 5]),
        size=st.sampled_from([1, 2, 9]),
        holder=st.sampled_from(HOLDERS),
    )
    def deliver_from_the_middle(self, skip: int, size: int, holder: tuple[str, int]) -> None:
        run = runs(self._in(FRESH))[0]
        first = min(run.first + skip, run.end - 1)
        self._deliver(Range(first, min(first + size, run.end)), holder)

    @precondition(lambda self: self.holders)
    @rule(which=NUMBERS, skip=st.sampled_from([0, 2, 3, 5]), size=st.sampled_from([1, 2, 4, 30]))
    def ack(self, which: int, skip: int, size: int) -> None:
        number, run = self._some(which, skip, size)
        expected = self._answer(number, run)
        for part in self.parts:
            assert part.ack(number, run) == expected
        self._move(expected.done, GONE)

    @precondition(lambda self: self._in_use())
    @rule(which=st.integers(0, 5))
    def ack_what_is_left_of_a_delivery(self, which: int) -> None:
        in_use = self._in_use()
        number = in_use[which % len(in_use)]
        held = self._in(number)
        run = Range(held[0], held[-1] + 1)
        expected = self._answer(number, run)
        for part in self.parts:
            assert part.ack(number, run) == expected
        self._move(expected.done, GONE)

    @precondition(lambda self: self.holders)
    @rule(which=NUMBERS, skip=st.sampled_from([0, 2, 3, 5]), size=st.sampled_from([1, 2, 4, 30]),
          flagged=st.booleans(), counted=st.booleans())  # fmt: skip
    def requeue(self, which: int, skip: int, size: int, flagged: bool, counted: bool) -> None:
        number, run = self._some(which, skip, size)
        expected = self._answer(number, run)
        for part in self.parts:
            answer = part.requeue(number, run, flagged=flagged, count_attempt=counted)
            assert answer == expected
        self._move(expected.done, RETURNED)
        for done in expected.done:
            for message in self.messages[done.first : done.end]:
                message.flagged |= flagged
                message.attempts += counted

    @precondition(lambda self: len(self._in(FRESH, RETURNED)) > 40)
    @rule(eighths=st.sampled_from([1, 2, 3, 8]))
    def purge(self, eighths: int) -> None:
        through = len(self.messages) * eighths // 8 - 1
        waiting = [at for at in self._in(FRESH, RETURNED) if at <= through]
        held = [m for m in self.messages[: through + 1] if m.place not in (FRESH, RETURNED, GONE)]
        for part in self.parts:
            assert part.purge(through) == (len(waiting), len(held))
        self._move(runs(waiting), GONE)

    @invariant()
    def the_structures_are_sound(self) -> None:
        for part in self.parts:
            part.check()

    @invariant()
    def the_copies_are_equal(self) -> None:
        assert self.parts[0].digest() == self.parts[1].digest()

    @invariant()
    def the_part_agrees_with_the_list(self) -> None:
        part = self.parts[0]
        waiting, gone = self._in(FRESH, RETURNED), self._in(GONE)
        assert part.end == len(self.messages)
        assert part.ready == len(waiting)
        assert waiting or part.head(count_max=1, bytes_max=1) is None
        assert part.in_flight == len(self.messages) - len(waiting) - len(gone)
        for holder in HOLDERS:
            assert part.held_by(holder) == [
                (number, run)
                for number, its in self.holders.items()
                if its == holder
                for run in runs(self._in(number))
            ]
        if self.messages:
            all_of_it = Range(0, len(self.messages))
            living = [(at, m) for at, m in enumerate(self.messages) if m.place != GONE]
            assert part.flagged(all_of_it) == runs(at for at, m in living if m.flagged)
            counted = part.attempts(all_of_it)
            attempts = {at: value for run, value in counted for at in range(*run)}
            assert attempts == {at: m.attempts for at, m in living if m.attempts}
            for run in runs(at for at, _ in living):
                expected = [m.body for m in self.messages[run.first : run.end]]
                assert bodies(part.pages.pieces(run)) == expected

    def _deliver(self, run: Range, holder: tuple[str, int]) -> None:
        number = len(self.holders)
        self.holders[number] = holder
        for part in self.parts:
            part.deliver(number, run, holder)
        self._move([run], number)

    def _head(self, count_max: int, bytes_max: int) -> Range:
        offsets = self._in(RETURNED) or self._in(FRESH)
        first = end = offsets[0]
        flagged = self.messages[first].flagged
        for offset in offsets:
            message = self.messages[offset]
            bytes_max -= len(message.body)
            if offset != end or end - first == count_max or message.flagged != flagged:
                break
            if bytes_max < 0 and end > first:
                break
            end += 1
        return Range(first, end)

    def _some(self, which: int, skip: int, size: int) -> tuple[int, Range]:
        """A delivery number and a run near what is held under it.

        The number is that of one of the last deliveries, or now and then of any, or of nobody.
        """
        in_use = self._in_use()
        if in_use and which < 4:
            number = in_use[-1 - which % len(in_use)]
        else:
            number = which % (len(self.holders) + 1)
        held = self._in(number) or [0]
        first = max(held[0] - 2, 0) + skip
        first = min(first, len(self.messages) - 1)
        return number, Range(first, min(first + size, len(self.messages)))

    def _answer(self, number: int, run: Range) -> Answer:
        places = [(at, self.messages[at].place) for at in range(*run)]
        mine = [at for at, place in places if place == number]
        gone = [at for at, place in places if place == GONE]
        others = [at for at, place in places if place not in (number, GONE)]
        return Answer(runs(mine), runs(gone), runs(others))

    def _in_use(self) -> list[int]:
        """The numbers under which something is held."""
        return sorted({m.place for m in self.messages if isinstance(m.place, int)})

    def _in(self, *places: str | int) -> list[int]:
        return [at for at, message in enumerate(self.messages) if message.place in places]

    def _move(self, moved: list[Range], place: str | int) -> None:
        for run in moved:
            for message in self.messages[run.first : run.end]:
                message.place = place


TestPartAgainstList = PartAgainstList.TestCase
TestPartAgainstList.settings = settings(max_examples=300, stateful_step_count=100)
