"""Ask the user questions on the terminal."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

_LOCAL_MODES = 3
"""Index of the local modes in what `termios.tcgetattr` returns."""


class Prompts:
    """Asks for one line at a time; lines are bytes, as the terminal sends them."""

    def __init__(self, source: BinaryIO, target: BinaryIO) -> None:
        """Read answers from `source`, write questions to `target`."""
        self._source = source
        self._target = target

    def line(self, question: str) -> bytes:
        """Ask a question; return the answer without line break, empty at the end of the input."""
        self._target.write(question.encode())
        self._target.flush()
        return self._source.readline().rstrip(b"\r\n")

    def secret(self, question: str) -> bytes:
        """Ask a question whose answer the terminal does not show."""
        with _without_echo(self._source.fileno()) as is_hidden:
            answer = self.line(question)
        if is_hidden:
            self._target.write(b"\n")
            self._target.flush()
        return answer


@contextmanager
def terminal() -> Iterator[Prompts | None]:
    """Open the terminal of the process; yield None if it has none."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    with open(descriptor, "r+b", buffering=0) as terminal:  # noqa: PTH123 - no path
        yield Prompts(terminal, terminal)


@contextmanager
def _without_echo(descriptor: int) -> Iterator[bool]:
    """Switch a terminal's echo off in the block; yield False if it is not a terminal."""
    if not os.isatty(descriptor):
        yield False
        return
    before = termios.tcgetattr(descriptor)
    silent = list(before)
    silent[_LOCAL_MODES] &= ~termios.ECHO
    try:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, silent)
        yield True
    finally:
        with suppress(termios.error):  # a terminal that was closed has no modes
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
