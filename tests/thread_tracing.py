"""Install trace functions in threads that start at the same time.

In CPython 3.11, `sys.settrace` raises `RuntimeError` while another thread is just installing a
trace function (python/cpython#98257). Coverage traces every new thread by that function, so a
thread that loses the race ends before it runs, and a thread that waits for it never continues.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

TRIES = 1000
PAUSE_SECONDS = 0.001

SetTrace = Callable[[Any], None]


def patient_settrace(settrace: SetTrace) -> SetTrace:
    """Return a function that calls `settrace` again while another thread is in it."""

    def set_trace(function: Any) -> None:
        for _ in range(TRIES - 1):
            try:
                return settrace(function)
            except RuntimeError:
                time.sleep(PAUSE_SECONDS)
        return settrace(function)

    return set_trace


def install() -> None:
    """Have all threads of this process install trace functions patiently."""
    sys.settrace = patient_settrace(sys.settrace)
