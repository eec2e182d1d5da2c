"""Run tests without the measurement of coverage, which triples the time of loops in Python.

It is for tests with many equal steps, and for tests of times. Other tests cover the same code.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def without_tracing(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return a function that runs without the trace function of its thread, and restores it."""

    @functools.wraps(function)
    def run(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*arguments, **keywords)
        finally:
            sys.settrace(trace)

    return run
