"""The contract of removals: how they begin, run and end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from shiftergw.errors import Superseded
from shiftergw.model.records import Expired, ImageRecord, Progress, Ready
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
    begin_pull,
    complete_pull,
    failure,
    request,
    request_removal,
)


async def begin_removal(store: ImageStore, now: float = NOW) -> ImageRecord:
    """Return the record of a removal whose attempt has begun."""
    record = await request_removal(store, request("x:1"))
    attempt = await store.begin(record.key, "node:1", now, LIMIT)
    assert attempt is not None
    return attempt


async def visible_records(store: ImageStore) -> list[ImageRecord | None]:
    """Return all records that users can see."""
    record = await store.find("alpha", "docker", ["x:1", "x:2", "old:1"])
    return [record, *await store.list("alpha"), *await store.find_id(["alpha"], ID)]


class RemovalContract:
    """Removals lead from READY to EXPIRED."""

    @pytest_twisted.ensureDeferred
    async def test_expire_makes_the_removal_work(self, place: Place) -> None:
        """The EXPIRING record has a claim, waits, is in the queue, and is no visible image."""
        store = place.store
        ready = await complete_pull(store, request("x:1", uid=7))
        removal = await store.expire(ready.key)
        assert removal is not None
        assert removal == await store.get(ready.key)
        assert (removal.status, removal.kind, removal.attempt) == (State.EXPIRING, "expire", 0)
        assert (removal.claim, removal.requested_by) == (f"alpha/docker/@{ready.key}", 7)
        assert (removal.tags, removal.id) == (("x:1",), ID)
        assert (removal.runner, removal.last_heartbeat) == (None, None)
        assert await visible_records(store) == [None]
        assert list(await store.queue("alpha")) == [removal]
        assert list(await store.waiting(NOW, 9)) == [removal]
        assert list(await store.stale(NOW * 9, LIMIT)) == []
        assert await store.find_work("alpha", "docker", "x:1") == []

    @pytest_twisted.ensureDeferred
    async def test_only_ready_records_expire(self, place: Place) -> None:
        """`expire` and `untag` change nothing on work, failures, removals and unknown keys."""
        store = place.store
        in_flight = await begin_pull(store, request("f:1"))
        failure_record = await begin_pull(store, request("f:2"))
        failure_record = await store.finish(failure_record.key, 1, failure(), NOW)
        expiring = await request_removal(store, request("x:1"))
        for key in (in_flight.key, failure_record.key, expiring.key, "f" * 24):
            before = await store.get(key)
            assert await store.expire(key) is None
            assert await store.untag(key, "x:1") is None
            assert await store.get(key) == before

    @pytest_twisted.ensureDeferred
    async def test_a_renewed_image_does_not_expire(self, place: Place) -> None:
        """With a time, only an image that has expired by then becomes EXPIRING."""
        store = place.store
        ready = await complete_pull(store, request())
        assert await store.expire(ready.key, NOW * 9) is None
        await store.renew(ready.key, NOW + 100)
        assert await store.expire(ready.key, NOW + 99) is None
        assert await store.get(ready.key) == replace(ready, expiration=NOW + 100)
        assert await store.expire(ready.key, NOW + 100) is not None

    @pytest_twisted.ensureDeferred
    async def test_one_of_many_concurrent_expires_succeeds(self, place: Place) -> None:
        """One call gets the record, and all others get None."""
        ready = await complete_pull(place.store, request())
        answers = await all_of(place.store.expire(ready.key) for _ in range(20))
        assert sum(answer is not None for answer in answers) == 1

    @pytest_twisted.ensureDeferred
    async def test_no_attempt_number_is_used_twice(self, place: Place) -> None:
        """Removals continue the numbers of the pull, and later removals too.

        So a suspended worker cannot act in the name of a later attempt.
        """
        store, now = place.store, NOW
        pull = await begin_pull(store, request("x:1"))
        numbers = [pull.attempt]
        for _ in range(2):
            now += 2 * LIMIT
            next_attempt = await store.begin(pull.key, "n", now, LIMIT)
            assert next_attempt is not None
            numbers.append(next_attempt.attempt)
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
            pull_record = await begin_pull(store, request("y:1"), now)
            final_record = await store.finish(pull_record.key, pull_record.attempt, Ready(ID), now)
            assert (final_record.key, final_record.status) == (pull.key, State.READY)
            with pytest.raises(Superseded):
                await store.finish(pull.key, removal.attempt, Expired(), now)
        assert numbers == sorted({*numbers})

    @pytest_twisted.ensureDeferred
    async def test_untag_removes_one_tag(self, place: Place) -> None:
        """With the last tag the record becomes EXPIRING."""
        store = place.store
        await complete_pull(store, request("x:1"))
        ready = await complete_pull(store, request("x:2"))
        assert await store.untag(ready.key, "y:1") is None
        remainder = await store.untag(ready.key, "x:1")
        assert remainder == replace(ready, tags=("x:2",)) == await store.get(ready.key)
        assert await store.find("alpha", "docker", ["x:1"]) is None
        removal = await store.untag(ready.key, "x:2")
        assert removal is not None
        assert (removal.status, removal.kind, removal.tags) == (State.EXPIRING, "expire", ())
        assert list(await store.waiting(NOW + 99, 9)) == [removal]

    @pytest_twisted.ensureDeferred
    async def test_records_of_the_original_expire(self, place: Place) -> None:
        """A tag as text and SUCCESS are understood; unknown members survive."""
        store = place.store
        place.put("1" * 24, OF_THE_ORIGINAL | {"tag": "old:1", "status": "SUCCESS"})
        assert await store.expire("1" * 24, 11) is None
        removal = await store.untag("1" * 24, "old:1")
        assert removal is not None
        assert removal.status is State.EXPIRING
        await store.begin("1" * 24, "n", NOW, LIMIT)
        await store.finish("1" * 24, 1, Expired(), NOW)
        assert place.document("1" * 24)["site_note"] == OF_THE_ORIGINAL["site_note"]

    @pytest_twisted.ensureDeferred
    async def test_a_removal_has_attempts_like_a_pull(self, place: Place) -> None:
        """The record stays EXPIRING during all attempts."""
        store = place.store
        first = await begin_removal(store)
        assert (first.status, first.attempt, first.runner) == (State.EXPIRING, 2, "node:1")
        assert list(await store.waiting(NOW + 99, 9)) == []
        assert await store.begin(first.key, "node:2", NOW + LIMIT - 1, LIMIT) is None
        await store.heartbeat(first.key, 2, Progress(), NOW + 5)
        assert [r.key for r in await store.stale(NOW + 6 + LIMIT, LIMIT)] == [first.key]
        next_attempt = await store.begin(first.key, "node:2", NOW + 6 + LIMIT, LIMIT)
        assert next_attempt is not None
        assert (next_attempt.status, next_attempt.attempt) == (State.EXPIRING, 3)
        for step in (
            store.heartbeat(first.key, 2, Progress(), NOW),
            store.finish(first.key, 2, Expired(), NOW),
        ):
            with pytest.raises(Superseded):
                await step

    @pytest_twisted.ensureDeferred
    async def test_a_removal_ends_in_expired(self, place: Place) -> None:
        """Tags and id stay, but no user, worker or queue sees the record."""
        store = place.store
        record = await begin_removal(store)
        await store.heartbeat(record.key, 2, Progress("x", 1, 2), NOW)
        result = await store.finish(record.key, 2, Expired(), NOW + 9)
        assert result == await store.get(record.key)
        assert (result.status, result.tags, result.id) == (State.EXPIRED, ("x:1",), ID)
        assert result.last_pull == NOW + 9
        removed_members = {"claim", "sealed", "runner", "stage", "done", "total"}
        assert removed_members.isdisjoint(place.document(result.key))
        assert await visible_records(store) == [None]
        assert list(await store.queue("alpha")) == list(await store.waiting(NOW + 99, 9)) == []
        assert list(await store.stale(NOW * 9, LIMIT)) == []
        assert list(await store.list_expired(NOW * 9)) == []
        with pytest.raises(Superseded):
            await store.finish(record.key, 2, Expired(), NOW)
        fresh = await complete_pull(store, request("x:1"))
        assert fresh.key != result.key

    @pytest_twisted.ensureDeferred
    async def test_outcomes_of_the_wrong_kind_are_refused(self, place: Place) -> None:
        """A removal cannot become READY by `finish`, nor a pull EXPIRED."""
        store = place.store
        removal, pull = await begin_removal(store), await begin_pull(store, request("y:1"))
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
    async def test_a_removal_cannot_be_abandoned(self, place: Place) -> None:
        """`abandon` applies to claims of pulls only."""
        record = await request_removal(place.store, request())
        await place.store.abandon(record.key)
        assert await place.store.get(record.key) == record


class CancelledRemovalContract:
    """Cancelled removals lead from EXPIRING back to READY."""

    @pytest_twisted.ensureDeferred
    async def test_a_failed_removal_is_repeated(self, place: Place) -> None:
        """A failed removal stays EXPIRING, and is stale after the time limit of heartbeats."""
        store = place.store
        record = await begin_removal(store)
        remainder = await store.finish(record.key, 2, failure(), NOW + 9)
        assert (remainder.status, remainder.in_flight, remainder.attempt) == (
            State.EXPIRING,
            True,
            2,
        )
        assert remainder.status_message == failure().cause
        assert await store.find("alpha", "docker", ["x:1"]) is None
        assert list(await store.stale(NOW + 9 + LIMIT, LIMIT)) == []
        assert list(await store.stale(NOW + 10 + LIMIT, LIMIT)) == [remainder]
        next_attempt = await store.begin(remainder.key, "node:2", NOW + 10 + LIMIT, LIMIT)
        assert next_attempt is not None
        assert (next_attempt.status, next_attempt.attempt) == (State.EXPIRING, 3)

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("has_begun", [False, True])
    async def test_a_pull_of_the_image_cancels_its_removal(
        self, place: Place, *, has_begun: bool
    ) -> None:
        """The record is READY again with all its tags."""
        store = place.store
        old = await (begin_removal(store) if has_begun else request_removal(store, request("x:1")))
        restored_record = await complete_pull(store, request("x:2"), now=NOW + 9, user_acl=(5,))
        assert restored_record == await store.get(old.key)
        assert (restored_record.status, restored_record.kind, restored_record.tags) == (
            State.READY,
            "pull",
            ("x:1", "x:2"),
        )
        assert (
            restored_record.user_acl,
            restored_record.last_pull,
            restored_record.status_message,
        ) == ((5,), NOW + 9, "")
        removed_members = {"claim", "runner", "last_heartbeat"}
        assert removed_members.isdisjoint(place.document(restored_record.key))
        assert await visible_records(store) == [restored_record, restored_record, restored_record]
        assert list(await store.queue("alpha")) == list(await store.waiting(NOW + 99, 9)) == []
        assert await store.begin(restored_record.key, "n", NOW * 2, LIMIT) is None
        for step in (
            store.heartbeat(restored_record.key, old.attempt, Progress(), NOW),
            store.finish(restored_record.key, old.attempt, Expired(), NOW),
            store.finish(restored_record.key, old.attempt, failure(), NOW),
        ):
            with pytest.raises(Superseded):
                await step
        assert await store.get(restored_record.key) == restored_record

    @pytest_twisted.ensureDeferred
    async def test_the_ready_record_comes_first(self, place: Place) -> None:
        """If an original left both, a pull changes the READY record, not the EXPIRING one."""
        place.put("1" * 24, OF_THE_ORIGINAL | {"status": "EXPIRING"})
        place.put("2" * 24, OF_THE_ORIGINAL)
        assert (await complete_pull(place.store, request("x:1"))).key == "2" * 24
        await remove_record(place.store, "2" * 24)
        restored_record = await complete_pull(place.store, request("x:1"))
        assert (restored_record.key, restored_record.tags) == ("1" * 24, ("old:1", "x:1"))

    @pytest_twisted.ensureDeferred
    async def test_a_pull_cancels_no_other_removal(self, place: Place) -> None:
        """Removals of other images, types and systems continue."""
        store = place.store
        bystanders = [
            await request_removal(store, request("x:1"), OTHER_ID),
            await request_removal(store, request("x:1", itype="custom")),
            await request_removal(store, request("x:1", system="beta")),
        ]
        ready = await complete_pull(store, request("x:1"))
        for record in bystanders:
            assert await store.get(record.key) == record
            assert record.key != ready.key

    @pytest_twisted.ensureDeferred
    async def test_a_moved_tag_does_not_come_back(self, place: Place) -> None:
        """A tag that was pulled as another image stays with that image."""
        store = place.store
        await complete_pull(store, request("x:2"))
        old = await begin_removal(store)
        new = await complete_pull(store, request("x:1"), OTHER_ID, NOW + 5)
        restored_record = await complete_pull(store, request("x:3"), now=NOW + 9)
        assert (restored_record.key, restored_record.status) == (old.key, State.READY)
        assert restored_record.tags == ("x:2", "x:3")
        assert await store.find("alpha", "docker", ["x:1"]) == new
        assert await store.find("alpha", "docker", ["x:2"]) == restored_record

    @pytest_twisted.ensureDeferred
    async def test_an_untagged_tag_does_not_come_back(self, place: Place) -> None:
        """A removed tag is not restored together with the image."""
        store = place.store
        ready = await complete_pull(store, request("x:1"))
        await store.untag(ready.key, "x:1")
        assert (await complete_pull(store, request("x:2"))).tags == ("x:2",)
