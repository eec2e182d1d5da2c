"""Wait for other processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor

from shiftergw.plumbing.timing import pause
from tests.patience import patient


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Return once `condition` holds; fail after this many seconds."""
    clock: Any = reactor
    deadline = time.monotonic() + patient(seconds)
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await pause(0.01, clock)


def is_alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end between two of these calls
        return False
