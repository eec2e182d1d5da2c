"""Trace functions: a thread that starts beside another one is traced, and runs."""

from __future__ import annotations

import pytest

from tests import thread_tracing


def test_a_busy_trace_function_is_installed_later() -> None:
    """`sys.settrace` is called until it succeeds."""
    calls: list[object] = []

    def settrace(function: object) -> None:
        calls.append(function)
        if len(calls) < 3:
            raise RuntimeError("Cannot install a trace function")

    function = object()
    thread_tracing.patient_settrace(settrace)(function)
    assert calls == [function] * 3


def test_other_errors_are_raised_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace function that can never be installed is an error, not a wait without an end."""
    monkeypatch.setattr(thread_tracing, "TRIES", 3)
    calls: list[object] = []

    def settrace(function: object) -> None:
        calls.append(function)
        raise RuntimeError("Cannot install a trace function")

    with pytest.raises(RuntimeError):
        thread_tracing.patient_settrace(settrace)(None)
    assert len(calls) == 3
