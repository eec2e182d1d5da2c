"""A reactor of its own for one command, from its start to its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import printable


def run_main(main: Callable[[Any], Coroutine[Deferred[Any], Any, int]]) -> int:
    """Run `main(reactor)` in a reactor of its own to the end and return its exit code.

    A signal cancels `main`, waits for its clean-up, and gives 130; an exception that nobody foresaw
    is shown on standard error, log or not, and gives 70 (`EX_SOFTWARE`): to the command line 1
    means that an image has failed.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    anything: Any = reactor
    codes: list[int] = []

    def begin() -> None:
        running = Deferred.fromCoroutine(main(anything))
        finished: Deferred[None] = Deferred()

        def end(result: Any) -> None:
            if isinstance(result, int):
                codes.append(result)
            elif result.check(CancelledError):
                codes.append(130)
            else:
                for line in result.getTraceback().splitlines():
                    print(printable(line, 1000), file=sys.stderr)  # noqa: T201 - no log may run
                codes.append(os.EX_SOFTWARE)
            finished.callback(None)
            if not stopping:
                anything.stop()

        stopping: list[bool] = []

        def stop() -> Deferred[None]:
            stopping.append(True)
            running.cancel()
            return finished

        anything.addSystemEventTrigger("before", "shutdown", stop)
        running.addBoth(end)

    anything.callWhenRunning(begin)
    anything.run()
    return codes[0]
