"""The protocol between a worker process and the process that started it.

A worker is any command that reads and writes lines of JSON. It writes `{"ready": true}` to its
standard output once it has started. Then it reads `{"record": KEY}` from its standard input, one
record at a time, and writes `{"done": KEY}` after each. It may read `{"debug": true}` or `false` at
any time, which switches debug messages. At the end of its input it finishes the
current record and exits, so no worker outlives a gateway that was killed. Its standard error goes
into the log of the process that started it.

A worker of the pool may also write `{"metrics": [...]}`: sums since its start, of which later ones
replace earlier ones. Several such lines may be needed, because lines have a limit.

A worker calls `os.setpgrp` before it says that it is ready if its children are to be killed with
it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from shiftergw.plumbing.exhaustion import EXHAUSTED_CODE

START_SECONDS = 60.0
"""Time limit for the start of a worker, until a start has exceeded it."""

LONGEST_START = 600.0
"""Seconds; each start that exceeds its time limit doubles the limit, up to this."""

LEAVE_SECONDS = 30.0
"""Time limit for the exit of a worker without a job, from the end of its input."""

KILL_SECONDS = 10.0
"""Seconds between SIGTERM and SIGKILL: a worker stops its children and removes partial files."""

LINE_LIMIT = 4096
"""Bytes of one line; a longer line is split. A traceback is one line."""

STOPPED_CODE = 130
"""The exit code of a worker that has stopped in an orderly way because of a signal."""


class LineSplitter:
    """Split a stream into lines of bounded length."""

    def __init__(self, on_line: Callable[[bytes], object], limit: int = LINE_LIMIT) -> None:
        """Call `on_line` with each line, without its newline; split one beyond `limit` bytes."""
        self._on_line = on_line
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_line(line)
        if len(self._rest) >= self._limit:
            line, self._rest = self._rest, b""
            self._on_line(line)


def describe_exit(code: int | None, number: int | None) -> str:
    """Return a phrase for the end of a process with an exit code or by a signal's number."""
    if number is None and code == EXHAUSTED_CODE:
        return "ran out of file descriptors, memory, or threads"
    if number is None:
        return f"ended with exit code {code}"
    if number == signal.SIGKILL:
        return "was killed by signal 9, perhaps because the machine ran out of memory"
    return f"was killed by signal {number}"
