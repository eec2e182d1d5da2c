"""Lines about the progress of work on a terminal: pure functions of its state and of the width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from shiftergw.cli.progress_state import WorkState
from shiftergw.errors import amount, printable, short_duration

_GAP = "  "
_CUT = ".."
"""The end of a text that was cut; terminals without UTF-8 print it, too."""

_PERCENT = len("100 %")
_TIME_LEFT = len("119 min left")
_RATE = len("999 bytes/s")
_BYTES = len("999 bytes/999 bytes")
_SHORTEST_BAR = 12
_LONGEST_BAR = 32
_SHORTEST_TEXT = 16
_SHORTEST_LABEL = 8
"""Widths of columns in characters."""


def terminal_lines(works: Sequence[tuple[str, WorkState]], width: int) -> list[str]:
    """Return a line of at most `width` characters for each piece of work, given with its label.

    Columns that do not fit are dropped, the least important first: bytes, rate, bar, time left.
    """
    label_width = max((cell_len(label) for label, _ in works), default=0)
    label_width = min(label_width, max(_SHORTEST_LABEL, width // 3))
    room = width - (label_width + len(_GAP) if label_width else 0)
    bars = [state for _, state in works if state.has_bar]
    text_width = max((cell_len(state.text) for state in bars), default=0)
    columns = _columns(text_width, room, has_rates=not all(state.is_complete for state in bars))
    lines = []
    for label, state in works:
        start = _fit_label(label, label_width) + _GAP if label_width else ""
        line = _cells(state, columns) if state.has_bar else _without_bar(state, room)
        lines.append((start + line).rstrip())
    return lines


@dataclass(frozen=True, slots=True)
class _Columns:
    """The widths of the columns of a line; 0 stands for a column that is dropped."""

    text: int
    bar: int
    percent: int
    bytes: int
    rate: int
    time_left: int


def _columns(text: int, room: int, *, has_rates: bool) -> _Columns:
    """Choose the columns for texts of `text` characters in lines of `room` characters.

    Without `has_rates` all work has ended: then there are neither rates nor bytes.
    """
    widths = {"bar": 0, "percent": 0, "bytes": 0, "rate": 0, "time_left": 0}
    used = 0
    for name, width, least_text in (
        ("percent", _PERCENT, min(text, _SHORTEST_TEXT)),
        ("time_left", _TIME_LEFT, min(text, _SHORTEST_TEXT)),
        ("bar", _SHORTEST_BAR, text),
        ("rate", _RATE if has_rates else 0, text),
        ("bytes", _BYTES if has_rates else 0, text),
    ):
        if not width:
            continue
        if least_text + used + len(_GAP) + width > room:
            break
        widths[name] = width
        used += len(_GAP) + width
    text = max(0, min(text, room - used))
    if widths["bar"]:
        widths["bar"] = min(_LONGEST_BAR, _SHORTEST_BAR + room - used - text)
    return _Columns(text, **widths)


def _cells(state: WorkState, columns: _Columns) -> str:
    time_left, rate, size = "", "", ""
    if state.is_complete:
        time_left = short_duration(state.seconds)
    else:
        size = f"{amount(state.done)}/{amount(state.total)}"
        rate = "" if state.rate is None else f"{amount(state.rate)}/s"
        if state.time_left is not None:
            duration = short_duration(state.time_left)
            is_long = len(duration) + len(" left") > _TIME_LEFT
            time_left = duration if is_long else f"{duration} left"
    cells = [_fit(state.text, columns.text)]
    if columns.bar:
        cells.append(_bar(state, columns.bar))
    numbers = [(size, columns.bytes), (rate, columns.rate), (time_left, columns.time_left)]
    if not (columns.bytes or rate or time_left):
        # A layer has neither rate nor time left: its bytes have their place.
        gap = len(_GAP) if columns.rate else 0
        numbers = [(size, columns.rate + gap + columns.time_left)]
    for text, width in [(f"{state.percent} %", columns.percent), *numbers]:
        if width:
            cells.append(f"{text if len(text) <= width else '':>{width}}")
    return _GAP.join(cells)


def _bar(state: WorkState, width: int) -> str:
    room = width - 2
    length = room * state.percent // 100
    head = ">" if length < room else ""
    return f"[{'=' * length}{head}".ljust(width - 1) + "]"


def _without_bar(state: WorkState, room: int) -> str:
    """Return text and age of work without a total, with the bytes that are done.

    Numbers that do not fit are left out: the text may have the place in the queue at its end.
    """
    numbers = [amount(state.done)] if state.done else []
    if state.seconds >= 1:
        numbers.append(short_duration(state.seconds))
    end = "".join(_GAP + number for number in numbers)
    size = cell_len(state.text)
    if size + len(end) > room:
        end = ""
    return (_fit(state.text, room) if size > room else state.text) + end


def _fit(text: str, width: int) -> str:
    """Return a text in exactly `width` cells of a terminal; the end of a longer one is cut."""
    if cell_len(text) <= width or width <= len(_CUT):
        return set_cell_size(text, max(0, width))
    return set_cell_size(text, width - len(_CUT)) + _CUT


def _fit_label(label: str, width: int) -> str:
    """Return a label in exactly `width` cells; the start of a longer one is cut.

    The tags of images, and the numbers of systems, are at the end.
    """
    if cell_len(label) <= width:
        return set_cell_size(label, width)
    end = label
    while cell_len(end) > max(0, width - len(_CUT)):
        end = end[1:]
    return set_cell_size(_CUT + end, width)


def labels_of(works: Iterable[tuple[str, str]]) -> list[str]:
    """Return what tells pieces of work apart, given the image and the system of each.

    "" stands for a piece of work that is alone. Images of registries are named without their type.
    """
    works = [(image.removeprefix("docker:"), system) for image, system in works]
    has_images = len({image for image, _ in works}) > 1
    has_systems = len({system for _, system in works}) > 1
    return [
        printable(" on ".join([image] * has_images + [system] * has_systems))
        for image, system in works
    ]
