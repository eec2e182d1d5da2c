"""The contract of look-ups and lists."""

from __future__ import annotations

import pytest_twisted

from shiftergw.model.records import Progress, Ready
from shiftergw.states import State
from tests.store.places import Place
from tests.store.pulls import (
    LIMIT,
    NOW,
    OF_THE_ORIGINAL,
    OTHER_ID,
    begin_pull,
    complete_pull,
    failure,
    request,
)


class ReadContract:
    """Find and list records."""

    @pytest_twisted.ensureDeferred
    async def test_find_uses_the_first_tag_that_exists(self, place: Place) -> None:
        """Of several tags, the first one that any record carries decides."""
        store = place.store
        await complete_pull(store, request("x:1"))
        y = await complete_pull(store, request("y:1"), OTHER_ID)
        assert await store.find("alpha", "docker", ["none:1", "y:1", "x:1"]) == y
        assert await store.find("alpha", "docker", ["none:1"]) is None
        assert await store.find("alpha", "docker", []) is None
        assert await store.find("beta", "docker", ["y:1"]) is None
        assert await store.find("alpha", "custom", ["y:1"]) is None

    @pytest_twisted.ensureDeferred
    async def test_find_prefix_returns_ready_images(self, place: Place) -> None:
        """Those whose ids begin so, on these systems, of any type, in the order of their ids."""
        store = place.store
        ids = [f"{digits:0<64}" for digits in ("abcd1", "abcd0", "abce", "abccf", "f")]
        for number, image_id in enumerate(ids):
            await complete_pull(store, request(f"x:{number}"), image_id)
        await complete_pull(store, request("x:1", system="beta"), ids[0])
        await complete_pull(store, request("y:1", itype="custom"), ids[0])
        await store.expire((await complete_pull(store, request("y:2"), f"{'abcd2':0<64}")).key)
        for prefix, systems, limit, found_ids in (
            ("abcd", ["alpha"], 9, [ids[1], ids[0], ids[0]]),
            ("abcd", ["beta"], 9, [ids[0]]),
            ("abcd", ["alpha", "beta"], 9, [ids[1], *[ids[0]] * 3]),
            ("abcd", ["alpha"], 2, [ids[1], ids[0]]),
            (ids[2], ["alpha"], 9, [ids[2]]),
            ("f", ["alpha"], 9, [ids[4]]),
            ("0", ["alpha"], 9, []),
        ):
            records = await store.find_prefix(systems, prefix, limit)
            assert [record.id for record in records] == found_ids

    @pytest_twisted.ensureDeferred
    async def test_reports_are_those_of_the_newest_images(self, place: Place) -> None:
        """A system's reports come newest first; images without one teach nothing.

        Nor do members of that name that other programs have written.
        """
        for number in range(1, 5):
            report = {"report": {"layer_bytes": number}} if number != 3 else {}
            document = OF_THE_ORIGINAL | {"tag": [f"x:{number}"], "id": f"{number}" * 64} | report
            place.put(f"{number}" * 24, document)
        place.put("5" * 24, OF_THE_ORIGINAL | {"system": "beta", "report": {"layer_bytes": 5}})
        place.put("6" * 24, OF_THE_ORIGINAL | {"status": "FAILURE", "report": {"layer_bytes": 6}})
        for digit, value in {"7": "none", "8": 5, "9": [{}], "a": None, "b": "{}"}.items():
            names = {"tag": [f"x:{digit}"], "id": digit * 64}
            place.put(digit * 24, OF_THE_ORIGINAL | names | {"report": value})
        reports = await place.store.reports("alpha", 8)
        assert [report["layer_bytes"] for report in reports] == [4, 2]
        assert await place.store.reports("gamma", 4) == []

    @pytest_twisted.ensureDeferred
    async def test_find_returns_the_newest_record_of_a_tag(self, place: Place) -> None:
        """If an original left a tag on two records, the newest READY one counts."""
        place.put("1" * 24, OF_THE_ORIGINAL | {"last_pull": 5.0})
        place.put("2" * 24, OF_THE_ORIGINAL | {"last_pull": 6.0, "id": OTHER_ID})
        place.put("3" * 24, OF_THE_ORIGINAL)
        place.put("4" * 24, OF_THE_ORIGINAL | {"last_pull": 7.0, "status": "EXPIRED"})
        record = await place.store.find("alpha", "docker", ["old:1"])
        assert record is not None
        assert record.key == "2" * 24

    @pytest_twisted.ensureDeferred
    async def test_documents_of_the_original_are_read(self, place: Place) -> None:
        """A tag as text, SUCCESS, null, missing and unknown members are all understood."""
        old_forms = {"tag": "one:1", "status": "SUCCESS"}
        place.put("1" * 24, OF_THE_ORIGINAL | old_forms)
        record = await place.store.find("alpha", "docker", ["one:1"])
        assert record is not None
        assert (record.key, record.tags, record.status) == ("1" * 24, ("one:1",), State.READY)
        assert (record.private, record.user_acl, record.last_pull) == (None, None, None)
        assert (record.env, record.entry, record.expiration) == (("A=1",), ("/bin/sh",), 12)

    @pytest_twisted.ensureDeferred
    async def test_find_work_returns_work_before_failures(self, place: Place) -> None:
        """The record in flight comes first, then the failures, newest first."""
        store = place.store
        failures = []
        for uid, now in ((1, NOW), (2, NOW + 1)):
            record = await begin_pull(store, request(uid=uid), now)
            failures.append(await store.finish(record.key, 1, failure(own=True), now))
        flying, _ = await store.claim(request(uid=3), NOW - 5)
        await store.claim(request("else:1"), NOW)
        await complete_pull(store, request("x:1"))
        records = await store.find_work("alpha", "docker", "ubuntu:24.04")
        assert list(records) == [flying, failures[1], failures[0]]
        assert list(await store.find_work("alpha", "docker", "x:1")) == []

    @pytest_twisted.ensureDeferred
    async def test_list_and_queue_split_the_records_of_a_system(self, place: Place) -> None:
        """`list` has READY records, `queue` all others except EXPIRED ones."""
        store = place.store
        place.put("0" * 24, OF_THE_ORIGINAL | {"status": "EXPIRED"})
        ready = [await complete_pull(store, request(f"x:{n}"), f"{n:064x}") for n in range(5)]
        record = await begin_pull(store, request("f:1"), NOW + 1)
        failure_record = await store.finish(record.key, 1, failure(), NOW + 1)
        flying = await begin_pull(store, request("y:1"), NOW + 2)
        waiting, _ = await store.claim(request("z:1"), NOW + 3)
        await store.claim(request(system="beta"), NOW)
        keys = [record.key for record in await store.list("alpha")]
        assert keys == sorted(keys)
        assert [record.key for record in await store.list("alpha", limit=2)] == keys[:2]
        assert [record.key for record in await store.list("alpha", keys[1], 2)] == keys[2:4]
        assert list(await store.list("alpha", keys[-1], 2)) == []
        assert {record.key for record in await store.list("alpha")} == {r.key for r in ready}
        assert list(await store.queue("alpha")) == [failure_record, flying, waiting]
        assert list(await store.queue("alpha", limit=2))[:2] == [failure_record, flying]
        assert list(await store.queue("alpha", failure_record.key, 1))[:1] == [flying]
        assert list(await store.queue("alpha", failure_record.key)) == [flying, waiting]
        assert list(await store.queue("alpha", waiting.key, 2)) == []
        assert list(await store.list("beta")) == []

    @pytest_twisted.ensureDeferred
    async def test_pages_of_large_records_are_short(self, place: Place) -> None:
        """Memory holds a limited number of records, and all pages together have all records."""
        large = OF_THE_ORIGINAL | {"status": "READY", "ENV": ["A=" + "x" * 200_000]}
        for n in range(40):
            place.put(f"{n:024}", large | {"tag": [f"x:{n}"], "id": f"{n:064}"})
        keys: list[str] = []
        while page := await place.store.list("alpha", keys[-1] if keys else "", limit=250):
            assert len(page) <= 32
            keys += [record.key for record in page]
        assert keys == [f"{n:024}" for n in range(40)]

    @pytest_twisted.ensureDeferred
    async def test_users_take_turns(self, place: Place) -> None:
        """Each user's pulls keep their order, however many one user sends."""
        store = place.store
        names = {}
        for second, (uid, tag) in enumerate(
            [(1, "a:1"), (1, "a:2"), (1, "a:3"), (2, "b:1"), (2, "b:2"), (3, "c:1")]
        ):
            names[(await store.claim(request(tag, uid), NOW + second))[0].key] = tag
        order = [names[record.key] for record in await store.waiting(NOW + 99, 10)]
        assert order == ["a:1", "b:1", "c:1", "a:2", "b:2", "a:3"]
        assert [names[record.key] for record in await store.waiting(NOW + 99, 2)] == ["a:1", "b:1"]

    @pytest_twisted.ensureDeferred
    async def test_users_take_turns_on_a_single_worker(self, place: Place) -> None:
        """The backlog of one user does not delay the pulls of another."""
        store = place.store
        for n in range(3):
            await store.claim(request(f"a:{n}", 1), NOW + n)
        for n in range(2):
            await store.claim(request(f"b:{n}", 2), NOW + 10 + n)
        order = []
        for n in range(5):
            (record,) = await store.waiting(NOW + 99, 1)
            begun_record = await store.begin(record.key, "n", NOW + 20 + n, LIMIT)
            assert begun_record is not None
            order.append(record.pulltag)
            await store.finish(record.key, 1, Ready(f"{n:064x}"), NOW + 20 + n)
        assert order == ["a:0", "b:0", "a:1", "b:1", "a:2"]
        assert list(await store.waiting(NOW + 99, 1)) == []

    @pytest_twisted.ensureDeferred
    async def test_running_work_counts_in_the_turns(self, place: Place) -> None:
        """A user with running pulls waits behind a user without."""
        store = place.store
        await begin_pull(store, request("a:1", 1))
        await begin_pull(store, request("a:2", 1))
        await begin_pull(store, request("b:1", 2), NOW + 5)
        await store.claim(request("a:3", 1), NOW)
        await store.claim(request("b:2", 2), NOW + 6)
        assert [record.pulltag for record in await store.waiting(NOW + 99, 10)] == ["b:2", "a:3"]

    @pytest_twisted.ensureDeferred
    async def test_work_is_counted_by_system_and_state(self, place: Place) -> None:
        """Only work in flight counts: what waits, and what has begun."""
        store = place.store
        assert await store.count_work() == {}
        await store.claim(request("w:1"), NOW)
        await store.claim(request("w:2"), NOW)
        await begin_pull(store, request("b:1"))
        await complete_pull(store, request("r:1"))
        assert await store.count_work() == {("alpha", "PENDING"): 2, ("alpha", "PULLING"): 1}

    @pytest_twisted.ensureDeferred
    async def test_work_is_stale_after_an_old_heartbeat(self, place: Place) -> None:
        """Work that waits for its first attempt is never stale."""
        store = place.store
        await store.claim(request("w:1"), NOW)
        await complete_pull(store, request("r:1"))
        record = await begin_pull(store, request())
        await begin_pull(store, request("young:1"), NOW + 50)
        assert list(await store.stale(NOW + LIMIT, LIMIT)) == []
        assert list(await store.stale(NOW + LIMIT + 1, LIMIT)) == [record]
        await store.heartbeat(record.key, 1, Progress(), NOW + 30)
        assert list(await store.stale(NOW + LIMIT + 1, LIMIT)) == []
