"""Show the progress of work: bars on a terminal, lines in a file, JSON objects for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.text import Text

from shiftergw.cli.output import Console
from shiftergw.cli.progress_lines import labels_of, terminal_lines
from shiftergw.cli.progress_rows import Row, View, Work, rows_that_fit
from shiftergw.cli.progress_state import WorkState, plain_line
from shiftergw.model.layer_progress import parse_layers
from shiftergw.model.names import is_count, is_time

LINE_INTERVAL = 10.0
"""Seconds between two lines about the same stage, where there is no terminal."""

DRAWINGS = 4.0
"""How often a terminal is drawn in a second."""

_COUNTS = ("done", "total", "rate", "queue_place", "queue_length")
_TIMES = ("time_left", "waits_until")
"""Numbers of an answer that events repeat."""


class Output(Enum):
    """How a command shows its progress: to people, as events for programs, or not at all."""

    PEOPLE = "people"
    EVENTS = "events"
    SILENCE = "silence"


_NAMELESS_WORK = (Work(),)
"""The work of a command that does one thing."""


class Display:
    """Shows pieces of work side by side, each in a row."""

    def __init__(
        self,
        works: Sequence[Work] = _NAMELESS_WORK,
        output: Output = Output.PEOPLE,
        console: RichConsole | None = None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show these works on `console`, by default on standard error."""
        view = _view(output, console or Console(stderr=True))
        labels = labels_of((work.image, work.system) for work in works)
        self.rows = [
            Row(work, label, view, seconds) for work, label in zip(works, labels, strict=True)
        ]
        self._view = view

    def __enter__(self) -> Self:
        """Begin."""
        self._view.start(self.rows)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it should be; it may be gone."""
        with suppress(OSError):
            self._view.stop()


def _view(output: Output, console: RichConsole) -> View:
    if output is Output.EVENTS:
        return _Events()
    if output is Output.SILENCE:
        return _SilentView()
    is_drawable = console.is_terminal and not console.is_dumb_terminal
    return _Bars(console) if is_drawable else _Lines(console)


class _SilentView:
    """Shows nothing."""

    def start(self, rows: Sequence[Row]) -> None:
        pass

    def stop(self) -> None:
        pass

    def update(self, row: Row, *, is_new: bool) -> None:
        pass

    def notify(self, row: Row, line: str) -> None:
        pass

    def end(self, row: Row, members: Mapping[str, Any]) -> None:
        pass


class _Bars(_SilentView):
    """Draws the rows on a terminal, again and again."""

    def __init__(self, console: RichConsole) -> None:
        self._console = console
        self._rows: Sequence[Row] = ()
        self._is_at_end = False
        self._live = Live(
            console=console, get_renderable=self._drawing, refresh_per_second=DRAWINGS
        )

    def start(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._live.start()

    def stop(self) -> None:
        self._is_at_end = True
        self._live.stop()

    def notify(self, row: Row, line: str) -> None:
        _print(self._console, _with_label(row, line))

    def _drawing(self) -> Group:
        rows = [row for row in self._rows if row.label or row.state.text]
        room = len(rows) if self._is_at_end else self._console.height
        visible_rows = rows_that_fit(rows, room)
        works: list[tuple[str, WorkState]] = []
        free_lines = room - len(rows)
        for row in visible_rows:
            layers = row.layers[: max(0, free_lines)]
            free_lines -= len(layers)
            works += [(row.label, row.state), *(("", layer) for layer in layers)]
        lines = terminal_lines(works, self._console.width)
        if len(visible_rows) < len(rows):
            lines.append(f"and {len(rows) - len(visible_rows)} more")
        return Group(*(Text(line, no_wrap=True, overflow="crop") for line in lines))


class _Lines(_SilentView):
    """Prints a line for each stage, and one every `LINE_INTERVAL` seconds while it goes on."""

    def __init__(self, console: RichConsole) -> None:
        self._console = console
        self._ages: dict[Row, float] = {}
        """The age of each row when its last line was printed."""

    def update(self, row: Row, *, is_new: bool) -> None:
        state = row.state
        if is_new or state.seconds - self._ages.get(row, 0.0) >= LINE_INTERVAL:
            self._ages[row] = state.seconds
            shown_state = replace(state, seconds=0.0) if is_new else state
            _print(self._console, _with_label(row, plain_line(shown_state)))

    def notify(self, row: Row, line: str) -> None:
        _print(self._console, _with_label(row, line))

    def end(self, row: Row, members: Mapping[str, Any]) -> None:  # noqa: ARG002 - of the protocol
        if row.label:  # the result of work that is alone follows at once
            _print(self._console, _with_label(row, row.state.text))


class _Events(_SilentView):
    """Prints a JSON object on a line of standard output for each change."""

    def __init__(self) -> None:
        self._last_lines: dict[Row, str] = {}

    def update(self, row: Row, *, is_new: bool) -> None:  # noqa: ARG002 - of the protocol
        state, members = row.state, row.members
        event: dict[str, Any] = {"text": state.text}
        if members:
            texts = {name: members.get(name) for name in ("status", "stage", "waits_for")}
            counts = {name: members.get(name) for name in _COUNTS if is_count(members.get(name))}
            times = {name: members.get(name) for name in _TIMES if is_time(members.get(name))}
            event |= {name: text for name, text in texts.items() if text} | counts | times
            layers = [layer._asdict() for layer in parse_layers(members.get("layers_in_flight"))]
            event |= {"layers_in_flight": layers} if layers else {}
        else:
            numbers = {"done": state.done, "total": state.total, "rate": state.rate}
            event |= {name: number for name, number in numbers.items() if number is not None}
        self._print(row, "progress", event)

    def notify(self, row: Row, line: str) -> None:
        self._print(row, "notice", {"text": line})

    def end(self, row: Row, members: Mapping[str, Any]) -> None:
        self._print(row, "end", members)

    def _print(self, row: Row, event: str, members: Mapping[str, Any]) -> None:
        work = {"image": row.work.image, "system": row.work.system}
        known_work = {name: text for name, text in work.items() if text}
        line = json.dumps({"event": event, **known_work, **members})
        if self._last_lines.get(row) != line:
            self._last_lines[row] = line
            click.echo(line)


def _with_label(row: Row, line: str) -> str:
    return f"{row.label}: {line}" if row.label else line


def _print(console: RichConsole, line: str) -> None:
    """Print a line; what has no reader ends the command, but not from inside the work."""
    with suppress(OSError):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
