"""The catalog: the definitions of all queues, stream 0.

Theory of operation
-------------------
It is a replicated state like a post office, followed by all brokers. Only its owner changes
it, one op after the other, so two declarations of a name cannot both be right: the second one
finds the first.

The id of a queue is (gen of the catalog << 32 | running number) and is never given twice. A
queue declared again after it was deleted has another id, so nothing that is still on its way
can end up in the wrong one.

When a catalog was lost, the next gen begins empty and owners of parts have their queues
*adopted*, each with the id that it had. A name may have been taken meanwhile; then the queue
is there as name~id, since no message may become unreachable. An id of an earlier gen that was
deleted after its adoption is remembered, or an owner that comes late would bring it back.

Rules
-----
1. `apply` takes no time, no chance and no setting of this node, and cannot fail for an op
   that admission let through.
2. Equal ids are one queue: the definition that came first stands.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice
from struct import Struct
from typing import Final, Literal

import msgspec
from sortedcontainers import SortedDict

from broker.core.ops import Adopt, CatalogOp, DeclareQueue, DeleteQueue, decode_catalog_op
from tanist.wire.control import QueueInfo, QueueSettings
from tanist.wire.limits import QUEUE_NAME_BYTES_MAX

GEN_SHIFT: Final = 32

_NUMBERS: Final = Struct("<IQII")
_ENTRY: Final = Struct("<I")
_QUEUE_ID: Final = Struct("<Q")
_encode_queue: Final = msgspec.msgpack.Encoder().encode


class Catalog:
    """One copy, on the owner or on a follower. See the module docstring for the rules."""

    def __init__(self, sid: int, gen: int) -> None:
        self.sid = sid
        self.gen = gen
        self._next_number = 1
        self._by_id: dict[int, QueueInfo] = {}
        self._by_name: SortedDict[str, QueueInfo] = SortedDict()
        self._deleted: set[int] = set()  # Of earlier gens only: of this one, numbers tell.

    def __len__(self) -> int:
        return len(self._by_id)

    # The state machine

    @staticmethod
    def decode(kind: int, data: bytes, start: int, end: int) -> CatalogOp:
        """The op of a record. Raises `RemoteProtocolError` for a kind of a newer version."""
        return decode_catalog_op(kind, data, start, end)

    def apply(self, op: CatalogOp) -> QueueInfo | None:
        """Make the change, which admission has found possible.

        Says how the queue stands now, after a delete how it stood. None: a queue that was
        deleted is not adopted.
        """
        match op:
            case DeclareQueue():
                return self._declare(op.queue)
            case Adopt():
                return self._adopt(op.queue)
            case DeleteQueue():
                return self._delete(op.queue_id)

    def _declare(self, queue: QueueInfo) -> QueueInfo:
        assert queue.id == self.gen << GEN_SHIFT | self._next_number
        assert queue.name not in self._by_name
        self._next_number += 1
        return self._put(queue)

    def _adopt(self, queue: QueueInfo) -> QueueInfo | None:
        if queue.id in self._by_id:
            return self._by_id[queue.id]
        if self.was_deleted(queue.id):
            return None
        assert queue.id >> GEN_SHIFT < self.gen
        name, suffix = queue.name, f"~{queue.id}"
        while name in self._by_name:
            cut = queue.name.encode()[: QUEUE_NAME_BYTES_MAX - len(suffix)]
            name = cut.decode(errors="ignore") + suffix
            suffix += "~"  # Somebody may have chosen that very name.
        return self._put(msgspec.structs.replace(queue, name=name))

    def _put(self, queue: QueueInfo) -> QueueInfo:
        self._by_id[queue.id] = queue
        self._by_name[queue.name] = queue
        return queue

    def _delete(self, queue_id: int) -> QueueInfo:
        queue = self._by_id.pop(queue_id)
        del self._by_name[queue.name]
        if queue_id >> GEN_SHIFT != self.gen:
            self._deleted.add(queue_id)
        return queue

    def digest(self) -> bytes:
        """16 bytes that are equal on all copies that applied the same ops. `O(state)`."""
        numbers = (self.sid, self.gen, self._next_number, len(self._by_id))
        digest = blake2b(_NUMBERS.pack(*numbers), digest_size=16)
        for queue in self.queues():
            encoded = _encode_queue(queue)
            digest.update(_ENTRY.pack(len(encoded)))
            digest.update(encoded)
        for queue_id in sorted(self._deleted):
            digest.update(_QUEUE_ID.pack(queue_id))
        return digest.digest()

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(queues)`."""
        assert self._by_name == {queue.name: queue for queue in self._by_id.values()}
        assert self._by_id == {queue.id: queue for queue in self._by_name.values()}
        assert not self._deleted & self._by_id.keys()
        for queue_id in self._by_id:
            assert queue_id < self._next_id(), "an id that will be given again"
        assert all(queue_id >> GEN_SHIFT != self.gen for queue_id in self._deleted)

    # Questions

    def admit_declare(
        self, name: str, settings: QueueSettings, spread: Literal["every", "one"], sid: int
    ) -> QueueInfo | Literal["exists_differently"] | int:
        """The queue, if it is there already; why it cannot be declared; or the id it will have.

        Where a queue with spread one is does not make it another one: `sid` is the place that
        whoever declares would have chosen, and it stays in the place that was chosen first.
        """
        queue = self._by_name.get(name)
        if queue is None:
            return self._next_id()
        if (queue.settings, queue.spread) != (settings, spread):
            return "exists_differently"
        return queue

    def by_name(self, name: str) -> QueueInfo | None:
        return self._by_name.get(name)

    def by_id(self, queue_id: int) -> QueueInfo | None:
        return self._by_id.get(queue_id)

    def queues(self) -> list[QueueInfo]:
        """All queues, by id."""
        return [queue for _, queue in sorted(self._by_id.items())]

    def page(self, after: str, most: int) -> tuple[list[QueueInfo], str]:
        """The queues whose names follow `after`, by name; and that of the last one, if there are
        more. `O(most)`, however many there are."""
        names = self._by_name.irange(minimum=after, inclusive=(False, True))
        found = [self._by_name[name] for name in islice(names, most + 1)]
        page = found[:most]
        return page, page[-1].name if len(found) > most else ""

    def was_deleted(self, queue_id: int) -> bool:
        """Whether this queue was here once and is gone for good.

        An id that is merely unknown is not: it may be one of a gen that was lost, which nobody
        has adopted yet, or one that this copy has not heard of yet.
        """
        if queue_id in self._by_id:
            return False
        gen, number = queue_id >> GEN_SHIFT, queue_id & (1 << GEN_SHIFT) - 1
        return queue_id in self._deleted or (gen == self.gen and number < self._next_number)

    def _next_id(self) -> int:
        return self.gen << GEN_SHIFT | self._next_number
