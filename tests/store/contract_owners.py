"""The contract of an image's users and pins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import pytest
import pytest_twisted

from shiftergw.errors import TooMany
from shiftergw.model.records import ImageRecord, Ready
from shiftergw.model.requests import ANONYMOUS
from shiftergw.ports import ImageStore
from tests.store.places import Place
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
)

Change = Callable[[ImageStore, ImageRecord], Awaitable[object]]

CHANGES: Mapping[str, Change] = {
    "use": lambda store, image: store.note_use(image.key, 8),
    "pin": lambda store, image: store.pin(image.key, 7, None),
    "readers": lambda store, image: store.set_access(["alpha"], ID, True, (7, 8), ()),
    "groups": lambda store, image: store.set_access(["alpha"], ID, True, (), (8,)),
    "tag": lambda store, image: complete_pull(store, request("y:1", uid=7)),
    "owners": lambda store, image: complete_pull(store, request("x:1", uid=7), owners={"x:1": 8}),
}
"""Changes of an image on which the right to remove it depends."""


class OwnerContract:
    """Who has used an image, and who has pinned it."""

    @pytest_twisted.ensureDeferred
    async def test_a_first_pull_has_the_only_user(self, place: Place) -> None:
        """The user of a pull is the only one, as long as it is the same for every pull."""
        store = place.store
        assert (await complete_pull(store, request("x:1", uid=7))).only_user == 7
        assert (await complete_pull(store, request("x:2", uid=7))).only_user == 7
        assert (await complete_pull(store, request("x:3", uid=8))).only_user is None
        assert (await complete_pull(store, request("x:4", uid=7))).only_user is None
        anonymous = await complete_pull(store, request("y:1", uid=ANONYMOUS), OTHER_ID)
        assert anonymous.only_user is None

    @pytest_twisted.ensureDeferred
    async def test_images_of_earlier_versions_have_no_only_user(self, place: Place) -> None:
        """Nobody knows who has used an image before; a pull of it does not change that."""
        place.put("1" * 24, OF_THE_ORIGINAL)
        ready = await complete_pull(place.store, request("x:1", uid=7))
        assert (ready.key, ready.only_user) == ("1" * 24, None)

    @pytest_twisted.ensureDeferred
    async def test_the_use_of_another_user_is_noted(self, place: Place) -> None:
        """Also while the pull is in flight, so that the image never has an only user."""
        store = place.store
        for tag, image_id, uid, only_user in (("x:1", ID, 7, 7), ("y:1", OTHER_ID, 8, None)):
            work = await begin_pull(store, request(tag, uid=7))
            await store.note_use(work.key, uid)
            ready = await store.finish(work.key, work.attempt, Ready(image_id), NOW)
            assert ready.only_user == only_user
        image = await store.find("alpha", "docker", ["x:1"])
        assert image is not None
        for uid, only_user in ((7, 7), (ANONYMOUS, None), (7, None)):
            await store.note_use(image.key, uid)
            record = await store.get(image.key)
            assert record is not None
            assert record.only_user == only_user

    @pytest_twisted.ensureDeferred
    async def test_a_use_that_comes_too_late_is_reported(self, place: Place) -> None:
        """Only work in flight and READY images are used; a removal is not delayed by a use."""
        store = place.store
        work = await begin_pull(store, request("x:1", uid=7))
        assert await store.note_use(work.key, 7)
        ready = await store.finish(work.key, work.attempt, Ready(ID), NOW)
        assert await store.note_use(ready.key, 7)
        removal = await store.expire(ready.key, expected=ready)
        assert removal is not None
        failed_pull = await begin_pull(store, request("y:1", uid=7))
        await store.finish(failed_pull.key, failed_pull.attempt, failure(), NOW)
        for key in (ready.key, failed_pull.key, "f" * 24):
            assert not await store.note_use(key, 8)
        assert await store.get(ready.key) == removal
        assert await store.note_use(failed_pull.key, 7) is False

    @pytest.mark.parametrize("change", CHANGES)
    @pytest_twisted.ensureDeferred
    async def test_a_removal_sees_what_it_was_judged_by(self, place: Place, change: str) -> None:
        """If users, owners, readers, tags or the pin have changed since, nothing is removed."""
        store = place.store
        expected = await complete_pull(store, request("x:1", uid=7))
        await CHANGES[change](store, expected)
        for call in (
            store.expire(expected.key, expected=expected),
            store.untag(expected.key, "x:1", expected),
        ):
            assert await call is None
        current = await store.get(expected.key)
        assert current is not None
        assert (current.is_ready, "x:1" in current.tags) == (True, True)
        await store.renew(expected.key, NOW + 99)  # of no matter for the right to remove
        assert await store.untag(expected.key, "x:1", current) is not None
        current = await complete_pull(store, request("x:1", uid=7))
        assert await store.expire(expected.key, expected=current) is not None

    @pytest_twisted.ensureDeferred
    async def test_either_a_use_or_a_removal_comes_first(self, place: Place) -> None:
        """A user whose use was noted has the image; the other one gets it removed or learns so."""
        store = place.store
        for number in range(6):
            pull = request(f"x:{number}", uid=7)
            expected = await complete_pull(store, pull, f"{number:064x}")
            calls = [
                store.note_use(expected.key, 8),
                store.expire(expected.key, expected=expected),
            ]
            results = await all_of(calls if number % 2 else calls[::-1])
            is_noted, removal = results if number % 2 else results[::-1]
            assert is_noted is (removal is None)

    @pytest_twisted.ensureDeferred
    async def test_a_pinned_image_does_not_expire(self, place: Place) -> None:
        """It is not due, however old it is, until it is unpinned."""
        store = place.store
        ready = await complete_pull(store, request("x:1"), expiration=NOW)
        pinned_record = await store.pin(ready.key, 7, None)
        assert pinned_record is not None
        assert (pinned_record.pinned_by, pinned_record.tags) == (7, ("x:1",))
        assert await store.pin(ready.key, 8, 0) == pinned_record
        assert list(await store.list_expired(NOW + 1)) == []
        assert await store.expire(ready.key, NOW + 1) is None
        repeat = await complete_pull(store, request("x:2"), expiration=NOW)
        assert (repeat.key, repeat.pinned_by) == (ready.key, 7)
        unpinned_record = await store.unpin(ready.key)
        assert unpinned_record is not None
        assert unpinned_record.pinned_by is None
        assert [record.key for record in await store.list_expired(NOW + 1)] == [ready.key]
        assert await store.expire(ready.key, NOW + 1) is not None

    @pytest_twisted.ensureDeferred
    async def test_a_removal_ends_the_pin(self, place: Place) -> None:
        """An image that is removed all the same, and pulled again, is not pinned."""
        store = place.store
        ready = await complete_pull(store, request("x:1"))
        await store.pin(ready.key, 7, None)
        removal = await store.expire(ready.key)
        assert removal is not None
        assert removal.pinned_by is None
        for call in (store.pin(ready.key, 7, None), store.unpin(ready.key)):
            assert await call is None
        repeat = await complete_pull(store, request("x:1"), now=NOW + LIMIT)
        assert (repeat.key, repeat.pinned_by) == (ready.key, None)

    @pytest_twisted.ensureDeferred
    async def test_pins_of_a_user_are_limited(self, place: Place) -> None:
        """Each user may pin as many images of each system as the limit says."""
        store = place.store
        keys = []
        for number in range(4):
            system = "beta" if number == 3 else "alpha"
            pull = request(f"x:{number}", system=system)
            keys.append((await complete_pull(store, pull, f"{number:064x}")).key)
        await store.pin(keys[0], 7, 1)
        with pytest.raises(TooMany, match="have pinned 1 images, and may pin 1"):
            await store.pin(keys[1], 7, 1)
        for key, uid in ((keys[0], 7), (keys[1], 70), (keys[3], 7)):
            assert await store.pin(key, uid, 1) is not None
        assert await store.pin(keys[2], 7, None) is not None

    @pytest_twisted.ensureDeferred
    async def test_concurrent_pins_stay_within_the_limit(self, place: Place) -> None:
        """Of several pins at once no more succeed than the limit says."""
        store = place.store
        keys = [
            (await complete_pull(store, request(f"x:{number}"), f"{number:064x}")).key
            for number in range(4)
        ]

        async def pin(key: str) -> None:
            try:
                await store.pin(key, 7, 2)
            except TooMany:
                return

        await all_of(map(pin, keys))
        records = [await store.get(key) for key in keys]
        assert len([record for record in records if record and record.pinned_by == 7]) <= 2
