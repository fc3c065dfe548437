"""What a node says of a queue id that its own copy of the catalog does not have."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from broker.core.connection import Connection, State
from broker.core.definitions import Definitions
from broker.core.desks import Desks
from broker.core.events import ClientWrite, Effect
from broker.core.limits import Limits
from broker.core.requests import Requests
from broker.core.status import StatusReport
from broker.core.waiting import WaitingRoom
from replication.core.member import Member
from tanist.wire.control import Error, Message, OpenProducer, Retry, Wait, read_control
from tanist.wire.frames import FRAME_BYTES_MAX, FrameReader

OLD_ID = 1 << 32 | 4


@dataclass
class Owner:
    """Of the catalog, on another node. Whether it hears us is the test's to say."""

    hears: bool = False
    asked: list[int] = field(default_factory=list)

    def ask_released(self, question: int, sid: int, outbox: object) -> bool:
        self.asked += [question] if self.hears else []
        return self.hears


class Bench:
    """A node that owns post office 1, and has a copy of the catalog with nothing in it."""

    def __init__(self, *, seen: tuple[int, int], released: bool = True) -> None:
        desk = SimpleNamespace(stream=SimpleNamespace(held=None, sid=1))
        desks = SimpleNamespace(
            serving=lambda sid: desk, owns_catalog=False, catalog=None, cut_off=False
        )
        catalog = SimpleNamespace(by_id=lambda queue_id: None)
        definitions = SimpleNamespace(catalog=catalog, seen=seen, released=released)
        self.owner = Owner()
        self.waiting = WaitingRoom(3.0)
        # Of each it uses what is here, and nothing else.
        self.requests = Requests(
            member=cast("Member", self.owner),
            desks=cast("Desks", desks),
            definitions=cast("Definitions", definitions),
            waiting=self.waiting,
            limits=Limits(),
            status=cast("StatusReport", None),
        )

    def open(self, known: tuple[int, int]) -> list[Message]:
        connection = Connection(1, 0.0, 0.0, state=State.WELCOME, session=b"s" * 16)
        asked = OpenProducer(
            req=7,
            sid=1,
            queue_id=OLD_ID,
            producer="a" * 32,
            producer_epoch=1,
            lowest_n=1,
            catalog=known,
        )
        outbox: list[Effect] = []
        self.requests.answer(self.waiting.new(connection, 5, asked, 0.0), 0.0, outbox)
        self.waiting.expire(3.0, outbox)
        reader = FrameReader(FRAME_BYTES_MAX)
        written = b"".join(
            bytes(part)
            for effect in outbox
            if isinstance(effect, ClientWrite)
            for part in effect.parts
        )
        return [read_control(frame) for frame in reader.feed(written)]


@pytest.mark.parametrize("known", [(2, 4), (2, 1)])
def test_an_id_that_was_gone_when_the_client_looked_is_not_found_without_the_catalogs_owner(
    known: tuple[int, int],
) -> None:
    # Given a node that cannot reach the catalog's owner, and has as much as the client has seen
    bench = Bench(seen=(2, 4))

    [answer] = bench.open(known)

    assert isinstance(answer, Error)
    assert answer.code == "not_found"


@pytest.mark.parametrize(
    "known",
    [
        pytest.param((2, 5), id="the client has seen more"),
        pytest.param((1, 3), id="the client knows the catalog before it was lost only"),
        pytest.param((0, 0), id="the client does not say"),
    ],
)
def test_else_the_request_waits_for_the_catalogs_owner(known: tuple[int, int]) -> None:
    bench = Bench(seen=(2, 4))
    bench.owner.hears = True

    wait, retry = bench.open(known)

    assert isinstance(wait, Wait)
    assert isinstance(retry, Retry)
    assert len(bench.owner.asked) == 1


def test_what_may_still_be_undone_is_not_told() -> None:
    bench = Bench(seen=(2, 4), released=False)

    wait, retry = bench.open((2, 4))

    assert isinstance(wait, Wait)
    assert isinstance(retry, Retry)
