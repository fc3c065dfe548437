"""What a stream carries: a state that is changed by ops, and nothing else."""

from __future__ import annotations

from typing import Protocol, TypeVar


class Op(Protocol):
    """One change, as its maker writes it into a record."""

    @property
    def kind(self) -> int:
        """The record's kind, 0 to 255."""
        ...

    def parts(self) -> tuple[bytes, ...]:
        """The record's payload, one part after the other. A large part is kept as it is."""
        ...


OpT = TypeVar("OpT", bound=Op)
OpT_contra = TypeVar("OpT_contra", bound=Op, contravariant=True)
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Machine(Protocol[OpT, ResultT_co]):
    """The same ops in the same order make the same state, on every node and whenever it is."""

    def decode(self, kind: int, data: bytes, start: int, end: int) -> OpT:
        """The op whose payload is `data[start:end]`. It may keep `data`: the log does, too."""
        ...

    def apply(self, op: OpT, /) -> ResultT_co:
        """Change the state. The owner uses the result at once, shadows do not look at it.

        Raising is a bug: it ends the owner's process, and makes a shadow's copy void.
        """
        ...

    def digest(self) -> bytes:
        """Equal for equal states."""
        ...
