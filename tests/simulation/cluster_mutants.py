"""Mistakes planted in nodes and clients, to prove that the simulated cluster would find them.

Each is the omission of one rule of post offices, desks, the node or the client. Mistakes inside
the streams and the register have simulations of their own, which find them sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from broker.core.channels import ProducerChannel
from broker.core.connection import Connection
from broker.core.consumers import Consumers
from broker.core.desk import Desk
from broker.core.desks import Desks
from broker.core.events import Effect
from broker.core.handout import Hand, Handout, Released
from broker.core.holdings import Holdings
from broker.core.mending import Mending, _Source
from broker.core.ops import Ack, PostOfficeOp
from broker.core.post_office import PostOffice
from broker.core.producers import Producers
from broker.core.storeroom import Storeroom
from paging.disk import JobFailed, WritePage, Written
from paging.page import Away
from paging.pager import PageDamaged, Pager
from paging.part import Answer, Part
from paging.ranges import Range
from replication.core import succession
from replication.core.events import PeerData, PeerEffect
from replication.core.links import LinkNews, Links
from replication.core.release import Release
from replication.core.stream import Stream
from replication.core.stream_events import Promoted
from tanist.core.leg import Leg
from tanist.core.link import Link
from tanist.wire import control, hot
from tanist.wire.batch import Batch
from tanist.wire.control import OpenConsumer, QueueInfo
from tanist.wire.frames import Verb
from tests.simulation.faults import Profile
from tests.simulation.stream_mutants import Mutant

_admit = Producers._admit
_feed_hungry = Producers.feed_hungry
_open_consumer = Consumers.open
_collect = Holdings._collect
_released = Desk.released
_requeue = Part.requeue
_decode = PostOffice.decode
_received = Links._received
_request = Leg.request
_promoted = Desks.promoted
_failed = Pager._failed


# What leaves, and when


def _everything_leaves_at_once(self: Release, effect: object) -> None:
    self._ready.append(effect)


_early: dict[ProducerChannel, int] = {}
"""Through which number of its own a producer is told, too early, that all is safe."""


def _a_duplicate_is_not_answered(self: Producers, channel: ProducerChannel, batch: Batch) -> None:
    _, next_n = self._office.expected(channel.producer, channel.epoch)
    if batch.end_n <= next_n:
        _early[channel] = batch.end_n - 1
    else:
        _admit(self, channel, batch)


def _but_at_the_end_of_the_turn(self: Producers, now: float, outbox: list[Effect]) -> None:
    for channel in self:
        if channel in _early:
            payload = hot.confirm(_early.pop(channel), 1)
            channel.write(Verb.CONFIRM, (payload,), outbox)
    _feed_hungry(self, now, outbox)


def _effects_go_to_whoever_has_the_consumer_id(
    self: Desk, effects: list[Released], now: float, outbox: list[Effect]
) -> None:
    for effect in effects:
        if isinstance(effect, Hand) and not effect.channel.open:
            effect.channel = self.consumers._channels.get(effect.channel.holder, effect.channel)
    _released(self, effects, now, outbox)


def _nothing_is_taken_back(self: Handout, outbox: list[Effect]) -> None:
    self._owed.clear()


def _nobody_is_sent_away(self: Desk, message: control.Moved, outbox: list[Effect]) -> None:
    for channel in self._channels():
        channel.close()
    self._handout.take_back(outbox)


# Deliveries


def _a_stale_ack_is_answered_well(
    self: Holdings, answers: Any, already: list[hot.Span], not_yours: list[hot.Span]
) -> None:
    _collect(self, answers, already, [])


def _anybody_may_return_anything(
    self: Part, number: int, run: Range, *, flagged: bool, count_attempt: bool
) -> Answer:
    for other in [n for n, held in self._held.items() if n != number and held.ranges.within(run)]:
        _requeue(self, other, run, flagged=flagged, count_attempt=count_attempt)
    return _requeue(self, number, run, flagged=flagged, count_attempt=count_attempt)


def _the_grace_runs_on(
    self: Consumers,
    connection: Connection,
    number: int,
    asked: OpenConsumer,
    queue: QueueInfo,
    outbox: list[Effect],
) -> None:
    holder = (connection.session, bytes.fromhex(asked.consumer))
    grace = self.graces.get(holder)
    _open_consumer(self, connection, number, asked, queue, outbox)
    if grace is not None:
        self.graces[holder] = grace


def _returns_have_no_flag(self: Holdings, part: int, holder: Any, *, failed: bool) -> None:
    runs = [
        (number, run.first, run.end - run.first)
        for number, run in self._office.in_flight_of(part, holder)
    ]
    if runs:
        self._requeue(part, runs, flagged=False, failed=failed)


def _shadows_forget_some_acks(kind: int, data: bytes, start: int, end: int) -> PostOfficeOp:
    op = _decode(kind, data, start, end)
    if isinstance(op, Ack) and sum(n for n, _, _ in op.runs) % 5 == 0:
        return Ack(op.part, ())
    return op


# Pages


def _what_is_in_files_is_passed_over(
    self: Desks, news: Promoted, now: float, outbox: list[Effect]
) -> None:
    _promoted(self, news, now, outbox)
    desk = self.offices.get(news.sid)
    if desk is not None:
        for part in map(desk.office.part, filter(desk.office.has_part, range(100))):
            for first in part.pages.firsts():
                page = part.pages.sealed(first)
                if isinstance(page, Away):
                    part.pages.lost.merge(Range(first, page.end))


def _nobody_is_asked(self: Mending, news: PageDamaged, now: float) -> None:
    copy = self._copies.here(news.book.sid)
    if copy is not None and copy.office.has_part(news.book.part):
        self._pager.give_up(copy.office.part(news.book.part).pages, news.first)


def _finds_the_batch_before(self: _Source, offset: int) -> tuple[Batch, int]:
    at = self._pieces.bisect_right(offset) - 1
    first, batch = self._pieces.peekitem(at)
    _, before = self._pieces.peekitem(max(0, at - 1))
    return before if before.count == batch.count else batch, first


def _nobody_is_told_that_pages_came(self: Storeroom, desks: Desks) -> None:
    self.pager.take_arrived()


def _a_failed_write_counts(self: Pager, failed: JobFailed, now: float) -> None:
    if isinstance(failed.job, WritePage):
        self._written(Written(failed.job.key, 0))
    else:
        _failed(self, failed, now)


# The node among others


def _any_frame_is_a_sign_of_life(
    self: Links, event: PeerData, now: float, outbox: list[PeerEffect], news: list[LinkNews]
) -> None:
    _received(self, event, now, outbox, news)
    link = self._links.get(event.link)
    if link is not None and link.who is not None:
        self._life_at[link.who] = now


def _says_what_it_has_released(self: Stream[Any, Any]) -> int:
    return self.release


# The client


def _presents(
    **left_out: list[Any],
) -> Callable[[Leg, Link], tuple[control.Request, int]]:
    def request(self: Leg, link: Link) -> tuple[control.Request, int]:
        asked, number = _request(self, link)
        assert isinstance(asked, OpenConsumer)
        return replace(asked, **left_out), number

    return request


def _keeps_what_is_not_its_own(self: Leg, spans: Any, outbox: Any) -> None:
    pass


MUTANTS: Final[dict[str, tuple[Profile, Mutant]]] = {
    "delivered and confirmed before release": (
        Profile.TIGHT,
        Mutant(((Release, "answer", _everything_leaves_at_once),)),
    ),
    "a duplicate is confirmed before its first copy is released": (
        Profile.TIGHT,
        Mutant(
            (
                (Producers, "_admit", _a_duplicate_is_not_answered),
                (Producers, "feed_hungry", _but_at_the_end_of_the_turn),
            )
        ),
    ),
    "an effect names the consumer, and not the channel": (
        Profile.TIGHT,
        Mutant(((Desk, "released", _effects_go_to_whoever_has_the_consumer_id),)),
    ),
    "answers that were owed are forgotten": (
        Profile.TIGHT,
        Mutant(((Handout, "take_back", _nothing_is_taken_back),)),
    ),
    "nobody is told that the owner is another one": (
        Profile.TIGHT,
        Mutant(((Desk, "leave", _nobody_is_sent_away),)),
    ),
    "a stale ack is answered well": (
        Profile.TIGHT,
        Mutant(((Holdings, "_collect", _a_stale_ack_is_answered_well),)),
    ),
    "a requeue by a former holder is accepted": (
        Profile.PLAIN,
        Mutant(((Part, "requeue", _anybody_may_return_anything),)),
    ),
    "the grace runs on for a session that came back": (
        Profile.TIGHT,
        Mutant(((Consumers, "open", _the_grace_runs_on),)),
    ),
    "what returns has no flag": (
        Profile.PLAIN,
        Mutant(((Holdings, "return_from", _returns_have_no_flag),)),
    ),
    "shadows forget some acks": (
        Profile.PLAIN,
        Mutant(((PostOffice, "decode", staticmethod(_shadows_forget_some_acks)),)),
    ),
    "any frame is a sign of life": (
        Profile.STEADY,
        Mutant(((Links, "_received", _any_frame_is_a_sign_of_life),)),
    ),
    "one who hears the owner prevents its replacement for ever": (
        Profile.STEADY,
        Mutant(((succession, "SUSPECTED_S_MAX", float("inf")),)),
    ),
    "a new owner says what it has released itself": (
        Profile.TIGHT,
        Mutant(((Stream, "perhaps_released", property(_says_what_it_has_released)),)),
    ),
    "a client does not present what it holds": (
        Profile.TIGHT,
        Mutant(((Leg, "request", _presents(held=[])),)),
    ),
    "a client does not present its unanswered acks": (
        Profile.TIGHT,
        Mutant(((Leg, "request", _presents(acked=[])),)),
    ),
    "a promoted shadow forgets what is in files": (
        Profile.PAGED,
        Mutant(((Desks, "promoted", _what_is_in_files_is_passed_over),)),
    ),
    "no other copy is asked for what cannot be read": (
        Profile.PAGED,
        Mutant(((Mending, "damaged", _nobody_is_asked),)),
    ),
    "a mended page has one batch twice, and another one not at all": (
        Profile.PAGED,
        Mutant(((_Source, "find", _finds_the_batch_before),)),
    ),
    "nobody is told that pages were read": (
        Profile.PAGED,
        Mutant(((Storeroom, "hand_over", _nobody_is_told_that_pages_came),)),
    ),
    "a write that failed counts as one that did not": (
        Profile.PAGED,
        Mutant(((Pager, "_failed", _a_failed_write_counts),)),
    ),
    "a client keeps what is not its own": (
        Profile.PLAIN,
        Mutant(((Leg, "_drop", _keeps_what_is_not_its_own),)),
    ),
}
"""With the profile that finds it soonest."""
