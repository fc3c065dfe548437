"""One vote: what it promises, what it stores, and when it may say so."""

from __future__ import annotations

import pytest

from replication.core.acceptor import (
    WAITING_MAX,
    Acceptor,
    Vote,
    decode_vote,
    encode_vote,
)
from replication.core.envelope import AcceptorId
from replication.core.identity import NO_BALLOT, Ballot, Incarnation
from replication.core.register_effects import Effect, Note, Persist, Send
from replication.core.register_messages import (
    Accept,
    Accepted,
    Init,
    InitAck,
    Nack,
    Prepare,
    Promise,
    RegisterMessage,
    decode_message,
    encode_message,
)
from tanist.errors import ConfigError, RemoteProtocolError

ME = 7


def ballot(round_: int, node: str = "p") -> Ballot:
    return Ballot(round_, Incarnation(node, 1))


def prepare(round_: int, *, cluster_id: str = "c/1", acc_inc: int = ME) -> Prepare:
    return Prepare(cluster_id=cluster_id, acc_inc=acc_inc, ballot=ballot(round_))


def accept(round_: int, value: bytes) -> Accept:
    return Accept(cluster_id="c/1", acc_inc=ME, ballot=ballot(round_), value=value)


def an_init(*, cluster_id: str = "c/1", acc_inc: int = ME, value: bytes = b"zero") -> Init:
    return Init(cluster_id=cluster_id, incs=(AcceptorId("a", acc_inc),), value=value)


def an_acceptor(
    *, promised: Ballot = NO_BALLOT, accepted: Ballot = NO_BALLOT, value: bytes = b"zero"
) -> Acceptor:
    vote = Vote(cluster_id="c/1", acc_inc=ME, promised=promised, accepted=accepted, value=value)
    return Acceptor("a", vote, durable=True)


def told(acceptor: Acceptor, message: Init | Prepare | Accept) -> list[Effect]:
    outbox: list[Effect] = []
    acceptor.handle("p", message, outbox)
    return outbox


def answer(acceptor: Acceptor, message: Init | Prepare | Accept) -> RegisterMessage:
    """The answer once everything is durable."""
    outbox = told(acceptor, message)
    for effect in list(outbox):
        if isinstance(effect, Persist):
            acceptor.persisted(effect.token, outbox)
    (reply,) = [effect.message for effect in outbox if isinstance(effect, Send)]
    return reply


def test_a_promise_shows_what_was_accepted() -> None:
    acceptor = an_acceptor(promised=ballot(3), accepted=ballot(3), value=b"three")

    reply = answer(acceptor, prepare(5))

    assert reply == Promise(
        cluster_id="c/1", acc_inc=ME, ballot=ballot(5), accepted=ballot(3), value=b"three"
    )


@pytest.mark.parametrize("round_", [4, 5])
def test_a_ballot_that_is_not_above_the_promise_is_refused_even_if_equal(round_: int) -> None:
    acceptor = an_acceptor(promised=ballot(5))

    reply = answer(acceptor, prepare(round_))

    assert reply == Nack(cluster_id="c/1", acc_inc=ME, ballot=ballot(round_), beat=ballot(5))


def test_an_accept_below_the_promise_is_refused() -> None:
    acceptor = an_acceptor(promised=ballot(5))

    reply = answer(acceptor, accept(4, b"four"))

    assert isinstance(reply, Nack)
    assert acceptor.vote.value == b"zero"


def test_an_accept_raises_the_promise_so_that_an_older_one_comes_too_late() -> None:
    # Given an acceptor that missed the prepare round of ballot 6
    acceptor = an_acceptor(promised=ballot(4))

    # When its accept comes all the same
    reply = answer(acceptor, accept(6, b"six"))

    # Then it is stored, and ballot 5 can neither prepare nor accept any more
    assert isinstance(reply, Accepted)
    assert isinstance(answer(acceptor, prepare(5)), Nack)
    assert isinstance(answer(acceptor, accept(5, b"five")), Nack)
    assert acceptor.vote.value == b"six"


def test_a_repeated_accept_is_confirmed_and_not_written_again() -> None:
    acceptor = an_acceptor()
    answer(acceptor, accept(5, b"five"))

    outbox = told(acceptor, accept(5, b"five"))

    reply = Accepted(cluster_id="c/1", acc_inc=ME, ballot=ballot(5))
    assert outbox == [Send("p", reply)]


def test_a_second_value_under_the_same_ballot_is_refused() -> None:
    acceptor = an_acceptor()
    answer(acceptor, accept(5, b"five"))

    reply = answer(acceptor, accept(5, b"another"))

    assert isinstance(reply, Nack)
    assert acceptor.vote.value == b"five"


@pytest.mark.parametrize("message", [prepare(5), accept(5, b"five"), prepare(1)])
def test_nothing_is_answered_before_the_vote_is_durable(message: Prepare | Accept) -> None:
    # Given a vote that is still being written
    acceptor = an_acceptor()
    first = told(acceptor, prepare(2))
    assert [type(effect) for effect in first] == [Persist]

    # When something else is asked, even if it will be refused
    second = told(acceptor, message)

    # Then all answers wait, and leave in order with the last write
    assert not [effect for effect in second if isinstance(effect, Send)]
    outbox: list[Effect] = []
    acceptor.persisted(2, outbox)
    assert len(outbox) == 2


def test_an_answer_does_not_wait_for_writes_after_its_own() -> None:
    acceptor = an_acceptor()
    told(acceptor, prepare(2))
    told(acceptor, prepare(3))
    outbox: list[Effect] = []

    acceptor.persisted(1, outbox)

    (sent,) = outbox
    assert isinstance(sent, Send)
    assert isinstance(sent.message, Promise)
    assert sent.message.ballot == ballot(2)


def test_what_was_promised_is_known_after_a_restart() -> None:
    # Given a promise that was written
    (write,) = told(an_acceptor(), prepare(5))
    assert isinstance(write, Persist)

    # When the node starts with that file
    acceptor = Acceptor("a", decode_vote(write.blob), durable=True)

    # Then the promise holds
    assert isinstance(answer(acceptor, prepare(5)), Nack)


def test_a_disk_that_never_answers_does_not_fill_the_memory() -> None:
    acceptor = an_acceptor()
    for round_ in range(1, 3 * WAITING_MAX):
        told(acceptor, prepare(round_))
    outbox: list[Effect] = []

    acceptor.persisted(10 * WAITING_MAX, outbox)

    assert len(outbox) == WAITING_MAX


@pytest.mark.parametrize("message", [prepare(5, cluster_id="other/1"), prepare(5, acc_inc=ME + 1)])
def test_what_is_meant_for_another_acceptor_is_dropped(message: Prepare) -> None:
    acceptor = an_acceptor()

    (note,) = told(acceptor, message)

    assert isinstance(note, Note)
    assert acceptor.vote.promised == NO_BALLOT


def test_an_uninitialised_acceptor_votes_nowhere() -> None:
    acceptor = Acceptor("a", Vote(acc_inc=ME), durable=False)

    outbox = told(acceptor, prepare(1, cluster_id=""))

    assert [type(effect) for effect in outbox] == [Note]


def test_an_identity_is_durable_before_it_is_named() -> None:
    acceptor = Acceptor("a", Vote(acc_inc=ME), durable=False)
    outbox: list[Effect] = []

    acceptor.answer("p", InitAck(cluster_id="", acc_inc=ME), outbox)

    (write,) = outbox
    assert isinstance(write, Persist)
    assert decode_vote(write.blob).acc_inc == ME


def test_init_makes_an_acceptor_of_version_0_under_ballot_0() -> None:
    acceptor = Acceptor("a", Vote(acc_inc=ME), durable=True)

    reply = answer(acceptor, an_init())

    assert reply == InitAck(cluster_id="c/1", acc_inc=ME)
    assert acceptor.vote == Vote(cluster_id="c/1", acc_inc=ME, value=b"zero")


def test_a_repeated_init_undoes_nothing() -> None:
    acceptor = an_acceptor(promised=ballot(5), accepted=ballot(4), value=b"four")

    reply = answer(acceptor, an_init())

    assert isinstance(reply, InitAck)
    assert (acceptor.vote.promised, acceptor.vote.value) == (ballot(5), b"four")


@pytest.mark.parametrize(
    ("acceptor", "message"),
    [
        (an_acceptor(), an_init(cluster_id="c/2")),
        (Acceptor("a", Vote(acc_inc=ME), durable=True), an_init(acc_inc=ME + 1)),
    ],
    ids=["of another cluster", "for a former life"],
)
def test_an_init_with_other_content_is_refused(acceptor: Acceptor, message: Init) -> None:
    vote = acceptor.vote

    outbox = told(acceptor, message)

    assert [type(effect) for effect in outbox] == [Note]
    assert acceptor.vote == vote


def test_a_saved_vote_that_cannot_be_read_says_what_to_do() -> None:
    blob = encode_vote(Vote(acc_inc=ME))

    with pytest.raises(ConfigError, match="another version"):
        decode_vote(blob[:-1])


@pytest.mark.parametrize(
    "data", [b"", encode_message(prepare(5))[:-1], encode_message(prepare(1 << 62))]
)
def test_what_is_no_message_is_the_senders_fault(data: bytes) -> None:
    assert decode_message(encode_message(prepare(5))) == prepare(5)

    with pytest.raises(RemoteProtocolError):
        decode_message(data)
