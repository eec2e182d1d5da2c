"""The progress of a piece of work as it is known, and where its changes are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shiftergw.cli.progress_state import WorkState, layers_of, state_of
from shiftergw.errors import printable

LEAST_SECONDS = 2.0
"""Seconds of a stage after which its average rate says something."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is worked on: an image, for a system."""

    image: str = ""
    system: str = ""


class Row:
    """The progress of one piece of work; where it is shown depends on its view.

    `label` tells it from the others, "" if it is alone.
    """

    def __init__(self, work: Work, label: str, view: View, seconds: Callable[[], float]) -> None:
        """Begin, without a stage; `seconds` returns the time."""
        self.work = work
        self.label = label
        self.members: Mapping[str, Any] = {}
        """What the last answer of a gateway says besides its text, for events."""
        self.layers: Sequence[WorkState] = ()
        """The layers that are being downloaded."""
        self._view = view
        self._seconds = seconds
        self._state = WorkState()
        self._start = seconds()
        self._end: float | None = None
        self._first_bytes = (0.0, -1)
        """When the bytes of the stage were first known, and how many there were."""
        self._last_notice = ""

    @property
    def has_ended(self) -> bool:
        """Return whether the work has ended, well or not."""
        return self._end is not None

    @property
    def state(self) -> WorkState:
        """Return the state at this time."""
        end = self._seconds() if self._end is None else self._end
        return replace(self._state, seconds=max(0.0, end - self._start))

    def stage(self, text: str) -> None:
        """Show that a stage begins; the same one twice is one."""
        line = printable(text)
        if line != self._state.text:
            self._first_bytes = (0.0, -1)
            self._show(WorkState(line), {})

    def bytes(self, done: int, total: int) -> None:
        """Show how far the stage is, with its average rate; `total` 0 means not known."""
        now = self._seconds()
        if self._first_bytes[1] < 0 or done < self._first_bytes[1]:
            self._first_bytes = (now, done)
        start, first = self._first_bytes
        rate = time_left = None
        if now - start >= LEAST_SECONDS and done > first:
            rate = int((done - first) / (now - start))
            time_left = (total - done) / rate if rate and total >= done else None
        self._show(WorkState(self._state.text, done, total, rate or None, time_left), {})

    def show(self, record: Mapping[str, Any]) -> None:
        """Show what a gateway answers of a pull."""
        self._show(state_of(record), record)

    def notify(self, text: str) -> None:
        """Show one line, unless it is the last one again."""
        line = printable(text)
        if line != self._last_notice:
            self._last_notice = line
            self._view.notify(self, line)

    def end(self, text: str, *, is_complete: bool, members: Mapping[str, Any]) -> None:
        """Show how the work has ended: by a full bar if it `is_complete`."""
        self._end = self._seconds()
        self._state, self.layers = WorkState(text, is_complete=is_complete), ()
        self._view.end(self, members)

    def _show(self, state: WorkState, members: Mapping[str, Any]) -> None:
        is_new = state.text != self._state.text
        self._state, self.members, self.layers = state, members, layers_of(members)
        self._view.update(self, is_new=is_new)


def rows_that_fit(rows: Sequence[Row], room: int) -> Sequence[Row]:
    """Return the rows to show in `room` lines, in their order; work in progress comes first.

    If some rows do not fit, a line is left for their number.
    """
    if len(rows) <= room:
        return rows
    by_progress = sorted(rows, key=lambda row: row.has_ended)
    visible_rows = set(by_progress[: max(0, room - 1)])
    return [row for row in rows if row in visible_rows]


class View(Protocol):
    """Where rows are shown."""

    def start(self, rows: Sequence[Row]) -> None:
        """Begin to show rows."""
        ...

    def stop(self) -> None:
        """Leave the output as it should be."""
        ...

    def update(self, row: Row, *, is_new: bool) -> None:
        """Show the state of a row; `is_new` if its text has changed."""
        ...

    def notify(self, row: Row, line: str) -> None:
        """Show a line about a row."""
        ...

    def end(self, row: Row, members: Mapping[str, Any]) -> None:
        """Show the end of a row; `members` are those of its event."""
        ...
