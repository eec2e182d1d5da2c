"""The rate of a stage."""

from __future__ import annotations

from shiftergw.job.pace import LEAST_SECONDS, WINDOW_SECONDS, Pace


def test_a_rate_is_that_of_the_last_seconds() -> None:
    """Bytes that were there at the beginning cost no time, and old rates are forgotten."""
    pace = Pace()
    for second in range(10):
        pace.add("fetch", 1000 + 100 * second, second)
    assert pace.rate() == 100
    for second in range(10, 21):
        pace.add("fetch", 2000 + 10 * (second - 10), second)
    assert pace.rate() == 10
    for second in range(21, 21 + int(WINDOW_SECONDS) + 1):
        pace.add("fetch", 2100, second)
    assert pace.rate() == 0


def test_a_stage_has_no_rate_at_first() -> None:
    """One early report says nothing about the rate; nor do those of another stage."""
    pace = Pace()
    assert pace.rate() is None
    pace.add("fetch", 0, 0)
    pace.add("fetch", 500, LEAST_SECONDS - 0.1)
    assert pace.rate() is None
    pace.add("fetch", 700, LEAST_SECONDS + 0.5)
    assert pace.rate() == 280
    pace.add("pack", 0, LEAST_SECONDS + 1)
    assert pace.rate() is None


def test_reports_of_each_chunk_are_cheap() -> None:
    """Thousands of reports a second leave a few samples."""
    pace = Pace()
    for number in range(10_000):
        pace.add("fetch", number, number / 1000)
    assert len(pace._samples) < 30
    assert 990 <= (pace.rate() or 0) <= 1010


def test_a_clock_that_is_set_back_starts_anew() -> None:
    """A rate is never negative, and never that of two clocks."""
    pace = Pace()
    pace.add("fetch", 0, 1000)
    pace.add("fetch", 900, 1009)
    pace.add("fetch", 1000, 10)
    assert pace.rate() is None
