"""Run a command of a few requests without a reactor, which would take longer to load than to run.

Each call that may block runs in a daemon thread, and the main thread waits for it: so a signal, a
time limit, or a broken pipe ends the wait at once, whatever the call is doing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from threading import Event, Thread
from time import monotonic
from typing import Any, Generic, NoReturn, TypeVar

from shiftergw.cli.exchange import TlsUnproven
from shiftergw.cli.exits import LINE_LIMIT, Stop, report, report_interruption
from shiftergw.cli.readers import LOOK_INTERVAL, has_readers
from shiftergw.cli.start import code_of_output_error
from shiftergw.errors import GatewayError, printable
from shiftergw.plumbing.signals import InterruptedBySignal

T = TypeVar("T")


class ThreadCall(Generic[T]):
    """A call in a thread of its own, for which the caller may stop waiting."""

    def __init__(self, function: Callable[[], T]) -> None:
        """Start the call; the end of the process does not wait for it."""
        self._function = function
        self._end = Event()
        self._value: T
        self._error: BaseException | None = None
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        self._end.set()

    def result(self, deadline: Callable[[], float] = lambda: float("inf")) -> T:
        """Return the result of the call, or raise its exception.

        `deadline()` is a time of `time.monotonic`, and may move while the call goes on. Raises
        `TimeoutError` once it is reached, and `BrokenPipeError` once the output of the program has
        no reader.
        """
        while not self._end.wait(min(LOOK_INTERVAL, max(0.0, deadline() - monotonic()))):
            if monotonic() >= deadline():
                raise TimeoutError
            if not has_readers():
                raise BrokenPipeError
        if self._error is not None:
            raise self._error
        return self._value


def run_blocking(
    command: Callable[[], Coroutine[Any, Any, int]], interruption: str = "Interrupted."
) -> NoReturn:
    """Run a command whose waits all block, and exit with its exit code.

    Prints `interruption` on standard error if a signal ends the command. An exception without an
    explanation is a fault of the program: its traceback is printed, and the exit code is 70
    (`EX_SOFTWARE`), as with a reactor. Raises `TlsUnproven`.
    """
    try:
        sys.exit(_exit_code_of(command))
    except InterruptedBySignal:
        report_interruption(interruption)
        raise


def _exit_code_of(command: Callable[[], Coroutine[Any, Any, int]]) -> int:
    try:
        try:
            return value_of(command())
        except (Stop, GatewayError) as error:
            return report(error)
        except OSError as error:
            return code_of_output_error(error)
    except TlsUnproven:
        raise
    except Exception:  # noqa: BLE001 - whatever it is
        import traceback  # noqa: PLC0415 - nothing else needs it

        for line in traceback.format_exc().splitlines():
            sys.stderr.write(f"{printable(line, LINE_LIMIT)}\n")
        return os.EX_SOFTWARE


def value_of(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the value of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("a command without a reactor waits for one")
