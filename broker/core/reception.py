"""What clients say: each frame is checked, and brought to where it is answered.

Rules
-----
1. Every frame is checked against the connection's state first; an error in form ends the
   connection, after one ERROR, and nothing else.
2. A frame for a channel that this node has closed is dropped: it was on its way.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.core.channels import ConsumerChannel, ProducerChannel
from broker.core.connection import Connection, State
from broker.core.desks import Desks
from broker.core.events import ClientData, Effect, Level, Log
from broker.core.lobby import Lobby
from broker.core.requests import Requests
from broker.core.waiting import WaitingRoom
from replication.core.stream import ApplyFailed
from tanist.errors import RemoteProtocolError
from tanist.wire.control import Close, Closed, Error, Hello, Ping, Pong, Request, read_control
from tanist.wire.frames import CREDIT_BACK, Frame, Verb


class Reception:
    """Reads what comes from the clients in the lobby."""

    def __init__(
        self, *, lobby: Lobby, desks: Desks, waiting: WaitingRoom, requests: Requests
    ) -> None:
        self._lobby = lobby
        self._desks = desks
        self._waiting = waiting
        self._requests = requests

    def received(self, event: ClientData, now: float, outbox: list[Effect]) -> None:
        connection = self._lobby.get(event.connection)
        if connection is None or connection.state is State.CLOSING:
            return
        connection.heard_at = now
        self._desks.heard(now)
        self._guarded(
            connection,
            lambda: self._frames(connection, event.data, now, outbox),
            outbox,
        )

    def lost(self, number: int, now: float) -> None:
        """A client's connection is gone."""
        connection = self._lobby.lost(number)
        if connection is not None:
            for channel in list(connection.channels.values()):
                self._desks.offices[channel.sid].lost(channel, now)

    def try_again(self, now: float, outbox: list[Effect]) -> None:
        """Something changed that may help the requests that wait."""
        if len(self._waiting):
            self._waiting.try_again(
                lambda waiting: self._guarded(
                    waiting.connection, lambda: self._requests.answer(waiting, now, outbox), outbox
                )
            )

    def stop(self, outbox: list[Effect]) -> None:
        """Send everybody to other nodes."""
        sentence = "this node is being stopped: go to another one"
        for connection in self._lobby:
            connection.end(
                Error(code="shutting_down", sentence=sentence, retryable=True, ends="connection"),
                outbox,
            )

    def _guarded(
        self, connection: Connection, step: Callable[[], None], outbox: list[Effect]
    ) -> None:
        """What a client says may end its connection, and nothing else."""
        try:
            step()
        except ApplyFailed:
            # The stream says the rest when it is sealed: this node ends, and a peer takes over.
            sentence = "this node has a bug that your request met: another node takes over"
            connection.end(Error(code="internal", sentence=sentence, ends="connection"), outbox)
        except RemoteProtocolError as error:
            outbox.append(
                Log(
                    Level.WARNING,
                    "a client broke the protocol: its connection is closed",
                    {"client": connection.client, "why": str(error)},
                )
            )
            message = Error(
                code=error.code, sentence=str(error), value=error.value, ends="connection"
            )
            connection.end(message, outbox)

    def _frames(
        self, connection: Connection, data: bytes, now: float, outbox: list[Effect]
    ) -> None:
        for frame in connection.reader.feed(data):
            connection.check_allowed(frame.verb)
            if frame.verb >= Verb.PUBLISH:
                self._hot(connection, frame)
            else:
                self._control(connection, frame, now, outbox)

    def _control(
        self, connection: Connection, frame: Frame, now: float, outbox: list[Effect]
    ) -> None:
        lobby = self._lobby
        message = read_control(frame)
        match message:
            case Hello():
                lobby.hello(connection, message, outbox)
            case Ping():
                lobby.shown(connection, message.topology, outbox)
                known = (lobby.topology.ver, lobby.topology.hash)
                connection.say(Pong(time_ms=message.time_ms, topology=known), outbox)
            case Pong():
                lobby.shown(connection, message.topology, outbox)
            case Close():
                self._close(connection, frame.channel, message, outbox)
            case Request():
                lobby.shown(connection, message.topology, outbox)
                waiting = self._waiting.new(connection, frame.channel, message, now)
                self._requests.answer(waiting, now, outbox)
            case _:
                raise RemoteProtocolError(
                    f"{Verb(frame.verb).name} is not for a client to say", code="bad_state"
                )

    def _hot(self, connection: Connection, frame: Frame) -> None:
        channel = connection.channels.get(frame.channel)
        if channel is None:
            return  # Closed by us while this was on its way.
        if not channel.answered:
            raise RemoteProtocolError(
                f"{Verb(frame.verb).name} came on channel {frame.channel} before OPENED",
                code="bad_state",
            )
        desk = self._desks.offices[channel.sid]
        match frame.verb:
            case Verb.PUBLISH if isinstance(channel, ProducerChannel):
                desk.producers.publish(channel, frame.payload)
            case Verb.ACK | Verb.REQUEUE if isinstance(channel, ConsumerChannel):
                desk.holdings.settle(channel, frame.verb, frame.payload)
            case Verb.CREDIT if isinstance(channel, ConsumerChannel):
                back = bool(frame.flags & CREDIT_BACK)
                desk.consumers.credit(channel, frame.payload, back=back)
            case _:
                name = Verb(frame.verb).name
                raise RemoteProtocolError(
                    f"{name} does not belong on channel {frame.channel}", code="bad_state"
                )

    def _close(
        self, connection: Connection, number: int, message: Close, outbox: list[Effect]
    ) -> None:
        if number == 0:
            for each in list(connection.channels.values()):
                self._desks.offices[each.sid].close(each, 0)
            connection.say(Closed(req=message.req), outbox)
            connection.close(outbox)
            return
        self._waiting.drop(connection, number)
        channel = connection.channels.get(number)
        if channel is None:
            connection.say(Closed(req=message.req), outbox, number)
        else:
            self._desks.offices[channel.sid].close(channel, message.req)
