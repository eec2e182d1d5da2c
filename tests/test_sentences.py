"""Riddles in docstrings and comments are found by their words."""

from __future__ import annotations

import pytest

from tests.sentences import riddles


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ('"""The lock of whoever builds a file."""', "whoever"),
        ('def f() -> None:\n    """Wait so many seconds."""', "so many"),
        ('x = 1\n"""The user for whom it is made."""', "for whom"),
        ("x = 1  # he has a login", "he"),
    ],
)
def test_a_riddle_is_found(source: str, word: str) -> None:
    """Its place, line and word are reported."""
    number = source.count("\n") + 1
    assert riddles({"a.py": source}) == [f"a.py:{number} {word}"]


@pytest.mark.parametrize(
    "source",
    ['"""The lock of the process that builds a file."""', 'text = "whoever"', "# the, this, them"],
)
def test_plain_text_is_not_found(source: str) -> None:
    """Plain sentences, and texts that are not about the code, have no riddle."""
    assert riddles({"a.py": source}) == []
