"""Append lines to a file, in a thread, without delaying or failing the work that they report."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import GatewayError
from shiftergw.plumbing.threads import Threads

MODE = 0o640
"""The mode of a file that does not exist yet, whatever the umask is."""

MOST_WAITING = 10_000
"""Lines that wait for a disk that is full or slow; further ones are dropped and counted."""


class LineFile:
    """A file that only grows: each batch of lines is one write, and the file is opened for it.

    So it may be rotated at any time, by a rename or by `copytruncate`.
    """

    _log = Logger()

    def __init__(self, path: Path, threads: Threads) -> None:
        """Append to the file `path`, which is made when it is first needed, in one of `threads`."""
        self._path = path
        self._threads = threads
        self._waiting: deque[str] = deque()
        self._dropped_lines = 0
        self._has_failed = False
        self._is_writing = False
        self._writing: Deferred[None] = Deferred()

    def append(self, line: str) -> None:
        """Write a line soon; errors are logged, once until a write succeeds."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(line)
        else:
            self._dropped_lines += 1
        if not self._is_writing:  # also after a dropped line: the disk may have room again
            self._writing = Deferred.fromCoroutine(self._write())

    async def close(self) -> None:
        """Write what still waits; try once more after a failure."""
        if self._is_writing:
            await self._writing
        if self._waiting:
            await self._write()

    async def _write(self) -> None:
        self._is_writing = True
        try:
            while self._waiting:
                lines = list(self._waiting)
                await self._threads.run(append_lines, self._path, lines)
                for _ in lines:
                    self._waiting.popleft()
                self._note_success()
        except (OSError, GatewayError) as error:
            self._note_failure(error)
        finally:
            self._is_writing = False

    def _note_success(self) -> None:
        path, lost_lines = str(self._path), self._dropped_lines
        if self._has_failed and lost_lines:
            self._log.warn(
                "{path} can be written again; {n} lines are lost", path=path, n=lost_lines
            )
        elif self._has_failed:
            self._log.warn("{path} can be written again", path=path)
        elif lost_lines:
            self._log.warn(
                "{path} is on a disk that is too slow; {n} lines are lost", path=path, n=lost_lines
            )
        self._has_failed, self._dropped_lines = False, 0

    def _note_failure(self, error: Exception) -> None:
        if not self._has_failed:
            self._log.error(
                "{path} cannot be written: {error}; the work goes on, and {n} lines are kept",
                path=str(self._path),
                error=getattr(error, "strerror", None) or str(error),
                n=MOST_WAITING,
            )
        self._has_failed = True


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append all lines or, if that fails, none of them; raise `OSError`."""
    descriptor = _open(path)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "It is not a regular file")
        content = "".join(f"{line}\n" for line in lines).encode()
        if os.write(descriptor, content) < len(content):
            os.ftruncate(descriptor, status.st_size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    # A FIFO without a reader would block.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, MODE)
        os.fchmod(descriptor, MODE)
        return descriptor
