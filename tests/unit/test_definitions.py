"""What a node tells the owner of the catalog."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from broker.core.catalog import Catalog
from broker.core.definitions import PARTS_TOLD_MAX, Definitions, Told
from broker.core.desks import Desks
from broker.core.events import Effect
from replication.core.member import Member
from replication.core.peer_messages import PEER_FRAME_BYTES_MAX
from tanist.wire.control import QueueInfo
from tanist.wire.limits import QUEUE_NAME_BYTES_MAX

LONGEST = '"' * (QUEUE_NAME_BYTES_MAX - 5)


@dataclass
class FakeStream:
    """The copy of a catalog that began anew, empty."""

    machine: Catalog
    gen: int = 2
    applied: int = 0
    heard_release: int = 0


@dataclass
class FakeMember:
    """A member that follows the catalog, and keeps what it is to forward."""

    streams: dict[int, FakeStream]
    map: None = None
    reticent: set[int] = field(default_factory=set)
    forwarded: list[bytes] = field(default_factory=list)

    def forward(self, sid: int, payload: bytes, outbox: list[object]) -> bool:
        self.forwarded.append(payload)
        return True


@dataclass
class FakeDesk:
    """A desk with these queues."""

    infos: list[QueueInfo]

    def queues(self) -> list[QueueInfo]:
        return self.infos


@dataclass
class FakeDesks:
    offices: dict[int, FakeDesk]
    catalog: None = None


def test_any_number_of_parts_reaches_the_owner_of_a_catalog_that_was_lost() -> None:
    # Given a node that has parts of more queues than a frame could name
    infos = [QueueInfo(id=1 << 32 | n, name=f"{n:05}{LONGEST}") for n in range(1, 25_001)]
    member = FakeMember({0: FakeStream(Catalog(0, 2))})
    # They are asked for what the fakes have, and nothing else.
    desks = cast(Desks, cast(Any, FakeDesks({3: FakeDesk(infos)})))
    definitions = Definitions(cast(Member, cast(Any, member)), desks, declared=())
    outbox: list[Effect] = []
    assert definitions.advanced(0.0)

    # When it tells the owner of the new catalog
    definitions.sweep(1.0, outbox)
    told = [msgspec.msgpack.decode(payload, type=Told) for payload in member.forwarded]

    # Then all are named, in frames that can be read, and only the last says that this was all
    assert all(len(payload) < PEER_FRAME_BYTES_MAX for payload in member.forwarded)
    assert [queue.id for each in told for queue in each.parts] == [queue.id for queue in infos]
    assert [each.served for each in told] == [[]] * (25_000 // PARTS_TOLD_MAX - 1) + [[3]]
