"""Lines over time, as an SVG file and as a row of characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 960
PANEL: Final = 220
MARGIN: Final = 80
COLOURS: Final = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#b7950b", "#555555")
BARS: Final = "▁▂▃▄▅▆▇█"

Points = list[tuple[float, float]]
"""(seconds, value)."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A diagram: lines by name, with one scale that begins at zero.

    Attributes:
        mark: A value that is shown as a line of its own, with its name.
    """

    title: str
    lines: dict[str, Points]
    mark: tuple[str, float] | None = None


def svg(panels: Sequence[Panel]) -> str:
    """All panels, one below the other, with the same seconds at the bottom."""
    everything = [point for panel in panels for points in panel.lines.values() for point in points]
    seconds = max((at for at, _ in everything), default=1.0) or 1.0
    height = len(panels) * PANEL + 30
    body = [part for at, panel in enumerate(panels) for part in _panel(panel, at * PANEL, seconds)]
    body.append(_text(WIDTH - MARGIN, height - 10, f"{seconds:,.0f} s", "end"))
    body.append(_text(MARGIN, height - 10, "0 s", "middle"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _panel(panel: Panel, top: int, seconds: float) -> Iterable[str]:
    floor, ceiling = top + PANEL - 10, top + 40
    values = [value for points in panel.lines.values() for _, value in points]
    if panel.mark is not None:
        values.append(panel.mark[1])
    most = max(values, default=0.0) or 1.0

    def x(at: float) -> float:
        return MARGIN + at / seconds * (WIDTH - 2 * MARGIN)

    def y(value: float) -> float:
        return floor - value / most * (floor - ceiling)

    yield _text(MARGIN, top + 18, panel.title, "start")
    for value in (0.0, most / 2, most):
        yield _rule(y(value), "#dddddd")
        yield _text(MARGIN - 6, y(value) + 4, f"{value:,.4g}", "end")
    if panel.mark is not None:
        name, value = panel.mark
        yield _rule(y(value), "#c0392b", dashes="6 4")
        yield _text(WIDTH - MARGIN + 4, y(value) + 4, name, "start", "#c0392b")
    for number, (name, points) in enumerate(panel.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        yield _text(MARGIN + 420 + 130 * number, top + 18, name, "start", colour)


def _rule(y: float, colour: str, dashes: str = "") -> str:
    return (
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}"'
        f' stroke="{colour}" stroke-dasharray="{dashes}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333333") -> str:
    words = escape(text)
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def sparkline(points: Points, columns: int = 60) -> str:
    """The same in one row of text: the mean of each stretch of time. Nothing is below zero."""
    if not points:
        return ""
    first, last = points[0][0], points[-1][0]
    columns = min(columns, len(points))
    width_s = (last - first) / columns or 1.0
    stretches: list[list[float]] = [[] for _ in range(columns)]
    for at, value in points:
        stretches[min(columns - 1, int((at - first) / width_s))].append(value)
    means: list[float] = []
    for values in stretches:
        # Nothing was seen in a short stretch: it goes on as before.
        means.append(sum(values) / len(values) if values else means[-1])
    most = max(means) or 1.0
    return "".join(BARS[round(mean / most * (len(BARS) - 1))] for mean in means)
