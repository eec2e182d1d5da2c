"""Tests of the choice of parameters and of the number of examples."""

from __future__ import annotations

from tests.matrices import combinations, examples

COMMANDS = ["images", "lookup", "queue", "pull", "expire", "rm", "metrics"]
SIGNALS = ["INT", "TERM", "HUP"]
TIMES = [1, 2]


def test_each_value_occurs() -> None:
    """By default each value of each dimension occurs in as few sets as possible."""
    sets = combinations(COMMANDS, SIGNALS, TIMES, long=False)
    assert [first for first, _, _ in sets] == COMMANDS
    assert {(signal, times) for _, signal, times in sets} == {
        (signal, times) for signal in SIGNALS for times in TIMES
    }


def test_the_product() -> None:
    """The long form has each combination once."""
    sets = combinations(COMMANDS, SIGNALS, TIMES, long=True)
    assert len(sets) == len(set(sets)) == len(COMMANDS) * len(SIGNALS) * len(TIMES)
    assert set(combinations(COMMANDS, SIGNALS, TIMES, long=False)) < set(sets)


def test_examples() -> None:
    """The long form has ten times as many examples."""
    assert (examples(100, long=False), examples(100, long=True)) == (100, 1000)
