"""The contract of access lists, blocks, and work for an admin."""

from __future__ import annotations

from dataclasses import replace

import pytest_twisted

from shiftergw.model.records import Ready
from tests.store.places import Place
from tests.store.pulls import (
    ID,
    NOW,
    OF_THE_ORIGINAL,
    OTHER_ID,
    begin_pull,
    complete_pull,
    failure,
    request,
    request_removal,
)

SYSTEMS = ["alpha", "beta"]


class RightsContract:
    """Access belongs to the files of an image: (image directory, id)."""

    @pytest_twisted.ensureDeferred
    async def test_find_id_returns_ready_records_of_any_type(self, place: Place) -> None:
        """Only records on the requested systems count."""
        store = place.store
        ready = [
            await complete_pull(store, request("x:1")),
            await complete_pull(store, request("x:1", itype="custom")),
            await complete_pull(store, request("x:1", system="beta")),
        ]
        await complete_pull(store, request("x:2"), OTHER_ID)
        await request_removal(store, request("x:1", system="gamma"))
        for systems, expected in (
            (SYSTEMS, ready),
            (["beta", "gamma"], ready[2:]),
            ({"alpha"}, ready[:2]),
            ((), []),
        ):
            records = await store.find_id(systems, ID)
            assert sorted(records, key=lambda r: r.key) == sorted(expected, key=lambda r: r.key)

    @pytest_twisted.ensureDeferred
    async def test_set_access_changes_all_records_of_the_files(self, place: Place) -> None:
        """`set_access` covers all types and systems of the request, and EXPIRING records, too."""
        store = place.store
        records = [
            await complete_pull(store, request("x:1")),
            await complete_pull(store, request("x:1", system="beta")),
            await request_removal(store, request("x:1", itype="custom")),
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
    async def test_set_access_changes_no_other_record(self, place: Place) -> None:
        """Other images, other systems and work in flight keep their access lists."""
        store = place.store
        bystanders = [
            await complete_pull(store, request("x:2"), OTHER_ID),
            await complete_pull(store, request("x:1", system="gamma")),
            await begin_pull(store, request("x:3", user_acl=(1,))),
        ]
        place.put("1" * 24, OF_THE_ORIGINAL)
        await store.set_access(SYSTEMS, ID, True, (5,), ())
        for record in bystanders:
            assert await store.get(record.key) == record
        document = place.document("1" * 24)
        assert (document["userACL"], document["site_note"]) == ([5], OF_THE_ORIGINAL["site_note"])

    @pytest_twisted.ensureDeferred
    async def test_a_block_lasts_until_the_image_is_allowed(self, place: Place) -> None:
        """A block applies to one image directory only."""
        store = place.store
        assert not await store.is_blocked("/images", [ID, OTHER_ID])
        assert not await store.allow("/images", ID)
        await store.block("/images", ID, 0, NOW)
        await store.block("/images", ID, 1, NOW + 1)
        assert await store.is_blocked("/images", [OTHER_ID, ID])
        assert await store.is_blocked("/images", {ID})
        assert not await store.is_blocked("/images", [OTHER_ID])
        assert not await store.is_blocked("/images", [])
        assert not await store.is_blocked("/else", [ID])
        assert await store.allow("/images", ID)
        assert not await store.is_blocked("/images", [ID])
        assert not await store.allow("/images", ID)

    @pytest_twisted.ensureDeferred
    async def test_blocks_are_found_by_digits(self, place: Place) -> None:
        """Blocks of one image directory, sorted, as many as are wanted."""
        store = place.store
        ids = [f"{digits:0<64}" for digits in ("abcd1", "abcd0", "abce")]
        for image_id in ids:
            await store.block("/images", image_id, 0, NOW)
        await store.block("/else", f"{'abcd2':0<64}", 0, NOW)
        assert list(await store.find_blocks("/images", "abcd", 9)) == [ids[1], ids[0]]
        assert list(await store.find_blocks("/images", "abcd", 1)) == [ids[1]]
        assert list(await store.find_blocks("/images", ids[2], 9)) == [ids[2]]
        assert list(await store.find_blocks("/images", "f", 9)) == []

    @pytest_twisted.ensureDeferred
    async def test_work_for_an_admin_is_marked_until_its_end(self, place: Place) -> None:
        """Other work does not have the member `by_admin`."""
        store = place.store
        for tag, outcome in (("x:1", Ready(ID)), ("x:2", failure())):
            record = await begin_pull(store, request(tag, by_admin=True, kind="acl"))
            assert (record.by_admin, record.kind) == (True, "acl")
            assert place.document(record.key)["by_admin"] is True
            result = await store.finish(record.key, 1, outcome, NOW)
            assert "by_admin" not in place.document(result.key)
        record, _ = await store.claim(request("x:3"), NOW)
        assert (record.by_admin, record.kind) == (None, "pull")
        assert "by_admin" not in place.document(record.key)
