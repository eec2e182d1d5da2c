"""How far the work is, on standard error: a bar on a terminal, a line per change elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from shiftergw.errors import printable


class Display:
    """Shows one stage after the other, and the bytes of the stage."""

    def __init__(self, console: Console | None = None) -> None:
        """Show on standard error unless told otherwise."""
        self._console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._said = ""

    def __enter__(self) -> Self:
        """Begin."""
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it should be."""
        if self._bars is not None:
            self._bars.stop()

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

    def say(self, text: str) -> None:
        """Show one line, unless it is the last one again."""
        line = printable(text)
        if line != self._said:
            self._said = line
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
