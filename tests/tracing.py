"""Measure coverage where that tells something, since it doubles the time of Python code.

The process that collects the tests measures from its start, so that the lines of modules count,
which run once. Its forks (`tests.processes`) measure while tests and their fixtures run, and not
while pytest works in between.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import coverage
import pytest

from tests import thread_tracing

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Measurement:
    """The trace function of the main thread of a process that measures coverage."""

    def __init__(self) -> None:
        """Measure nothing until `start` is called."""
        self._trace: Any = None

    def start(self) -> None:
        """Measure if the environment says so.

        The programs that this process starts do not measure, since that would make them slow.
        """
        if "COVERAGE_PROCESS_START" not in os.environ:
            return
        thread_tracing.install()
        coverage.process_startup()
        del os.environ["COVERAGE_PROCESS_START"]
        self._trace = sys.gettrace()

    def pause(self) -> None:
        """Measure nothing in this thread for now."""
        if self._trace is not None:
            sys.settrace(None)

    def resume(self) -> None:
        """Measure this thread again."""
        if self._trace is not None:
            sys.settrace(self._trace)


MEASUREMENT = Measurement()
"""The only instance."""


PLAIN_FIXTURES = {
    "monkeypatch",
    "no_file_work_on_the_reactor",
    "no_leftover_calls",
    "no_unhandled_errors",
    "request",
    "tmp_path",
    "tmp_path_factory",
    "twisted_greenlet",
}
"""Fixtures that run no code of the program."""


@pytest.hookimpl(wrapper=True)
def measure_fixtures(item: pytest.Item) -> Iterator[None]:
    """Measure coverage while the fixtures of a test are set up, and where they are removed."""
    if not PLAIN_FIXTURES.issuperset(getattr(item, "fixturenames", ())):
        MEASUREMENT.resume()
    try:
        yield
    finally:
        MEASUREMENT.pause()


@pytest.hookimpl(wrapper=True)
def measure_call() -> Iterator[None]:
    """Measure coverage while a test runs."""
    MEASUREMENT.resume()
    try:
        yield
    finally:
        MEASUREMENT.pause()


def without_tracing(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return a function that runs without the trace function of its thread, and restores it.

    It is for tests with many equal steps, and for tests of times. Other tests cover the same code.
    While a coroutine function waits, nothing else in its thread is traced either.
    """

    @functools.wraps(function)
    def run(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*arguments, **keywords)
        finally:
            sys.settrace(trace)

    @functools.wraps(function)
    async def run_coroutine(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Any:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return await cast("Any", function)(*arguments, **keywords)
        finally:
            sys.settrace(trace)

    return cast("Any", run_coroutine) if inspect.iscoroutinefunction(function) else run


TRACED_EXAMPLES = 15
"""The number of examples of a random test that are measured: the others run the same lines."""


def trace_first_examples(test: Any) -> Any:
    """Return a test of Hypothesis in which only the first examples are measured.

    Neither the other examples nor what Hypothesis does to find them is.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **keywords: Any) -> Any:
        trace = sys.gettrace()
        # pytest-twisted replaces this function, too, just before it calls the test.
        run_example = test.hypothesis.inner_test
        counter = itertools.count()

        @functools.wraps(run_example)
        def inner_test(*arguments: Any, **keywords: Any) -> Any:
            if next(counter) >= TRACED_EXAMPLES:
                return run_example(*arguments, **keywords)
            sys.settrace(trace)
            try:
                return run_example(*arguments, **keywords)
            finally:
                sys.settrace(None)

        test.hypothesis.inner_test = inner_test
        try:
            return without_tracing(test)(*arguments, **keywords)
        finally:
            test.hypothesis.inner_test = run_example

    return run
