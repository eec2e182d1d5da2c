"""Standard output and error of a command, and what becomes of it when nobody reads them."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Coroutine
from typing import Any

import rich.console
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall

LOOK_INTERVAL = 0.5
"""Seconds between two looks at whether the output still has a reader."""


class Console(rich.console.Console):
    """A console that raises `BrokenPipeError` where rich would end the program."""

    def on_broken_pipe(self) -> None:
        """Raise the exception that is being handled."""
        raise  # noqa: PLE0704 - rich calls this in an except clause


async def while_read(clock: Any, work: Coroutine[Deferred[Any], Any, int]) -> int:
    """Return what `work` returns; cancel it once a pipe that the command prints to has no reader.

    Raises `BrokenPipeError` then, also if nothing is printed: `shiftergw pull ... | head -1` must
    not wait for a conversion that has nothing to say.
    """
    running = Deferred.fromCoroutine(work)
    is_broken = False

    def look() -> None:
        nonlocal is_broken
        if not is_broken and not has_readers():
            is_broken = True
            running.cancel()

    looking = LoopingCall(look)
    looking.clock = clock
    looking.start(LOOK_INTERVAL, now=False)
    try:
        return await running
    except CancelledError:
        if is_broken:
            raise BrokenPipeError from None
        raise
    finally:
        looking.stop()


def has_readers() -> bool:
    """Return whether standard output and error, where they are pipes, have readers."""
    poll = select.poll()
    for descriptor in (1, 2):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            poll.register(descriptor, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))
