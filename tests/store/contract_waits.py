"""The contract of `ImageStore`: work that is postponed, and the shares of registries and users."""

from __future__ import annotations

import re

import pytest
import pytest_twisted

from shiftergw.errors import Superseded, TooMany
from shiftergw.model.postponement import PostponeLimits
from shiftergw.model.records import ImageRecord, Progress, Ready
from shiftergw.model.requests import QueueLimits
from shiftergw.ports import ImageStore
from shiftergw.states import IllegalStepError, State
from tests.store.places import Place
from tests.store.pulls import (
    ID,
    LIMIT,
    NOW,
    WHY,
    begin_pull,
    complete_pull,
    failure,
    holder,
    request,
    request_removal,
)


async def postpone_pull(
    store: ImageStore, tag: str = "x:1", until: float = NOW + 300, uid: int = 1000
) -> ImageRecord:
    """Begin a pull and postpone it at `NOW`; return the record."""
    record = await begin_pull(store, request(tag, uid, location="ghcr.io"))
    return await store.postpone(record.key, record.attempt, until, WHY, NOW)


async def tags(store: ImageStore, now: float, share: int | None = None) -> list[str | None]:
    """Return the tags of waiting work at a time, in the order of `waiting`."""
    return [record.pulltag for record in await store.waiting(now, 9, share=share)]


class PostponeContract:
    """Work that waits in the queue until a time."""

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize(
        "state", [State.PULLING, State.EXAMINATION, State.CONVERSION, State.TRANSFER]
    )
    async def test_postponed_work_is_pending_with_a_reason(
        self, place: Place, state: State
    ) -> None:
        """A pull of any state becomes PENDING with a reason, without runner and progress."""
        store = place.store
        record = await begin_pull(store, request(location="ghcr.io", sealed="login"))
        await store.advance(record.key, 1, state, "Working", NOW)
        await store.heartbeat(record.key, 1, Progress("fetch", 5, 10), NOW)
        postponed_pull = await store.postpone(record.key, 1, NOW + 300, WHY, NOW)
        assert postponed_pull == await store.get(record.key)
        assert (postponed_pull.status, postponed_pull.claim, postponed_pull.sealed) == (
            State.PENDING,
            record.claim,
            "login",
        )
        assert (postponed_pull.runner, postponed_pull.last_heartbeat, postponed_pull.stage) == (
            None,
            None,
            None,
        )
        assert (postponed_pull.not_before, postponed_pull.waits_for, postponed_pull.waited) == (
            NOW + 300,
            WHY,
            300,
        )
        assert re.fullmatch(
            r"Waits until \d\d:\d\d for ghcr\.io \(rate limit\)",
            postponed_pull.status_message or "",
        )
        assert list(await store.queue("alpha")) == [postponed_pull]
        assert (await store.claim(request(), NOW + 1)) == (postponed_pull, False)

    @pytest_twisted.ensureDeferred
    async def test_the_message_says_until_when(self, place: Place) -> None:
        """Short waits are shown with seconds, long ones with the date."""
        short_wait = await postpone_pull(place.store, "x:1", NOW + 5)
        assert re.search(r"until \d\d:\d\d:\d\d for", short_wait.status_message or "")
        long_wait = await postpone_pull(place.store, "x:2", NOW + 80_000)
        assert re.search(r"until \d{4}-\d\d-\d\d \d\d:\d\d for", long_wait.status_message or "")

    @pytest_twisted.ensureDeferred
    async def test_postponed_work_begins_at_its_time(self, place: Place) -> None:
        """Before its time postponed work neither waits nor is stale, and cannot begin."""
        store = place.store
        postponed_pull = await postpone_pull(store)
        assert await tags(store, NOW + 299) == []
        assert list(await store.stale(NOW + 9999, LIMIT)) == []
        assert await store.begin(postponed_pull.key, "node:2", NOW + 280, LIMIT) is None
        assert await tags(store, NOW + 300) == ["x:1"]
        attempt = await store.begin(postponed_pull.key, "node:2", NOW + 300, LIMIT)
        assert attempt is not None
        assert (attempt.status, attempt.runner) == (State.PULLING, "node:2")
        assert (attempt.not_before, attempt.waits_for, attempt.waited) == (None, None, 300)
        assert {"not_before", "waits_for"}.isdisjoint(place.document(postponed_pull.key))
        assert await tags(store, NOW + 300) == []
        assert list(await store.stale(NOW + 361, LIMIT)) == [attempt]

    @pytest_twisted.ensureDeferred
    async def test_an_earlier_version_may_begin_postponed_work(self, place: Place) -> None:
        """That version does not remove `not_before`.

        The work counts as in progress all the same: it is not offered again, and it is stale when
        its worker has died.
        """
        store, key = place.store, f"{int(NOW):08x}" + "0" * 16
        members = place.document((await postpone_pull(store)).key)
        members |= {"claim": "alpha/docker/y:1", "pulltag": "y:1", "status": "PULLING"}
        members |= {"attempt": 2, "runner": "node:2", "last_heartbeat": NOW + 310}
        place.put(key, {name: value for name, value in members.items() if name != "_id"})
        assert await tags(store, NOW + 320) == ["x:1"]
        assert [record.key for record in await store.stale(NOW + 371, LIMIT)] == [key]
        requeued_pull = await store.requeue(key, 2, "It died.", died=True)
        assert (requeued_pull.status, requeued_pull.runner, requeued_pull.deaths) == (
            State.PENDING,
            None,
            1,
        )
        assert sorted(str(tag) for tag in await tags(store, NOW + 371)) == ["x:1", "y:1"]
        attempt = await store.begin(key, "node:3", NOW + 371, LIMIT)
        assert attempt is not None
        assert (attempt.attempt, attempt.not_before) == (3, None)

    @pytest_twisted.ensureDeferred
    async def test_clocks_may_differ_a_little(self, place: Place) -> None:
        """A worker whose clock is a few seconds behind can begin the work."""
        postponed_pull = await postpone_pull(place.store)
        assert await place.store.begin(postponed_pull.key, "node:2", NOW + 297, LIMIT) is not None

    @pytest_twisted.ensureDeferred
    async def test_a_postponed_attempt_is_over(self, place: Place) -> None:
        """A postponed attempt changes nothing any more, and its leases are free."""
        store = place.store
        record = await begin_pull(store, request())
        assert await store.lease("/images", ID, holder(record), NOW, 120)
        await store.postpone(record.key, 1, NOW + 300, WHY, NOW)
        before = place.document(record.key)
        for step in (
            store.heartbeat(record.key, 1, Progress(), NOW),
            store.advance(record.key, 1, State.TRANSFER, "x", NOW),
            store.finish(record.key, 1, Ready(ID), NOW),
            store.postpone(record.key, 1, NOW + 900, WHY, NOW),
        ):
            with pytest.raises(Superseded):
                await step
        assert place.document(record.key) == before
        second_pull = await begin_pull(store, request("y:1"))
        assert await store.lease("/images", ID, holder(second_pull), NOW + 1, 120)

    @pytest_twisted.ensureDeferred
    async def test_only_an_attempt_can_be_postponed(self, place: Place) -> None:
        """Claims cannot be postponed, and `advance` does not lead to PENDING."""
        store = place.store
        waiting, _ = await store.claim(request("x:1"), NOW)
        running = await begin_pull(store, request("y:1"))
        for step in (
            store.postpone(waiting.key, 0, NOW + 900, WHY, NOW),
            store.advance(running.key, 1, State.PENDING, "", NOW),
        ):
            with pytest.raises(IllegalStepError):
                await step

    @pytest_twisted.ensureDeferred
    async def test_postponed_work_cannot_be_requeued(self, place: Place) -> None:
        """A stop or a death that is noticed later changes nothing."""
        store = place.store
        postponed_pull = await postpone_pull(store)
        for has_died in (True, False):
            with pytest.raises(Superseded):
                await store.requeue(postponed_pull.key, postponed_pull.attempt, "", died=has_died)
        assert await store.get(postponed_pull.key) == postponed_pull

    @pytest_twisted.ensureDeferred
    async def test_postponed_attempts_are_no_deaths(self, place: Place) -> None:
        """Only attempts whose heartbeats stopped are deaths; all waits add up."""
        store = place.store
        key, now = (await begin_pull(store, request())).key, NOW
        for n in range(1, 5):
            await store.postpone(key, n, now + 10, WHY, now)
            now += 10
            attempt = await store.begin(key, f"node:{n}", now, LIMIT)
            assert attempt is not None
            assert (attempt.attempt, attempt.deaths, attempt.waited) == (n + 1, 0, 10 * n)
        for deaths in (1, 2):
            now += LIMIT
            attempt = await store.begin(key, "node:9", now, LIMIT)
            assert attempt is not None
            assert attempt.deaths == deaths
        assert attempt is not None
        await store.postpone(key, attempt.attempt, now + 10, WHY, now)
        last = await store.begin(key, "node:9", now + 10, LIMIT)
        assert last is not None
        assert last.deaths == 2

    @pytest_twisted.ensureDeferred
    async def test_waits_are_summed_by_cause(self, place: Place) -> None:
        """Waits for pulls or a system do not use up the time for the registry."""
        store = place.store
        key = (await begin_pull(store, request())).key
        await store.postpone(key, 1, NOW + 50, "another delivery", NOW, cause="pull")
        await store.begin(key, "node:2", NOW + 50, LIMIT)
        await store.postpone(key, 2, NOW + 60, WHY, NOW + 50)
        await store.begin(key, "node:3", NOW + 60, LIMIT)
        postponed_pull = await store.postpone(
            key, 3, NOW + 90, "the system x", NOW + 60, cause="system"
        )
        assert (
            postponed_pull.waited,
            postponed_pull.waited_for_pulls,
            postponed_pull.waited_for_system,
        ) == (10, 50, 30)

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("good", [True, False])
    async def test_the_end_removes_all_members_of_waits(self, place: Place, *, good: bool) -> None:
        """The ended record has no members of waits."""
        store = place.store
        postponed_pull = await postpone_pull(store)
        key = postponed_pull.key
        await store.begin(key, "node:2", NOW + 300, LIMIT)
        await store.postpone(key, 2, NOW + 350, "another delivery", NOW + 300, cause="pull")
        await store.begin(key, "node:2", NOW + 350, LIMIT)
        await store.postpone(key, 3, NOW + 400, "the system x", NOW + 350, cause="system")
        attempt = await store.begin(key, "node:2", NOW + 400, LIMIT)
        assert attempt is not None
        result = await store.finish(
            postponed_pull.key, attempt.attempt, Ready(ID) if good else failure(), NOW
        )
        waits = {"waited", "waited_for_pulls", "waited_for_system"}
        removed_members = {"not_before", "waits_for", "deaths", "runner"} | waits
        assert removed_members.isdisjoint(place.document(result.key))

    @pytest_twisted.ensureDeferred
    async def test_postponed_work_takes_no_room_in_the_queue(self, place: Place) -> None:
        """As many new pulls may wait as without postponed work."""
        store = place.store
        limits = QueueLimits(1, 1)
        await postpone_pull(store, "x:1")
        await postpone_pull(store, "x:2")
        assert (await store.claim(request("y:1"), NOW, limits))[1]
        with pytest.raises(TooMany):
            await store.claim(request("y:2"), NOW, limits)

    @pytest_twisted.ensureDeferred
    async def test_postponed_work_takes_no_slot_of_its_user(self, place: Place) -> None:
        """Another pull of the user may begin."""
        store = place.store
        await postpone_pull(store, "x:1")
        await store.claim(request("y:1"), NOW)
        records = await store.waiting(NOW, 9, 1)
        assert [record.pulltag for record in records] == ["y:1"]

    @pytest_twisted.ensureDeferred
    async def test_postponed_work_is_bounded_by_registry(self, place: Place) -> None:
        """There is a limit for each registry, and for each user there."""
        store = place.store
        limits = PostponeLimits(3, 2)
        for tag, uid in (("x:1", 1), ("x:2", 1)):
            await postpone_pull(store, tag, uid=uid)
        third = await begin_pull(store, request("x:3", 1, location="ghcr.io"))
        with pytest.raises(TooMany, match="2 of your pulls"):
            await store.postpone(third.key, 1, NOW + 5, WHY, NOW, limits)
        assert await store.get(third.key) == third
        await postpone_pull(store, "x:4", uid=2)
        fifth = await begin_pull(store, request("x:5", 3, location="ghcr.io"))
        with pytest.raises(TooMany, match="3 pulls wait for this registry"):
            await store.postpone(fifth.key, 1, NOW + 5, WHY, NOW, limits)
        second_pull = await begin_pull(store, request("x:6", 1, location="quay.io"))
        await store.postpone(second_pull.key, 1, NOW + 5, WHY, NOW, limits)
        pull_without_registry = await begin_pull(store, request("x:7", 1))
        await store.postpone(pull_without_registry.key, 1, NOW + 5, WHY, NOW, limits)

    @pytest_twisted.ensureDeferred
    async def test_postponed_work_is_bounded_by_system(self, place: Place) -> None:
        """The limit counts pulls from all registries."""
        store = place.store
        limits = PostponeLimits(2, 1)
        for number, uid in enumerate((1, 2)):
            record = await begin_pull(store, request(f"x:{number}", uid, location=f"r{number}"))
            await store.postpone(record.key, 1, NOW + 5, WHY, NOW, limits, "system")
        own = await begin_pull(store, request("x:3", 1, location="r3"))
        with pytest.raises(TooMany, match="1 of your pulls wait for this system"):
            await store.postpone(own.key, 1, NOW + 5, WHY, NOW, limits, "system")
        second = await begin_pull(store, request("x:4", 3, location="r4"))
        with pytest.raises(TooMany, match="2 pulls wait for this system"):
            await store.postpone(second.key, 1, NOW + 5, WHY, NOW, limits, "system")
        await store.postpone(second.key, 1, NOW + 5, WHY, NOW, limits)  # its registry has room

    @pytest_twisted.ensureDeferred
    async def test_removals_are_not_postponed(self, place: Place) -> None:
        """A removal that has failed is repeated by `stale` instead."""
        store = place.store
        removal = await request_removal(store, request())
        attempt = await store.begin(removal.key, "n", NOW, LIMIT)
        assert attempt is not None
        with pytest.raises(IllegalStepError):
            await store.postpone(removal.key, attempt.attempt, NOW + 5, WHY, NOW)

    @pytest_twisted.ensureDeferred
    async def test_a_claim_records_its_registry(self, place: Place) -> None:
        """The outcome may replace the registry of the claim by the location that was used."""
        store = place.store
        record, _ = await store.claim(request(location="ghcr.io"), NOW)
        assert record.location == "ghcr.io"
        assert (
            await complete_pull(store, request("y:1", location="a.b"), location="c.d")
        ).location == ("c.d")


class ShareContract:
    """While others wait, neither a registry nor a user has all slots."""

    @pytest_twisted.ensureDeferred
    async def test_no_registry_has_all_slots(self, place: Place) -> None:
        """Work beyond a registry's share comes after all other work, but is not refused."""
        store = place.store
        for n, uid in enumerate((1, 2, 3)):
            await store.claim(request(f"slow:{n}", uid, location="slow"), NOW + n)
        await store.claim(request("up:0", 4, location="up"), NOW + 5)
        assert await tags(store, NOW + 9) == ["slow:0", "slow:1", "slow:2", "up:0"]
        assert await tags(store, NOW + 9, 2) == ["slow:0", "slow:1", "up:0", "slow:2"]
        assert await tags(store, NOW + 9, 1) == ["slow:0", "up:0", "slow:1", "slow:2"]
        (record,) = await store.find_work("alpha", "docker", "slow:0")
        await store.begin(record.key, "n", NOW + 9, LIMIT)
        assert await tags(store, NOW + 9, 1) == ["up:0", "slow:1", "slow:2"]

    @pytest_twisted.ensureDeferred
    async def test_no_user_has_all_slots(self, place: Place) -> None:
        """Work beyond a user's share comes after all other work, from whichever registries."""
        store = place.store
        for n in range(3):
            await store.claim(request(f"a:{n}", 1, location=f"r{n}"), NOW + n)
        (record,) = await store.find_work("alpha", "docker", "a:0")
        await store.begin(record.key, "n", NOW + 9, LIMIT)
        assert await tags(store, NOW + 9, 1) == ["a:1", "a:2"]
        await store.claim(request("b:0", 2, location="r0"), NOW + 5)
        assert (await tags(store, NOW + 9, 1)) == ["b:0", "a:1", "a:2"]

    @pytest_twisted.ensureDeferred
    async def test_unknown_registries_have_no_share(self, place: Place) -> None:
        """Removals contact no registry, and older records do not name theirs."""
        store = place.store
        for n in range(2):
            await request_removal(store, request(f"r:{n}", location="slow"), f"{n:064x}")
            await store.claim(request(f"old:{n}", n), NOW + 1)
        await store.claim(request("slow:0", 7, location="slow"), NOW + 5)
        assert len(await tags(store, NOW + 9, 1)) == 5
        assert "slow:0" in (await tags(store, NOW + 9, 1))[:4]
