"""Signals that end a program in order: which they are, and what they do where no reactor runs."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill`, and a terminal that was closed."""


class InterruptedBySignal(SystemExit):
    """A signal has ended the program; `code` is 128 and its number, as shells have it."""


def exit_code(number: int) -> int:
    """Return the exit code of a program that a signal has ended."""
    return 128 + number


def heeded() -> tuple[signal.Signals, ...]:
    """Return those of `ENDING` that count: `nohup`, for one, has SIGHUP ignored."""
    return tuple(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)


def raise_interrupted() -> None:
    """Have the first signal raise `InterruptedBySignal`; ignore later ones during clean-up."""
    for number in heeded():
        signal.signal(number, _interrupt)


def ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; unlike `SIG_IGN` this is not passed on to child processes."""


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    for heeded_number in heeded():
        signal.signal(heeded_number, ignore)
    raise InterruptedBySignal(exit_code(number))
