"""The sessions in the manual are what the program shows."""

from __future__ import annotations

import pytest

from tests.cli.screens import Screen
from tests.cli.sessions import DOCUMENT, document


def test_the_sessions_of_the_manual() -> None:
    """`python -m tests.cli.sessions` records a deliberate change anew."""
    assert document() == DOCUMENT.read_text()


def test_a_line_that_is_too_long_is_noticed() -> None:
    """The screen of the tests does not wrap lines, so that a test fails at one."""
    screen = Screen(5)
    screen.feed("12345\r\nabc\x1b[1A\rx\n\r\x1b[2Ky")
    assert screen.lines == ["x2345", "y"]
    with pytest.raises(AssertionError):
        screen.feed("123456")
