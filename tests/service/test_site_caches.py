"""Caches are measured now and then, and a disk that hangs delays no report for long."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.plumbing.threads import Threads
from shiftergw.service.site_caches import (
    CACHE_SECONDS,
    MEASURE_SECONDS,
    CacheReport,
    CacheReporter,
)
from tests.patience import patient

LAYERS = CacheReport("Layers", 86400.0, 1, 10, 100)


@pytest_twisted.ensureDeferred
async def test_sizes_are_new_for_a_minute(threads: Threads) -> None:
    """The files are counted once in this time for all, also after a step of the clock."""
    counts: list[int] = []

    def measure() -> Sequence[CacheReport]:
        counts.append(1)
        return [LAYERS]

    clock = Clock()
    reporter = CacheReporter(measure, threads, clock)
    for seconds, expected_count in ((0, 1), (MEASURE_SECONDS / 2, 1), (MEASURE_SECONDS, 2)):
        clock.advance(seconds)
        assert await reporter.caches() == [LAYERS]
        assert len(counts) == expected_count
    clock.rightNow = 0
    assert await reporter.caches() == [LAYERS]
    assert len(counts) == 3


@pytest_twisted.ensureDeferred
async def test_a_disk_that_hangs(threads: Threads) -> None:
    """The report goes on without it, and says that the caches do not answer."""
    is_released = Event()

    def measure() -> Sequence[CacheReport]:
        is_released.wait(patient(60))
        return [LAYERS]

    clock = Clock()
    reporting = Deferred.fromCoroutine(CacheReporter(measure, threads, clock).caches())
    clock.advance(CACHE_SECONDS)
    (cache,) = await reporting
    is_released.set()
    assert cache.size is None


@pytest_twisted.ensureDeferred
async def test_a_disk_that_fails(threads: Threads) -> None:
    """The caches do not answer; a minute later they are asked again."""
    errors = [OSError("damaged")]

    def measure() -> Sequence[CacheReport]:
        if errors:
            raise errors.pop()
        return [LAYERS]

    clock = Clock()
    reporter = CacheReporter(measure, threads, clock)
    (cache,) = await reporter.caches()
    assert cache.size is None
    clock.advance(MEASURE_SECONDS)
    assert await reporter.caches() == [LAYERS]
