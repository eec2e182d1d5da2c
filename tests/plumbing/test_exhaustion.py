"""Which errors end a worker, because it could do no other work either."""

from __future__ import annotations

import errno

import pytest
from twisted.internet.error import ConnectError

from shiftergw.errors import GatewayError
from shiftergw.plumbing.exhaustion import is_exhaustion


def caused(error: Exception) -> Exception:
    """Return an error of ours that another one has caused."""
    ours = GatewayError("The cache cannot be written.")
    ours.__cause__ = error
    return ours


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
    """By the error, or by what has caused it."""
    assert is_exhaustion(error) is expected
    assert is_exhaustion(caused(error)) is expected


def test_a_circle_of_causes() -> None:
    """It has an end."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_exhaustion(one)
