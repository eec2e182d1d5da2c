"""Signals that end a program with clean-up, for programs in which no reactor runs yet."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill`, and the end of the terminal."""


class InterruptedBySignal(SystemExit):
    """A signal ended the program; `code` is 128 plus its number, as in shells."""


def exit_code(number: int) -> int:
    """Return the exit code of a program that was ended by a signal."""
    return 128 + number


def handled_signals() -> tuple[signal.Signals, ...]:
    """Return the signals of `ENDING` that are not ignored; `nohup`, for example, ignores SIGHUP."""
    return tuple(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)


def raise_interrupted() -> None:
    """Have the first signal raise `InterruptedBySignal`; ignore later ones during clean-up."""
    for number in handled_signals():
        signal.signal(number, _interrupt)


def ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; unlike `SIG_IGN`, child processes do not inherit this handler."""


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    for ending_signal in handled_signals():
        signal.signal(ending_signal, ignore)
    raise InterruptedBySignal(exit_code(number))
