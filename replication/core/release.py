"""How far an owner's log is safe, and the effects that wait for it.

What an op causes outside waits under the op's number, and leaves in order, once release has
passed it. An effect of no op waits for the last op of the log, whatever caused it: it was
decided by a state that includes that op.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from replication.core.backup import Backup
from replication.core.growing_log import GrowingLog
from replication.core.stream_events import Effect, Released


class Release:
    """Commit and release of one epoch; neither ever falls.

    Attributes:
        commit: All of need hold the ops through this one; 0 until they follow the epoch.
        commit_bytes: The log's `bytes_total` through that op.
        released: The effects of the ops through this one may leave.
        copies: On how many copies at least that is.
    """

    __slots__ = (
        "_effects",
        "_growing",
        "_ready",
        "_sid",
        "commit",
        "commit_bytes",
        "copies",
        "released",
    )

    # What its machine is does not matter here.
    def __init__(self, growing: GrowingLog[Any, Any], *, sid: int) -> None:
        self.commit = 0
        self.commit_bytes = 0
        self.released = 0
        self.copies = 0
        self._growing = growing
        self._sid = sid
        self._effects: deque[tuple[int, object]] = deque()
        self._ready: list[object] = []

    @property
    def waiting(self) -> int:
        """How many effects wait."""
        return len(self._effects)

    def answer(self, effect: object) -> None:
        """An effect of the log's last op: it leaves when that is released."""
        last = self._growing.end - 1
        if last <= self.released:
            self._ready.append(effect)
        else:
            self._effects.append((last, effect))

    def advance_commit(self, waited_for: Sequence[Backup]) -> None:
        """Commit is what this copy and all of `waited_for` hold."""
        commit = self._growing.own_receipt
        for backup in waited_for:
            if backup.receipt < commit:
                commit = backup.receipt
        if commit > self.commit:
            self.commit = commit
            log = self._growing.log
            self.commit_bytes = log.bytes_total - log.bytes_from(commit + 1)

    def release_commit(self, copies: int, outbox: list[Effect]) -> None:
        """What is committed is released, on so many copies at least."""
        self.released = self.commit
        self.copies = copies
        effects = self._effects
        while effects and effects[0][0] <= self.released:
            self._ready.append(effects.popleft()[1])
        self.emit(outbox)

    def emit(self, outbox: list[Effect]) -> None:
        """Say what may leave."""
        if self._ready:
            outbox.append(Released(self._sid, self._ready))
            self._ready = []

    def check(self) -> None:
        """Verify every invariant. For tests and simulation."""
        assert self.released <= self.commit <= self._growing.own_receipt
        assert all(seq > self.released for seq, _ in self._effects)
