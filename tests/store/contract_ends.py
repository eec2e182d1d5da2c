"""The contract's part on how work ends, and on what is kept besides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted

from shiftergw.model import Expired, Origin, Progress, Ready
from shiftergw.states import State
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
    holder,
    pulled,
    request,
)


class EndContract:
    """READY and FAILURE."""

    @pytest_twisted.ensureDeferred
    async def test_ready(self, place: Place) -> None:
        """READY sets the tag and what the worker found out; claim, secrets and progress go."""
        store = place.store
        record = await begun(store, request(sealed="secret"))
        await store.heartbeat(record.key, 1, Progress("TRANSFER", 1, 2), NOW)
        origin = Origin("hub", "library/ubuntu", "sha256:" + ID, private=True)
        changes = {"env": ("A=1",), "user_acl": (5,), "private": True, "origin": origin, "size": 7}
        done = await store.finish(record.key, 1, Ready(ID, changes), NOW + 9)
        assert done == await store.get(record.key)
        assert (done.status, done.tags, done.id) == (State.READY, ("ubuntu:24.04",), ID)
        assert (done.env, done.user_acl, done.private) == (("A=1",), (5,), True)
        assert (done.origin, done.size, done.last_pull) == (origin, 7, NOW + 9)
        gone = {"claim", "sealed", "runner", "stage", "done", "total"}
        assert gone.isdisjoint(place.document(record.key))

    @pytest_twisted.ensureDeferred
    async def test_ready_merges(self, place: Place) -> None:
        """An id that is READY gets the further tag and the new metadata; one record remains."""
        store = place.store
        first = await pulled(store, request("x:1"), user_acl=(1,))
        second = await pulled(store, request("x:2"), now=NOW + 5, user_acl=(1, 2))
        assert second.key == first.key
        assert (second.tags, second.user_acl) == (("x:1", "x:2"), (1, 2))
        assert second.last_pull == NOW + 5
        assert await store.list("alpha") == [second]
        assert await store.queue("alpha") == []

    @pytest_twisted.ensureDeferred
    async def test_a_pull_of_what_is_there(self, place: Place) -> None:
        """Pulling an unchanged tag again leaves one record with the tag once."""
        first = await pulled(place.store, request())
        second = await pulled(place.store, request(), now=NOW + 5)
        assert (second.key, second.tags) == (first.key, ("ubuntu:24.04",))

    @pytest_twisted.ensureDeferred
    async def test_the_tag_moves(self, place: Place) -> None:
        """A tag that means another image now leaves the old record, which stays."""
        store = place.store
        old = await pulled(store, request("x:1"))
        new = await pulled(store, request("x:1"), OTHER_ID, NOW + 5)
        assert await store.find("alpha", "docker", ["x:1"]) == new
        left = await store.get(old.key)
        assert left is not None
        assert (left.status, left.tags) == (State.READY, ())
        assert list(await store.find_id(["alpha"], ID)) == [left]

    @pytest_twisted.ensureDeferred
    async def test_the_last_tag_is_lost(self, place: Place) -> None:
        """Files without a tag stay for a while: until their own expiration, or a later time."""
        store = place.store
        for number, (own, until, expected) in enumerate(
            [(None, 50, 50), (40, 50, 50), (60, 50, 60), (None, 0, None), (40, 0, 40)]
        ):
            tag = f"x:{number}"
            old = await pulled(store, request(tag), f"{number:064x}", expiration=own)
            new = await begun(store, request(tag))
            await store.finish(new.key, 1, Ready(f"{number:063x}f", untagged_until=until), NOW)
            left = await store.get(old.key)
            assert left is not None
            assert (left.tags, left.expiration) == ((), expected)

    @pytest_twisted.ensureDeferred
    async def test_one_of_several_tags_is_lost(self, place: Place) -> None:
        """An image that has another tag left expires when it would have."""
        store = place.store
        await pulled(store, request("x:1"))
        old = await pulled(store, request("x:2"), expiration=NOW + 1)
        new = await begun(store, request("x:1"))
        await store.finish(new.key, 1, Ready(OTHER_ID, untagged_until=NOW + 99), NOW)
        assert await store.get(old.key) == replace(old, tags=("x:2",))

    @pytest_twisted.ensureDeferred
    async def test_types_and_systems_keep_their_tags(self, place: Place) -> None:
        """A tag is taken within its system and type only, and ids are merged within them only."""
        store = place.store
        custom = await pulled(store, request("x:1", itype="custom"))
        beta = await pulled(store, request("x:1", system="beta"))
        docker = await pulled(store, request("x:1"), now=NOW + 1)
        await pulled(store, request("x:1"), OTHER_ID, NOW + 2)
        assert len({custom.key, beta.key, docker.key}) == 3
        assert await store.get(custom.key) == custom
        assert await store.get(beta.key) == beta
        assert list(await store.find_id(["alpha"], ID)) == [
            custom,
            replace(docker, tags=()),
        ]

    @pytest_twisted.ensureDeferred
    async def test_readers_of_a_moving_tag(self, place: Place) -> None:
        """No reader of a tag that moves finds none, or the old record after the new."""
        store = place.store
        await pulled(store, request("x:1"), f"{0:064x}")
        seen: list[str | None] = []

        async def read() -> None:
            for _ in range(100):
                record = await store.find("alpha", "docker", ["x:1"])
                assert record is not None
                seen.append(record.id)

        async def move() -> None:
            for n in range(1, 15):
                await pulled(store, request("x:1"), f"{n:064x}", NOW + n)

        await all_of([read(), move()])
        assert seen == sorted(seen, key=str)

    @pytest_twisted.ensureDeferred
    async def test_failed(self, place: Place) -> None:
        """FAILURE keeps what the user needs to know, and no secret."""
        store = place.store
        record = await begun(store, request(sealed="secret"))
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
    async def test_a_failed_refresh_leaves_the_image(self, place: Place) -> None:
        """While a refresh runs, and when it fails, the READY record stays as it was."""
        store = place.store
        ready = await pulled(store, request())
        record = await begun(store, request(), NOW + 5)
        assert await store.find("alpha", "docker", ["ubuntu:24.04"]) == ready
        await store.finish(record.key, 1, failure(), NOW + 6)
        assert await store.find("alpha", "docker", ["ubuntu:24.04"]) == ready

    @pytest_twisted.ensureDeferred
    async def test_unknown_members_survive(self, place: Place) -> None:
        """Members that we do not know are still there after every kind of update."""
        store = place.store
        place.put("1" * 24, OF_THE_ORIGINAL)
        await store.renew("1" * 24, NOW)
        merged = await pulled(store, request("new:1"))
        assert (merged.key, merged.tags) == ("1" * 24, ("old:1", "new:1"))
        await pulled(store, request("old:1"), OTHER_ID)
        document = place.document("1" * 24)
        assert document["tag"] == ["new:1"]
        assert document["site_note"] == OF_THE_ORIGINAL["site_note"]

    @pytest_twisted.ensureDeferred
    async def test_unknown_members_of_work_survive(self, place: Place) -> None:
        """The same holds for a record in flight, to its end."""
        store = place.store
        flying: dict[str, Any] = {
            "status": "PENDING",
            "claim": "alpha/docker/old:1",
            "tag": [],
            "id": None,
        }
        place.put("1" * 24, OF_THE_ORIGINAL | flying)
        assert await store.begin("1" * 24, "n", NOW, LIMIT) is not None
        await store.advance("1" * 24, 1, State.CONVERSION, "", NOW)
        await store.heartbeat("1" * 24, 1, Progress("x", 1, 2), NOW)
        await store.finish("1" * 24, 1, Ready(ID), NOW)
        assert place.document("1" * 24)["site_note"] == OF_THE_ORIGINAL["site_note"]


class KeepContract:
    """Expiration, leases, metrics."""

    @pytest_twisted.ensureDeferred
    async def test_renew_and_expired(self, place: Place) -> None:
        """An expiration moves forward only, on READY records only; without one nothing expires."""
        store = place.store
        ready = await pulled(store, request())
        assert list(await store.expired(NOW * 9)) == []
        await store.renew(ready.key, NOW + 100)
        await store.renew(ready.key, NOW + 50)
        assert list(await store.expired(NOW + 99)) == []
        assert list(await store.expired(NOW + 100)) == [replace(ready, expiration=NOW + 100)]
        flying, _ = await store.claim(request("x:1"), NOW)
        await store.renew(flying.key, NOW + 100)
        assert await store.get(flying.key) == flying

    @pytest_twisted.ensureDeferred
    async def test_expired_a_few_at_a_time(self, place: Place) -> None:
        """However many are due, no more come than are asked for, of those systems, oldest first."""
        store = place.store
        for n, system in ((3, "beta"), (1, "alpha"), (2, "alpha"), (4, "gamma")):
            wish = request(f"x:{n}", system=system)
            await store.renew((await pulled(store, wish, f"{n:064x}")).key, NOW + n)

        async def due(*asked: Any) -> list[float | None]:
            return [one.expiration for one in await store.expired(NOW + 9, *asked)]

        assert await due() == [NOW + 1, NOW + 2, NOW + 3, NOW + 4]
        assert await due(None, 3) == [NOW + 1, NOW + 2, NOW + 3]
        assert await due(["beta", "gamma"]) == [NOW + 3, NOW + 4]
        assert await due(["beta", "gamma"], 1) == [NOW + 3]
        assert await due([], 1) == []

    @pytest_twisted.ensureDeferred
    async def test_forget_ended(self, place: Place) -> None:
        """Old failures and removals go, also those that say no time; no work does, however old.

        Those that another program left may stay.
        """
        store = place.store
        for tag, now in (("x:1", NOW), ("y:1", NOW + 10)):
            record = await begun(store, request(tag), now)
            await store.finish(record.key, 1, failure(), now)
            gone = await expiring(store, request(f"e-{tag}"), now=NOW - 9)
            await store.begin(gone.key, "n", now, LIMIT)
            await store.finish(gone.key, 2, Expired(), now)
        for number, status in enumerate(("FAILURE", "EXPIRED")):
            place.put(str(number) * 24, OF_THE_ORIGINAL | {"status": status})
        await pulled(store, request("r:1"), OTHER_ID)
        await expiring(store, request("r:2"), f"{5:064x}")
        await store.claim(request("w:1"), NOW - 9)
        await begun(store, request("w:2"), NOW - 9)
        assert await store.forget_ended(NOW + 5, foreign=False) == 2
        assert await store.forget_ended(NOW + 5) == 2
        assert await store.forget_ended(NOW + 5) == 0
        assert {record.pulltag for record in await store.queue("alpha")} == {
            "y:1", "r:2", "w:1", "w:2",
        }  # fmt: skip
        assert len(await store.list("alpha")) == 1
        assert await store.get(gone.key) is not None

    @pytest.mark.parametrize("wanted", [None, True, False])
    @pytest_twisted.ensureDeferred
    async def test_expiry_on_schedule(self, place: Place, wanted: bool | None) -> None:
        """In a database of our own images expire by themselves unless that is not wanted."""
        store = place.store
        for _ in range(2):
            assert await store.expires(wanted, NOW, 90) is (wanted is not False)
            record = await pulled(store, request(), expiration=NOW - 5)
        timeless = await pulled(store, request("t:1"), OTHER_ID)
        assert await store.expires(wanted, NOW + 1, 90) is (wanted is not False)
        assert await store.get(timeless.key) == timeless
        assert list(await store.expired(NOW)) == [record]

    @pytest_twisted.ensureDeferred
    async def test_what_came_back_is_ours(self, place: Place) -> None:
        """An image that was to go, and was pulled again or could not go, is no other program's."""
        store = place.store
        await expiring(store, request("x:1"))
        await pulled(store, request("x:1"))
        gone = await expiring(store, request("y:1"), OTHER_ID)
        removal = await store.begin(gone.key, "n", NOW, LIMIT)
        assert removal is not None
        await store.finish(gone.key, removal.attempt, failure(), NOW)
        assert await store.expires(None, NOW, 90)
        assert all("attempt" in place.document(one.key) for one in await store.list("alpha"))

    @pytest_twisted.ensureDeferred
    async def test_lease(self, place: Place) -> None:
        """One holder at a time and place; he may renew; the lease ends in time or by release."""
        store = place.store
        mine, other = [holder(await begun(store, request(tag))) for tag in ("k:1", "m:1")]
        assert await store.lease("/images", ID, mine, NOW, 10)
        assert not await store.lease("/images", ID, other, NOW + 5, 10)
        assert await store.lease("/images", OTHER_ID, other, NOW + 5, 10)
        assert await store.lease("/else", ID, other, NOW + 5, 10)
        assert await store.lease("/images", ID, mine, NOW + 5, 10)
        assert not await store.lease("/images", ID, other, NOW + 14, 10)
        assert await store.lease("/images", ID, other, NOW + 15, 10)
        await store.release("/images", ID, mine)
        assert not await store.lease("/images", ID, mine, NOW + 16, 10)
        await store.release("/images", ID, other)
        assert await store.lease("/images", ID, mine, NOW + 16, 10)

    @pytest_twisted.ensureDeferred
    async def test_a_lease_of_an_earlier_attempt(self, place: Place) -> None:
        """It is its record's next attempt's for the asking, and never an earlier one's again."""
        store = place.store
        one, other = [await begun(store, request(tag)) for tag in ("k:1", "m:1")]
        assert await store.lease("/images", ID, f"{one.key}/1", NOW, 200)
        assert not await store.lease("/images", ID, f"{other.key}/1", NOW + 1, 200)
        again = await store.begin(one.key, "node:2", NOW + LIMIT, LIMIT)
        assert again is not None
        assert await store.lease("/images", ID, f"{one.key}/2", NOW + LIMIT, 200)
        assert not await store.lease("/images", ID, f"{one.key}/1", NOW + LIMIT, 200)
        await store.release("/images", ID, f"{one.key}/1")
        assert not await store.lease("/images", ID, f"{other.key}/1", NOW + LIMIT, 200)

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("end", ["ready", "failure", "another's", "next", "removed"])
    async def test_a_lease_ends_with_its_attempt(self, place: Place, end: str) -> None:
        """Who died between the end of his work and the release of his lease holds up nobody."""
        store = place.store
        one, other = [await begun(store, request(tag)) for tag in ("k:1", "m:1")]
        assert await store.lease("/images", ID, holder(one), NOW, 500)
        assert not await store.lease("/images", ID, holder(other), NOW, 500)
        match end:
            case "ready":
                await store.advance(one.key, 1, State.TRANSFER, "", NOW)
                await store.finish(one.key, 1, Ready(ID), NOW)
            case "failure":
                await store.finish(one.key, 1, failure(), NOW)
            case "another's":  # the image has a record already, which the pull's own goes into
                await pulled(store, request("z:1"), ID)
                await store.advance(one.key, 1, State.TRANSFER, "", NOW)
                await store.finish(one.key, 1, Ready(ID), NOW)
            case "next":
                assert await store.begin(one.key, "node:2", NOW + LIMIT, LIMIT) is not None
            case "removed":
                await remove_record(store, one.key)
        assert await store.lease("/images", ID, holder(other), NOW + LIMIT, 500)
        await store.release("/images", ID, holder(one))
        third = holder(await begun(store, request("n:1")))
        assert not await store.lease("/images", ID, third, NOW + LIMIT, 500)

    @pytest_twisted.ensureDeferred
    async def test_one_successor_gets_the_lease(self, place: Place) -> None:
        """Of later attempts that ask at once the latest has it in the end, and nobody after him."""
        store = place.store
        key = (await begun(store, request())).key
        assert await store.lease("/images", ID, f"{key}/1", NOW, 10)
        answers = await all_of(
            store.lease("/images", ID, f"{key}/{n}", NOW, 10) for n in (4, 2, 5, 3, 1)
        )
        assert answers[2]
        held = [await store.lease("/images", ID, f"{key}/{n}", NOW, 10) for n in range(1, 6)]
        assert held == [False, False, False, False, True]

    @pytest_twisted.ensureDeferred
    async def test_one_of_many_gets_the_lease(self, place: Place) -> None:
        """Of many that ask for a lease at once, one gets it, be it free or a dead attempt's."""
        store = place.store
        dead = await begun(store, request("dead:1"))
        many = [holder(await begun(store, request(f"x:{n}"))) for n in range(20)]
        for _ in range(2):
            answers = await all_of(store.lease("/images", ID, one, NOW, 10) for one in many)
            assert sum(answers) == 1
            await store.release("/images", ID, many[answers.index(True)])
            assert await store.lease("/images", ID, holder(dead), NOW, 10)
            await remove_record(store, dead.key)

    @pytest_twisted.ensureDeferred
    async def test_lookups(self, place: Place) -> None:
        """Metrics come back as they went in, the last ones of the system, oldest first."""
        store = place.store
        rows = [{"system": "alpha", "uid": n, "time": NOW + n, "tag": "ü:1"} for n in range(5)]
        for row in rows:
            await store.record_lookup(row)
        await store.record_lookup({"system": "beta", "uid": 9})
        assert list(await store.lookups("alpha", 3)) == rows[2:]
        assert list(await store.lookups("alpha", 100)) == rows
        assert list(await store.lookups("alpha", 0)) == []
        assert list(await store.lookups("alpha", -1)) == []
