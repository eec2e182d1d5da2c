"""Tests of what is measured: coverage where it tells something."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.tracing import (
    TRACED_EXAMPLES,
    Measurement,
    trace_first_examples,
    without_tracing,
)


@pytest.mark.parametrize("fails", [False, True])
def test_tracing_is_off_meanwhile(fails: bool) -> None:
    """The trace function is unset during the call and restored afterwards, also after an error."""

    def trace(_frame: FrameType, _event: str, _argument: Any) -> None:
        """Trace nothing."""

    @without_tracing
    def divide(divisor: int) -> Any:
        function = sys.gettrace()
        return 1 / divisor, function

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        if fails:
            with pytest.raises(ZeroDivisionError):
                divide(0)
        else:
            assert divide(1) == (1.0, None)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


def test_a_coroutine_is_not_traced() -> None:
    """Tracing is off until the coroutine has ended, also when others run while it waits."""

    def trace(_frame: FrameType, _event: str, _argument: Any) -> None:
        """Trace nothing."""

    functions: list[Any] = []
    results: list[int] = []
    event: Deferred[int] = Deferred()

    @without_tracing
    async def wait() -> int:
        functions.append(sys.gettrace())
        number = await event
        functions.append(sys.gettrace())
        return number

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        Deferred.fromCoroutine(wait()).addCallback(results.append)
        assert sys.gettrace() is None
        event.callback(7)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert functions == [None, None]
    assert results == [7]


def test_few_examples_are_traced() -> None:
    """A random test is traced in its first examples; Hypothesis itself is not."""
    has_trace: list[bool] = []

    def trace(_frame: FrameType, _event: str, _argument: Any) -> None:
        """Trace nothing."""

    @settings(max_examples=50, database=None)
    @given(st.integers())
    def check(number: int) -> None:
        has_trace.append(sys.gettrace() is trace)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        trace_first_examples(check)()
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert has_trace == [True] * TRACED_EXAMPLES + [False] * (50 - TRACED_EXAMPLES)


def test_a_random_test_without_a_trace_function() -> None:
    """All examples run, and one that fails is reported."""
    numbers: list[int] = []

    @settings(max_examples=50, database=None)
    @given(st.integers())
    def check(number: int) -> None:
        numbers.append(number)
        assert number < 1000

    with pytest.raises(AssertionError):
        trace_first_examples(check)()
    assert numbers[-1] == 1000


def test_the_collection_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement begins at once and can be paused; programs that start never measure."""

    def trace(_frame: FrameType, _event: str, _argument: Any) -> None:
        """Trace nothing."""

    monkeypatch.setenv("COVERAGE_PROCESS_START", "pyproject.toml")
    monkeypatch.setattr("coverage.process_startup", lambda: sys.settrace(trace))
    monkeypatch.setattr("tests.thread_tracing.install", lambda: None)
    measurement = Measurement()
    before = sys.gettrace()
    try:
        measurement.start()
        assert sys.gettrace() is trace
        measurement.pause()
        assert sys.gettrace() is None
        measurement.resume()
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert "COVERAGE_PROCESS_START" not in os.environ


def test_nothing_is_measured_unless_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a process leaves the trace function of a debugger alone."""
    monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)
    monkeypatch.setattr("coverage.process_startup", lambda: pytest.fail("measures"))
    measurement = Measurement()
    before = sys.gettrace()
    measurement.start()
    measurement.pause()
    assert sys.gettrace() is before
    measurement.resume()
    assert sys.gettrace() is before
