"""Pauses between attempts grow up to a limit."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.plumbing.backoff import Backoff


def test_pauses_double_up_to_the_limit() -> None:
    """The pause doubles with each failure, without overflow after very many."""
    backoff = Backoff(0.5, 60)
    pauses = [backoff.seconds(failures) for failures in (0, 1, 2, 3, 7, 8, 9, 10_000)]
    assert pauses == [0, 0.5, 1, 2, 32, 60, 60, 60]


def test_another_factor_and_no_limit() -> None:
    """Factor and limit belong to the policy."""
    backoff = Backoff(0.05, factor=4)
    assert [backoff.seconds(failures) for failures in (1, 2, 3)] == pytest.approx([0.05, 0.2, 0.8])


def test_spread() -> None:
    """The spread changes the pause, but never beyond the limit."""
    backoff = Backoff(1, 10)
    assert [backoff.seconds(3, spread) for spread in (0.5, 1.5, 9)] == [2, 6, 10]


def test_the_clock_is_injected() -> None:
    """A pause ends when the given clock says so."""
    clock = Clock()
    waiting = Deferred.fromCoroutine(Backoff(1).pause(3, clock))
    clock.advance(3.9)
    assert not waiting.called
    clock.advance(0.1)
    assert waiting.called
