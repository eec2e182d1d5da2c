"""The flow of the archive through a pipe into `mksquashfs`, and the end of an idle program."""

from __future__ import annotations

import fcntl
import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from shiftergw.plumbing.process import cpu_seconds

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

IDLE_LIMIT = 600.0
"""Seconds without input, output and processor time after which `mksquashfs` counts as frozen."""


class ArchiveFlow:
    """Progress of the thread that writes into the pipe, and the flag that stops it."""

    def __init__(self, *, may_pause: bool = False) -> None:
        """Start at no bytes; `may_pause` says that the writer may have to wait for its data."""
        self._may_pause = may_pause
        self.stop = Event()
        self.done = 0
        """Bytes of files that were written."""
        self._reader: int | None = None
        """Process id of the program that reads the pipe."""
        self._bytes_written = 0
        self._pipe: int | None = None

    def report(self, done: int, bytes_written: int) -> None:
        """Set the bytes of files, and of the whole stream; called in the thread."""
        self.done, self._bytes_written = done, bytes_written

    @contextmanager
    def through(self, pipe: int) -> Iterator[None]:
        """Measure unread bytes of a pipe while the context lives; then close the pipe."""
        self._pipe = pipe
        try:
            yield
        finally:
            self._pipe = None
            os.close(pipe)

    def start(self, reader: int) -> None:
        """Set the program's process id."""
        self._reader = reader

    def output_and_work(self, output: Path) -> tuple[int, float]:
        """Return the size of the output, and the program's processor time in quarters of a second.

        It may sort a large directory for minutes, and neither read nor write. Blocks.
        """
        seconds = 0.0 if self._reader is None else cpu_seconds(self._reader)
        try:
            size = output.stat().st_size
        except OSError:
            size = 0
        return size, seconds // 0.25

    @property
    def is_paused(self) -> bool:
        """Return whether the program waits for the writer, which may wait for its data."""
        return self._may_pause and self._pipe is not None and not self._unread()

    def bytes_read(self) -> int:
        """Return how many bytes of the stream the program has read.

        Headers count: an image of empty files has nothing else.
        """
        return self._bytes_written - self._unread()

    def _unread(self) -> int:
        """Return how many bytes are in the pipe."""
        if self._pipe is None:
            return 0
        unread = fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4))
        return int.from_bytes(unread, sys.byteorder)


class IdleGuard:
    """Stops a program that shows no progress for `IDLE_LIMIT` seconds.

    `look` is called every second. It compares the flow, the output and the processor time with
    those of the last look; the output is looked at in a thread, because its disk may hang.
    """

    def __init__(
        self,
        flow: ArchiveFlow,
        output: Path,
        threads: Threads,
        clock: IReactorTime,
        stop: Callable[[], None],
        note_work: Callable[[], None],
    ) -> None:
        """Call `stop` once if the program is idle for too long, `note_work` while it is not."""
        self.has_stopped = False
        """Whether the program was idle for too long."""
        self._flow = flow
        self._output = output
        self._threads = threads
        self._clock = clock
        self._stop = stop
        self._note_work = note_work
        self._last_progress = clock.seconds()
        self._progress = (-1, -1, (-1, -1.0))
        self._is_measuring = False

    def look(self) -> None:
        """Compare the progress with that of the last look."""
        if self._is_measuring:  # the disk is slow, or hangs
            self._stop_if_idle()
            return
        self._is_measuring = True
        measuring = self._threads.begin(self._flow.output_and_work, self._output)
        measuring.addCallback(self._compare)

    def _compare(self, output_and_work: tuple[int, float]) -> None:
        self._is_measuring = False
        progress = (self._flow.done, self._flow.bytes_read(), output_and_work)
        if progress != self._progress or self._flow.is_paused:
            self._last_progress, self._progress = self._clock.seconds(), progress
            self._note_work()
        else:
            self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if not self.has_stopped and self._clock.seconds() - self._last_progress >= IDLE_LIMIT:
            self.has_stopped = True
            self._stop()
