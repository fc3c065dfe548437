"""Where queues are declared and deleted: the owner's side of the catalog.

Definitions change here only, one after the other, and are answered when they are released.
Asking for them is everybody's: each broker follows the catalog and answers from its copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker.core.catalog import Catalog
from broker.core.connection import Connection
from broker.core.events import Effect
from broker.core.handout import Handout, Released
from broker.core.limits import Limits
from broker.core.ops import Adopt, CatalogOp, DeclareQueue, DeleteQueue
from replication.core.stream import Stream
from tanist.wire.control import Declare, Delete, Done, Error, Message, QueueInfo


class CatalogDesk:
    """The catalog, at the node that owns it."""

    def __init__(
        self, *, stream: Stream[CatalogOp, object], catalog: Catalog, limits: Limits
    ) -> None:
        self.stream = stream
        self.catalog = catalog
        self._limits = limits
        self._handout = Handout(None, stream.answer)

    def declare(self, connection: Connection, asked: Declare) -> None:
        """DECLARE: idempotent; a queue that exists otherwise is an error."""
        info = self.add(asked)
        message: Message
        if isinstance(info, QueueInfo):
            message = Done(req=asked.req, queue=info, catalog=self.known())
        else:
            message = msgspec.structs.replace(info, req=asked.req)
        self.say(connection, message)

    def add(self, asked: Declare) -> QueueInfo | Error:
        """The queue as it is now, made if need be; or why it cannot be."""
        sid = asked.at if asked.spread == "one" else 0
        verdict = self.catalog.admit_declare(asked.queue, asked.settings, asked.spread, sid)
        if isinstance(verdict, QueueInfo):
            return verdict
        if verdict == "exists_differently":
            return Error(
                code="exists_differently",
                sentence=f"queue {asked.queue!r} exists with other settings or another spread",
                value=asked.queue,
            )
        if len(self.catalog) >= self._limits.queues_max:
            most = self._limits.queues_max
            return Error(
                code="limit",
                sentence=f"there are {most} queues, and no more are allowed: delete one",
                value=asked.queue,
            )
        queue = QueueInfo(
            id=verdict, name=asked.queue, spread=asked.spread, sid=sid, settings=asked.settings
        )
        self.stream.append(DeclareQueue(queue))
        return queue

    def delete(self, connection: Connection, asked: Delete) -> None:
        queue = self.catalog.by_name(asked.queue)
        if queue is None:
            sentence = f"there is no queue {asked.queue!r}"
            error = Error(req=asked.req, code="not_found", sentence=sentence, value=asked.queue)
            self.say(connection, error)
            return
        self.stream.append(DeleteQueue(queue.id))
        self.say(connection, Done(req=asked.req, queue=queue, catalog=self.known()))

    def adopt(self, queues: Sequence[QueueInfo]) -> None:
        """An owner has parts of these: after a loss of the catalog they are queues again."""
        for queue in queues:
            if self.catalog.by_id(queue.id) is None and not self.catalog.was_deleted(queue.id):
                self.stream.append(Adopt(queue))

    def known(self) -> tuple[int, int]:
        """(gen, seq) of the last op: what a copy must have to know all that was answered."""
        return (self.stream.gen, self.stream.log_end - 1)

    def say(self, connection: Connection, message: Message, channel: int = 0) -> None:
        """An answer that leaves when everything appended so far is released."""
        self._handout.answer(connection, message, channel)

    def leave(self, outbox: list[Effect]) -> None:
        """This node owns the catalog no more."""
        self._handout.take_back(outbox)

    def released(self, effects: list[Released], outbox: list[Effect]) -> None:
        self._handout.release(effects, self.stream.copies, lambda: True, outbox)
