"""Watch the time limits of all tests with one thread.

pytest-timeout starts a thread for each test and waits for its end. With coverage, which traces
each thread, that takes more processor time than many a test.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


class Watchdog:
    """Call a function when the time limit of the current test has passed."""

    def __init__(self) -> None:
        """Start no thread until the first limit is set."""
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None
        self._wake_up: float | None = None
        self._expire: Callable[[], object] = lambda: None

    def set(self, seconds: float, expire: Callable[[], object]) -> None:
        """Call `expire` in the thread of the watchdog, unless `cancel` is called in `seconds`."""
        with self._condition:
            self._expire = expire
            self._deadline = time.monotonic() + seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()
            elif self._wake_up is None or self._deadline < self._wake_up:
                self._condition.notify()

    def cancel(self) -> None:
        """Forget the limit. The thread sleeps on: most tests have the same, later limit."""
        with self._condition:
            self._deadline = None

    def _run(self) -> None:
        while True:
            self._wait_until_expired()
            self._expire()

    def _wait_until_expired(self) -> None:
        with self._condition:
            while True:
                now = time.monotonic()
                if self._deadline is not None and self._deadline <= now:
                    self._deadline = None
                    return
                self._wake_up = self._deadline
                self._condition.wait(None if self._wake_up is None else self._wake_up - now)


WATCHDOG = Watchdog()
"""The only instance that watches tests."""


def watch(item: Any, settings: Any) -> bool | None:
    """Set the limit of a test; return None where pytest-timeout has to do it with a signal.

    What happens when the limit has passed is what pytest-timeout does: it shows the stacks of all
    threads and ends the process.
    """
    if settings.method != "thread":
        return None
    plugin = item.config.pluginmanager.getplugin("timeout")
    WATCHDOG.set(settings.timeout, lambda: plugin.timeout_timer(item, settings))
    item.cancel_timeout = WATCHDOG.cancel  # pytest-timeout calls it after the test
    return True
