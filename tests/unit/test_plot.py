"""Lines over time, drawn for people."""

from __future__ import annotations

from xml.etree import ElementTree

from perf.plot import Panel, sparkline, svg


def test_a_sparkline_shows_the_mean_of_each_stretch_from_zero() -> None:
    # Given a rate that falls to a half, and stays
    points = [(float(second), 10.0 if second < 4 else 5.0) for second in range(8)]

    # When it is drawn in two columns
    drawn = sparkline(points, columns=2)

    # Then the second one is about half as high
    assert drawn == "█▅"


def test_a_plot_is_well_formed_whatever_its_names_are() -> None:
    # Given a line whose name has a meaning in XML, a line without points, and a mark
    panel = Panel("a < b & c", {"<x>": [(0.0, 1.0), (2.0, 3.0)], "none": []}, ("limit", 4.0))

    # When it is drawn
    root = ElementTree.fromstring(svg([panel]))

    # Then both lines are in it, and the names are as they were
    space = "{http://www.w3.org/2000/svg}"
    lines = [line.attrib["points"] for line in root.iter(f"{space}polyline")]
    assert lines == ["80.0,167.5 880.0,82.5", ""]
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"a < b & c", "<x>", "limit"} <= set(texts)
