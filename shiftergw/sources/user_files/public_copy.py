"""Copy a file that a user names, in steps that may hang with its file system."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Event, Lock

STEP = 4 << 20
"""Bytes of one step."""


class FileCopy:
    """Copies a file to an open descriptor, one call of `step` after another, each in a thread.

    A thread that hangs cannot be ended: its caller goes on without it. So a step that ends late
    writes nothing more, and closes both files.
    """

    def __init__(self, open_source: Callable[[], int], target: int) -> None:
        """Copy what `open_source` opens to a duplicate of the descriptor `target`."""
        self._open_source = open_source
        self._target = os.dup(target)
        self._source: int | None = None
        self._lock = Lock()
        self._stop = Event()
        self._is_closed = False

    def step(self) -> int:
        """Copy the next bytes; return how many, and 0 at the end of the file or once closed."""
        try:
            with self._lock:
                return 0 if self._stop.is_set() else self._copy()
        finally:
            if self._stop.is_set():
                self.close()

    def _copy(self) -> int:
        if self._source is None:
            self._source = self._open_source()
        data = os.read(self._source, STEP)
        if self._stop.is_set():
            return 0
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._target, rest) :]
        return len(data)

    def close(self) -> None:
        """Close both files, or have the step that runs do it at its end; does not wait for it."""
        self._stop.set()
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._target)
                if self._source is not None:
                    os.close(self._source)
        finally:
            self._lock.release()
