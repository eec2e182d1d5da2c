"""Errors for lack of descriptors, memory or threads are distinguished from other errors."""

from __future__ import annotations

import errno

import pytest
from twisted.internet.error import ConnectError

from shiftergw.errors import GatewayError
from shiftergw.plumbing.exhaustion import is_exhaustion


def wrapped_error(error: Exception) -> Exception:
    """Return a `GatewayError` with this cause."""
    wrapper = GatewayError("The cache cannot be written.")
    wrapper.__cause__ = error
    return wrapper


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENFILE, "Too many open files in system"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("can't start new thread"), True),
        (ConnectError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ConnectError(errno.ECONNREFUSED, "refused"), False),
        (RuntimeError("a surprise"), False),
        (ValueError("x"), False),
    ],
)
def test_exhaustion(error: Exception, expected: bool) -> None:
    """The error itself or its cause decides."""
    assert is_exhaustion(error) is expected
    assert is_exhaustion(wrapped_error(error)) is expected


def test_a_circle_of_causes() -> None:
    """A cycle of causes does not loop forever."""
    first, second = ValueError("one"), ValueError("other")
    first.__cause__, second.__cause__ = second, first
    assert not is_exhaustion(first)
