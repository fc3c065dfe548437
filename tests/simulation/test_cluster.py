"""The whole cluster and its clients, simulated: nothing is lost, and planted mistakes are found.

A schedule is a whole history with faults and takes half a second to two, so `make test` runs
some of each profile; `make simulate` runs thousands, and every planted mistake at its full budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from broker.core.events import Stop
from tests.simulation.cluster_mutants import MUTANTS
from tests.simulation.cluster_world import ClusterWorld
from tests.simulation.faults import Profile
from tests.unit import (
    test_client_consumer,
    test_desk,
    test_links,
    test_mending,
    test_pager,
    test_part,
    test_stream_joining,
    test_succession,
)

QUICK = {Profile.PLAIN: 36, Profile.TIGHT: 20, Profile.STEADY: 12, Profile.PAGED: 48}
LONG = {Profile.PLAIN: 2_000, Profile.TIGHT: 2_000, Profile.STEADY: 1_000, Profile.PAGED: 2_000}
HAPPENS = {
    Profile.PLAIN: ("lost", "graces that ended"),
    Profile.TIGHT: ("cuts", "refilled", "double takeovers"),
    Profile.STEADY: ("double takeovers", "graces that ended"),
    Profile.PAGED: (
        "disk: Written",
        "disk: PageRead",
        "disk: BlockRead",
        "disk: WritePage failed, full",
        "disk: ReadPage failed, broken",
        "disk: ReadPage failed, damaged",
        "disk: ReadPage failed, gone",
        "takeovers with pages away",
        "log: a page was had again from another copy",
    ),
}
"""What must have happened besides `ALWAYS`: each profile is there for something."""
ALWAYS = (
    "takeovers",
    "adopted",
    "expanded",
    "held",
    "resumed with held",
    "resumed in doubt",
    "redelivered",
)
FOUND_SOON = {
    "delivered and confirmed before release": 30,
    "answers that were owed are forgotten": 120,
    "nobody is told that the owner is another one": 40,
    "the grace runs on for a session that came back": 40,
    "what returns has no flag": 50,
    "shadows forget some acks": 10,
    "a client does not present what it holds": 40,
    "a client does not present its unanswered acks": 40,
    "a promoted shadow forgets what is in files": 30,
    "nobody is told that pages were read": 40,
}
"""Schedules until they are found: ten times what it takes on average, for other schedules, too."""


def _a_page_is_mended() -> None:
    test_mending.test_a_page_that_another_copy_has_is_read_from_there(test_mending.filled())


BY_RULE: dict[str, Callable[[], None]] = {
    "a duplicate is confirmed before its first copy is released": (
        test_desk.test_a_repeated_batch_is_confirmed_again_and_stored_once
    ),
    "an effect names the consumer, and not the channel": (
        test_desk.test_an_effect_for_a_closed_channel_is_dropped
    ),
    "a stale ack is answered well": (
        test_desk.test_who_acknowledges_late_is_told_that_the_message_is_another_ones
    ),
    "a requeue by a former holder is accepted": (
        test_part.test_a_repeated_requeue_does_not_pull_a_message_from_its_new_consumer
    ),
    "any frame is a sign of life": test_links.test_only_an_echo_is_a_sign_of_life,
    "one who hears the owner prevents its replacement for ever": (
        test_succession.test_an_owner_that_only_some_hear_is_replaced_if_it_cannot_let_go_of_the_others
    ),
    "a new owner says what it has released itself": (
        test_stream_joining.test_what_the_owner_before_may_have_released_counts_as_released
    ),
    "no other copy is asked for what cannot be read": _a_page_is_mended,
    "a mended page has one batch twice, and another one not at all": _a_page_is_mended,
    "a write that failed counts as one that did not": (
        test_pager.test_trouble_is_said_once_and_its_end_once
    ),
    "a client keeps what is not its own": (
        test_client_consumer.test_what_is_held_and_not_in_flight_any_more_is_dropped_wherever_it_is
    ),
}
"""The others, that only many schedules find: with the test of the rule that each of them breaks."""
BUDGETS = dict.fromkeys(BY_RULE, 400) | {
    "a duplicate is confirmed before its first copy is released": 370,
    "a stale ack is answered well": 470,
    "a requeue by a former holder is accepted": 320,
}
"""Schedules for each of these in the long run: ten times what it took in earlier trials of the
same kind, where there were some; see `docs/simulation.md`."""


def run(profile: Profile, seeds: range) -> Counter[str]:
    """What happened in these schedules. Raises at the first violation, which names its seed."""
    rare: Counter[str] = Counter()
    for seed in seeds:
        try:
            report = ClusterWorld(seed, profile).run()
        except AssertionError as error:
            world = {Profile.PLAIN: "cluster"}.get(profile, f"cluster-{profile}")
            error.add_note(f"replay: python -m tests.simulation --world {world} --seed {seed}")
            raise
        rare += report.rare
        for name in report.messages.__slots__:
            rare[name] += getattr(report.messages, name)
    return rare


def found_within(mistake: str, budget: int, start: int = 0) -> bool:
    profile, mutant = MUTANTS[mistake]
    for seed in range(start, start + budget):
        try:
            with mutant.planted():
                ClusterWorld(seed, profile).run()
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("profile", Profile)
def test_no_schedule_shows_a_client_what_must_not_be(profile: Profile) -> None:
    # Given some schedules of faults, when they have run and everything has healed
    rare = run(profile, range(QUICK[profile]))

    # Then nothing was violated, and there was something to be violated
    assert rare["confirmed"] > 100 * QUICK[profile]
    assert rare["acked"] > 100 * QUICK[profile]
    idle = [name for name in (*ALWAYS, *HAPPENS[profile]) if not rare[name]]
    assert not idle, f"these schedules have not tested the cluster: {idle} never happened"


def test_a_seed_is_a_schedule() -> None:
    first = ClusterWorld(3, Profile.TIGHT).run()

    second = ClusterWorld(3, Profile.TIGHT).run()

    assert second == first


def test_a_copy_that_is_filled_anew_keeps_its_pages_meanwhile() -> None:
    # In this schedule filling takes so long that the node looks which pages are needed still.
    assert ClusterWorld(60_068, Profile.PAGED).run().rare["refilled"]


def test_a_node_that_was_told_to_stop_while_it_was_frozen_is_started_again() -> None:
    # Given a node that is frozen, and told to stop
    world = ClusterWorld(0)
    node = world.nodes["a"]
    node.start()
    node.stop()
    node.feed(Stop())

    # When all heals
    world.heal()
    world.network.run(until=1.0)

    # Then there is a process again, and it is another one
    assert node.core is not None
    assert node.core.me.inc > 1


@pytest.mark.parametrize("mistake", FOUND_SOON)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    assert found_within(mistake, FOUND_SOON[mistake])


@pytest.mark.parametrize("mistake", BY_RULE)
def test_a_mistake_that_schedules_find_late_breaks_a_rule_that_is_tested(mistake: str) -> None:
    _, mutant = MUTANTS[mistake]
    BY_RULE[mistake]()

    with mutant.planted(), pytest.raises(AssertionError):
        BY_RULE[mistake]()


def test_every_mistake_is_looked_for() -> None:
    assert {*FOUND_SOON, *BY_RULE} == {*MUTANTS}


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("profile", Profile)
def test_no_schedule_of_many_shows_what_must_not_be(profile: Profile) -> None:
    assert run(profile, range(10_000, 10_000 + LONG[profile]))["confirmed"] > 0


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_planted_mistake_is_found_in_other_schedules_too(mistake: str) -> None:
    assert found_within(mistake, {**FOUND_SOON, **BUDGETS}[mistake], start=20_000)
