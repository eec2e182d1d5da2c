"""Tests that are not measured by coverage: tracing triples the time of loops in Python.

It is for tests of many equal steps, or of times. What they run, other tests run as well: those are
measured.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def untraced(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have a function run without the trace function of its thread, which is there again after."""

    @functools.wraps(function)
    def run(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*arguments, **keywords)
        finally:
            sys.settrace(trace)

    return run
