"""What nodes say to each other besides their streams: the bytes of each message."""

from __future__ import annotations

import pytest

from replication.core.identity import Incarnation
from replication.core.peer_messages import (
    Aside,
    Ask,
    Forward,
    Heard,
    Heartbeat,
    PeerHello,
    PeerMessage,
    PeerVerb,
    ReleasedAt,
    ReleasedIs,
    peer_frame,
    read_peer_message,
)
from tanist.errors import RemoteProtocolError
from tanist.wire.frames import FRAME

WHO = Incarnation("a", 7)

GOLDEN: list[tuple[PeerMessage, str]] = [
    (PeerHello("c", "s", "i", WHO, (1, 2)), "95a163a173a16992a16107920102"),
    (Heartbeat(1, 2, 3), "93010203"),
    (Ask(WHO), "9192a16107"),
    (Heard(WHO, True), "9292a16107c3"),
    (ReleasedAt(1, 2), "920102"),
    (ReleasedIs(1, 2, 3, False), "94010203c2"),
    (Forward(1, b"xy"), "9201c4027879"),
    (Aside(1, 2, b"xy"), "930102c4027879"),
]


@pytest.mark.parametrize(("message", "payload"), GOLDEN, ids=lambda it: type(it).__name__)
def test_a_message_has_its_golden_bytes(message: PeerMessage, payload: str) -> None:
    # Given the bytes that stand for ever; when the message is written
    header, written = peer_frame(message)

    # Then it has these bytes, and they are read as that message
    size, verb, _, _ = FRAME.unpack(header)
    assert (size, bytes(written).hex()) == (len(written), payload)
    assert read_peer_message(verb, bytes(written)) == message


def test_every_message_is_tested_here() -> None:
    # Given the messages above; when their frames' types are collected
    verbs = {FRAME.unpack(peer_frame(message)[0])[1] for message, _ in GOLDEN}

    # Then none is missing but those of register and streams
    assert verbs == set(PeerVerb) - {PeerVerb.REGISTER, PeerVerb.STREAM}


def test_a_message_of_another_form_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        read_peer_message(PeerVerb.ASIDE, bytes.fromhex("9201c4027879"))
