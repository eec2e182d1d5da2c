"""Questions to the user on his terminal."""

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
        """Read from `source`, ask on `target`."""
        self._source = source
        self._target = target

    def line(self, question: str) -> bytes:
        """Return a line without its end; empty at the end of the input."""
        self._target.write(question.encode())
        self._target.flush()
        return self._source.readline().rstrip(b"\r\n")

    def secret(self, question: str) -> bytes:
        """Return a line that the terminal does not show."""
        with _unseen(self._source.fileno()) as hidden:
            answer = self.line(question)
        if hidden:
            self._target.write(b"\n")
            self._target.flush()
        return answer


@contextmanager
def terminal() -> Iterator[Prompts | None]:
    """Ask on the terminal of the process; None if it has none."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    with open(descriptor, "r+b", buffering=0) as terminal:  # noqa: PTH123 - no path
        yield Prompts(terminal, terminal)


@contextmanager
def _unseen(descriptor: int) -> Iterator[bool]:
    """Switch a terminal's echo off in the block; False for what is no terminal."""
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
