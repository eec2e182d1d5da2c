"""Run one command in a reactor of its own, from its start to its exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning

from shiftergw.errors import printable
from shiftergw.plumbing.reactor import with_threads
from shiftergw.plumbing.signals import exit_code, handled_signals

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

Main = Callable[["Reactor"], Coroutine[Deferred[Any], Any, int]]
"""A function of the reactor that returns an exit code."""


def run_main(main: Main) -> int:
    """Run `main(reactor)` in a reactor of its own and return its exit code.

    The first signal of `ENDING` cancels `main`; after its clean-up the exit code is 128 plus the
    number of the signal. Further signals are ignored. An unexpected exception is printed on
    standard error and gives 70 (`EX_SOFTWARE`), since 1 means for the command line that an image
    has failed.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    gc.freeze()  # modules live until the exit, which would otherwise search them for garbage
    gc.enable()  # `shiftergw.runner` disables it during the imports
    run = _Run(reactor, main)
    reactor.callWhenRunning(run.begin)
    reactor.addSystemEventTrigger("before", "shutdown", run.shut_down)
    reactor.run()
    return run.code


class _Run:
    """One run of a main function."""

    def __init__(self, reactor: Reactor, main: Main) -> None:
        self.code = exit_code(signal.SIGTERM)  # if that ends the reactor before it has begun
        self._reactor = reactor
        self._main = main
        self._signals = handled_signals()
        """Determined before the reactor handles signals that were ignored."""
        self._interruption = 0
        self._running: Deferred[int] | None = None
        self._end_of_main: Deferred[None] = Deferred()

    def begin(self) -> None:
        """Start the main function; from now on signals cancel it."""
        for number in self._signals:
            signal.signal(number, self._interrupt)
        self._running = Deferred.fromCoroutine(self._main(self._reactor))
        self._running.addBoth(self._end)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        if not self._interruption and not self._end_of_main.called:
            self._interruption = number
            with_threads(self._reactor).callFromThread(self._cancel)

    def _cancel(self) -> None:
        if self._running is not None:
            self._running.cancel()

    def shut_down(self) -> Deferred[None] | None:
        """Cancel the main function because the reactor is stopped otherwise; fire at its end."""
        if self._running is None:
            return None
        self._cancel()
        return self._end_of_main

    def _end(self, result: Any) -> None:
        """Turn the result into the exit code and stop the reactor, even if printing fails."""
        if isinstance(result, int):
            self.code = result
        elif result.check(CancelledError):
            self.code = exit_code(signal.SIGINT)
        else:
            self.code = os.EX_SOFTWARE
            with suppress(OSError):  # standard error may be closed
                for line in result.getTraceback().splitlines():
                    print(printable(line, 1000), file=sys.stderr)  # noqa: T201 - no log may run
        if self._interruption and self.code:
            self.code = exit_code(self._interruption)
        self._end_of_main.callback(None)
        with suppress(ReactorNotRunning):
            self._reactor.stop()
