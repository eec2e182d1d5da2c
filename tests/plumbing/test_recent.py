"""Recent values are bounded in number and in time."""

from __future__ import annotations

from twisted.internet.task import Clock

from shiftergw.plumbing.recent import RecentValues


def test_values_expire() -> None:
    """A value is returned for the given time after it was set last."""
    clock = Clock()
    values: RecentValues[str, int] = RecentValues(10, 5, clock)
    assert values.get("a") is None
    values.set("a", 1)
    clock.advance(4)
    values.set("a", 2)
    clock.advance(4)
    assert values.get("a") == 2
    clock.advance(1)
    assert values.get("a") is None


def test_the_least_recently_set_value_is_dropped() -> None:
    """Setting a value again makes it recent; reading it does not."""
    values: RecentValues[str, int] = RecentValues(2, 5, Clock())
    values.set("a", 1)
    values.set("b", 2)
    values.set("a", 3)
    assert values.get("b") == 2
    values.set("c", 4)
    assert [values.get(key) for key in "abc"] == [3, None, 4]


def test_values_can_be_discarded() -> None:
    """A discarded value is gone; discarding an unknown key does nothing."""
    values: RecentValues[str, int] = RecentValues(2, 5, Clock())
    values.set("a", 1)
    values.discard("a")
    values.discard("b")
    assert values.get("a") is None
