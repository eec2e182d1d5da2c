"""The contract of attempts that end without a result."""

from __future__ import annotations

import pytest
import pytest_twisted

from shiftergw.errors import Superseded
from shiftergw.model.records import Expired, Progress, Ready
from shiftergw.states import State
from tests.store.places import Place
from tests.store.pulls import (
    ID,
    LIMIT,
    NOW,
    all_of,
    begin_pull,
    complete_pull,
    failure,
    request,
    request_removal,
)


class RequeueContract:
    """Work returns to the queue at once, and deaths are counted."""

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("has_died", [True, False])
    async def test_requeued_work_can_begin_at_once(self, place: Place, has_died: bool) -> None:
        """The next attempt may begin at once, whatever state the last one had reached."""
        store = place.store
        key = (await begin_pull(store, request())).key
        await store.advance(key, 1, State.CONVERSION, "Converting", NOW)
        await store.heartbeat(key, 1, Progress("CONVERSION", 5, 10), NOW)
        record = await store.requeue(key, 1, "The worker was killed.", died=has_died)
        assert record == await store.get(key)
        assert (record.status, record.status_message) == (State.PENDING, "The worker was killed.")
        assert (record.attempt, record.deaths, record.in_flight) == (1, int(has_died), True)
        assert {"runner", "last_heartbeat", "stage", "done"}.isdisjoint(place.document(key))
        assert list(await store.stale(NOW, LIMIT)) == [record]
        assert list(await store.waiting(NOW, 9)) == []
        second = await store.begin(key, "node:2", NOW, LIMIT)
        assert second is not None
        assert (second.attempt, second.status, second.runner) == (2, State.PULLING, "node:2")
        assert second.deaths == int(has_died)

    @pytest_twisted.ensureDeferred
    async def test_a_requeued_attempt_changes_nothing(self, place: Place) -> None:
        """Late steps of the attempt raise `Superseded`, also before the next attempt begins."""
        store = place.store
        key = (await begin_pull(store, request())).key
        await store.requeue(key, 1, "", died=True)
        before = place.document(key)
        for step in (
            store.requeue(key, 1, "again", died=True),
            store.requeue(key, 2, "too early", died=True),
            store.advance(key, 1, State.TRANSFER, "x", NOW),
            store.heartbeat(key, 1, Progress(), NOW),
            store.finish(key, 1, Ready(ID), NOW),
            store.finish(key, 1, failure(), NOW),
        ):
            with pytest.raises(Superseded):
                await step
        assert place.document(key) == before

    @pytest_twisted.ensureDeferred
    async def test_only_the_current_attempt_is_requeued(self, place: Place) -> None:
        """A successor, ended work and unknown work are not changed."""
        store = place.store
        key = (await begin_pull(store, request())).key
        await store.begin(key, "node:2", NOW + 100, LIMIT)
        ready = await complete_pull(store, request("x:1"))
        for record_key in (key, ready.key, "f" * 24):
            before = await store.get(record_key)
            with pytest.raises(Superseded):
                await store.requeue(record_key, 1, "", died=True)
            assert await store.get(record_key) == before

    @pytest_twisted.ensureDeferred
    async def test_a_death_is_counted_once(self, place: Place) -> None:
        """Of 20 concurrent reports of the same death, one succeeds."""
        store = place.store
        key = (await begin_pull(store, request())).key

        async def requeue(number: int) -> bool:
            try:
                await store.requeue(key, 1, f"{number}", died=True)
            except Superseded:
                return False
            return True

        assert sum(await all_of(requeue(number) for number in range(20))) == 1
        record = await store.get(key)
        assert record is not None
        assert record.deaths == 1

    @pytest_twisted.ensureDeferred
    async def test_deaths_count_workers_that_died_or_vanished(self, place: Place) -> None:
        """Orderly stops do not count; the end of the work removes the count."""
        store = place.store
        key = (await begin_pull(store, request())).key
        await store.requeue(key, 1, "", died=True)
        await store.begin(key, "node:2", NOW, LIMIT)
        await store.requeue(key, 2, "", died=False)
        await store.begin(key, "node:3", NOW, LIMIT)
        record = await store.begin(key, "node:4", NOW + 100, LIMIT)
        assert record is not None
        assert (record.attempt, record.deaths) == (4, 2)
        ready = await store.finish(key, 4, failure(), NOW)
        assert (ready.deaths, "deaths" in place.document(key)) == (0, False)

    @pytest_twisted.ensureDeferred
    async def test_a_lease_of_a_requeued_attempt_is_free(self, place: Place) -> None:
        """Another delivery of the same image does not wait for it."""
        store = place.store
        record = await begin_pull(store, request())
        assert await store.lease("images", ID, f"{record.key}/1", NOW, 3600)
        assert not await store.lease("images", ID, "another/1", NOW, 60)
        await store.requeue(record.key, 1, "", died=True)
        assert await store.lease("images", ID, "another/1", NOW, 60)

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("has_died", [True, False])
    async def test_a_requeued_removal_stays_expiring(self, place: Place, has_died: bool) -> None:
        """A removal counts no deaths. After a death the next attempt waits for an old heartbeat."""
        store = place.store
        key = (await request_removal(store, request())).key
        record = await store.begin(key, "node:1", NOW, LIMIT)
        assert record is not None
        second = await store.requeue(key, record.attempt, "x", died=has_died)
        assert (second.status, second.deaths, second.runner) == (State.EXPIRING, 0, None)
        if has_died:
            assert await store.begin(key, "node:2", NOW, LIMIT) is None
        next_attempt = await store.begin(key, "node:2", NOW + (LIMIT if has_died else 0), LIMIT)
        assert next_attempt is not None
        assert next_attempt.attempt == record.attempt + 1
        done = await store.finish(key, next_attempt.attempt, Expired(), NOW)
        assert done.status is State.EXPIRED
