"""Draw the results of the bench: an SVG of bars, and a PNG of it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from xml.etree import ElementTree as ET

from tests.bench.bars import DOWNLOAD, PULL, RAW_FLOOR, UPLOAD
from tests.bench.figures import Measurement, Spread
from tests.bench.results import Results
from tests.bench.tables import reference_ratio, spread_text

WIDTH = 760
PNG_WIDTH = 2 * WIDTH

_NAMES = 230  # the width of the names of variants
_BARS = 380  # the width of the longest bar
_ROW, _BAR, _TITLE, _MARGIN = 20, 12, 34, 16
_WHISKER = 3
_SVG = "http://www.w3.org/2000/svg"
_FONT = "DejaVu Sans, Verdana, sans-serif"
_TEXT, _FAINT, _BACKGROUND = "#222222", "#777777", "#ffffff"
_REFERENCE, _PULLS, _TOOLS = "#9aa5b1", "#1f6feb", "#d08770"
_REFERENCES = {DOWNLOAD, RAW_FLOOR, UPLOAD, "floor"}
_OUR_PREFIX = PULL.partition("{")[0]

ET.register_namespace("", _SVG)


@dataclass(frozen=True)
class _Bar:
    """One bar: its name and ratio, from `low` to `high`."""

    name: str
    spread: Spread

    @property
    def color(self) -> str:
        if self.name in _REFERENCES:
            return _REFERENCE
        return _PULLS if self.name.startswith(_OUR_PREFIX) else _TOOLS


def draw(results: Results) -> str:
    """Return an SVG with a group of bars for each scenario: wall times by the reference's."""
    groups = [
        (measurement.title, bars)
        for measurement in results.measurements.values()
        if (bars := _bars(measurement))
    ]
    rows = sum(len(bars) for _, bars in groups)
    height = 2 * _MARGIN + 2 * _ROW + len(groups) * _TITLE + rows * _ROW
    svg = ET.Element(
        f"{{{_SVG}}}svg",
        {
            "viewBox": f"0 0 {WIDTH} {height}",
            "width": str(WIDTH),
            "height": str(height),
            "role": "img",
            "font-family": _FONT,
            "font-size": "12",
        },
    )
    title = (
        "From a registry to a squashfs file: wall time by that of the floor, or of the slowest part"
    )
    ET.SubElement(svg, f"{{{_SVG}}}title").text = title
    _rectangle(svg, 0, 0, WIDTH, height, _BACKGROUND)
    y = float(_MARGIN + _BAR)
    _text(svg, _MARGIN, y, title, weight="bold")
    for name, bars in groups:
        y += _TITLE
        _text(svg, _MARGIN, y, name, weight="bold")
        longest = max(bar.spread.high for bar in bars)
        for bar in bars:
            y += _ROW
            _draw_bar(svg, y, bar, _BARS / max(longest, 1.0))
    _text(svg, _MARGIN, y + 2 * _ROW, _legend(results), color=_FAINT)
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


def _bars(measurement: Measurement) -> list[_Bar]:
    ratios = {name: reference_ratio(measurement, name) for name in measurement.samples}
    return [_Bar(name, spread) for name, spread in ratios.items() if spread is not None]


def _legend(results: Results) -> str:
    processors = results.machine.get("processors", "")
    state = " (busy)" if results.warnings else ""
    return f"{results.date}, {processors}{state}; lines show the lowest and the highest round"


def _draw_bar(svg: ET.Element, y: float, bar: _Bar, scale: float) -> None:
    """Draw a bar whose text has the base line `y`; `scale` is the width of the ratio 1."""
    middle = y - 4
    _text(svg, _NAMES - 8, y, bar.name, anchor="end")
    _rectangle(svg, _NAMES, middle - _BAR / 2, bar.spread.median * scale, _BAR, bar.color)
    low, high = (_NAMES + figure * scale for figure in (bar.spread.low, bar.spread.high))
    _line(svg, low, middle, high, middle)
    for x in (low, high):
        _line(svg, x, middle - _WHISKER, x, middle + _WHISKER)
    end = _NAMES + max(bar.spread.high, bar.spread.median) * scale
    _text(svg, end + 8, y, spread_text(bar.spread))


def _rectangle(
    parent: ET.Element, x: float, y: float, width: float, height: float, color: str
) -> None:
    sides = {"x": x, "y": y, "width": width, "height": height}
    attributes = {name: f"{side:g}" for name, side in sides.items()}
    ET.SubElement(parent, f"{{{_SVG}}}rect", {**attributes, "fill": color})


def _line(parent: ET.Element, x1: float, y1: float, x2: float, y2: float) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    attributes = {name: f"{end:.1f}" for name, end in ends.items()}
    ET.SubElement(parent, f"{{{_SVG}}}line", {**attributes, "stroke": _TEXT})


def _text(
    parent: ET.Element,
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "start",
    color: str = _TEXT,
    weight: str = "normal",
) -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": color}
    element = ET.SubElement(parent, f"{{{_SVG}}}text", {**attributes, "font-weight": weight})
    element.text = content


def write_png(svg: Path, png: Path, program: str = "rsvg-convert") -> bool:
    """Make a PNG of an SVG; return whether the program for that is installed."""
    path = which(program)
    if path is None:
        return False
    argv: Sequence[str] = [path, "--width", str(PNG_WIDTH), "--output", str(png), str(svg)]
    subprocess.run(argv, check=True, timeout=60)
    return True
