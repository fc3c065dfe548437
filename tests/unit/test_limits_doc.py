"""`docs/limits.md` names every bound, and says of none what the code does not."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from inspect import getsource
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from broker.core.limits import Limits, Timing
from replication.core.clustermap import Settings
from replication.core.stream_limits import StreamLimits
from tanist.core.settings import ClientSettings

DOC = Path(__file__).parents[2] / "docs" / "limits.md"
_SIZES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_UNITS = {"bytes", "ms", "s", "messages", "ops", "ticks"}


class Row(NamedTuple):
    where: str
    name: str
    default: str
    unit: str
    what: str


def rows() -> list[Row]:
    lines = DOC.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        Row(where.strip("`"), name.strip("`"), default, unit, what)
        for where, name, default, unit, what in (each for each in cells if len(each) == 5)
        if where.startswith("`")
    ]


ROWS = {(row.where, row.name): row for row in rows()}


def struct_defaults(struct: type[msgspec.Struct]) -> dict[str, object]:
    return {field.name: field.default for field in msgspec.structs.fields(struct)}


def own_constants(name: str) -> dict[str, object]:
    """The numbers that a module defines; those that it imports are another one's."""
    module = import_module(name)
    own = re.findall(r"^([A-Z][A-Z_]*): Final\b", getsource(module), re.MULTILINE)
    values = {constant: getattr(module, constant) for constant in own}
    return {constant: value for constant, value in values.items() if isinstance(value, int | float)}


IN_TIMING = struct_defaults(Timing)
DEFAULTS: dict[str, dict[str, object]] = {
    "[limits]": struct_defaults(Limits),
    "[timing]": IN_TIMING,
    # What must agree in a cluster is in its map; what of that is a time stands in [timing].
    "[cluster]": {k: v for k, v in struct_defaults(Settings).items() if k not in IN_TIMING},
    "stream": struct_defaults(StreamLimits),
    "client": {field.name: field.default for field in fields(ClientSettings)},
    **{
        module: own_constants(module)
        for module in (
            "tanist.wire.limits",
            "tanist.core.settings",
            "paging.disk",
            "paging.pager",
            "broker.core.mending",
            "broker.core.lending",
            "broker.runtime.page_io",
        )
    },
}


def value_of(written: str) -> object:
    """A default as the table writes it."""
    if written == "by rule":
        return None
    number, _, size = written.replace(",", "").partition(" ")
    try:
        return float(number) * _SIZES.get(size, 1)
    except ValueError:
        return written


@pytest.mark.parametrize(("where", "name"), [(w, n) for w, each in DEFAULTS.items() for n in each])
def test_every_bound_is_in_the_table_with_its_default(where: str, name: str) -> None:
    # Given a bound of the code; when it is looked up
    row = ROWS.get((where, name))

    # Then it is there, and its default is that of the code
    assert row is not None, f"docs/limits.md has no row for {name} of {where}"
    assert value_of(row.default) == DEFAULTS[where][name]


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: f"{row.where}.{row.name}")
def test_no_row_of_the_table_tells_of_something_else(row: Row) -> None:
    # Given a row; when its name is looked up in the code
    known = DEFAULTS.get(row.where)
    value = known[row.name] if known is not None else getattr(import_module(row.where), row.name)

    # Then it is there, has this default, the unit of its name, and a consequence
    assert value_of(row.default) == value
    words = row.name.lower().replace("_max", "").replace("_min", "").split("_")
    assert row.unit == (words[-1] if words[-1] in _UNITS else row.unit)
    assert row.what


def test_the_constants_of_a_module_are_its_own() -> None:
    # Given a module that imports the bound of another one; when its constants are looked up
    constants = own_constants("paging.pager")

    # Then its own are there, and that one is not
    assert constants["RETRY_S"] == 1
    assert "READS_MAX" not in constants
    assert "READS_MAX" in own_constants("paging.disk")


def test_no_bound_has_two_rows() -> None:
    assert len(ROWS) == len(rows())


def test_a_changed_default_would_be_found() -> None:
    # Given how the table writes defaults; when they are read, then they are numbers
    assert value_of("64 MiB") == 64 << 20
    assert value_of("50,000") == 50_000
    assert value_of("0.005") == 0.005
    assert value_of("50,001") != 50_000
