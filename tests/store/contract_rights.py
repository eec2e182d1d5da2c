"""The contract's part on who may read an image, what is blocked, and what an admin asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest_twisted

from shiftergw.model import Ready
from tests.store.places import Place
from tests.store.pulls import (
    ID,
    NOW,
    OF_THE_ORIGINAL,
    OTHER_ID,
    begun,
    expiring,
    failure,
    pulled,
    request,
)

SYSTEMS = ["alpha", "beta"]


class RightsContract:
    """Access belongs to the files of an image: (image directory, id)."""

    @pytest_twisted.ensureDeferred
    async def test_find_id(self, place: Place) -> None:
        """An image is found by its id on some systems, of any type, as long as it is READY."""
        store = place.store
        ready = [
            await pulled(store, request("x:1")),
            await pulled(store, request("x:1", itype="custom")),
            await pulled(store, request("x:1", system="beta")),
        ]
        await pulled(store, request("x:2"), OTHER_ID)
        await expiring(store, request("x:1", system="gamma"))
        for systems, expected in (
            (SYSTEMS, ready),
            (["beta", "gamma"], ready[2:]),
            ({"alpha"}, ready[:2]),
            ((), []),
        ):
            found = await store.find_id(systems, ID)
            assert sorted(found, key=lambda r: r.key) == sorted(expected, key=lambda r: r.key)

    @pytest_twisted.ensureDeferred
    async def test_set_access(self, place: Place) -> None:
        """Every record of the files says the same: all types, all systems, also one that goes."""
        store = place.store
        records = [
            await pulled(store, request("x:1")),
            await pulled(store, request("x:1", system="beta")),
            await expiring(store, request("x:1", itype="custom")),
        ]
        await store.set_access(SYSTEMS, ID, True, (5, 6), (7,))
        for record in records:
            expected = replace(record, private=True, user_acl=(5, 6), group_acl=(7,))
            assert await store.get(record.key) == expected
        document = place.document(records[0].key)
        assert (document["private"], document["userACL"], document["groupACL"]) == (
            True,
            [5, 6],
            [7],
        )
        await store.set_access(SYSTEMS, ID, False, (), ())
        assert await store.get(records[0].key) == replace(
            records[0], private=False, user_acl=(), group_acl=()
        )

    @pytest_twisted.ensureDeferred
    async def test_set_access_touches_nothing_else(self, place: Place) -> None:
        """Other images, systems that have other files, and work in flight keep theirs."""
        store = place.store
        others = [
            await pulled(store, request("x:2"), OTHER_ID),
            await pulled(store, request("x:1", system="gamma")),
            await begun(store, request("x:3", user_acl=(1,))),
        ]
        place.put("1" * 24, OF_THE_ORIGINAL)
        await store.set_access(SYSTEMS, ID, True, (5,), ())
        for other in others:
            assert await store.get(other.key) == other
        document = place.document("1" * 24)
        assert (document["userACL"], document["site_note"]) == ([5], OF_THE_ORIGINAL["site_note"])

    @pytest_twisted.ensureDeferred
    async def test_blocks(self, place: Place) -> None:
        """An id is blocked in one image directory until it is allowed again."""
        store = place.store
        assert not await store.blocked("/images", [ID, OTHER_ID])
        assert not await store.allow("/images", ID)
        await store.block("/images", ID, 0, NOW)
        await store.block("/images", ID, 1, NOW + 1)
        assert await store.blocked("/images", [OTHER_ID, ID])
        assert await store.blocked("/images", {ID})
        assert not await store.blocked("/images", [OTHER_ID])
        assert not await store.blocked("/images", [])
        assert not await store.blocked("/else", [ID])
        assert await store.allow("/images", ID)
        assert not await store.blocked("/images", [ID])
        assert not await store.allow("/images", ID)

    @pytest_twisted.ensureDeferred
    async def test_by_admin(self, place: Place) -> None:
        """Work for an admin says so until it ends, work for others has no such member."""
        store = place.store
        for tag, outcome in (("x:1", Ready(ID)), ("x:2", failure())):
            record = await begun(store, request(tag, by_admin=True, kind="acl"))
            assert (record.by_admin, record.kind) == (True, "acl")
            assert place.document(record.key)["by_admin"] is True
            ended = await store.finish(record.key, 1, outcome, NOW)
            assert "by_admin" not in place.document(ended.key)
        record, _ = await store.claim(request("x:3"), NOW)
        assert (record.by_admin, record.kind) == (None, "pull")
        assert "by_admin" not in place.document(record.key)
