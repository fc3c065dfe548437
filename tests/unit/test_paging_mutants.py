"""Mistakes planted in paging: the model finds each of them.

Each is the omission of one rule. They replace methods from outside.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar
from unittest.mock import patch

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from paging import pages as pages_module
from paging.disk import Done, Fault, JobFailed, PageRead, ReadPage, Written
from paging.page import Away, Loaded, Page
from paging.pager import Pager
from paging.pages import Entry, Pages
from tests.unit.test_paging_model import PagerAgainstLists

_dropped = Pager.dropped
_was_read = Pager._was_read
_written = Pager._written
_failed = Pager._failed
_want_ahead = Pages._want_ahead
_put = Pages.put
_mended = Pager.mended
_closed = Pager.closed
_handle = Pager.handle


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    target: object
    attribute: str
    stand_in: object


def a_file_stays_when_its_page_is_dropped(
    self: Pager, pages: Pages, page: Entry, first: int
) -> None:
    _dropped(self, pages, page, first)
    self._removed.clear()


def a_file_stays_if_the_page_was_dropped_meanwhile(self: Pager, done: Written) -> None:
    _written(self, done)
    if done.key in self._removed:
        self._removed.remove(done.key)


def what_was_done_with_lives_again(page: Page | Loaded, version: int) -> Away:
    size = page.end - page.first
    return Away.of(page.first, page.end, live=size, bytes_=page.bytes, version=version)


def a_read_is_not_tried_again(self: Pager, failed: JobFailed, now: float) -> None:
    _failed(self, failed, now)
    if isinstance(failed.job, ReadPage) and failed.fault is Fault.BROKEN:
        self._wanted.clear()


def nobody_is_told_that_a_page_arrived(
    self: Pager, place: tuple[Pages, int], done: PageRead
) -> None:
    _was_read(self, place, done)
    self._arrived.pop(place[0], None)


def only_what_comes_after_the_cursor_is_wanted(self: Pages, at: int) -> None:
    following = next(self._sealed.irange(at, None, (False, True)), None)
    if following is not None:
        _want_ahead(self, following)


def a_mended_page_stays_lost(self: Pages, first: int, page: Page) -> None:
    lost = self.lost
    self.lost = type(lost)()
    _put(self, first, page)
    self.lost = lost


def the_old_file_of_a_mended_page_stays(self: Pager, pages: Pages, first: int, page: Page) -> None:
    _mended(self, pages, first, page)
    self._removed.clear()


def versions_are_counted_anew(self: Pages, first: int, page: Page) -> None:
    _put(self, first, page)
    page.versions = 0


def the_files_of_a_closed_part_stay(self: Pager, pages: Pages) -> None:
    _closed(self, pages)
    self._closed.clear()


def trouble_is_said_each_time(self: Pager, done: Done, now: float) -> None:
    if isinstance(done, JobFailed):
        self.trouble = None
    _handle(self, done, now)


MUTANTS = [
    Mutant(getattr(stand_in, "__name__", ""), target, attribute, stand_in)
    for target, attribute, stand_in in (
        (Pager, "dropped", a_file_stays_when_its_page_is_dropped),
        (Pager, "_written", a_file_stays_if_the_page_was_dropped_meanwhile),
        (pages_module, "away", what_was_done_with_lives_again),
        (Pager, "_failed", a_read_is_not_tried_again),
        (Pager, "_was_read", nobody_is_told_that_a_page_arrived),
        (Pages, "_want_ahead", only_what_comes_after_the_cursor_is_wanted),
        (Pages, "put", a_mended_page_stays_lost),
        (Pages, "put", versions_are_counted_anew),
        (Pager, "mended", the_old_file_of_a_mended_page_stays),
        (Pager, "closed", the_files_of_a_closed_part_stay),
        (Pager, "handle", trouble_is_said_each_time),
    )
]


class WithMutant(PagerAgainstLists):
    FAULTS_SHARE = 0.4
    seen: ClassVar[Counter[str]] = Counter()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_model_finds_a_planted_mistake(mutant: Mutant) -> None:
    # Given pages whose code breaks one of its rules
    bounds = settings(
        max_examples=300,
        stateful_step_count=100,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )

    # When the model is run with it, then it does not get far
    with (
        patch.object(mutant.target, mutant.attribute, mutant.stand_in),
        pytest.raises((AssertionError, KeyError, StopIteration, IndexError)),
    ):
        run_state_machine_as_test(WithMutant, settings=bounds)
