"""Requests: each is answered here, sent to where it is answered, or has to wait.

    serves it ─▶ the desk · another node does ─▶ MOVED · nobody does yet ─▶ WAIT, then RETRY

A definition is looked up in this node's own copy of the catalog. What that does not have may
exist all the same: before `not_found` is said, the catalog's owner is asked how far it is,
and the copy must be there.

Rule: nothing is served from a shadow, nor before the adopted tail of a takeover is applied.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import msgspec

from broker.core.definitions import Definitions
from broker.core.desk import Desk
from broker.core.desks import Desks
from broker.core.events import Effect, Level, Log, PeerEffect
from broker.core.limits import Limits
from broker.core.status import StatusReport
from broker.core.waiting import Waiting, WaitingRoom
from replication.core.changes import DONE
from replication.core.clustermap import CATALOG_SID
from replication.core.member import Member
from replication.core.stream import Stream
from tanist.errors import RemoteProtocolError
from tanist.wire.control import (
    Declare,
    DeclareLost,
    Delete,
    Describe,
    Done,
    Error,
    List,
    Message,
    OpenConsumer,
    OpenProducer,
    Purge,
    Stat,
    Status,
)


class Requests:
    """Answers requests.

    Args:
        waiting: Where those are that cannot be answered yet.
        status: Answers STATUS.
    """

    def __init__(
        self,
        *,
        member: Member,
        desks: Desks,
        definitions: Definitions,
        waiting: WaitingRoom,
        limits: Limits,
        status: StatusReport,
    ) -> None:
        self._member = member
        self._desks = desks
        self._definitions = definitions
        self._waiting = waiting
        self._limits = limits
        self._status = status
        self._questions = count(1)

    def answer(self, waiting: Waiting, now: float, outbox: list[Effect]) -> None:
        """Answer a request, or have it wait."""
        request, connection = waiting.request, waiting.connection
        match request:
            case OpenProducer() | OpenConsumer():
                self._open(waiting, request, now, outbox)
            case Stat() | Purge():
                desk = self._desk(waiting, request.sid, now, outbox)
                if desk is None:
                    return
                if isinstance(request, Stat):
                    desk.stat(connection, request.req, request.queue_id)
                elif request.lost:
                    desk.skip_lost(connection, request.req, request.queue_id)
                else:
                    desk.purge(connection, request.req, request.queue_id)
            case Describe():
                self._describe(waiting, request, now, outbox)
            case List():
                self._list(waiting, request, now, outbox)
            case Declare() | Delete():
                self._define(waiting, request, now, outbox)
            case Status():
                if request.queues:
                    document = self._status.queues(request.after, request.limit)
                else:
                    document = self._status.document(now)
                raw = msgspec.Raw(msgspec.json.encode(document))
                connection.say(Done(req=request.req, status=raw), outbox)
            case DeclareLost():
                self._declare_lost(waiting, request, outbox)
            case _:
                raise RemoteProtocolError(
                    f"{type(request).__name__} is not for a client to say", code="bad_state"
                )

    # At the desks

    def _open(
        self,
        waiting: Waiting,
        request: OpenProducer | OpenConsumer,
        now: float,
        outbox: list[Effect],
    ) -> None:
        connection, number = waiting.connection, waiting.channel
        if number == 0 or number in connection.channels:
            raise RemoteProtocolError(
                f"channel {number} cannot be opened: it is in use", code="bad_state"
            )
        if len(connection.channels) >= self._limits.channels_max:
            most = self._limits.channels_max
            error = Error(
                req=request.req,
                code="limit",
                sentence=f"a connection has at most {most} channels: open another connection",
                value=str(number),
                ends="channel",
            )
            connection.say(error, outbox, number)
            return
        desk = self._desk(waiting, request.sid, now, outbox)
        if desk is None:
            return
        catalog = self._definitions.catalog
        queue = catalog.by_id(request.queue_id) if catalog is not None else None
        if queue is None:
            self._unknown(waiting, f"of id {request.queue_id}", now, outbox)
        else:
            desk.open(connection, number, request, queue, outbox)

    def _define(
        self, waiting: Waiting, request: Declare | Delete, now: float, outbox: list[Effect]
    ) -> None:
        if not self._desks.owns_catalog or self._desks.cut_off:
            self._redirect(waiting, CATALOG_SID, now, outbox)
            return
        desk = self._desks.catalog
        assert desk is not None
        if self._is_held(desk.stream, waiting, outbox):
            return
        known = desk.catalog.by_name(request.queue)
        if known is None and self._definitions.recovering(now):
            # It may exist. Declared now, it would be another one of that name.
            self._recovers(waiting, outbox)
        elif isinstance(request, Declare):
            desk.declare(waiting.connection, request)
        else:
            desk.delete(waiting.connection, request)

    def _desk(self, waiting: Waiting, sid: int, now: float, outbox: list[Effect]) -> Desk | None:
        """The desk that serves this; None: the client was told where it is, or waits."""
        desk = self._desks.serving(sid)
        if desk is None:
            self._redirect(waiting, sid, now, outbox)
            return None
        return None if self._is_held(desk.stream, waiting, outbox) else desk

    def _is_held(self, stream: Stream[Any, Any], waiting: Waiting, outbox: list[Effect]) -> bool:
        """Whether this waits, since its answer could not leave: such would pile up."""
        held = stream.held
        if held is not None:
            self._waiting.put(waiting, sid=stream.sid, why=f"held: {held.why}", outbox=outbox)
        return held is not None

    def _redirect(self, waiting: Waiting, sid: int, now: float, outbox: list[Effect]) -> None:
        value = self._member.map
        if value is not None and value.streams and sid not in value.streams:
            sentence = f"there is no post office {sid}"
            error = Error(
                req=waiting.request.req,
                code="not_found",
                sentence=sentence,
                value=str(sid),
                retryable=True,
                ends="channel" if waiting.channel else "nothing",
            )
            waiting.connection.say(error, outbox, waiting.channel)
        elif self._desks.cut_off or not self._member.owner_is_suspect(sid, now):
            moved = self._desks.moved(sid, waiting.request.req)
            waiting.connection.say(moved, outbox, waiting.channel)
        else:
            self._waiting.put(waiting, sid=sid, why="a takeover is under way", outbox=outbox)

    # By a vote

    def _declare_lost(self, waiting: Waiting, request: DeclareLost, outbox: list[Effect]) -> None:
        """Any node may propose it; the guard of the change decides."""
        connection, sid, gen = waiting.connection, request.sid, request.gen
        value, verdict = self._member.map, waiting.verdict
        entry = value.streams.get(sid) if value is not None else None
        if (entry is not None and entry.gen > gen) or verdict == DONE:
            # Also if it is asked again since the first answer was lost on its way.
            connection.say(Done(req=request.req), outbox)
            return
        if verdict is not None:
            sentence = verdict.removeprefix("refused: ")
            error = Error(req=request.req, code="refused", sentence=sentence, value=str(sid))
            connection.say(error, outbox)
            return
        if waiting.asked is None:
            waiting.asked = next(self._questions)
            self._member.declare_lost(waiting.asked, sid, gen)
            fields: dict[str, object] = {"sid": sid, "gen": gen, "client": connection.client}
            outbox.append(Log(Level.WARNING, "the operator declares a stream lost", fields))
        why = "a majority of the voting nodes must agree"
        self._waiting.put(waiting, sid=sid, why=why, outbox=outbox)

    # From our copy of the catalog

    def _describe(
        self, waiting: Waiting, request: Describe, now: float, outbox: list[Effect]
    ) -> None:
        catalog = self._definitions.catalog
        queue = catalog.by_name(request.queue) if catalog is not None else None
        if queue is None:
            self._unknown(waiting, repr(request.queue), now, outbox)
        else:
            done = Done(req=request.req, queue=queue, catalog=self._definitions.seen)
            self._from_catalog(waiting, done, outbox)

    def _list(self, waiting: Waiting, request: List, now: float, outbox: list[Effect]) -> None:
        definitions = self._definitions
        catalog = definitions.catalog
        if catalog is None or (self._desks.catalog is not None and definitions.recovering(now)):
            self._recovers(waiting, outbox)
            return
        queues, go_on_after = catalog.page(request.after, request.limit)
        done = Done(
            req=request.req, queues=queues, go_on_after=go_on_after, catalog=definitions.seen
        )
        self._from_catalog(waiting, done, outbox)

    def _from_catalog(self, waiting: Waiting, message: Message, outbox: list[Effect]) -> None:
        """Say what our copy says, as soon as everything that it rests on is released."""
        desk = self._desks.catalog
        # The desk is still there when a newer map shows another owner, until it is told to go.
        if desk is not None and self._desks.owns_catalog:
            # It waits behind the log's last op, as long as there are not too many that do.
            if desk.stream.full():
                why = "the catalog waits for copies"
                self._waiting.put(waiting, sid=CATALOG_SID, why=why, outbox=outbox)
            else:
                desk.say(waiting.connection, message, waiting.channel)
        elif self._definitions.released:
            waiting.connection.say(message, outbox, waiting.channel)
        else:
            self._waiting.put(
                waiting, sid=CATALOG_SID, why="the catalog is not released", outbox=outbox
            )

    def _unknown(self, waiting: Waiting, what: str, now: float, outbox: list[Effect]) -> None:
        """Our copy does not have it. Whether it exists is for the catalog's owner to say."""
        error = Error(
            req=waiting.request.req,
            code="not_found",
            sentence=f"there is no queue {what}",
            value=what.strip("'"),
            ends="channel" if waiting.channel else "nothing",
        )
        if self._desks.owns_catalog:
            if self._definitions.recovering(now):
                self._recovers(waiting, outbox)
            else:
                self._from_catalog(waiting, error, outbox)
            return
        if waiting.caught_up is not None and self._definitions.seen >= waiting.caught_up:
            self._from_catalog(waiting, error, outbox)
            return
        if waiting.asked is None and waiting.caught_up is None:
            question = next(self._questions)
            peers: list[PeerEffect] = []
            if self._member.ask_released(question, CATALOG_SID, peers):
                waiting.asked = question
            outbox += peers
        why = "asking the catalog's owner"
        self._waiting.put(waiting, sid=CATALOG_SID, why=why, outbox=outbox)

    def _recovers(self, waiting: Waiting, outbox: list[Effect]) -> None:
        why = "the catalog was lost and is put together again"
        self._waiting.put(waiting, sid=CATALOG_SID, why=why, outbox=outbox)
