from __future__ import annotations

from hypothesis import given, strategies as st

from replication.core.history import Entry, History, begun, check_history, common_point

FIRST = Entry(1, 1, 0)


@st.composite
def forks(draw: st.DrawFn) -> tuple[History, int, History, int, int]:
    """Two logs that parted at a known op: each went on in epochs that the other never saw."""
    parted = draw(st.integers(1, 50))
    shared = [FIRST, *(Entry(e, s, s) for e, s in [(2, 10), (3, 20)] if s < parted)]
    mine_more = draw(st.integers(0, 20))
    theirs_more = draw(st.integers(0, 20))
    mine, theirs = tuple(shared), (*shared, Entry(9, parted, 5))
    if draw(st.booleans()):
        mine = (*mine, Entry(8, parted, 5))
    return mine, parted + mine_more, theirs, parted + theirs_more, parted


@given(forks())
def test_two_logs_are_common_below_where_they_parted(
    fork: tuple[History, int, History, int, int],
) -> None:
    mine, my_end, theirs, their_end, parted = fork

    common = common_point(mine, my_end, theirs, their_end)

    assert common == parted
    assert common == common_point(theirs, their_end, mine, my_end)


def test_a_copy_that_only_lags_has_all_of_it_in_common() -> None:
    history = (FIRST, Entry(2, 30, 7))

    assert common_point(history, 12, history, 40) == 12


def test_a_newcomer_has_nothing_to_lose() -> None:
    assert common_point((), 1, (FIRST,), 90) == 1


def test_who_becomes_owner_forgets_epochs_that_left_nothing_in_its_log() -> None:
    # Given a copy that was told of epoch 2, which began at op 91, but has ops up to 49 only
    history = (FIRST, Entry(2, 91, 7))

    # When it goes on in epoch 3
    after = begun(history, epoch=3, log_end=50, chain=9)

    # Then epoch 2 is not in its history: it would say that ops from 50 to 90 are of epoch 1
    assert after == (FIRST, Entry(3, 50, 9))
    check_history(after)


def test_an_entry_at_the_very_end_left_nothing_either() -> None:
    assert begun((FIRST, Entry(2, 50, 7)), epoch=3, log_end=50, chain=7) == (
        FIRST,
        Entry(3, 50, 7),
    )


def test_the_third_owner_cuts_where_the_second_one_began() -> None:
    # Given A, deposed, whose log of epoch 1 ends at 91; B took over at 50 in epoch 2, and
    # died; C, which had followed B to 60, took over in epoch 3
    a: History = (FIRST,)
    c = begun((FIRST, Entry(2, 50, 7)), epoch=3, log_end=60, chain=9)

    # When A compares itself with C
    common = common_point(a, 91, c, 65)

    # Then what it has of epoch 1 beyond B's beginning goes
    assert common == 50
