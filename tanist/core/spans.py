"""A set of message indexes within one delivery, kept as runs."""

from __future__ import annotations

from collections.abc import Iterator


class Spans:
    """Starts as all of [0, count); indexes are taken out of it, never put back.

    Nearly always they are taken from the front, in order: that case is `O(1)`. Any other is
    `O(runs)`.
    """

    __slots__ = ("_runs", "size")

    def __init__(self, count: int) -> None:
        self._runs: list[tuple[int, int]] = [(0, count)] if count else []
        self.size = count

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(first, end) of each run, in order."""
        return iter(self._runs)

    def __contains__(self, index: int) -> bool:
        return any(first <= index < end for first, end in self._runs)

    @property
    def runs(self) -> int:
        return len(self._runs)

    def take(self, first: int, end: int) -> list[tuple[int, int]]:
        """Take out what is here of [first, end), and say which runs that was."""
        assert first < end
        runs = self._runs
        if not runs:
            return []
        head_first, head_end = runs[0]
        if head_first == first and end <= head_end:
            if end == head_end:
                del runs[0]
            else:
                runs[0] = (end, head_end)
            self.size -= end - first
            return [(first, end)]
        taken: list[tuple[int, int]] = []
        left: list[tuple[int, int]] = []
        for run_first, run_end in runs:
            cut_first, cut_end = max(first, run_first), min(end, run_end)
            if cut_first >= cut_end:
                left.append((run_first, run_end))
                continue
            taken.append((cut_first, cut_end))
            self.size -= cut_end - cut_first
            if run_first < cut_first:
                left.append((run_first, cut_first))
            if cut_end < run_end:
                left.append((cut_end, run_end))
        self._runs = left
        return taken

    def check(self) -> None:
        """Verify every invariant. For tests; `O(runs)`."""
        assert all(first < end for first, end in self._runs)
        assert all(a[1] < b[0] for a, b in zip(self._runs, self._runs[1:], strict=False))
        assert self.size == sum(end - first for first, end in self._runs)
