"""The rate and the time left of an attempt."""

from __future__ import annotations

import pytest

from shiftergw.job.estimate import Estimate
from shiftergw.model.records import Progress

MB = 10**6
COSTS = {"plan": 0.0, "compose": 0.1 / MB, "check": 0.05 / MB, "deliver": 0.05 / MB}


def test_the_time_left_of_a_whole_pull() -> None:
    """A third into a pull, and in each later stage, the estimate is within 30 % of the truth.

    The download takes 20 s, the reading of the layers 30 s, and 20 s follow.
    """
    estimate = Estimate()
    estimate.learn(COSTS, 100 * MB)
    for second in range(50):
        if second < 20:
            estimate.add_reading(Progress("pack", second * 100 * MB // 30, 100 * MB), second)
            progress = Progress("fetch", second * 5 * MB, 100 * MB)
        elif second < 30:
            progress = Progress("pack", second * 100 * MB // 30, 100 * MB)
        elif second < 40:
            progress = Progress("compose", second - 30, 10)
        else:
            progress = Progress("deliver", second - 40, 10)
        estimate.add(progress, second)
        complete = estimate.complete(progress, second)
        if second >= 16 and second < 40:
            assert complete.time_left == pytest.approx(50 - second, rel=0.3), second
    assert complete.time_left == pytest.approx(1, abs=0.5)


def test_the_rate_is_that_of_the_stage() -> None:
    """The reading of layers changes the estimate, not the rate that users see."""
    estimate = Estimate()
    for second in range(5):
        estimate.add_reading(Progress("pack", 1000 * second, 9000), second)
        complete = estimate.complete(Progress("fetch", 10 * second, 90), second)
    assert (complete.rate, complete.time_left) == (10, None)
    assert estimate.complete(Progress(), 9) == Progress()


def test_an_estimate_needs_knowledge() -> None:
    """The first pull of a system shows no time left."""
    estimate = Estimate()
    for second in range(9):
        complete = estimate.complete(Progress("pack", second, 10), second)
    assert (complete.rate, complete.time_left) == (1, None)
