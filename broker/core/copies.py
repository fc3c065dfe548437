"""The copies of a post office: this node's own, and who else has one."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from broker.core.events import Effect, PeerEffect
from broker.core.post_office import PostOffice
from replication.core.clustermap import incarnation, superseded, wanted
from replication.core.identity import Incarnation
from replication.core.member import Member
from replication.core.stream import Role


class Copy(NamedTuple):
    """One that this node has."""

    office: PostOffice
    gen: int
    epoch: int
    """That it serves or follows; 0: none, so it may have what no other copy has."""
    owned: bool


class Copies(Protocol):
    """What a node knows of the copies of its post offices."""

    def here(self, sid: int) -> Copy | None:
        """This node's copy, if it has one."""

    def others(self, sid: int) -> list[Incarnation]:
        """Who else may have one, the likeliest first."""

    def say(
        self, who: Incarnation, sid: int, gen: int, payload: bytes, outbox: list[Effect]
    ) -> None:
        """Say this to the holder of another copy. It may be lost."""


class MemberCopies:
    """The copies that a member keeps and knows of."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def here(self, sid: int) -> Copy | None:
        stream = self._member.streams.get(sid)
        if stream is None or not isinstance(stream.machine, PostOffice):
            return None
        epoch = 0 if stream.role is Role.VOID else stream.epoch
        return Copy(stream.machine, stream.gen, epoch, stream.role is Role.OWNER)

    def others(self, sid: int) -> list[Incarnation]:
        """The owner, and those in sync with it, unless they are known to be over; then those
        that were in sync, or shall be, if they are linked."""
        member, value = self._member, self._member.map
        if value is None or sid not in value.streams:
            return []
        entry, links = value.streams[sid], member.links
        in_sync = dict.fromkeys((entry.owner, *entry.isr))
        later = (*entry.shed, *(incarnation(value, name) for name in wanted(value, sid)))
        found = [who for who in in_sync if not superseded(value, who) and not links.is_dead(who)]
        found += [who for who in dict.fromkeys(later) if who not in in_sync and links.linked(who)]
        return [who for who in found if who != member.me]

    def say(
        self, who: Incarnation, sid: int, gen: int, payload: bytes, outbox: list[Effect]
    ) -> None:
        peers: list[PeerEffect] = []
        self._member.say_aside(who, sid, gen, payload, peers)
        outbox += peers
