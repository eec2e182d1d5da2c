"""A pseudo-terminal in this process, and what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from types import TracebackType
from typing import Self

from rich.console import Console

from shiftergw.cli.output import Console as OutputConsole
from tests.patience import patient

_PIECES = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


SILENCE = 0.01
"""Seconds without output after which a drawing is complete."""


class Screen:
    """The lines that a terminal shows, as far as the display of progress uses it."""

    def __init__(self, columns: int) -> None:
        """Start empty."""
        self._columns = columns
        self._lines = [""]
        self._row = 0
        self._column = 0

    def feed(self, text: str) -> None:
        """Show what a program has written; fail if a line is too long for the terminal."""
        for numbers, command, control, characters in _PIECES.findall(text):
            if command == "A":
                self._row -= int(numbers or 1)
            elif command == "K":
                self._lines[self._row] = ""
            elif control == "\r":
                self._column = 0
            elif control == "\n":
                self._row += 1
                if self._row == len(self._lines):
                    self._lines.append("")
            elif characters:
                line = self._lines[self._row].ljust(self._column)
                end = self._column + len(characters)
                self._lines[self._row] = line[: self._column] + characters + line[end:]
                self._column = end
                assert end <= self._columns, characters

    @property
    def lines(self) -> list[str]:
        """Return the lines up to the last one with a character."""
        return "\n".join(line.rstrip() for line in self._lines).rstrip().split("\n")


class PseudoTerminal:
    """A terminal on which this process prints; use it as a context."""

    def __init__(self, columns: int, rows: int = 25) -> None:
        """Open the terminal."""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._file = os.fdopen(slave, "w", encoding="utf-8")
        self._screen = Screen(columns)
        self.console: Console = OutputConsole(
            file=self._file, width=columns, height=rows, legacy_windows=False, _environ={}
        )

    def __enter__(self) -> Self:
        """Return the terminal."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the terminal."""
        self._file.close()
        os.close(self._master)

    def lines_with(self, text: str) -> list[str]:
        """Wait until the terminal shows a text, and is drawn once more; return all of its lines.

        The drawing with the text may have begun before all rows had changed.
        """
        deadline = time.monotonic() + patient(10)
        while not any(text in line for line in self._screen.lines):
            self._read(deadline)
        self._read(deadline)
        while select.select([self._master], [], [], SILENCE)[0]:
            self._read(deadline)
        return self._screen.lines

    def _read(self, deadline: float) -> None:
        if not select.select([self._master], [], [], deadline - time.monotonic())[0]:
            raise TimeoutError(self._screen.lines)
        self._screen.feed(os.read(self._master, 1 << 16).decode())
