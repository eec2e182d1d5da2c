"""Tests of functions that run without a trace function."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from tests.tracing import without_tracing


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
