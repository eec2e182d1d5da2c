"""The contract's part on what waits: how much may, and whose turn it is."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import pytest_twisted

from shiftergw.errors import TooMany
from shiftergw.model import ANONYMOUS, QueueLimits, Ready
from shiftergw.ports import ImageStore
from tests.store import hammer
from tests.store.places import Place
from tests.store.pulls import ID, LIMIT, NOW, begun, expiring, failure, request


async def order(
    store: ImageStore,
    limit: int,
    of_user: int | None = None,
    offers: Collection[str] = (),
    without: Collection[str] = (),
    share: int | None = None,
    **system_shares: int,
) -> list[str | None]:
    """Return the tags of what waits, in turn; of a removal, that of its pull."""
    records = await store.waiting(NOW + 99, limit, of_user, offers, without, share, system_shares)
    return [record.pulltag for record in records]


async def claimed(
    store: ImageStore, system: str, uid: int, count: int, first: float = NOW
) -> list[str]:
    """Return the keys of new work, whose tags are `system-uid:0` and so on, in order of arrival."""
    wishes = [request(f"{system}-{uid}:{n}", uid, system=system) for n in range(count)]
    return [(await store.claim(wish, first + n))[0].key for n, wish in enumerate(wishes)]


class QueueContract:
    """Limits and turns."""

    @pytest_twisted.ensureDeferred
    async def test_the_queue_is_bounded(self, place: Place) -> None:
        """Beyond the limit of all nothing new waits, on any system; nothing is written then."""
        store = place.store
        limits = QueueLimits(2, 2)
        await store.claim(request("x:1", uid=1), NOW, limits)
        await store.claim(request("x:2", uid=2, system="beta"), NOW, limits)
        failed = await begun(store, request("x:3", uid=3))
        await store.finish(failed.key, 1, failure(), NOW)
        with pytest.raises(TooMany, match="queue is full") as caught:
            await store.claim(request("x:3", uid=3), NOW, limits)
        assert caught.value.remedy
        found = await store.find_work("alpha", "docker", "x:3")
        assert [record.key for record in found] == [failed.key]

    @pytest_twisted.ensureDeferred
    async def test_each_user_is_bounded(self, place: Place) -> None:
        """Beyond his own limit a user's work is refused, with the number; others' is not."""
        store = place.store
        limits = QueueLimits(10, 2)
        await store.claim(request("x:1", uid=1), NOW, limits)
        await store.claim(request("x:2", uid=1, system="beta", kind="acl"), NOW, limits)
        with pytest.raises(TooMany, match="You have 2 pulls waiting"):
            await store.claim(request("x:3", uid=1), NOW, limits)
        _, created = await store.claim(request("x:3", uid=2), NOW, limits)
        assert created

    @pytest_twisted.ensureDeferred
    async def test_polls_are_never_refused(self, place: Place) -> None:
        """Who asks for what is in flight gets it, however full the queue, whoever claimed it."""
        store = place.store
        first, _ = await store.claim(request("x:1", uid=1), NOW, QueueLimits(1, 1))
        for uid in (1, 2):
            found, created = await store.claim(request("x:1", uid=uid), NOW, QueueLimits(0, 0))
            assert (found, created) == (first, False)

    @pytest_twisted.ensureDeferred
    async def test_only_waiting_pulls_count(self, place: Place) -> None:
        """What has begun or ended, and removals, take nobody's room; nor does what is given up."""
        store = place.store
        limits = QueueLimits(1, 1)
        await begun(store, request("b:1"))
        await expiring(store, request("e:1"))
        failed = await begun(store, request("f:1"))
        await store.finish(failed.key, 1, failure(), NOW)
        waiting, created = await store.claim(request("w:1"), NOW, limits)
        assert created
        await store.abandon(waiting.key)
        assert (await store.claim(request("w:2"), NOW, limits))[1]
        with pytest.raises(TooMany):
            await store.claim(request("w:3"), NOW, limits)

    def test_several_processes_fill_the_queue(self, place: Place) -> None:
        """Processes that claim at once do not get past the limit together."""
        crowd = [hammer.start(place.location, "fill", str(n), "10") for n in range(4)]
        assert sum(hammer.go(crowd)) == 10

    @pytest_twisted.ensureDeferred
    async def test_running_is_bounded(self, place: Place) -> None:
        """No more of a user's work is named than may run beside what runs; the others' is."""
        store = place.store
        for n in range(5):
            await store.claim(request(f"a:{n}", 1), NOW + n)
        await store.claim(request("b:0", 2), NOW + 9)
        assert await order(store, 9, 2) == ["a:0", "b:0", "a:1"]
        for n in range(2):
            (record,) = await store.find_work("alpha", "docker", f"a:{n}")
            assert await store.begin(record.key, "n", NOW + 10, LIMIT) is not None
        assert await order(store, 9, 2) == ["b:0"]
        assert await order(store, 9) == ["b:0", "a:2", "a:3", "a:4"]
        await store.finish(record.key, 1, Ready(ID), NOW + 11)
        assert await order(store, 9, 2) == ["b:0", "a:2"]

    @pytest_twisted.ensureDeferred
    async def test_systems_without_workers(self, place: Place) -> None:
        """Their work is passed over, and takes nobody's room; what was offered is still named."""
        store = place.store
        (first, *_) = await claimed(store, "alpha", 1, 3)
        await claimed(store, "beta", 1, 2, NOW + 5)
        assert await order(store, 2, without=["alpha"]) == ["beta-1:0", "beta-1:1"]
        assert await order(store, 9, without=["alpha", "beta"]) == []
        named = await order(store, 9, offers=[first], without=["alpha"])
        assert named == ["alpha-1:0", "beta-1:0", "beta-1:1"]

    @pytest_twisted.ensureDeferred
    async def test_removals_have_their_turn(self, place: Place) -> None:
        """Removals wait like one more user's work, whoever pulled the images, without a limit."""
        store = place.store
        for n in range(3):
            await expiring(store, request(f"r:{n}", 1), f"{n:064x}", NOW + n)
        await store.claim(request("a:1", 1), NOW + 5)
        await store.claim(request("a:2", 1), NOW + 6)
        await begun(store, request("a:0", 1), NOW + 7)
        assert sorted(str(tag) for tag in await order(store, 9, 1)) == ["r:0", "r:1", "r:2"]
        assert await order(store, 9, 2) == ["r:0", "r:1", "a:1", "r:2"]
        (record,) = await store.waiting(NOW + 99, 1)
        await store.begin(record.key, "n", NOW + 8, LIMIT)
        # One piece of work of each runs, and the removal was begun last.
        assert await order(store, 9, 1) == ["r:1", "r:2"]
        assert (await order(store, 9))[:2] == ["a:1", "r:1"]

    @pytest_twisted.ensureDeferred
    async def test_who_has_no_name_is_a_user(self, place: Place) -> None:
        """Pulls without a credential take turns among them, and are bounded as one user's."""
        store = place.store
        await expiring(store, request("r:0", 1))
        for n in range(3):
            await store.claim(request(f"x:{n}", ANONYMOUS), NOW + n)
        assert sorted(map(str, await order(store, 9, 1))) == ["r:0", "x:0"]

    @pytest_twisted.ensureDeferred
    async def test_no_system_has_all_slots(self, place: Place) -> None:
        """Work beyond a system's share comes after all other work, and before nothing."""
        store = place.store
        keys = await claimed(store, "down", 1, 4)
        await claimed(store, "up", 1, 2, NOW + 10)
        alone = ["down-1:0", "down-1:1", "up-1:0", "up-1:1", "down-1:2", "down-1:3"]
        assert await order(store, 9, down=2) == alone
        for key in keys[:2]:
            assert await store.begin(key, "n", NOW + 20, LIMIT) is not None
        assert await order(store, 9, down=2) == ["up-1:0", "up-1:1", "down-1:2", "down-1:3"]
        assert await order(store, 1, down=2) == ["up-1:0"]
        await store.finish(keys[0], 1, failure(), NOW + 21)
        assert (await order(store, 9, down=2))[:3] == ["down-1:2", "up-1:0", "up-1:1"]

    @pytest_twisted.ensureDeferred
    async def test_removals_count_for_their_system(self, place: Place) -> None:
        """Files that are to go from a system that is down hold up no other system."""
        store = place.store
        for n in range(3):
            await expiring(store, request(f"r:{n}", 1, system="down"), f"{n:064x}", NOW + n)
        await claimed(store, "down", 1, 1, NOW + 5)
        await claimed(store, "up", 2, 1, NOW + 6)
        assert "up-2:0" in (await order(store, 9, down=2))[:3]
        (first, *_) = [one for one in await store.waiting(NOW + 99, 9) if one.kind == "expire"]
        assert await store.begin(first.key, "n", NOW + 7, LIMIT) is not None
        assert (await order(store, 9, down=1))[0] == "up-2:0"

    @pytest_twisted.ensureDeferred
    async def test_work_that_exceeds_fewer_shares_comes_first(self, place: Place) -> None:
        """A pull from a healthy registry passes those from a slow one, on the same system."""
        store = place.store
        slow = [request(f"slow:{n}", n, location="slow") for n in (1, 2)]
        (first, _) = await store.claim(slow[0], NOW)
        await store.begin(first.key, "n", NOW, LIMIT)
        await store.claim(slow[1], NOW + 1)
        await store.claim(request("fast:0", 3, location="fast"), NOW + 2)
        assert await order(store, 9, share=1, alpha=1) == ["fast:0", "slow:2"]

    @pytest_twisted.ensureDeferred
    async def test_a_limit_takes_nobodys_share(self, place: Place) -> None:
        """Pulls that a user may not begin use up no slot of another user's on their system."""
        store = place.store
        await claimed(store, "down", 1, 5)
        await claimed(store, "up", 1, 5, NOW + 10)
        await claimed(store, "down", 2, 3, NOW + 20)
        assert await order(store, 9, 3, down=1) == [
            *("down-1:0", "up-1:0", "up-1:1"),
            *("down-2:0", "down-2:1", "down-2:2"),
        ]
        assert sorted(map(str, await order(store, 9, 1, down=3))) == ["down-1:0", "down-2:0"]

    @pytest_twisted.ensureDeferred
    async def test_what_is_offered_has_had_its_turn(self, place: Place) -> None:
        """It comes first and counts as begun; once begun or gone it is not named any more."""
        store = place.store
        keys = await claimed(store, "down", 1, 3)
        await claimed(store, "up", 2, 1, NOW + 10)
        offers = keys[1:2]
        assert (await order(store, 9, None, offers, down=1))[:2] == ["down-1:1", "up-2:0"]
        assert await order(store, 9, 1, offers) == ["down-1:1", "up-2:0"]
        assert await order(store, 1, None, offers, down=2) == ["down-1:1"]
        await store.begin(keys[1], "n", NOW + 20, LIMIT)
        assert (await order(store, 9, None, offers, down=2))[:2] == ["up-2:0", "down-1:0"]
        await store.finish(keys[1], 1, failure(), NOW + 21)
        assert (await order(store, 9, None, offers, down=1))[:2] == ["up-2:0", "down-1:0"]
