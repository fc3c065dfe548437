"""A set of small numbers, a bit each.

For where runs have become as many as the bits they would take. The bits are in the order of
the numbers, from the top bit of the first byte on: so a few bytes read as one integer, or
that integer written out in twos, are still in that order, and what is asked of thousands of
bits at once is asked of one integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_CHUNK: Final = 1024
"""Bits looked at together in a search: neither one by one nor, for the first few, all."""


class Bitmap:
    """A set of numbers from 0 up to, but without, `size`, which is a multiple of 8."""

    __slots__ = ("_bytes", "runs", "size")

    def __init__(self, size: int) -> None:
        assert size % 8 == 0
        self.size = size
        self.runs = 0
        """How many runs the set consists of."""
        self._bytes = bytearray(size // 8)

    def has(self, number: int) -> int:
        """1 if a number is in, else 0. All numbers outside are not in."""
        if 0 <= number < self.size:
            return self._bytes[number >> 3] >> (~number & 7) & 1
        return 0

    def count(self, first: int, end: int) -> int:
        """How many numbers of a run are in."""
        return self._window(first, end).bit_count()

    def fill(self, first: int, end: int) -> None:
        """Put in a run none of which is in. `O(run / 8)`, and in bytes."""
        low, high = first >> 3, (end + 7) >> 3
        mask = (1 << end - first) - 1 << (-end & 7)
        bits = int.from_bytes(self._bytes[low:high], "big")
        assert not bits & mask, "already in"
        self._bytes[low:high] = (bits | mask).to_bytes(high - low, "big")
        self.runs += 1 - self.has(first - 1) - self.has(end)

    def wipe(self, first: int, end: int) -> int:
        """Take out what of a run is in, and say how many that were. `O(run / 8)`."""
        low, high, pad = first >> 3, (end + 7) >> 3, -end & 7
        mask = (1 << end - first) - 1 << pad
        bits = int.from_bytes(self._bytes[low:high], "big")
        gone = bits & mask
        if not gone:
            return 0
        self._bytes[low:high] = (bits ^ gone).to_bytes(high - low, "big")
        # A run is counted where it begins: at a number without the one before. What begins
        # inside is gone; what goes on behind begins there now.
        begins = (gone & ~(gone >> 1)).bit_count()
        goes_in = self.has(first - 1) & (gone >> end - first - 1 + pad)
        self.runs += goes_in + (self.has(end) & (gone >> pad)) - begins
        return gone.bit_count()

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """What of a run is in, in order, first and end. A piece may touch the next one."""
        for at in range(first, end, _CHUNK):
            till = min(at + _CHUNK, end)
            bits = self._window(at, till)
            if not bits:
                continue
            # Searching a text beats shifting an integer: 80 ns a step, whatever its length.
            text = format(bits, f"0{till - at}b")
            begin = text.find("1")
            while begin >= 0:
                stop = text.find("0", begin)
                if stop < 0:
                    yield at + begin, till
                    break
                yield at + begin, at + stop
                begin = text.find("1", stop)

    def last_end(self) -> int:
        """Where the last run ends. The set must not be empty."""
        till = self.size
        while not (bits := self._window(max(till - _CHUNK, 0), till)):
            till -= _CHUNK
            assert till > 0, "the set is empty"
        return till + 1 - (bits & -bits).bit_length()

    def first_of(self, end: int) -> int:
        """Where the run begins that ends at `end`; `end` itself if there is none."""
        while end > 0:
            at = max(end - _CHUNK, 0)
            missing = self._window(at, end) ^ (1 << end - at) - 1
            if missing:
                return end + 1 - (missing & -missing).bit_length()
            end = at
        return 0

    def check(self) -> None:
        """Verify every invariant. For tests and simulation; `O(size)`."""
        assert len(self._bytes) * 8 == self.size
        bits = int.from_bytes(self._bytes, "big")
        assert (bits & ~(bits >> 1)).bit_count() == self.runs

    def _window(self, first: int, end: int) -> int:
        bits = int.from_bytes(self._bytes[first >> 3 : (end + 7) >> 3], "big")
        return bits >> (-end & 7) & (1 << end - first) - 1
