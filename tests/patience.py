"""Scale limits of time to how busy the machine is.

Most limits in tests only end a wait that would otherwise last for ever: they may be long, since a
test that passes never reaches them. `patient` is for these. Where a limit is what a test is about,
the test counts events instead of seconds, or has a clock of its own; where it must pass in earnest,
while something else has to be faster, it is `scaled`.
"""

from __future__ import annotations

import os

LEAST = 3.0
"""The factor on an idle machine: it may get busy while we wait."""

_FIXED = os.environ.get("TESTS_PATIENCE")


def _waiting() -> float:
    """Return by how much longer than on an idle machine things take now.

    `TESTS_PATIENCE` in the environment is used instead, if it is set.
    """
    if _FIXED:
        return float(_FIXED)
    # Of the last minute; what has been started since then is not in it yet.
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


def patient(seconds: float) -> float:
    """Return a limit for what takes at most `seconds` on an idle machine."""
    return seconds * max(LEAST, 2 * _waiting())


def scaled(seconds: float) -> float:
    """Return a limit that will pass: `seconds` on an idle machine, more on a busy one."""
    return seconds * max(1.0, _waiting())
