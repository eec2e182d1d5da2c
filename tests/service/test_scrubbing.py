"""The scrub of a cache: its rounds, its stop, and what the log says."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from shiftergw.service.scrubbing import INTERVAL, Scrubbing

WEEK = 7 * 86400.0


class FakeCache:
    """A cache whose scrubs end when the test says so."""

    def __init__(self) -> None:
        """Begin without calls."""
        self.times: list[float] = []
        self.running: Deferred[int] = Deferred()

    async def scrub(self, before: float) -> int:
        """Record the call."""
        self.times.append(before)
        self.running = Deferred()
        return await self.running


@pytest.fixture
def clock() -> Any:
    """Return a clock at some time."""
    clock = Clock()
    clock.advance(10 * WEEK)
    return clock


def test_rounds(clock: Any) -> None:
    """Files are due a while after they were last compared; the log counts the damaged ones."""
    cache = FakeCache()
    scrubbing = Scrubbing(cache, WEEK, clock)
    scrubbing.startService()
    assert cache.times == [9 * WEEK]
    with capturedLogs() as log:
        cache.running.callback(2)
    assert [formatEvent(event) for event in log] == [
        "2 damaged files were in the cache: a disk may be failing"
    ]
    clock.advance(INTERVAL)
    assert cache.times == [9 * WEEK, 9 * WEEK + INTERVAL]
    with capturedLogs() as log:
        cache.running.callback(0)
    assert log == []
    assert scrubbing.stopService().called


@pytest_twisted.ensureDeferred
async def test_a_stop_cancels_the_round(clock: Any) -> None:
    """A round may take hours: the stop of a worker does not wait for it, nor is it an error."""
    cache = FakeCache()
    scrubbing = Scrubbing(cache, WEEK, clock)
    scrubbing.startService()
    with capturedLogs() as log:
        await scrubbing.stopService()
    assert log == []
    assert len(cache.times) == 1
