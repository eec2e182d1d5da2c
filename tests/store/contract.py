"""What every store promises. A store's own test module runs this on it, by inheriting from it."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from shiftergw.errors import Superseded
from shiftergw.model import (
    Failed,
    ImageRecord,
    ImageReference,
    Origin,
    Progress,
    PullRequest,
    Ready,
)
from shiftergw.ports import ImageStore
from shiftergw.states import IllegalStepError, State
from tests.store import hammer
from tests.store.places import Place

NOW = 1_000_000.0
LIMIT = 60.0
ID = "a" * 64
OTHER_ID = "b" * 64


def request(tag: str = "ubuntu:24.04", uid: int = 1000, **members: Any) -> PullRequest:
    """Return a pull request."""
    wish = PullRequest("alpha", "docker", ImageReference.parse(tag), uid)
    return replace(wish, **members)


def failure(*, own: bool = False) -> Failed:
    """Return a bad end."""
    return Failed("PULLING", "The registry has no such image.", "Check it.", True, own)


async def begun(store: ImageStore, wish: PullRequest, now: float = NOW) -> ImageRecord:
    """Return a record on which the first attempt has begun."""
    record, _ = await store.claim(wish, now)
    started = await store.begin(record.key, "node:1", now, LIMIT)
    assert started is not None
    return started


async def pulled(
    store: ImageStore, wish: PullRequest, image_id: str = ID, now: float = NOW, **changes: Any
) -> ImageRecord:
    """Return the READY record of a pull from its claim to its end."""
    record = await begun(store, wish, now)
    return await store.finish(record.key, record.attempt, Ready(image_id, changes), now)


async def all_of(coroutines: Any) -> list[Any]:
    """Run coroutines side by side."""
    results: list[Any] = await gatherResults([Deferred.fromCoroutine(c) for c in coroutines])
    return results


OF_THE_ORIGINAL = {
    "system": "alpha",
    "itype": "docker",
    "pulltag": "old:1",
    "tag": ["old:1"],
    "status": "READY",
    "id": ID,
    "private": None,
    "userACL": None,
    "ENV": ["A=1"],
    "ENTRY": "/bin/sh",
    "expiration": 12,
    "site_note": {"kept": ["by", "us"]},
}
"""A READY document as an original gateway, or an admin, left it."""


class ClaimContract:
    """Finding or making the record in flight."""

    @pytest_twisted.ensureDeferred
    async def test_the_first_claim_creates(self, place: Place) -> None:
        """The first claim makes a PENDING record; the next one gets it, whoever asks."""
        first, created = await place.store.claim(request(), NOW)
        again, created_again = await place.store.claim(request(uid=2), NOW + 1)
        assert (created, created_again) == (True, False)
        assert first == again == await place.store.get(first.key)
        assert (first.status, first.tags, first.attempt) == (State.PENDING, (), 0)
        assert (first.pulltag, first.requested_by) == ("ubuntu:24.04", 1000)
        assert first.in_flight

    @pytest_twisted.ensureDeferred
    async def test_two_hundred_callers(self, place: Place) -> None:
        """200 callers at once get one record, and one of them is told that he created it."""
        answers = await all_of(place.store.claim(request(uid=n), NOW) for n in range(200))
        assert len({record.key for record, _ in answers}) == 1
        assert sum(created for _, created in answers) == 1

    def test_several_processes_claim(self, place: Place) -> None:
        """Processes that claim the same tags at once create each record once."""
        crowd = [hammer.start(place.location, "claims", "200") for _ in range(4)]
        assert sum(hammer.go(crowd)) == 200

    @pytest_twisted.ensureDeferred
    async def test_the_document_is_the_originals(self, place: Place) -> None:
        """A new document has the members that the original reads, and a key like an ObjectId."""
        wish = request(user_acl=(1, 2), group_acl=(3,), request_id="r1", sealed="secret")
        record, _ = await place.store.claim(wish, NOW)
        document = place.document(record.key)
        expected = {
            "system": "alpha",
            "itype": "docker",
            "pulltag": "ubuntu:24.04",
            "tag": [],
            "status": "PENDING",
            "status_message": "",
            "userACL": [1, 2],
            "groupACL": [3],
            "private": None,
            "last_pull": NOW,
            "format": "squashfs",
            "arch": "amd64",
            "os": "linux",
            "remotetype": "dockerv2",
            "ostcount": "0",
            "replication": "1",
            "claim": "alpha/docker/ubuntu:24.04",
            "kind": "pull",
            "attempt": 0,
            "requested_by": 1000,
            "request_id": "r1",
            "sealed": "secret",
        }
        assert {name: document[name] for name in expected} == expected
        assert len(bytes.fromhex(record.key)) == 12

    @pytest_twisted.ensureDeferred
    async def test_other_work_is_other_work(self, place: Place) -> None:
        """System, type and tag make the work; each combination has a record of its own."""
        wishes = [request(), request("x:1"), request(itype="custom"), request(system="beta")]
        answers = [await place.store.claim(wish, NOW) for wish in wishes]
        assert all(created for _, created in answers)
        assert len({record.key for record, _ in answers}) == 4

    @pytest_twisted.ensureDeferred
    async def test_claim_removes_failures_that_it_answers(self, place: Place) -> None:
        """Creating work removes this tag's older failures, but not another user's own."""
        store = place.store
        kept = []
        for tag, uid, own in [("x:1", 1, False), ("x:1", 7, True), ("x:1", 1, True), ("y:1", 1, 0)]:
            record = await begun(store, request(tag, uid))
            await store.finish(record.key, 1, failure(own=bool(own)), NOW)
            kept.append(record.key)
        await store.claim(request("x:1", uid=1), NOW)
        found = [await store.get(key) is not None for key in kept]
        assert found == [False, True, False, True]

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("word", ["INIT", "PENDING", "PULLING", "HASHING"])
    async def test_claim_removes_what_an_original_left(self, place: Place, word: str) -> None:
        """Work of the original that nobody does any more goes when the tag is pulled again."""
        place.put("1" * 24, OF_THE_ORIGINAL | {"status": word, "pulltag": "x:1", "tag": []})
        place.put("2" * 24, OF_THE_ORIGINAL | {"status": "EXPIRED", "pulltag": "x:1"})
        _, created = await place.store.claim(request("x:1"), NOW)
        assert created
        assert await place.store.get("1" * 24) is None
        assert await place.store.get("2" * 24) is not None

    @pytest_twisted.ensureDeferred
    async def test_abandon(self, place: Place) -> None:
        """A claim can be given up until an attempt begins."""
        record, _ = await place.store.claim(request(), NOW)
        await place.store.abandon(record.key)
        assert await place.store.get(record.key) is None
        record = await begun(place.store, request())
        await place.store.abandon(record.key)
        assert await place.store.get(record.key) == record


class WorkContract:
    """One attempt at a time."""

    @pytest_twisted.ensureDeferred
    async def test_begin(self, place: Place) -> None:
        """Beginning raises the attempt and says who works since when."""
        record = await begun(place.store, request())
        assert (record.attempt, record.status, record.runner) == (1, State.PULLING, "node:1")
        assert record.last_heartbeat == NOW

    @pytest_twisted.ensureDeferred
    async def test_nothing_to_begin(self, place: Place) -> None:
        """There is nothing to begin on unknown, ended or living work."""
        store = place.store
        assert await store.begin("f" * 24, "n", NOW, LIMIT) is None
        ended = await pulled(store, request("x:1"))
        assert await store.begin(ended.key, "n", NOW, LIMIT) is None
        record = await begun(store, request())
        assert await store.begin(record.key, "n", NOW + 59, LIMIT) is None

    @pytest_twisted.ensureDeferred
    async def test_begin_again(self, place: Place) -> None:
        """When the heartbeat is too old the next attempt starts anew, from whatever state."""
        store = place.store
        record = await begun(store, request())
        await store.advance(record.key, 1, State.CONVERSION, "Converting", NOW)
        await store.heartbeat(record.key, 1, Progress("CONVERSION", 5, 10), NOW)
        again = await store.begin(record.key, "node:2", NOW + LIMIT, LIMIT)
        assert again is not None
        assert (again.attempt, again.status, again.done) == (2, State.PULLING, 0)

    @pytest_twisted.ensureDeferred
    async def test_one_of_many_begins(self, place: Place) -> None:
        """Of many workers that begin a record at once, one does."""
        record, _ = await place.store.claim(request(), NOW)
        answers = await all_of(
            place.store.begin(record.key, f"n:{n}", NOW, LIMIT) for n in range(50)
        )
        assert sum(answer is not None for answer in answers) == 1

    @pytest_twisted.ensureDeferred
    async def test_several_processes_begin(self, place: Place) -> None:
        """Of several processes that begin the same records, each record has one."""
        keys = [(await place.store.claim(request(f"x:{n}"), NOW))[0].key for n in range(30)]
        answers = hammer.go([hammer.start(place.location, "begins", *keys) for _ in range(3)])
        assert sorted(key for answer in answers for key in answer) == sorted(keys)

    @pytest_twisted.ensureDeferred
    async def test_processes_that_take_work_from_each_other(self, place: Place) -> None:
        """However attempts overtake one another, one of them ends the work, and only once."""
        record, _ = await place.store.claim(request(), NOW)
        answers = hammer.go([hammer.start(place.location, "duel", record.key) for _ in range(3)])
        remaining = await place.store.get(record.key)
        assert remaining is not None
        finished = [attempt for answer in answers for attempt in answer]
        assert len(finished) <= 1
        assert (remaining.status is State.READY) == (len(finished) == 1)
        if finished:
            assert remaining.attempt == finished[0]

    @pytest_twisted.ensureDeferred
    async def test_advance_and_heartbeat(self, place: Place) -> None:
        """Steps show state and message, heartbeats the progress; both are signs of life."""
        store = place.store
        key = (await begun(store, request())).key
        await store.heartbeat(key, 1, Progress("PULLING", 5, 10), NOW + 1, "Waiting")
        record = await store.get(key)
        assert record is not None
        assert (record.stage, record.done, record.total) == ("PULLING", 5, 10)
        assert (record.status_message, record.last_heartbeat) == ("Waiting", NOW + 1)
        await store.advance(key, 1, State.CONVERSION, "Converting", NOW + 2)
        await store.heartbeat(key, 1, Progress("CONVERSION", 1, 4), NOW + 3)
        record = await store.get(key)
        assert record is not None
        assert (record.status, record.status_message) == (State.CONVERSION, "Converting")
        assert (record.done, record.last_heartbeat) == (1, NOW + 3)

    @pytest_twisted.ensureDeferred
    async def test_an_old_attempt_changes_nothing(self, place: Place) -> None:
        """Every step of an attempt that was overtaken is refused and leaves no trace."""
        store = place.store
        key = (await begun(store, request())).key
        await store.begin(key, "node:2", NOW + 100, LIMIT)
        before = place.document(key)
        for step in (
            store.advance(key, 1, State.TRANSFER, "x", NOW),
            store.heartbeat(key, 1, Progress(), NOW),
            store.finish(key, 1, Ready(ID), NOW),
            store.finish(key, 1, failure(), NOW),
        ):
            with pytest.raises(Superseded):
                await step
        assert place.document(key) == before

    @pytest_twisted.ensureDeferred
    async def test_steps_after_the_end(self, place: Place) -> None:
        """Work that has ended, or is gone, takes no further step."""
        store = place.store
        ended = await pulled(store, request())
        for key in (ended.key, "f" * 24):
            with pytest.raises(Superseded):
                await store.heartbeat(key, 1, Progress(), NOW)
            with pytest.raises(Superseded):
                await store.finish(key, 1, failure(), NOW)

    @pytest_twisted.ensureDeferred
    async def test_steps_against_the_table(self, place: Place) -> None:
        """States move along the table; only `begin` and `finish` start and end work."""
        store = place.store
        waiting, _ = await store.claim(request("w:1"), NOW)
        key = (await begun(store, request())).key
        await store.advance(key, 1, State.CONVERSION, "", NOW)
        for step in (
            store.advance(waiting.key, 0, State.PULLING, "", NOW),
            store.finish(waiting.key, 0, Ready(ID), NOW),
            store.advance(key, 1, State.PULLING, "", NOW),
            store.advance(key, 1, State.READY, "", NOW),
            store.advance(key, 1, State.EXPIRED, "", NOW),
        ):
            with pytest.raises(IllegalStepError):
                await step

    @pytest_twisted.ensureDeferred
    async def test_a_process_killed_in_the_middle(self, place: Place) -> None:
        """What a killed process was told is done is there, and the store works on."""
        process = hammer.start(place.location, "churn", "churn")
        assert process.stdin is not None
        assert process.stdout is not None
        hammer.release([process])
        told = [int(process.stdout.readline()) for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().splitlines() if line]
        process.wait()
        process.stdin.close()
        process.stdout.close()

        for n in told:
            record = await place.store.find("alpha", "docker", [f"churn:{n}"])
            assert record is not None
            assert record.id == f"{n:064x}"
        _, created = await place.store.claim(request("new:1"), NOW)
        assert created


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
        assert list(await store.find_id("alpha", ID)) == [left]

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
        assert list(await store.find_id("alpha", ID)) == [
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


class ReadContract:
    """Finding things."""

    @pytest_twisted.ensureDeferred
    async def test_find_takes_the_first_tag_that_is_carried(self, place: Place) -> None:
        """Of several tags the first one counts that any record carries."""
        store = place.store
        await pulled(store, request("x:1"))
        y = await pulled(store, request("y:1"), OTHER_ID)
        assert await store.find("alpha", "docker", ["none:1", "y:1", "x:1"]) == y
        assert await store.find("alpha", "docker", ["none:1"]) is None
        assert await store.find("alpha", "docker", []) is None
        assert await store.find("beta", "docker", ["y:1"]) is None
        assert await store.find("alpha", "custom", ["y:1"]) is None

    @pytest_twisted.ensureDeferred
    async def test_find_takes_the_newest(self, place: Place) -> None:
        """Where an original left one tag on two records, the newest counts; work never does."""
        place.put("1" * 24, OF_THE_ORIGINAL | {"last_pull": 5.0})
        place.put("2" * 24, OF_THE_ORIGINAL | {"last_pull": 6.0, "id": OTHER_ID})
        place.put("3" * 24, OF_THE_ORIGINAL)
        place.put("4" * 24, OF_THE_ORIGINAL | {"last_pull": 7.0, "status": "EXPIRED"})
        found = await place.store.find("alpha", "docker", ["old:1"])
        assert found is not None
        assert found.key == "2" * 24

    @pytest_twisted.ensureDeferred
    async def test_documents_of_the_original(self, place: Place) -> None:
        """Old forms are read: one tag as text, SUCCESS, null, absent and unknown members."""
        odd = {"tag": "one:1", "status": "SUCCESS"}
        place.put("1" * 24, OF_THE_ORIGINAL | odd)
        found = await place.store.find("alpha", "docker", ["one:1"])
        assert found is not None
        assert (found.key, found.tags, found.status) == ("1" * 24, ("one:1",), State.READY)
        assert (found.private, found.user_acl, found.last_pull) == (None, None, None)
        assert (found.env, found.entry, found.expiration) == (("A=1",), ("/bin/sh",), 12)

    @pytest_twisted.ensureDeferred
    async def test_find_work(self, place: Place) -> None:
        """The work in flight comes first, then failures of the tag, the newest first."""
        store = place.store
        failures = []
        for uid, now in ((1, NOW), (2, NOW + 1)):
            record = await begun(store, request(uid=uid), now)
            failures.append(await store.finish(record.key, 1, failure(own=True), now))
        flying, _ = await store.claim(request(uid=3), NOW - 5)
        await store.claim(request("else:1"), NOW)
        await pulled(store, request("x:1"))
        found = await store.find_work("alpha", "docker", "ubuntu:24.04")
        assert list(found) == [flying, failures[1], failures[0]]
        assert list(await store.find_work("alpha", "docker", "x:1")) == []

    @pytest_twisted.ensureDeferred
    async def test_list_and_queue(self, place: Place) -> None:
        """`list` shows what is READY, `queue` the rest but EXPIRED, each of one system."""
        store = place.store
        place.put("0" * 24, OF_THE_ORIGINAL | {"status": "EXPIRED"})
        ready = [await pulled(store, request(f"x:{n}"), f"{n:064x}") for n in range(5)]
        record = await begun(store, request("f:1"), NOW + 1)
        failed = await store.finish(record.key, 1, failure(), NOW + 1)
        flying = await begun(store, request("y:1"), NOW + 2)
        waiting, _ = await store.claim(request("z:1"), NOW + 3)
        await store.claim(request(system="beta"), NOW)
        assert list(await store.list("alpha")) == list(await store.list("alpha"))
        assert {record.key for record in await store.list("alpha")} == {r.key for r in ready}
        assert list(await store.queue("alpha")) == [failed, flying, waiting]
        assert list(await store.list("beta")) == []

    @pytest_twisted.ensureDeferred
    async def test_waiting_is_fair(self, place: Place) -> None:
        """Users take turns, each in the order of arrival, however many one of them sends."""
        store = place.store
        names = {}
        for second, (uid, tag) in enumerate(
            [(1, "a:1"), (1, "a:2"), (1, "a:3"), (2, "b:1"), (2, "b:2"), (3, "c:1")]
        ):
            names[(await store.claim(request(tag, uid), NOW + second))[0].key] = tag
        order = [names[record.key] for record in await store.waiting(10)]
        assert order == ["a:1", "b:1", "c:1", "a:2", "b:2", "a:3"]
        assert [names[record.key] for record in await store.waiting(2)] == ["a:1", "b:1"]

    @pytest_twisted.ensureDeferred
    async def test_one_worker_is_fair_too(self, place: Place) -> None:
        """With one worker the users' work is begun in turn: nobody's backlog starves another."""
        store = place.store
        for n in range(3):
            await store.claim(request(f"a:{n}", 1), NOW + n)
        for n in range(2):
            await store.claim(request(f"b:{n}", 2), NOW + 10 + n)
        order = []
        for n in range(5):
            (record,) = await store.waiting(1)
            begun_record = await store.begin(record.key, "n", NOW + 20 + n, LIMIT)
            assert begun_record is not None
            order.append(record.pulltag)
            await store.finish(record.key, 1, Ready(f"{n:064x}"), NOW + 20 + n)
        assert order == ["a:0", "b:0", "a:1", "b:1", "a:2"]
        assert list(await store.waiting(1)) == []

    @pytest_twisted.ensureDeferred
    async def test_running_work_counts(self, place: Place) -> None:
        """A user whose work runs waits behind one who has none running."""
        store = place.store
        await begun(store, request("a:1", 1))
        await begun(store, request("a:2", 1))
        await begun(store, request("b:1", 2), NOW + 5)
        await store.claim(request("a:3", 1), NOW)
        await store.claim(request("b:2", 2), NOW + 6)
        assert [record.pulltag for record in await store.waiting(10)] == ["b:2", "a:3"]

    @pytest_twisted.ensureDeferred
    async def test_stale(self, place: Place) -> None:
        """Begun work is stale once its heartbeat is older than the limit; waiting work never is."""
        store = place.store
        await store.claim(request("w:1"), NOW)
        await pulled(store, request("r:1"))
        record = await begun(store, request())
        await begun(store, request("young:1"), NOW + 50)
        assert list(await store.stale(NOW + LIMIT, LIMIT)) == []
        assert list(await store.stale(NOW + LIMIT + 1, LIMIT)) == [record]
        await store.heartbeat(record.key, 1, Progress(), NOW + 30)
        assert list(await store.stale(NOW + LIMIT + 1, LIMIT)) == []


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
    async def test_forget_failures(self, place: Place) -> None:
        """Old failures go, also those that say no time; nothing else does."""
        store = place.store
        for tag, now in (("x:1", NOW), ("y:1", NOW + 10)):
            record = await begun(store, request(tag), now)
            await store.finish(record.key, 1, failure(), now)
        place.put("1" * 24, OF_THE_ORIGINAL | {"status": "FAILURE"})
        await pulled(store, request("r:1"), OTHER_ID)
        assert await store.forget_failures(NOW + 5) == 2
        assert await store.forget_failures(NOW + 5) == 0
        assert [record.pulltag for record in await store.queue("alpha")] == ["y:1"]
        assert len(await store.list("alpha")) == 1

    @pytest_twisted.ensureDeferred
    async def test_lease(self, place: Place) -> None:
        """One holder at a time and place; he may renew; the lease ends in time or by release."""
        store = place.store
        assert await store.lease("/images", ID, "k/1", NOW, 10)
        assert not await store.lease("/images", ID, "k/2", NOW + 5, 10)
        assert await store.lease("/images", OTHER_ID, "k/2", NOW + 5, 10)
        assert await store.lease("/else", ID, "k/2", NOW + 5, 10)
        assert await store.lease("/images", ID, "k/1", NOW + 5, 10)
        assert not await store.lease("/images", ID, "k/2", NOW + 14, 10)
        assert await store.lease("/images", ID, "k/2", NOW + 15, 10)
        await store.release("/images", ID, "k/1")
        assert not await store.lease("/images", ID, "k/1", NOW + 16, 10)
        await store.release("/images", ID, "k/2")
        assert await store.lease("/images", ID, "k/1", NOW + 16, 10)

    @pytest_twisted.ensureDeferred
    async def test_one_of_many_gets_the_lease(self, place: Place) -> None:
        """Of many that ask for a lease at once, one gets it."""
        store = place.store
        answers = await all_of(store.lease("/images", ID, f"k/{n}", NOW, 10) for n in range(50))
        assert sum(answers) == 1

    @pytest_twisted.ensureDeferred
    async def test_remove(self, place: Place) -> None:
        """A removed record is found by nothing; removing it again does no harm."""
        store = place.store
        record = await pulled(store, request())
        await store.remove(record.key)
        await store.remove(record.key)
        assert await store.get(record.key) is None
        assert await store.find("alpha", "docker", ["ubuntu:24.04"]) is None

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


class StoreContract(ClaimContract, WorkContract, EndContract, ReadContract, KeepContract):
    """All of it. The heir provides the fixture `place`."""
