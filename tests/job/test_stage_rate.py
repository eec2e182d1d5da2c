"""The rate of a stage."""

from __future__ import annotations

from shiftergw.job.stage_rate import LEAST_SECONDS, WINDOW_SECONDS, StageRate


def test_a_rate_is_that_of_the_last_seconds() -> None:
    """Bytes that were there at the beginning cost no time, and old rates are forgotten."""
    stage_rate = StageRate()
    for second in range(10):
        stage_rate.add("fetch", 1000 + 100 * second, second)
    assert stage_rate.rate() == 100
    for second in range(10, 21):
        stage_rate.add("fetch", 2000 + 10 * (second - 10), second)
    assert stage_rate.rate() == 10
    for second in range(21, 21 + int(WINDOW_SECONDS) + 1):
        stage_rate.add("fetch", 2100, second)
    assert stage_rate.rate() == 0


def test_a_stage_has_no_rate_at_first() -> None:
    """One early report says nothing about the rate; nor do those of another stage."""
    stage_rate = StageRate()
    assert stage_rate.rate() is None
    stage_rate.add("fetch", 0, 0)
    stage_rate.add("fetch", 500, LEAST_SECONDS - 0.1)
    assert stage_rate.rate() is None
    stage_rate.add("fetch", 700, LEAST_SECONDS + 0.5)
    assert stage_rate.rate() == 280
    stage_rate.add("pack", 0, LEAST_SECONDS + 1)
    assert stage_rate.rate() is None


def test_reports_of_each_chunk_are_cheap() -> None:
    """Thousands of reports a second leave a few samples."""
    stage_rate = StageRate()
    for number in range(10_000):
        stage_rate.add("fetch", number, number / 1000)
    assert len(stage_rate._samples) < 30
    assert 990 <= (stage_rate.rate() or 0) <= 1010


def test_a_clock_that_is_set_back_starts_anew() -> None:
    """A rate is never negative, and never that of two clocks."""
    stage_rate = StageRate()
    stage_rate.add("fetch", 0, 1000)
    stage_rate.add("fetch", 900, 1009)
    stage_rate.add("fetch", 1000, 10)
    assert stage_rate.rate() is None
