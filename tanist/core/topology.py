"""What a client knows of the cluster: nodes, streams, and where the owner of each stream is.

Two sources: the topology, of which the highest `ver` counts, and the answers MOVED and
OPENED, which may be ahead of it. For each stream the highest (gen, epoch) counts, whoever
told it: what a deposed owner says late moves nobody back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tanist.wire.control import Moved, Topology, Ver

CATALOG_SID = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stream is served, as far as we know."""

    gen: int
    epoch: int
    locators: tuple[str, ...]
    node: str = ""
    """Its name; empty if only its locators are known."""

    @property
    def life(self) -> tuple[int, int]:
        return (self.gen, self.epoch)


class KnownTopology:
    """Never goes back, per cluster map and per stream."""

    def __init__(self) -> None:
        self._topology = Topology(ver=0, hash="", nodes={}, streams={})
        self._places: dict[int, Place] = {}

    @property
    def ver(self) -> Ver | None:
        """What requests carry; None: nothing is known yet."""
        known = self._topology
        return (known.ver, known.hash) if known.hash else None

    @property
    def nodes(self) -> dict[str, list[str]]:
        return self._topology.nodes

    @property
    def offices(self) -> list[int]:
        """The sids of all post offices."""
        return [sid for sid in self._topology.streams if sid != CATALOG_SID]

    @property
    def catalog_gen(self) -> int:
        place = self._places.get(CATALOG_SID)
        return place.gen if place is not None else 0

    def place(self, sid: int) -> Place | None:
        return self._places.get(sid)

    def node_at(self, locator: str) -> str:
        """The name of the node that has this locator; empty if it is not known."""
        for name, locators in self._topology.nodes.items():
            if locator in locators:
                return name
        return ""

    def learn(self, told: Topology) -> bool:
        """Whether this is news. Equal versions with another hash are: the newer word counts."""
        known = self._topology
        if told.ver < known.ver or (told.ver, told.hash) == (known.ver, known.hash):
            return False
        self._topology = told
        for sid, where in told.streams.items():
            locators = tuple(told.nodes.get(where.owner, ()))
            self._learn_place(sid, Place(where.gen, where.epoch, locators, where.owner))
        for sid in [sid for sid in self._places if sid not in told.streams]:
            del self._places[sid]
        return True

    def moved(self, told: Moved) -> bool:
        """Whether MOVED names an owner at least as new as the one that we know."""
        if not told.locators:
            return False
        place = Place(told.gen, told.epoch, tuple(told.locators), self._name_of(told.locators))
        return self._learn_place(told.sid, place)

    def opened(self, sid: int, gen: int, epoch: int, locator: str, node: str) -> bool:
        """Whether an owner that says OPENED is at least as new as the one that we know."""
        locators = tuple(self._topology.nodes.get(node, ())) or (locator,)
        return self._learn_place(sid, Place(gen, epoch, locators, node))

    def _learn_place(self, sid: int, place: Place) -> bool:
        known = self._places.get(sid)
        if known is not None and place.life < known.life:
            return False
        self._places[sid] = place
        return True

    def _name_of(self, locators: Sequence[str]) -> str:
        return next((name for name in map(self.node_at, locators) if name), "")
