"""One delivered message, as an application sees it."""

from __future__ import annotations

from tanist.core.run import Run


class Message:
    """A view into the run that it came with: it costs two references.

    It keeps that run's bytes alive; keep `body` instead, if it is kept for long.
    """

    __slots__ = ("_index", "_run")

    def __init__(self, run: Run, index: int) -> None:
        self._run = run
        self._index = index

    def __repr__(self) -> str:
        return f"<Message {self.id} of {len(self.body)} bytes>"

    @property
    def id(self) -> str:
        """Unique in the cluster; the same again when the message is redelivered."""
        run = self._run
        return f"{run.sid}.{run.gen}.{run.part}.{run.first + self._index}"

    @property
    def body(self) -> bytes:
        return self._run.body(self._index)

    @property
    def properties(self) -> dict[str, object]:
        """What the producer gave besides the body; empty if nothing. Decoded at each call."""
        return self._run.properties(self._index)

    @property
    def time_ms(self) -> int:
        """When its batch was sealed, in milliseconds since 1970 by the producer's clock."""
        return self._run.time_ms

    @property
    def persistent(self) -> bool:
        return self._run.persistent

    @property
    def redelivered(self) -> bool:
        """It may have been handed out before, or stored before under another number."""
        return self._run.redelivered

    @property
    def attempts(self) -> int:
        """How often a consumer has failed on it."""
        attempts = self._run.attempts
        return attempts[self._index] if attempts is not None else 0

    @property
    def sid(self) -> int:
        """The post office that it came from."""
        return self._run.sid

    @property
    def gen(self) -> int:
        """The life of that post office's content."""
        return self._run.gen

    @property
    def epoch(self) -> int:
        """The ownership of that post office under which it was delivered."""
        return self._run.epoch

    @property
    def offset(self) -> int:
        """Its place in its part of the queue."""
        return self._run.first + self._index

    @property
    def delivery(self) -> int:
        """The number of the delivery that brought it. Of two copies, the newer has the higher."""
        return self._run.number

    @property
    def received_at(self) -> float:
        """When it was read from the socket, in the clock of the client's loop."""
        return self._run.at
