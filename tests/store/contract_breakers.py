"""The contract of `ImageStore`: circuit breakers."""

from __future__ import annotations

import pytest_twisted

from tests.store import hammer
from tests.store.places import Place
from tests.store.pulls import (
    NOW,
    WHY,
    all_of,
)

KEY = "limit ghcr.io anonymous node1"


class BreakerContract:
    """Requests that a circuit breaker holds back."""

    @pytest_twisted.ensureDeferred
    async def test_a_breaker_holds_requests_of_its_key_back(self, place: Place) -> None:
        """A breaker blocks requests of its key until its time, and none of other keys."""
        store = place.store
        assert await store.check_breaker(KEY, NOW, 30) is None
        await store.trip_breaker(KEY, NOW + 300, WHY, NOW)
        for _ in range(2):
            breaker = await store.check_breaker(KEY, NOW + 299, 30)
            assert breaker is not None
            assert (breaker.key, breaker.until, breaker.why, breaker.trips) == (
                KEY,
                NOW + 300,
                WHY,
                1,
            )
        assert await store.check_breaker(f"{KEY}x", NOW, 30) is None

    @pytest_twisted.ensureDeferred
    async def test_breakers_that_hold_requests_back_are_listed(self, place: Place) -> None:
        """They are ordered by key; those whose time has come, or can never come, are left out."""
        store = place.store
        assert await store.list_breakers(NOW) == []
        for key, seconds in (("b", 300), ("a", 200), ("due", 5), ("absurd", 9e9)):
            await store.trip_breaker(key, NOW + seconds, WHY, NOW)
        breakers = await store.list_breakers(NOW + 5)
        assert [(breaker.key, breaker.until, breaker.why) for breaker in breakers] == [
            ("a", NOW + 200, WHY),
            ("b", NOW + 300, WHY),
        ]

    @pytest_twisted.ensureDeferred
    async def test_one_probe_at_a_time(self, place: Place) -> None:
        """After its time one of many callers is the probe; the others wait for its result."""
        store = place.store
        await store.trip_breaker(KEY, NOW + 5, WHY, NOW)
        answers = await all_of(store.check_breaker(KEY, NOW + 5, 30) for _ in range(20))
        assert sorted(breaker.until <= NOW + 5 for breaker in answers)[-2:] == [False, True]
        assert {breaker.until for breaker in answers if breaker.until > NOW + 5} == {NOW + 35}
        # The first probe has no result.
        next_probe = await store.check_breaker(KEY, NOW + 35, 30)
        assert next_probe is not None
        assert next_probe.until <= NOW + 35

    @pytest_twisted.ensureDeferred
    async def test_several_processes_make_one_probe(self, place: Place) -> None:
        """Only one process gets the permission to probe."""
        await place.store.trip_breaker(KEY, NOW + 5, WHY, NOW)
        assert sum(hammer.go(place.location, "probes", *[[KEY]] * 3)) == 1

    @pytest_twisted.ensureDeferred
    async def test_a_successful_probe_closes_the_breaker(self, place: Place) -> None:
        """A probe closes the breaker; a success before the time of the breaker does not."""
        store = place.store
        await store.trip_breaker(KEY, NOW + 5, WHY, NOW)
        await store.close_breaker(KEY, NOW + 4)
        breaker = await store.check_breaker(KEY, NOW + 4, 30)
        assert breaker is not None
        assert breaker.until > NOW + 4
        await store.check_breaker(KEY, NOW + 5, 30)
        await store.close_breaker(KEY, NOW + 6)
        assert await store.check_breaker(KEY, NOW + 6, 30) is None
        await store.close_breaker(KEY, NOW + 6)

    @pytest_twisted.ensureDeferred
    async def test_a_failed_probe_opens_the_breaker_again(self, place: Place) -> None:
        """Failures while the breaker is open neither count nor shorten its wait."""
        store = place.store
        await store.trip_breaker(KEY, NOW + 50, "first", NOW)
        await store.trip_breaker(KEY, NOW + 20, "second", NOW + 1)
        breaker = await store.check_breaker(KEY, NOW + 2, 30)
        assert breaker is not None
        assert (breaker.until, breaker.why, breaker.trips) == (NOW + 50, "second", 1)
        await store.check_breaker(KEY, NOW + 50, 30)
        await store.trip_breaker(KEY, NOW + 60, "third", NOW + 51)
        breaker = await store.check_breaker(KEY, NOW + 52, 30)
        assert breaker is not None
        assert (breaker.until, breaker.trips) == (NOW + 60, 2)

    @pytest_twisted.ensureDeferred
    async def test_a_probe_without_a_result_allows_another(self, place: Place) -> None:
        """The next one may follow at the time that `end_probe` names."""
        store = place.store
        await store.trip_breaker(KEY, NOW + 5, WHY, NOW)
        await store.check_breaker(KEY, NOW + 6, 30)
        await store.end_probe(KEY, NOW + 36, NOW + 10)
        breaker = await store.check_breaker(KEY, NOW + 9, 30)
        assert breaker is not None
        assert (breaker.until, breaker.trips, breaker.is_probed) == (NOW + 10, 1, True)
        probe = await store.check_breaker(KEY, NOW + 10, 30)
        assert probe is not None
        assert probe.until <= NOW + 10
        await store.end_probe(KEY, NOW + 40, NOW + 99)
        last_probe = await store.check_breaker(KEY, NOW + 40, 30)
        assert last_probe is not None
        assert last_probe.until <= NOW + 40

    @pytest_twisted.ensureDeferred
    async def test_the_late_end_of_a_probe_changes_nothing(self, place: Place) -> None:
        """Neither its successor nor a new trip of the breaker is affected."""
        store = place.store
        await store.end_probe(KEY, NOW + 36, NOW)
        assert await store.check_breaker(KEY, NOW, 30) is None
        await store.trip_breaker(KEY, NOW + 5, WHY, NOW)
        await store.check_breaker(KEY, NOW + 6, 30)
        await store.check_breaker(KEY, NOW + 36, 30)
        await store.end_probe(KEY, NOW + 36, NOW + 37)
        successor = await store.check_breaker(KEY, NOW + 38, 30)
        assert successor is not None
        assert successor.until == NOW + 66
        await store.trip_breaker(KEY, NOW + 90, WHY, NOW + 39)
        await store.end_probe(KEY, NOW + 66, NOW + 40)
        breaker = await store.check_breaker(KEY, NOW + 41, 30)
        assert breaker is not None
        assert (breaker.until, breaker.is_probed) == (NOW + 90, False)

    @pytest_twisted.ensureDeferred
    async def test_entries_of_a_clock_that_was_ahead(self, place: Place) -> None:
        """Such entries block no request, and the next failure replaces them."""
        store = place.store
        year = 365 * 86400.0
        await store.trip_breaker(KEY, NOW + year + 9, WHY, NOW + year)
        assert await store.check_breaker(KEY, NOW, 30) is None
        await store.trip_breaker(KEY, NOW + 9, WHY, NOW)
        breaker = await store.check_breaker(KEY, NOW, 30)
        assert breaker is not None
        assert (breaker.until, breaker.trips) == (NOW + 9, 1)
        await store.check_breaker(KEY, NOW + year, 30)  # a probe that never ends
        assert await store.check_breaker(KEY, NOW + 10, 30) is None

    @pytest_twisted.ensureDeferred
    async def test_entries_expire(self, place: Place) -> None:
        """An entry is removed one hour after its time."""
        store = place.store
        for _ in range(3):
            await store.trip_breaker(KEY, NOW, WHY, NOW)
        await store.trip_breaker("other", NOW + 5000, WHY, NOW + 3600)
        assert await store.check_breaker(KEY, NOW + 3600, 30) is None
        await store.trip_breaker(KEY, NOW + 9, WHY, NOW)
        await store.trip_breaker(KEY, NOW + 9000, WHY, NOW + 8000)
        breaker = await store.check_breaker(KEY, NOW + 8000, 30)
        assert breaker is not None
        assert breaker.trips == 1
