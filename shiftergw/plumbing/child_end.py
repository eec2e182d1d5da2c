"""End a child process: SIGTERM, then SIGKILL, and no wait without an end.

The kernel keeps a process that waits for a file system or a device (in uninterruptible sleep), so
that even SIGKILL does not end it. Such a child is left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ProcessExitedAlready
from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

LEAVE_AFTER = 10.0
"""Seconds after SIGKILL after which nobody waits for the end of a child any more."""

STUCK_LIMIT = 4
"""Children of this process that may be left behind. Beyond it callers wait for their children, so
that a file system that hangs collects no more processes."""

stuck_children: set[int] = set()
"""The ids of processes that were left behind, and have not ended yet."""

_log = Logger()


def leave_behind(program: str, pid: int) -> None:
    """Count a child as left behind, and log it."""
    stuck_children.add(pid)
    _log.error(
        "{program} (process {pid}) does not end after SIGKILL, as if its file system did not"
        " answer. It is left behind; there are {count} such processes now, and {limit} make others"
        " wait.",
        program=program,
        pid=pid,
        count=len(stuck_children),
        limit=STUCK_LIMIT,
    )


def note_end(program: str, pid: int) -> None:
    """Note that a child has ended; log it if it was left behind."""
    if pid in stuck_children:
        stuck_children.discard(pid)
        _log.info(
            "{program} (process {pid}), which was left behind, has ended.", program=program, pid=pid
        )


def send_signal(transport: Any, name: str) -> None:
    """Send a signal to a child, unless it has exited."""
    with suppress(ProcessExitedAlready):
        transport.signalProcess(name)


class ChildTermination:
    """Ends one child; `on_leave` is called once if it is left behind."""

    def __init__(
        self,
        program: str,
        transport: Any,
        clock: IReactorTime,
        kill_after: float,
        on_leave: Callable[[], None],
    ) -> None:
        """Send nothing yet; SIGKILL follows `kill_after` seconds after SIGTERM."""
        self._program = program
        self._transport = transport
        self._clock = clock
        self._kill_after = kill_after
        self._on_leave = on_leave
        self._call: Any = None
        self._has_exited = False

    def begin(self) -> None:
        """Send SIGTERM, unless that was done before."""
        if self._call is None:
            send_signal(self._transport, "TERM")
            self._call = self._clock.callLater(self._kill_after, self._kill)

    def note_exit(self) -> None:
        """Note that the process has exited: only its pipes may still be open."""
        self._has_exited = True

    def note_end(self) -> None:
        """Note that the process has ended, and its pipes are closed."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        note_end(self._program, self._transport.pid)

    def _kill(self) -> None:
        send_signal(self._transport, "KILL")
        self._call = self._clock.callLater(LEAVE_AFTER, self._leave)

    def _leave(self) -> None:
        if self._has_exited:
            return  # its end follows, once its pipes are closed
        if len(stuck_children) >= STUCK_LIMIT:
            self._call = self._clock.callLater(LEAVE_AFTER, self._leave)
            return
        leave_behind(self._program, self._transport.pid)
        self._on_leave()
