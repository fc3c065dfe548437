"""The Tanist client: what applications import. It needs nothing of the broker.

    async with tanist.connect("tanist://127.0.0.1") as client:
        await client.declare("orders")
        async with client.producer("orders") as producer:
            await producer.send(b"hello")
        async with client.consumer("orders") as consumer:
            async for message in consumer:
                consumer.ack(message)

The same without asyncio: `import tanist.blocking`, and `tanist.blocking.connect`.
"""

from tanist.client import Client, Listener, QueueStat, connect
from tanist.consumer import Consumer
from tanist.core.leg import Stale
from tanist.core.producer import Confirmed
from tanist.errors import (
    BrokenError,
    ClosedError,
    ConfigError,
    Error,
    FailoverTimeout,
    LocalProtocolError,
    OverloadedError,
    ProtocolError,
    QueueExistsDifferently,
    QueueNotFound,
    RefusedError,
    RemoteProtocolError,
)
from tanist.message import Message
from tanist.producer import Producer
from tanist.url import DEFAULT_PORT
from tanist.wire.control import QueueInfo, QueueSettings

__all__ = [
    "DEFAULT_PORT",
    "BrokenError",
    "Client",
    "ClosedError",
    "ConfigError",
    "Confirmed",
    "Consumer",
    "Error",
    "FailoverTimeout",
    "Listener",
    "LocalProtocolError",
    "Message",
    "OverloadedError",
    "Producer",
    "ProtocolError",
    "QueueExistsDifferently",
    "QueueInfo",
    "QueueNotFound",
    "QueueSettings",
    "QueueStat",
    "RefusedError",
    "RemoteProtocolError",
    "Stale",
    "connect",
]
