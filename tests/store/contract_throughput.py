"""The contract of `ImageStore`: the throughput of the last days."""

from __future__ import annotations

import pytest_twisted

from shiftergw.model.throughput import KEEP_SECONDS, PERIOD_SECONDS, Throughput
from tests.store.places import Place
from tests.store.pulls import all_of

START = 1_700_000_400.0
"""The start of a period."""


class ThroughputContract:
    """What was done in each period."""

    @pytest_twisted.ensureDeferred
    async def test_work_is_added_to_its_period(self, place: Place) -> None:
        """All that ends in a period is one entry, from all processes; entries are in order."""
        store = place.store
        assert await store.list_throughput(0) == []
        next_start = START + PERIOD_SECONDS
        await store.add_throughput(Throughput(next_start, failures=1))
        await store.add_throughput(Throughput(START, 1, 0, 10, 5))
        await all_of(store.add_throughput(Throughput(START + 9, 1, 0, 2**40, 1)) for _ in range(3))
        entries = [Throughput(START, 4, 0, 10 + 3 * 2**40, 8), Throughput(next_start, 0, 1, 0, 0)]
        assert await store.list_throughput(0) == entries
        assert await store.list_throughput(START + 1) == entries[1:]

    @pytest_twisted.ensureDeferred
    async def test_old_periods_are_removed(self, place: Place) -> None:
        """The store keeps a bounded number of them."""
        store = place.store
        for seconds in (0.0, PERIOD_SECONDS, KEEP_SECONDS + PERIOD_SECONDS):
            await store.add_throughput(Throughput(START + seconds, pulls=1))
        entries = await store.list_throughput(0)
        assert [entry.since - START for entry in entries] == [
            PERIOD_SECONDS,
            KEEP_SECONDS + PERIOD_SECONDS,
        ]
