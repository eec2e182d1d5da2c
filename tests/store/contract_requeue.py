"""The contract's part on attempts that end without a result."""

from __future__ import annotations

import pytest
import pytest_twisted

from shiftergw.errors import Superseded
from shiftergw.model import Expired, Progress, Ready
from shiftergw.states import State
from tests.store.places import Place
from tests.store.pulls import ID, LIMIT, NOW, all_of, begun, expiring, failure, pulled, request


class RequeueContract:
    """Work goes back into the queue at once, and deaths are counted."""

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("died", [True, False])
    async def test_requeue(self, place: Place, died: bool) -> None:
        """An attempt that ended without a result is followed at once, whatever it had reached."""
        store = place.store
        key = (await begun(store, request())).key
        await store.advance(key, 1, State.CONVERSION, "Converting", NOW)
        await store.heartbeat(key, 1, Progress("CONVERSION", 5, 10), NOW)
        record = await store.requeue(key, 1, "The worker was killed.", died=died)
        assert record == await store.get(key)
        assert (record.status, record.status_message) == (State.PENDING, "The worker was killed.")
        assert (record.attempt, record.deaths, record.in_flight) == (1, int(died), True)
        assert {"runner", "last_heartbeat", "stage", "done"}.isdisjoint(place.document(key))
        assert list(await store.stale(NOW, LIMIT)) == [record]
        assert list(await store.waiting(NOW, 9)) == []
        again = await store.begin(key, "node:2", NOW, LIMIT)
        assert again is not None
        assert (again.attempt, again.status, again.runner) == (2, State.PULLING, "node:2")
        assert again.deaths == int(died)

    @pytest_twisted.ensureDeferred
    async def test_an_attempt_that_was_requeued_changes_nothing(self, place: Place) -> None:
        """Also before the next attempt has begun: its last words may come late."""
        store = place.store
        key = (await begun(store, request())).key
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
        """Neither that of a successor, nor work that has ended, nor work that nobody has begun."""
        store = place.store
        key = (await begun(store, request())).key
        await store.begin(key, "node:2", NOW + 100, LIMIT)
        ended = await pulled(store, request("x:1"))
        for number in (key, ended.key, "f" * 24):
            before = await store.get(number)
            with pytest.raises(Superseded):
                await store.requeue(number, 1, "", died=True)
            assert await store.get(number) == before

    @pytest_twisted.ensureDeferred
    async def test_requeue_is_done_once(self, place: Place) -> None:
        """Of many reports of one death, one counts."""
        store = place.store
        key = (await begun(store, request())).key

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
    async def test_deaths_are_counted(self, place: Place) -> None:
        """Those that were reported, and runners that vanished; not attempts. The end forgets it."""
        store = place.store
        key = (await begun(store, request())).key
        await store.requeue(key, 1, "", died=True)
        await store.begin(key, "node:2", NOW, LIMIT)
        await store.requeue(key, 2, "", died=False)
        await store.begin(key, "node:3", NOW, LIMIT)
        record = await store.begin(key, "node:4", NOW + 100, LIMIT)
        assert record is not None
        assert (record.attempt, record.deaths) == (4, 2)
        ended = await store.finish(key, 4, failure(), NOW)
        assert (ended.deaths, "deaths" in place.document(key)) == (0, False)

    @pytest_twisted.ensureDeferred
    async def test_a_lease_of_a_requeued_attempt_is_free(self, place: Place) -> None:
        """Another delivery of the same image does not wait for what will not come."""
        store = place.store
        record = await begun(store, request())
        assert await store.lease("images", ID, f"{record.key}/1", NOW, 3600)
        assert not await store.lease("images", ID, "another/1", NOW, 60)
        await store.requeue(record.key, 1, "", died=True)
        assert await store.lease("images", ID, "another/1", NOW, 60)

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("died", [True, False])
    async def test_a_removal_is_requeued(self, place: Place, died: bool) -> None:
        """It counts no deaths, and is tried until it succeeds; not at once if the worker died."""
        store = place.store
        key = (await expiring(store, request())).key
        record = await store.begin(key, "node:1", NOW, LIMIT)
        assert record is not None
        again = await store.requeue(key, record.attempt, "x", died=died)
        assert (again.status, again.deaths, again.runner) == (State.EXPIRING, 0, None)
        if died:
            assert await store.begin(key, "node:2", NOW, LIMIT) is None
        later = await store.begin(key, "node:2", NOW + (LIMIT if died else 0), LIMIT)
        assert later is not None
        assert later.attempt == record.attempt + 1
        done = await store.finish(key, later.attempt, Expired(), NOW)
        assert done.status is State.EXPIRED
