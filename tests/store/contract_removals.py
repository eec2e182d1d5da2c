"""The contract's part on images that go: how their removal begins, runs and ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from shiftergw.errors import Superseded
from shiftergw.model import Expired, ImageRecord, Progress, Ready
from shiftergw.ports import ImageStore
from shiftergw.states import IllegalStepError, State
from tests.store.places import Place, remove_record
from tests.store.pulls import (
    ID,
    LIMIT,
    NOW,
    OF_THE_ORIGINAL,
    OTHER_ID,
    all_of,
    begun,
    expiring,
    failure,
    pulled,
    request,
)


async def removing(store: ImageStore, now: float = NOW) -> ImageRecord:
    """Return a record whose removal has begun."""
    record = await expiring(store, request("x:1"))
    started = await store.begin(record.key, "node:1", now, LIMIT)
    assert started is not None
    return started


async def seen(store: ImageStore) -> list[ImageRecord | None]:
    """Return what shows images to users."""
    found = await store.find("alpha", "docker", ["x:1", "x:2", "old:1"])
    return [found, *await store.list("alpha"), *await store.find_id(["alpha"], ID)]


class RemovalContract:
    """From READY to EXPIRED."""

    @pytest_twisted.ensureDeferred
    async def test_expire(self, place: Place) -> None:
        """The record is work at once: claimed, waiting, in the queue, and no image any more."""
        store = place.store
        ready = await pulled(store, request("x:1", uid=7))
        expired = await store.expire(ready.key)
        assert expired is not None
        assert expired == await store.get(ready.key)
        assert (expired.status, expired.kind, expired.attempt) == (State.EXPIRING, "expire", 0)
        assert (expired.claim, expired.requested_by) == (f"alpha/docker/@{ready.key}", 7)
        assert (expired.tags, expired.id) == (("x:1",), ID)
        assert (expired.runner, expired.last_heartbeat) == (None, None)
        assert await seen(store) == [None]
        assert list(await store.queue("alpha")) == [expired]
        assert list(await store.waiting(NOW, 9)) == [expired]
        assert list(await store.stale(NOW * 9, LIMIT)) == []
        assert await store.find_work("alpha", "docker", "x:1") == []

    @pytest_twisted.ensureDeferred
    async def test_what_is_not_ready_does_not_expire(self, place: Place) -> None:
        """Neither what is in flight, nor a failure, nor what expires already, nor nothing."""
        store = place.store
        flying = await begun(store, request("f:1"))
        failed = await begun(store, request("f:2"))
        failed = await store.finish(failed.key, 1, failure(), NOW)
        going = await expiring(store, request("x:1"))
        for key in (flying.key, failed.key, going.key, "f" * 24):
            before = await store.get(key)
            assert await store.expire(key) is None
            assert await store.untag(key, "x:1") is None
            assert await store.get(key) == before

    @pytest_twisted.ensureDeferred
    async def test_expire_what_is_due(self, place: Place) -> None:
        """With a time, only what has expired by then goes: not what was renewed meanwhile."""
        store = place.store
        ready = await pulled(store, request())
        assert await store.expire(ready.key, NOW * 9) is None
        await store.renew(ready.key, NOW + 100)
        assert await store.expire(ready.key, NOW + 99) is None
        assert await store.get(ready.key) == replace(ready, expiration=NOW + 100)
        assert await store.expire(ready.key, NOW + 100) is not None

    @pytest_twisted.ensureDeferred
    async def test_one_of_many_expires(self, place: Place) -> None:
        """Of many who expire an image at once, one hears that he did."""
        ready = await pulled(place.store, request())
        answers = await all_of(place.store.expire(ready.key) for _ in range(20))
        assert sum(answer is not None for answer in answers) == 1

    @pytest_twisted.ensureDeferred
    async def test_attempts_that_come_back(self, place: Place) -> None:
        """No number of an attempt is given twice: not the pull's to a removal, nor a removal's.

        Whoever slept through all that came after him can do nothing in another's name.
        """
        store, now = place.store, NOW
        pull = await begun(store, request("x:1"))
        numbers = [pull.attempt]
        for _ in range(2):
            now += 2 * LIMIT
            again = await store.begin(pull.key, "n", now, LIMIT)
            assert again is not None
            numbers.append(again.attempt)
        await store.finish(pull.key, numbers[-1], Ready(ID), now)
        for _ in range(2):
            assert await store.expire(pull.key) is not None
            (waits,) = await store.waiting(NOW + 99, 9)
            assert waits.key == pull.key
            for number in numbers:
                with pytest.raises(Superseded):
                    await store.heartbeat(pull.key, number, Progress(), now)
            removal = await store.begin(pull.key, "n", now, LIMIT)
            assert removal is not None
            for number in numbers:
                with pytest.raises(Superseded):
                    await store.heartbeat(pull.key, number, Progress(), now)
                with pytest.raises(Superseded):
                    await store.finish(pull.key, number, Expired(), now)
            numbers.append(removal.attempt)
            other = await begun(store, request("y:1"), now)
            back = await store.finish(other.key, other.attempt, Ready(ID), now)
            assert (back.key, back.status) == (pull.key, State.READY)
            with pytest.raises(Superseded):
                await store.finish(pull.key, removal.attempt, Expired(), now)
        assert numbers == sorted({*numbers})

    @pytest_twisted.ensureDeferred
    async def test_untag(self, place: Place) -> None:
        """One tag goes, the image stays under the others; with the last one its files go."""
        store = place.store
        await pulled(store, request("x:1"))
        ready = await pulled(store, request("x:2"))
        assert await store.untag(ready.key, "y:1") is None
        left = await store.untag(ready.key, "x:1")
        assert left == replace(ready, tags=("x:2",)) == await store.get(ready.key)
        assert await store.find("alpha", "docker", ["x:1"]) is None
        gone = await store.untag(ready.key, "x:2")
        assert gone is not None
        assert (gone.status, gone.kind, gone.tags) == (State.EXPIRING, "expire", ())
        assert list(await store.waiting(NOW + 99, 9)) == [gone]

    @pytest_twisted.ensureDeferred
    async def test_records_of_the_original(self, place: Place) -> None:
        """Its forms of a tag and of READY are understood; its unknown members survive."""
        store = place.store
        place.put("1" * 24, OF_THE_ORIGINAL | {"tag": "old:1", "status": "SUCCESS"})
        assert await store.expire("1" * 24, 11) is None
        expired = await store.untag("1" * 24, "old:1")
        assert expired is not None
        assert expired.status is State.EXPIRING
        await store.begin("1" * 24, "n", NOW, LIMIT)
        await store.finish("1" * 24, 1, Expired(), NOW)
        assert place.document("1" * 24)["site_note"] == OF_THE_ORIGINAL["site_note"]

    @pytest_twisted.ensureDeferred
    async def test_a_removal_runs(self, place: Place) -> None:
        """Attempts are as those of a pull, but the record stays EXPIRING."""
        store = place.store
        first = await removing(store)
        assert (first.status, first.attempt, first.runner) == (State.EXPIRING, 2, "node:1")
        assert list(await store.waiting(NOW + 99, 9)) == []
        assert await store.begin(first.key, "node:2", NOW + LIMIT - 1, LIMIT) is None
        await store.heartbeat(first.key, 2, Progress(), NOW + 5)
        assert [r.key for r in await store.stale(NOW + 6 + LIMIT, LIMIT)] == [first.key]
        again = await store.begin(first.key, "node:2", NOW + 6 + LIMIT, LIMIT)
        assert again is not None
        assert (again.status, again.attempt) == (State.EXPIRING, 3)
        for step in (
            store.heartbeat(first.key, 2, Progress(), NOW),
            store.finish(first.key, 2, Expired(), NOW),
        ):
            with pytest.raises(Superseded):
                await step

    @pytest_twisted.ensureDeferred
    async def test_expired(self, place: Place) -> None:
        """It ends EXPIRED: tags and id stay written, but no user, worker or queue sees it."""
        store = place.store
        record = await removing(store)
        await store.heartbeat(record.key, 2, Progress("x", 1, 2), NOW)
        ended = await store.finish(record.key, 2, Expired(), NOW + 9)
        assert ended == await store.get(record.key)
        assert (ended.status, ended.tags, ended.id) == (State.EXPIRED, ("x:1",), ID)
        assert ended.last_pull == NOW + 9
        gone = {"claim", "sealed", "runner", "stage", "done", "total"}
        assert gone.isdisjoint(place.document(ended.key))
        assert await seen(store) == [None]
        assert list(await store.queue("alpha")) == list(await store.waiting(NOW + 99, 9)) == []
        assert list(await store.stale(NOW * 9, LIMIT)) == []
        assert list(await store.expired(NOW * 9)) == []
        with pytest.raises(Superseded):
            await store.finish(record.key, 2, Expired(), NOW)
        fresh = await pulled(store, request("x:1"))
        assert fresh.key != ended.key

    @pytest_twisted.ensureDeferred
    async def test_ends_that_do_not_fit(self, place: Place) -> None:
        """A removal does not end with an image, nor a pull EXPIRED; neither leaves a trace."""
        store = place.store
        removal, pull = await removing(store), await begun(store, request("y:1"))
        for step in (
            store.finish(removal.key, 2, Ready(OTHER_ID), NOW),
            store.finish(pull.key, 1, Expired(), NOW),
            store.advance(removal.key, 2, State.TRANSFER, "", NOW),
            store.advance(removal.key, 2, State.READY, "", NOW),
            store.advance(removal.key, 2, State.EXPIRED, "", NOW),
        ):
            with pytest.raises(IllegalStepError):
                await step
        assert await store.get(removal.key) == removal
        assert await store.get(pull.key) == pull

    @pytest_twisted.ensureDeferred
    async def test_a_removal_is_not_given_up(self, place: Place) -> None:
        """`abandon` is for claims of pulls; files that are to go are not forgotten."""
        record = await expiring(place.store, request())
        await place.store.abandon(record.key)
        assert await place.store.get(record.key) == record


class TakenBackContract:
    """From EXPIRING back to READY."""

    @pytest_twisted.ensureDeferred
    async def test_a_failed_removal(self, place: Place) -> None:
        """The files are still there: it stays to be done, and is taken up again after a while."""
        store = place.store
        record = await removing(store)
        left = await store.finish(record.key, 2, failure(), NOW + 9)
        assert (left.status, left.in_flight, left.attempt) == (State.EXPIRING, True, 2)
        assert left.status_message == failure().cause
        assert await store.find("alpha", "docker", ["x:1"]) is None
        assert list(await store.stale(NOW + 9 + LIMIT, LIMIT)) == []
        assert list(await store.stale(NOW + 10 + LIMIT, LIMIT)) == [left]
        again = await store.begin(left.key, "node:2", NOW + 10 + LIMIT, LIMIT)
        assert again is not None
        assert (again.status, again.attempt) == (State.EXPIRING, 3)

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("has_begun", [False, True])
    async def test_a_pull_takes_it_back(self, place: Place, *, has_begun: bool) -> None:
        """A pull of the same image makes it READY under all its tags; the removal is over."""
        store = place.store
        old = await (removing(store) if has_begun else expiring(store, request("x:1")))
        back = await pulled(store, request("x:2"), now=NOW + 9, user_acl=(5,))
        assert back == await store.get(old.key)
        assert (back.status, back.kind, back.tags) == (State.READY, "pull", ("x:1", "x:2"))
        assert (back.user_acl, back.last_pull, back.status_message) == ((5,), NOW + 9, "")
        gone = {"claim", "runner", "last_heartbeat"}
        assert gone.isdisjoint(place.document(back.key))
        assert await seen(store) == [back, back, back]
        assert list(await store.queue("alpha")) == list(await store.waiting(NOW + 99, 9)) == []
        assert await store.begin(back.key, "n", NOW * 2, LIMIT) is None
        for step in (
            store.heartbeat(back.key, old.attempt, Progress(), NOW),
            store.finish(back.key, old.attempt, Expired(), NOW),
            store.finish(back.key, old.attempt, failure(), NOW),
        ):
            with pytest.raises(Superseded):
                await step
        assert await store.get(back.key) == back

    @pytest_twisted.ensureDeferred
    async def test_the_ready_record_comes_first(self, place: Place) -> None:
        """Where an original left both, a pull adds to the READY record of an image."""
        place.put("1" * 24, OF_THE_ORIGINAL | {"status": "EXPIRING"})
        place.put("2" * 24, OF_THE_ORIGINAL)
        assert (await pulled(place.store, request("x:1"))).key == "2" * 24
        await remove_record(place.store, "2" * 24)
        back = await pulled(place.store, request("x:1"))
        assert (back.key, back.tags) == ("1" * 24, ("old:1", "x:1"))

    @pytest_twisted.ensureDeferred
    async def test_only_its_own_removal_is_taken_back(self, place: Place) -> None:
        """Removals of other images, types and systems go on."""
        store = place.store
        others = [
            await expiring(store, request("x:1"), OTHER_ID),
            await expiring(store, request("x:1", itype="custom")),
            await expiring(store, request("x:1", system="beta")),
        ]
        ready = await pulled(store, request("x:1"))
        for other in others:
            assert await store.get(other.key) == other
            assert other.key != ready.key

    @pytest_twisted.ensureDeferred
    async def test_no_tag_comes_back_from_another(self, place: Place) -> None:
        """A tag that was pulled as another image meanwhile stays with that one."""
        store = place.store
        await pulled(store, request("x:2"))
        old = await removing(store)
        new = await pulled(store, request("x:1"), OTHER_ID, NOW + 5)
        back = await pulled(store, request("x:3"), now=NOW + 9)
        assert (back.key, back.status) == (old.key, State.READY)
        assert back.tags == ("x:2", "x:3")
        assert await store.find("alpha", "docker", ["x:1"]) == new
        assert await store.find("alpha", "docker", ["x:2"]) == back

    @pytest_twisted.ensureDeferred
    async def test_a_tag_that_was_taken_away_stays_away(self, place: Place) -> None:
        """What `untag` took does not come back with the image."""
        store = place.store
        ready = await pulled(store, request("x:1"))
        await store.untag(ready.key, "x:1")
        assert (await pulled(store, request("x:2"))).tags == ("x:2",)
