"""One copy of a stream: a log, and a state in which the log is applied up to some op.

Theory of operation
-------------------
    1 ……… applied ……… end
      state     tail

A shadow applies what it knows to be committed, so that its tail can still be cut; an owner
applies what it appends. A log is never cut at or below `applied`: there is no way back for a
state. A copy that would have to be is replaced by a fresh one, and stays until then.
"""

from __future__ import annotations

from typing import Generic

from replication.core.history import History, check_history
from replication.core.log import OpLog
from replication.core.machine import Machine, OpT, ResultT


class Copy(Generic[OpT, ResultT]):
    """See the module docstring.

    Attributes:
        applied: Number of the last op that the state has.
        commit: The last op that is known to be committed; it may be ahead of the log.
        void: Why this copy is wrong, or empty: applying an op failed, or its log is another
            one than the owner's. It must not be elected, whatever it holds.
    """

    __slots__ = ("applied", "commit", "gen", "history", "log", "machine", "void")

    def __init__(self, gen: int, machine: Machine[OpT, ResultT]) -> None:
        self.gen = gen
        self.machine = machine
        self.log = OpLog()
        self.history: History = ()
        self.applied = 0
        self.commit = 0
        self.void = ""

    def apply_through(self, seq: int) -> None:
        """Apply the tail up to `seq`, which ends a segment. Raises what the machine raises."""
        if seq <= self.applied:
            return
        decode, apply = self.machine.decode, self.machine.apply
        for segment in self.log.between(self.applied + 1, seq + 1):
            for kind, data, start, end in segment.records:
                apply(decode(kind, data, start, end))
            segment.records = ()
            self.applied = segment.end_seq - 1

    def cut(self, at: int) -> int:
        """Take back the tail from `at` on. Says how many ops these were."""
        assert self.applied < at, "what is applied cannot be taken back"
        return self.log.cut(at)

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(segments)`."""
        self.log.check()
        check_history(self.history)
        assert self.applied < self.log.end
