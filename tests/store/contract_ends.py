"""The contract of the end of work, of expiration, leases and look-up rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted

from shiftergw.model.records import Expired, Origin, Progress, Ready
from shiftergw.states import State
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
    holder,
    request,
    request_removal,
)


class EndContract:
    """Work ends in READY or FAILURE."""

    @pytest_twisted.ensureDeferred
    async def test_ready_sets_the_tag_and_the_metadata(self, place: Place) -> None:
        """The READY record has no claim, no sealed credentials and no progress."""
        store = place.store
        record = await begin_pull(store, request(sealed="secret"))
        await store.heartbeat(record.key, 1, Progress("TRANSFER", 1, 2), NOW)
        origin = Origin("hub", "library/ubuntu", "sha256:" + ID, private=True)
        changes = {"env": ("A=1",), "user_acl": (5,), "private": True, "origin": origin, "size": 7}
        done = await store.finish(record.key, 1, Ready(ID, changes), NOW + 9)
        assert done == await store.get(record.key)
        assert (done.status, done.tags, done.id) == (State.READY, ("ubuntu:24.04",), ID)
        assert (done.env, done.user_acl, done.private) == (("A=1",), (5,), True)
        assert (done.origin, done.size, done.last_pull) == (origin, 7, NOW + 9)
        removed_members = {"claim", "sealed", "runner", "stage", "done", "total"}
        assert removed_members.isdisjoint(place.document(record.key))

    @pytest_twisted.ensureDeferred
    async def test_ready_adds_the_tag_to_the_record_of_the_image(self, place: Place) -> None:
        """One record of the image remains, with both tags and the new metadata."""
        store = place.store
        first = await complete_pull(store, request("x:1"), user_acl=(1,))
        second = await complete_pull(store, request("x:2"), now=NOW + 5, user_acl=(1, 2))
        assert second.key == first.key
        assert (second.tags, second.user_acl) == (("x:1", "x:2"), (1, 2))
        assert second.last_pull == NOW + 5
        assert await store.list("alpha") == [second]
        assert await store.queue("alpha") == []

    @pytest_twisted.ensureDeferred
    async def test_a_repeated_pull_adds_no_tag_twice(self, place: Place) -> None:
        """A pull of an unchanged tag leaves the one record with the tag once."""
        first = await complete_pull(place.store, request())
        second = await complete_pull(place.store, request(), now=NOW + 5)
        assert (second.key, second.tags) == (first.key, ("ubuntu:24.04",))

    @pytest_twisted.ensureDeferred
    async def test_a_moved_tag_leaves_the_old_record(self, place: Place) -> None:
        """The tag finds the new image; the old record stays READY without the tag."""
        store = place.store
        old = await complete_pull(store, request("x:1"))
        new = await complete_pull(store, request("x:1"), OTHER_ID, NOW + 5)
        assert await store.find("alpha", "docker", ["x:1"]) == new
        old_record = await store.get(old.key)
        assert old_record is not None
        assert (old_record.status, old_record.tags) == (State.READY, ())
        assert list(await store.find_id(["alpha"], ID)) == [old_record]

    @pytest_twisted.ensureDeferred
    async def test_files_without_a_tag_stay_for_a_while(self, place: Place) -> None:
        """The files stay until their expiration or `untagged_until`, whichever is later."""
        store = place.store
        for number, (own, until, expected) in enumerate(
            [(None, 50, 50), (40, 50, 50), (60, 50, 60), (None, 0, None), (40, 0, 40)]
        ):
            tag = f"x:{number}"
            old = await complete_pull(store, request(tag), f"{number:064x}", expiration=own)
            new = await begin_pull(store, request(tag))
            await store.finish(new.key, 1, Ready(f"{number:063x}f", untagged_until=until), NOW)
            old_record = await store.get(old.key)
            assert old_record is not None
            assert (old_record.tags, old_record.expiration) == ((), expected)

    @pytest_twisted.ensureDeferred
    async def test_the_loss_of_one_tag_keeps_the_expiration(self, place: Place) -> None:
        """An image that has another tag expires at its own time."""
        store = place.store
        await complete_pull(store, request("x:1"))
        old = await complete_pull(store, request("x:2"), expiration=NOW + 1)
        new = await begin_pull(store, request("x:1"))
        await store.finish(new.key, 1, Ready(OTHER_ID, untagged_until=NOW + 99), NOW)
        assert await store.get(old.key) == replace(old, tags=("x:2",))

    @pytest_twisted.ensureDeferred
    async def test_types_and_systems_keep_their_tags(self, place: Place) -> None:
        """A tag moves, and records are merged, only within a system and a type."""
        store = place.store
        custom = await complete_pull(store, request("x:1", itype="custom"))
        beta = await complete_pull(store, request("x:1", system="beta"))
        docker = await complete_pull(store, request("x:1"), now=NOW + 1)
        await complete_pull(store, request("x:1"), OTHER_ID, NOW + 2)
        assert len({custom.key, beta.key, docker.key}) == 3
        assert await store.get(custom.key) == custom
        assert await store.get(beta.key) == beta
        assert list(await store.find_id(["alpha"], ID)) == [
            custom,
            replace(docker, tags=()),
        ]

    @pytest_twisted.ensureDeferred
    async def test_readers_always_find_a_moving_tag(self, place: Place) -> None:
        """Every reader finds a record, and none finds the old record after the new one."""
        store = place.store
        await complete_pull(store, request("x:1"), f"{0:064x}")
        image_ids: list[str | None] = []

        async def read() -> None:
            for _ in range(100):
                record = await store.find("alpha", "docker", ["x:1"])
                assert record is not None
                image_ids.append(record.id)

        async def move() -> None:
            for n in range(1, 15):
                await complete_pull(store, request("x:1"), f"{n:064x}", NOW + n)

        await all_of([read(), move()])
        assert image_ids == sorted(image_ids, key=str)

    @pytest_twisted.ensureDeferred
    async def test_a_failure_keeps_its_explanation(self, place: Place) -> None:
        """A FAILURE record has the cause and the remedy for the user, and no secret."""
        store = place.store
        record = await begin_pull(store, request(sealed="secret"))
        await store.heartbeat(record.key, 1, Progress("PULLING", 1, 2), NOW)
        done = await store.finish(record.key, 1, failure(own=True), NOW + 9)
        assert done == await store.get(record.key)
        assert (done.status, done.in_flight, done.sealed) == (State.FAILURE, False, None)
        assert (done.stage, done.cause, done.remedy) == (
            "PULLING",
            "The registry has no such image.",
            "Check it.",
        )
        assert done.status_message == done.cause
        assert (done.retryable, done.own_failure, done.last_pull) == (True, True, NOW + 9)
        assert {"claim", "sealed", "runner", "done", "total"}.isdisjoint(place.document(done.key))

    @pytest_twisted.ensureDeferred
    async def test_a_refresh_keeps_the_old_image(self, place: Place) -> None:
        """While a refresh runs, and when it fails, the READY record stays as it was."""
        store = place.store
        ready = await complete_pull(store, request())
        record = await begin_pull(store, request(), NOW + 5)
        assert await store.find("alpha", "docker", ["ubuntu:24.04"]) == ready
        await store.finish(record.key, 1, failure(), NOW + 6)
        assert await store.find("alpha", "docker", ["ubuntu:24.04"]) == ready

    @pytest_twisted.ensureDeferred
    async def test_unknown_members_survive(self, place: Place) -> None:
        """Members of another program survive every kind of update."""
        store = place.store
        place.put("1" * 24, OF_THE_ORIGINAL)
        await store.renew("1" * 24, NOW)
        ready = await complete_pull(store, request("new:1"))
        assert (ready.key, ready.tags) == ("1" * 24, ("old:1", "new:1"))
        await complete_pull(store, request("old:1"), OTHER_ID)
        document = place.document("1" * 24)
        assert document["tag"] == ["new:1"]
        assert document["site_note"] == OF_THE_ORIGINAL["site_note"]

    @pytest_twisted.ensureDeferred
    async def test_unknown_members_of_work_survive(self, place: Place) -> None:
        """Members of another program survive in a record in flight up to its end."""
        store = place.store
        in_flight: dict[str, Any] = {
            "status": "PENDING",
            "claim": "alpha/docker/old:1",
            "tag": [],
            "id": None,
        }
        place.put("1" * 24, OF_THE_ORIGINAL | in_flight)
        assert await store.begin("1" * 24, "n", NOW, LIMIT) is not None
        await store.advance("1" * 24, 1, State.CONVERSION, "", NOW)
        await store.heartbeat("1" * 24, 1, Progress("x", 1, 2), NOW)
        await store.finish("1" * 24, 1, Ready(ID), NOW)
        assert place.document("1" * 24)["site_note"] == OF_THE_ORIGINAL["site_note"]


class KeepContract:
    """Expiration, leases and look-up rows."""

    @pytest_twisted.ensureDeferred
    async def test_renew_never_shortens_an_expiration(self, place: Place) -> None:
        """`renew` applies to READY records only; without an expiration no image expires."""
        store = place.store
        ready = await complete_pull(store, request())
        assert list(await store.list_expired(NOW * 9)) == []
        await store.renew(ready.key, NOW + 100)
        await store.renew(ready.key, NOW + 50)
        assert list(await store.list_expired(NOW + 99)) == []
        assert list(await store.list_expired(NOW + 100)) == [replace(ready, expiration=NOW + 100)]
        in_flight, _ = await store.claim(request("x:1"), NOW)
        await store.renew(in_flight.key, NOW + 100)
        assert await store.get(in_flight.key) == in_flight

    @pytest_twisted.ensureDeferred
    async def test_expired_is_limited(self, place: Place) -> None:
        """`expired` returns at most `limit` records of the given systems, the earliest first."""
        store = place.store
        for n, system in ((3, "beta"), (1, "alpha"), (2, "alpha"), (4, "gamma")):
            pull = request(f"x:{n}", system=system)
            await store.renew((await complete_pull(store, pull, f"{n:064x}")).key, NOW + n)

        async def due(*arguments: Any) -> list[float | None]:
            return [record.expiration for record in await store.list_expired(NOW + 9, *arguments)]

        assert await due() == [NOW + 1, NOW + 2, NOW + 3, NOW + 4]
        assert await due(None, 3) == [NOW + 1, NOW + 2, NOW + 3]
        assert await due(["beta", "gamma"]) == [NOW + 3, NOW + 4]
        assert await due(["beta", "gamma"], 1) == [NOW + 3]
        assert await due([], 1) == []

    @pytest_twisted.ensureDeferred
    async def test_forget_ended_removes_old_failures_and_removals(self, place: Place) -> None:
        """`forget_ended` removes no work, however old, and foreign records only on request."""
        store = place.store
        for tag, now in (("x:1", NOW), ("y:1", NOW + 10)):
            record = await begin_pull(store, request(tag), now)
            await store.finish(record.key, 1, failure(), now)
            removal_record = await request_removal(store, request(f"e-{tag}"), now=NOW - 9)
            await store.begin(removal_record.key, "n", now, LIMIT)
            await store.finish(removal_record.key, 2, Expired(), now)
        for number, status in enumerate(("FAILURE", "EXPIRED")):
            place.put(str(number) * 24, OF_THE_ORIGINAL | {"status": status})
        await complete_pull(store, request("r:1"), OTHER_ID)
        await request_removal(store, request("r:2"), f"{5:064x}")
        await store.claim(request("w:1"), NOW - 9)
        await begin_pull(store, request("w:2"), NOW - 9)
        assert await store.forget_ended(NOW + 5, foreign=False) == 2
        assert await store.forget_ended(NOW + 5) == 2
        assert await store.forget_ended(NOW + 5) == 0
        assert {record.pulltag for record in await store.queue("alpha")} == {
            "y:1", "r:2", "w:1", "w:2",
        }  # fmt: skip
        assert len(await store.list("alpha")) == 1
        assert await store.get(removal_record.key) is not None

    @pytest.mark.parametrize("setting", [None, True, False])
    @pytest_twisted.ensureDeferred
    async def test_images_of_this_program_expire_on_schedule(
        self, place: Place, setting: bool | None
    ) -> None:
        """Images expire on schedule unless the configuration forbids it."""
        store = place.store
        for _ in range(2):
            assert await store.expires(setting, NOW, 90) is (setting is not False)
            record = await complete_pull(store, request(), expiration=NOW - 5)
        timeless = await complete_pull(store, request("t:1"), OTHER_ID)
        assert await store.expires(setting, NOW + 1, 90) is (setting is not False)
        assert await store.get(timeless.key) == timeless
        assert list(await store.list_expired(NOW)) == [record]

    @pytest_twisted.ensureDeferred
    async def test_a_cancelled_removal_leaves_no_foreign_record(self, place: Place) -> None:
        """An image that was EXPIRING does not count as another program's."""
        store = place.store
        await request_removal(store, request("x:1"))
        await complete_pull(store, request("x:1"))
        removal_record = await request_removal(store, request("y:1"), OTHER_ID)
        removal = await store.begin(removal_record.key, "n", NOW, LIMIT)
        assert removal is not None
        await store.finish(removal_record.key, removal.attempt, failure(), NOW)
        assert await store.expires(None, NOW, 90)
        assert all("attempt" in place.document(record.key) for record in await store.list("alpha"))

    @pytest_twisted.ensureDeferred
    async def test_a_lease_has_one_holder(self, place: Place) -> None:
        """The holder may renew it; it ends after its time or by `release`."""
        store = place.store
        first, second = [holder(await begin_pull(store, request(tag))) for tag in ("k:1", "m:1")]
        assert await store.lease("/images", ID, first, NOW, 10)
        assert not await store.lease("/images", ID, second, NOW + 5, 10)
        assert await store.lease("/images", OTHER_ID, second, NOW + 5, 10)
        assert await store.lease("/else", ID, second, NOW + 5, 10)
        assert await store.lease("/images", ID, first, NOW + 5, 10)
        assert not await store.lease("/images", ID, second, NOW + 14, 10)
        assert await store.lease("/images", ID, second, NOW + 15, 10)
        await store.release("/images", ID, first)
        assert not await store.lease("/images", ID, first, NOW + 16, 10)
        await store.release("/images", ID, second)
        assert await store.lease("/images", ID, first, NOW + 16, 10)

    @pytest_twisted.ensureDeferred
    async def test_a_later_attempt_takes_over_the_lease(self, place: Place) -> None:
        """The earlier attempt of the same record never gets it back."""
        store = place.store
        first, second = [await begin_pull(store, request(tag)) for tag in ("k:1", "m:1")]
        assert await store.lease("/images", ID, f"{first.key}/1", NOW, 200)
        assert not await store.lease("/images", ID, f"{second.key}/1", NOW + 1, 200)
        assert await store.begin(first.key, "node:2", NOW + LIMIT, LIMIT) is not None
        assert await store.lease("/images", ID, f"{first.key}/2", NOW + LIMIT, 200)
        assert not await store.lease("/images", ID, f"{first.key}/1", NOW + LIMIT, 200)
        await store.release("/images", ID, f"{first.key}/1")
        assert not await store.lease("/images", ID, f"{second.key}/1", NOW + LIMIT, 200)

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("end", ["ready", "failure", "another's", "next", "removed"])
    async def test_a_lease_ends_with_its_attempt(self, place: Place, end: str) -> None:
        """A worker that dies before it releases its lease delays no other."""
        store = place.store
        first, second = [await begin_pull(store, request(tag)) for tag in ("k:1", "m:1")]
        assert await store.lease("/images", ID, holder(first), NOW, 500)
        assert not await store.lease("/images", ID, holder(second), NOW, 500)
        match end:
            case "ready":
                await store.advance(first.key, 1, State.TRANSFER, "", NOW)
                await store.finish(first.key, 1, Ready(ID), NOW)
            case "failure":
                await store.finish(first.key, 1, failure(), NOW)
            case "another's":  # the image has a record already, which the pull's own goes into
                await complete_pull(store, request("z:1"), ID)
                await store.advance(first.key, 1, State.TRANSFER, "", NOW)
                await store.finish(first.key, 1, Ready(ID), NOW)
            case "next":
                assert await store.begin(first.key, "node:2", NOW + LIMIT, LIMIT) is not None
            case "removed":
                await remove_record(store, first.key)
        assert await store.lease("/images", ID, holder(second), NOW + LIMIT, 500)
        await store.release("/images", ID, holder(first))
        third = holder(await begin_pull(store, request("n:1")))
        assert not await store.lease("/images", ID, third, NOW + LIMIT, 500)

    @pytest_twisted.ensureDeferred
    async def test_the_latest_attempt_gets_the_lease(self, place: Place) -> None:
        """Of attempts that ask at once, the latest one has it in the end."""
        store = place.store
        key = (await begin_pull(store, request())).key
        assert await store.lease("/images", ID, f"{key}/1", NOW, 10)
        answers = await all_of(
            store.lease("/images", ID, f"{key}/{n}", NOW, 10) for n in (4, 2, 5, 3, 1)
        )
        assert answers[2]
        results = [await store.lease("/images", ID, f"{key}/{n}", NOW, 10) for n in range(1, 6)]
        assert results == [False, False, False, False, True]

    @pytest_twisted.ensureDeferred
    async def test_one_of_many_concurrent_holders_gets_the_lease(self, place: Place) -> None:
        """One holder gets a free lease, or that of a removed record."""
        store = place.store
        dead = await begin_pull(store, request("dead:1"))
        holders = [holder(await begin_pull(store, request(f"x:{n}"))) for n in range(20)]
        for _ in range(2):
            answers = await all_of(store.lease("/images", ID, name, NOW, 10) for name in holders)
            assert sum(answers) == 1
            await store.release("/images", ID, holders[answers.index(True)])
            assert await store.lease("/images", ID, holder(dead), NOW, 10)
            await remove_record(store, dead.key)

    @pytest_twisted.ensureDeferred
    async def test_lookups_return_the_last_rows_of_a_system(self, place: Place) -> None:
        """The rows are as they were recorded, the oldest first."""
        store = place.store
        rows = [{"system": "alpha", "uid": n, "time": NOW + n, "tag": "ü:1"} for n in range(5)]
        for row in rows:
            await store.record_lookup(row)
        await store.record_lookup({"system": "beta", "uid": 9})
        assert list(await store.lookups("alpha", 3)) == rows[2:]
        assert list(await store.lookups("alpha", 100)) == rows
        assert list(await store.lookups("alpha", 0)) == []
        assert list(await store.lookups("alpha", -1)) == []
