"""How far the work is, on standard error: a bar on a terminal, a line per change elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from shiftergw.cli.output import Console
from shiftergw.errors import printable


class _Bars:
    """The bars of a display, which exist on a terminal only."""

    _bars: Progress | None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it should be; it may be gone."""
        if self._bars is not None:
            with suppress(OSError):
                self._bars.stop()


class Display(_Bars):
    """Shows one stage after the other, and the bytes of the stage."""

    def __init__(self, console: RichConsole | None = None) -> None:
        """Show progress on `console`, by default on standard error."""
        self._console = console or Console(stderr=True)
        self._bars = None
        self._task: TaskID | None = None
        self._stage = ""
        self._last_line = ""

    def __enter__(self) -> Self:
        """Begin."""
        if self._console.is_terminal:
            self._bars = _bars(self._console)
            self._bars.start()
        return self

    def stage(self, text: str) -> None:
        """Show that a stage begins; the same one twice is one."""
        line = printable(text)
        if line == self._stage:
            return
        self._stage = line
        if self._bars is None:
            self._print(line)
            return
        if self._task is not None:
            self._bars.stop_task(self._task)
        self._task = self._bars.add_task(line, total=None)

    def bytes(self, done: int, total: int) -> None:
        """Show how far the stage is; `total` 0 means not known."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total or None)

    def notify(self, text: str) -> None:
        """Show one line, unless it is the last one again."""
        line = printable(text)
        if line != self._last_line:
            self._last_line = line
            self._print(line)

    def _print(self, line: str) -> None:
        _print(self._console, line)


class Lines(_Bars):
    """Shows several pieces of work side by side, each in a line of its own."""

    def __init__(self, names: Iterable[str], console: RichConsole | None = None) -> None:
        """Show the work with these names on `console`, by default on standard error."""
        self._names = [printable(name) for name in names]
        self._console = console or Console(stderr=True)
        self._bars = _bars(self._console) if self._console.is_terminal else None
        self._lines: dict[str, Line] = {}

    def __enter__(self) -> Self:
        """Begin."""
        width = max(map(len, self._names))
        for name in self._names:
            self._lines[name] = Line(self._console, self._bars, name, width)
        if self._bars is not None:
            self._bars.start()
        return self

    def line(self, name: str) -> Line:
        """Return where one of the names is shown."""
        return self._lines[printable(name)]


class Line:
    """Shows one piece of work among others; as `Display`, with its name in front."""

    def __init__(self, console: RichConsole, bars: Progress | None, name: str, width: int) -> None:
        """Show the name in `width` characters where lines stand below each other."""
        self._console = console
        self._bars = bars
        self._name = name
        self._start = f"{name:{width}}  "
        self._task = TaskID(0) if bars is None else bars.add_task(self._start, total=None)
        self._stage = ""
        self._last_line = ""

    def stage(self, text: str) -> None:
        """Show that a stage begins; the same one twice is one."""
        stage = printable(text)
        if stage == self._stage:
            return
        self._stage = stage
        if self._bars is None:
            _print(self._console, f"{self._name}: {stage}")
            return
        self._bars.update(self._task, description=f"{self._start}{stage}", completed=0)
        task = self._of(self._bars)
        task.total = task.finished_time = None  # `update` has no way to take them back

    def bytes(self, done: int, total: int) -> None:
        """Show how far the stage is; `total` 0 means not known."""
        if self._bars is not None:
            self._bars.update(self._task, completed=done, total=total or None)

    def notify(self, text: str) -> None:
        """Show one line, unless it is the last one again."""
        line = printable(text)
        if line != self._last_line:
            self._last_line = line
            _print(self._console, f"{self._name}: {line}")

    def end(self, text: str, *, good: bool) -> None:
        """Show how it ended: a full bar if it was `good`."""
        self.stage(text)
        if self._bars is not None:
            self._bars.update(self._task, total=1, completed=int(good), counted=False)
            self._bars.stop_task(self._task)

    def _of(self, bars: Progress) -> Task:
        return next(task for task in bars.tasks if task.id == self._task)


class _Bytes(DownloadColumn):
    """How many bytes of how many, where bytes are counted and known."""

    def render(self, task: Task) -> Text:
        is_known = task.total is not None or task.completed > 0
        return super().render(task) if is_known and task.fields.get("counted", True) else Text()


def _bars(console: RichConsole) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Bytes(),
        TimeElapsedColumn(),
        console=console,
    )


def _print(console: RichConsole, line: str) -> None:
    """Print a line; what has no reader ends the command, but not from inside the work."""
    with suppress(OSError):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
