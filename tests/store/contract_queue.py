"""The contract of waiting work: its limits and its order."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import pytest_twisted

from shiftergw.errors import TooMany
from shiftergw.model.records import Ready
from shiftergw.model.requests import ANONYMOUS, QueueLimits
from shiftergw.ports import ImageStore
from tests.store import hammer
from tests.store.places import Place
from tests.store.pulls import ID, LIMIT, NOW, begin_pull, failure, request, request_removal


async def order(
    store: ImageStore,
    limit: int,
    of_user: int | None = None,
    offers: Collection[str] = (),
    without: Collection[str] = (),
    share: int | None = None,
    **system_shares: int,
) -> list[str | None]:
    """Return the tags of waiting work in the order of `waiting`; for a removal, its pull's tag."""
    records = await store.waiting(NOW + 99, limit, of_user, offers, without, share, system_shares)
    return [record.pulltag for record in records]


async def claim_pulls(
    store: ImageStore, system: str, uid: int, count: int, first: float = NOW
) -> list[str]:
    """Claim pulls with the tags `system-uid:0` and so on; return their keys in order."""
    pulls = [request(f"{system}-{uid}:{n}", uid, system=system) for n in range(count)]
    return [(await store.claim(pull, first + n))[0].key for n, pull in enumerate(pulls)]


class QueueContract:
    """Limits of the queue, and turns of users."""

    @pytest_twisted.ensureDeferred
    async def test_the_queue_is_bounded(self, place: Place) -> None:
        """Beyond the limit for all users a claim is refused and writes nothing."""
        store = place.store
        limits = QueueLimits(2, 2)
        await store.claim(request("x:1", uid=1), NOW, limits)
        await store.claim(request("x:2", uid=2, system="beta"), NOW, limits)
        failure_record = await begin_pull(store, request("x:3", uid=3))
        await store.finish(failure_record.key, 1, failure(), NOW)
        with pytest.raises(TooMany, match="queue is full") as caught:
            await store.claim(request("x:3", uid=3), NOW, limits)
        assert caught.value.remedy
        records = await store.find_work("alpha", "docker", "x:3")
        assert [record.key for record in records] == [failure_record.key]

    @pytest_twisted.ensureDeferred
    async def test_each_user_is_bounded(self, place: Place) -> None:
        """Beyond the limit of a user the user's claims are refused; the error has the number."""
        store = place.store
        limits = QueueLimits(10, 2)
        await store.claim(request("x:1", uid=1), NOW, limits)
        await store.claim(request("x:2", uid=1, system="beta", kind="acl"), NOW, limits)
        with pytest.raises(TooMany, match="You have 2 pulls waiting"):
            await store.claim(request("x:3", uid=1), NOW, limits)
        _, is_new = await store.claim(request("x:3", uid=2), NOW, limits)
        assert is_new

    @pytest_twisted.ensureDeferred
    async def test_polls_are_never_refused(self, place: Place) -> None:
        """A claim of work in flight returns its record, however full the queue is."""
        store = place.store
        first, _ = await store.claim(request("x:1", uid=1), NOW, QueueLimits(1, 1))
        for uid in (1, 2):
            record, is_new = await store.claim(request("x:1", uid=uid), NOW, QueueLimits(0, 0))
            assert (record, is_new) == (first, False)

    @pytest_twisted.ensureDeferred
    async def test_only_waiting_pulls_count(self, place: Place) -> None:
        """Running, ended and abandoned work and removals do not count as waiting."""
        store = place.store
        limits = QueueLimits(1, 1)
        await begin_pull(store, request("b:1"))
        await request_removal(store, request("e:1"))
        failure_record = await begin_pull(store, request("f:1"))
        await store.finish(failure_record.key, 1, failure(), NOW)
        waiting, is_new = await store.claim(request("w:1"), NOW, limits)
        assert is_new
        await store.abandon(waiting.key)
        assert (await store.claim(request("w:2"), NOW, limits))[1]
        with pytest.raises(TooMany):
            await store.claim(request("w:3"), NOW, limits)

    def test_processes_that_claim_at_once_observe_the_limit(self, place: Place) -> None:
        """Four processes together do not exceed the limit."""
        assert sum(hammer.go(place.location, "fill", *[[str(n), "10"] for n in range(4)])) == 10

    @pytest_twisted.ensureDeferred
    async def test_running_work_of_a_user_is_bounded(self, place: Place) -> None:
        """A user's further pulls are passed over; those of other users are not."""
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
    async def test_the_schedule_has_all_that_waits(self, place: Place) -> None:
        """It is in fair order, has no work that has begun, and postponed work when it is due."""
        store = place.store
        first, second, third = await claim_pulls(store, "alpha", 1, 3)
        (pull_of_beta,) = await claim_pulls(store, "beta", 2, 1, NOW + 9)
        assert await store.schedule(NOW) == [first, pull_of_beta, second, third]
        await store.begin(first, "n", NOW, LIMIT)
        assert await store.schedule(NOW) == [pull_of_beta, second, third]
        await store.postpone(first, 1, NOW + 60, "a registry", NOW)
        assert await store.schedule(NOW) == [pull_of_beta, second, third]
        assert set(await store.schedule(NOW + 60)) == {first, second, third, pull_of_beta}

    @pytest_twisted.ensureDeferred
    async def test_systems_without_workers_are_passed_over(self, place: Place) -> None:
        """Work of systems without workers takes no slots; offers are still returned."""
        store = place.store
        (first, *_) = await claim_pulls(store, "alpha", 1, 3)
        await claim_pulls(store, "beta", 1, 2, NOW + 5)
        assert await order(store, 2, without=["alpha"]) == ["beta-1:0", "beta-1:1"]
        assert await order(store, 9, without=["alpha", "beta"]) == []
        tags = await order(store, 9, offers=[first], without=["alpha"])
        assert tags == ["alpha-1:0", "beta-1:0", "beta-1:1"]

    @pytest_twisted.ensureDeferred
    async def test_removals_wait_like_one_more_user(self, place: Place) -> None:
        """Removals by any puller wait like those of one user, without the limit of a user."""
        store = place.store
        for n in range(3):
            await request_removal(store, request(f"r:{n}", 1), f"{n:064x}", NOW + n)
        await store.claim(request("a:1", 1), NOW + 5)
        await store.claim(request("a:2", 1), NOW + 6)
        await begin_pull(store, request("a:0", 1), NOW + 7)
        assert sorted(str(tag) for tag in await order(store, 9, 1)) == ["r:0", "r:1", "r:2"]
        assert await order(store, 9, 2) == ["r:0", "r:1", "a:1", "r:2"]
        (record,) = await store.waiting(NOW + 99, 1)
        await store.begin(record.key, "n", NOW + 8, LIMIT)
        # One piece of work of each runs, and the removal was begun last.
        assert await order(store, 9, 1) == ["r:1", "r:2"]
        assert (await order(store, 9))[:2] == ["a:1", "r:1"]

    @pytest_twisted.ensureDeferred
    async def test_anonymous_pulls_count_as_one_user(self, place: Place) -> None:
        """Anonymous pulls take turns with users, and have the limit of one user."""
        store = place.store
        await request_removal(store, request("r:0", 1))
        for n in range(3):
            await store.claim(request(f"x:{n}", ANONYMOUS), NOW + n)
        assert sorted(map(str, await order(store, 9, 1))) == ["r:0", "x:0"]

    @pytest_twisted.ensureDeferred
    async def test_no_system_has_all_slots(self, place: Place) -> None:
        """Work beyond a system's share comes after all other work, but is not refused."""
        store = place.store
        keys = await claim_pulls(store, "down", 1, 4)
        await claim_pulls(store, "up", 1, 2, NOW + 10)
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
        """Removals on a system that is down delay no other system."""
        store = place.store
        for n in range(3):
            await request_removal(store, request(f"r:{n}", 1, system="down"), f"{n:064x}", NOW + n)
        await claim_pulls(store, "down", 1, 1, NOW + 5)
        await claim_pulls(store, "up", 2, 1, NOW + 6)
        assert "up-2:0" in (await order(store, 9, down=2))[:3]
        (first, *_) = [
            record for record in await store.waiting(NOW + 99, 9) if record.kind == "expire"
        ]
        assert await store.begin(first.key, "n", NOW + 7, LIMIT) is not None
        assert (await order(store, 9, down=1))[0] == "up-2:0"

    @pytest_twisted.ensureDeferred
    async def test_work_that_exceeds_fewer_shares_comes_first(self, place: Place) -> None:
        """On one system, pulls from a fast registry overtake those from a slow one."""
        store = place.store
        slow = [request(f"slow:{n}", n, location="slow") for n in (1, 2)]
        (first, _) = await store.claim(slow[0], NOW)
        await store.begin(first.key, "n", NOW, LIMIT)
        await store.claim(slow[1], NOW + 1)
        await store.claim(request("fast:0", 3, location="fast"), NOW + 2)
        assert await order(store, 9, share=1, alpha=1) == ["fast:0", "slow:2"]

    @pytest_twisted.ensureDeferred
    async def test_a_user_at_the_limit_takes_no_share(self, place: Place) -> None:
        """Pulls that may not begin use up no share of their system."""
        store = place.store
        await claim_pulls(store, "down", 1, 5)
        await claim_pulls(store, "up", 1, 5, NOW + 10)
        await claim_pulls(store, "down", 2, 3, NOW + 20)
        assert await order(store, 9, 3, down=1) == [
            *("down-1:0", "up-1:0", "up-1:1"),
            *("down-2:0", "down-2:1", "down-2:2"),
        ]
        assert sorted(map(str, await order(store, 9, 1, down=3))) == ["down-1:0", "down-2:0"]

    @pytest_twisted.ensureDeferred
    async def test_offers_come_first_and_count_as_begun(self, place: Place) -> None:
        """Offers that have begun or ended are not returned any more."""
        store = place.store
        keys = await claim_pulls(store, "down", 1, 3)
        await claim_pulls(store, "up", 2, 1, NOW + 10)
        offers = keys[1:2]
        assert (await order(store, 9, None, offers, down=1))[:2] == ["down-1:1", "up-2:0"]
        assert await order(store, 9, 1, offers) == ["down-1:1", "up-2:0"]
        assert await order(store, 1, None, offers, down=2) == ["down-1:1"]
        await store.begin(keys[1], "n", NOW + 20, LIMIT)
        assert (await order(store, 9, None, offers, down=2))[:2] == ["up-2:0", "down-1:0"]
        await store.finish(keys[1], 1, failure(), NOW + 21)
        assert (await order(store, 9, None, offers, down=1))[:2] == ["up-2:0", "down-1:0"]
