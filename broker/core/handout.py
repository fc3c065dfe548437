"""What leaves for clients when the stream says that it may.

Theory of operation
-------------------
Everything a client can see is kept under the number of an op and comes out of the stream
in order, once that op is released. Here it becomes frames. What one release says to one
channel is put together: one CONFIRM, one SETTLED, however many batches and acks it covers
(several SETTLED only if what it says does not fit into a frame).

A delivery needs one thing more (`Stream.may_deliver`): the in-sync set must have answered
lately, or it may follow somebody else by now, who hands out the same message. Such deliveries
wait here, in order, and leave when an answer comes or not at all.

Rules
-----
1. An effect names the instance of a channel. If that is closed by now, it is dropped.
   What answers a request without a channel is never just dropped: see `take_back`.
2. What was said to a channel before is written before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import assert_never

from broker.core.channels import ConsumerChannel, ProducerChannel
from broker.core.connection import Channel, Connection, State
from broker.core.delivery import deliver_payloads
from broker.core.dispatcher import Planned
from broker.core.events import ClientWrite, Effect
from broker.core.post_office import PostOffice
from tanist.wire import hot
from tanist.wire.control import Answer, Message, Opened, Retry
from tanist.wire.frames import CREDIT_BACK, Verb, frame


@dataclass(slots=True, eq=False)
class Say:
    """A control message on a connection, or on one of its channels."""

    to: Connection | Channel
    message: Message
    channel: int = 0


@dataclass(slots=True)
class Confirm:
    """All messages of this producer up to and with `through_n` are safe."""

    channel: ProducerChannel
    through_n: int


@dataclass(slots=True)
class Settle:
    """The answer to the acks and requeues of a leg through `a`."""

    channel: ConsumerChannel
    a: int
    already_done: list[hot.Span]
    not_yours: list[hot.Span]


@dataclass(slots=True)
class Hand:
    """A planned delivery."""

    channel: ConsumerChannel
    planned: Planned


@dataclass(slots=True)
class CreditBack:
    """What was planned for a leg that called its credit back: (messages, bytes)."""

    channel: ConsumerChannel
    messages: int
    bytes: int


Released = Say | Confirm | Settle | Hand | CreditBack


@dataclass(slots=True)
class _Sums:
    """What one release says to one channel, put together."""

    confirm: Confirm | None = None
    settle: Settle | None = None


class Handout:
    """Turns released effects of one stream into frames.

    Args:
        office: Whose messages are handed out; None for the catalog, which has none.
        keep: Keeps an effect until everything appended so far is released.
    """

    def __init__(self, office: PostOffice | None, keep: Callable[[Say], None]) -> None:
        self._office = office
        self._keep = keep
        self._withheld: deque[Hand] = deque()
        self._owed: dict[Say, None] = {}

    @property
    def withheld(self) -> int:
        """Deliveries that wait for the in-sync set to answer."""
        return len(self._withheld)

    def answer(self, connection: Connection, message: Message, channel: int = 0) -> None:
        """Say this when everything appended so far is released. Somebody waits for it, and no
        end of a channel will tell him otherwise."""
        say = Say(connection, message, channel)
        self._owed[say] = None
        self._keep(say)

    def take_back(self, outbox: list[Effect]) -> None:
        """Nothing of this stream is released here any more: whoever waits must ask again."""
        owed, self._owed = self._owed, {}
        for say in owed:
            message, to = say.message, say.to
            asked = isinstance(message, Answer) and message.req
            if asked and isinstance(to, Connection) and to.state is not State.CLOSING:
                to.say(Retry(req=asked, after_ms=0), outbox, say.channel)

    def release(
        self,
        effects: Iterable[Released],
        copies: int,
        may_deliver: Callable[[], bool],
        outbox: list[Effect],
    ) -> list[Channel]:
        """Write what these effects say. `copies`: on how many nodes it is now.

        Returns the channels that are open for their clients from now on.
        """
        answered: list[Channel] = []
        sums: dict[Channel, _Sums] = {}
        for effect in effects:
            match effect:
                case Confirm():
                    if effect.channel.open:
                        sums.setdefault(effect.channel, _Sums()).confirm = effect
                case Hand():
                    self._withheld.append(effect)
                case Settle():
                    if effect.channel.open:
                        self._add(sums.setdefault(effect.channel, _Sums()), effect)
                case CreditBack():
                    if effect.channel.open:
                        self.hand_out(may_deliver, outbox)
                        payload = hot.credit(effect.messages, effect.bytes)
                        outbox.append(
                            ClientWrite(
                                effect.channel.connection.number,
                                frame(
                                    Verb.CREDIT,
                                    effect.channel.number,
                                    payload,
                                    flags=CREDIT_BACK,
                                ),
                            )
                        )
                case Say():
                    self._say(effect, sums, copies, answered, outbox)
                case _:
                    assert_never(effect)
        for channel, said in sums.items():
            self._write_sums(channel, said, copies, outbox)
        self.hand_out(may_deliver, outbox)
        return answered

    def hand_out(self, may_deliver: Callable[[], bool], outbox: list[Effect]) -> None:
        """Write the deliveries that may leave."""
        if not self._withheld or not may_deliver():
            return
        assert self._office is not None
        while self._withheld:
            hand = self._withheld.popleft()
            channel, planned = hand.channel, hand.planned
            if not channel.open:
                continue
            channel.unsent.pop(planned.number, None)
            for parts in deliver_payloads(self._office, planned):
                channel.write(Verb.DELIVER, parts, outbox)

    def _say(
        self,
        effect: Say,
        sums: dict[Channel, _Sums],
        copies: int,
        answered: list[Channel],
        outbox: list[Effect],
    ) -> None:
        to = effect.to
        self._owed.pop(effect, None)
        if isinstance(to, Connection):
            if to.state is not State.CLOSING:
                to.say(effect.message, outbox, effect.channel)
            return
        said = sums.pop(to, None)
        if said is not None:
            self._write_sums(to, said, copies, outbox)
        if to.open:
            to.say(effect.message, outbox)
            if isinstance(effect.message, Opened):
                to.answered = True
                answered.append(to)

    def _write_sums(self, channel: Channel, said: _Sums, copies: int, outbox: list[Effect]) -> None:
        if said.confirm is not None:
            channel.write(Verb.CONFIRM, (hot.confirm(said.confirm.through_n, copies),), outbox)
        if said.settle is not None:
            settle = said.settle
            frames = hot.settled_frames(
                channel.number, settle.a, settle.already_done, settle.not_yours
            )
            outbox.extend(ClientWrite(channel.connection.number, parts) for parts in frames)

    def _add(self, said: _Sums, settle: Settle) -> None:
        if said.settle is None:
            said.settle = settle
        else:
            said.settle.a = settle.a
            said.settle.already_done += settle.already_done
            said.settle.not_yours += settle.not_yours
