"""Where a process spends its processor time: a program, run with samples of its stack taken.

    python -m perf.sampled OUT -m MODULE …        the module as a program, with its arguments

Each `SAMPLE_S` of processor time, the kernel's included, the function is counted that runs then;
what it calls in C, the system calls too, is its own. `OUT` is a JSON object: "module:function" to
samples, and under `SYSTEM` the part of the time that was the kernel's. Modules being loaded do not
count.

A sample waits until Python code runs: what uvloop does by itself, reading and writing sockets, is
counted at the function that it calls next.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Final

SYSTEM: Final = "(the kernel)"
ELSEWHERE: Final = "(no function of ours)"
OURS: Final = ("tanist", "broker", "replication", "paging", "perf")
PLACES: Final[Mapping[str, tuple[str, ...]]] = {
    "application": ("perf.",),
    "wire": ("tanist.wire.",),
    "client": ("tanist.",),
    "post offices": ("broker.core.",),
    "parts and pages": ("paging.",),
    "streams": ("replication.",),
    "sockets, the loop": ("broker.", ELSEWHERE),
}
"""What the modules are for, by the beginning of their names: the first that fits."""
SAMPLE_S: Final = 0.002
WRITE_EACH: Final = 100
"""Samples between two writes of `OUT`, from the first on: whoever is killed leaves it."""
_LOADING: Final = "importlib._bootstrap"
_ROOT: Final = Path(__file__).resolve().parent.parent
_HERE: Final = tuple(f"{_ROOT / package}/" for package in OURS)


class Sampler:
    """Counts from when it is started."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._samples: Counter[str] = Counter()
        self._began = os.times()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)

    def _sample(self, _: int, frame: FrameType | None) -> None:
        place = place_of(frame)
        if place is None:
            self._began = os.times()
            return
        self._samples[place] += 1
        if self._samples.total() % WRITE_EACH == 1:
            self.write()

    def write(self) -> None:
        began, now = self._began, os.times()
        system, user = now.system - began.system, now.user - began.user
        found: dict[str, float] = {**self._samples, SYSTEM: system / max(system + user, SAMPLE_S)}
        whole = self._out.with_suffix(".new")
        whole.write_text(json.dumps(found))
        whole.replace(self._out)


def place_of(frame: FrameType | None) -> str | None:
    """Which of our functions runs, or called what runs; None while modules are loaded."""
    ours = ELSEWHERE
    while frame is not None:
        file = frame.f_code.co_filename
        if _LOADING in file:
            return None
        if ours is ELSEWHERE and file.startswith(_HERE) and file != __file__:
            module = ".".join(Path(file).relative_to(_ROOT).with_suffix("").parts)
            ours = f"{module}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return ours


def shares(samples: Mapping[str, float]) -> dict[str, float]:
    """The share of each of `PLACES`."""
    counted = {place: n for place, n in samples.items() if place != SYSTEM}
    whole = sum(counted.values()) or 1
    found = dict.fromkeys(PLACES, 0.0)
    for place, n in counted.items():
        name = next(name for name, begins in PLACES.items() if place.startswith(begins))
        found[name] += n / whole
    return found


def main() -> None:
    out, command = Path(sys.argv[1]), sys.argv[2:]
    module = command[command.index("-m") + 1 :]
    sampler = Sampler(out)
    sys.argv = module
    sampler.start()
    try:
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        sampler.write()


if __name__ == "__main__":
    main()
