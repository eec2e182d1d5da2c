"""Scale time limits to the load of the machine.

Most limits in tests only end a wait that would otherwise last for ever. They may be long, since a
test that passes never reaches them: `patient` is for these. A test of a limit itself counts events
or has its own clock. If such a limit must really expire while something else is faster, `stretch`
lengthens it on a busy machine.
"""

from __future__ import annotations

import os

LEAST = 3.0
"""The factor on an idle machine, which may become busy during a wait."""

_FACTOR = os.environ.get("TESTS_PATIENCE")


def _slowdown() -> float:
    """Return how many times longer a task takes now than on an idle machine.

    The environment variable `TESTS_PATIENCE` replaces this number.
    """
    if _FACTOR:
        return float(_FACTOR)
    # The average of the last minute: programs that started just now hardly count.
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


def patient(seconds: float) -> float:
    """Return a limit for a task that takes at most `seconds` on an idle machine."""
    return seconds * max(LEAST, 2 * _slowdown())


def stretch(seconds: float) -> float:
    """Return a limit that will expire: `seconds` on an idle machine, more on a busy one."""
    return seconds * max(1.0, _slowdown())
