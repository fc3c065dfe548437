"""The sizes that both sides of a connection keep to. A node's own are in its configuration."""

from __future__ import annotations

from typing import Final

FRAME_BYTES_MAX: Final = 1 << 20
"""Payload of one frame; a longer one ends the connection with ERROR limit."""
FRAME_BYTES_MAX_BEFORE_WELCOME: Final = 8 << 10
"""The same before WELCOME."""
MESSAGE_BYTES_MAX: Final = FRAME_BYTES_MAX - (4 << 10)
"""Body and properties of one message, until large messages come."""
PROPERTIES_BYTES_MAX: Final = 64 << 10
"""Properties of one message, as JSON."""
COUNT_MAX: Final = 65_535
"""Messages in one batch. A client seals earlier; a larger count is refused."""
BODIES_BYTES_MAX: Final = 64 << 10
"""Bytes of bodies in one batch, unless it holds a single message; more is refused."""
NUMBER_END: Final = 1 << 63
"""Producer sequences, offsets and delivery numbers stay below it, so that they are whole
numbers in every language and no sum of theirs overflows."""
QUEUE_NAME_BYTES_MAX: Final = 255
"""Of a queue's name, as UTF-8."""
CLIENT_NAME_CHARACTERS_MAX: Final = 255
"""Of the name that a client gives itself."""
QUEUES_PAGE_MAX: Final = 1_000
"""Queues in one answer to LIST or STATUS; the next page is asked for by the last name. A frame
holds as many, however long their names are."""
