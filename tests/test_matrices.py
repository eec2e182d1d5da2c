"""Dimensions of parameters: what the shorter form has of their product."""

from __future__ import annotations

from tests.matrices import combined, examples

COMMANDS = ["images", "lookup", "queue", "pull", "expire", "rm", "metrics"]
SIGNALS = ["INT", "TERM", "HUP"]
TIMES = [1, 2]


def test_each_value_occurs() -> None:
    """By default each occurs, as often as the longest dimension asks for."""
    sets = combined(COMMANDS, SIGNALS, TIMES, long=False)
    assert [first for first, _, _ in sets] == COMMANDS
    assert {(signal, times) for _, signal, times in sets} == {
        (signal, times) for signal in SIGNALS for times in TIMES
    }


def test_the_product() -> None:
    """The longer form has all combinations, each once."""
    sets = combined(COMMANDS, SIGNALS, TIMES, long=True)
    assert len(sets) == len(set(sets)) == len(COMMANDS) * len(SIGNALS) * len(TIMES)
    assert set(combined(COMMANDS, SIGNALS, TIMES, long=False)) < set(sets)


def test_examples() -> None:
    """The longer form has ten times as many."""
    assert (examples(100, long=False), examples(100, long=True)) == (100, 1000)
