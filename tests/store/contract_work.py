"""The contract of claims and attempts."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
import pytest_twisted

from shiftergw.errors import Superseded
from shiftergw.model.layer_progress import LayerProgress, parse_layers
from shiftergw.model.records import Progress, Ready
from shiftergw.model.uploads import ImageFile
from shiftergw.states import IllegalStepError, State
from tests.store import hammer
from tests.store.places import Place
from tests.store.pulls import (
    ID,
    LIMIT,
    NOW,
    OF_THE_ORIGINAL,
    all_of,
    begin_pull,
    complete_pull,
    failure,
    request,
)


class ClaimContract:
    """Find or create the record in flight."""

    @pytest_twisted.ensureDeferred
    async def test_the_first_claim_creates_the_record(self, place: Place) -> None:
        """The first claim creates a PENDING record; the next claim of any user returns the same."""
        first, is_new = await place.store.claim(request(), NOW)
        second, is_second_new = await place.store.claim(request(uid=2), NOW + 1)
        assert (is_new, is_second_new) == (True, False)
        assert first == second == await place.store.get(first.key)
        assert (first.status, first.tags, first.attempt) == (State.PENDING, (), 0)
        assert (first.pulltag, first.requested_by) == ("ubuntu:24.04", 1000)
        assert first.in_flight

    @pytest_twisted.ensureDeferred
    async def test_two_hundred_concurrent_claims_create_one_record(self, place: Place) -> None:
        """All 200 callers get the same record, and exactly one gets it as new."""
        answers = await all_of(place.store.claim(request(uid=n), NOW) for n in range(200))
        assert len({record.key for record, _ in answers}) == 1
        assert sum(is_new for _, is_new in answers) == 1

    @pytest_twisted.ensureDeferred
    async def test_the_file_of_an_image_stays_with_its_record(self, place: Place) -> None:
        """In flight, after a failure, and when READY; the next file of the image replaces it."""
        file = ImageFile("ab" * 16, "sif", 5, "cd" * 32, "app:1", public=True)
        pull = request(itype="custom", upload=file)
        work = await begin_pull(place.store, pull)
        assert work.upload == file
        assert place.document(work.key)["upload"]["sha256"] == file.sha256
        end = await place.store.finish(work.key, work.attempt, failure(), NOW)
        assert end.upload == file
        ready = await complete_pull(place.store, pull, upload=file)
        next_file = replace(file, id="ef" * 16)
        pull = request("app:2", itype="custom", upload=next_file)
        record = await complete_pull(place.store, pull, upload=next_file)
        assert (record.key, record.upload) == (ready.key, next_file)
        assert (await complete_pull(place.store, request())).upload is None

    def test_processes_that_claim_at_once_create_each_record_once(self, place: Place) -> None:
        """Four processes claim the same 200 tags."""
        assert sum(hammer.go(place.location, "claims", *[["200"]] * 4)) == 200

    @pytest_twisted.ensureDeferred
    async def test_a_new_document_is_like_the_originals(self, place: Place) -> None:
        """A new document has all members that the original reads, and a key like an ObjectId."""
        pull = request(user_acl=(1, 2), group_acl=(3,), request_id="r1", sealed="secret")
        record, _ = await place.store.claim(pull, NOW)
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
    async def test_each_system_type_and_tag_has_its_own_record(self, place: Place) -> None:
        """Claims that differ in one of them create different records."""
        pulls = [request(), request("x:1"), request(itype="custom"), request(system="beta")]
        answers = [await place.store.claim(pull, NOW) for pull in pulls]
        assert all(is_new for _, is_new in answers)
        assert len({record.key for record, _ in answers}) == 4

    @pytest_twisted.ensureDeferred
    async def test_a_claim_removes_older_failures_of_its_tag(self, place: Place) -> None:
        """A claim keeps failures that only another user can see."""
        store = place.store
        keys = []
        for tag, uid, own in [("x:1", 1, False), ("x:1", 7, True), ("x:1", 1, True), ("y:1", 1, 0)]:
            record = await begin_pull(store, request(tag, uid))
            await store.finish(record.key, 1, failure(own=bool(own)), NOW)
            keys.append(record.key)
        await store.claim(request("x:1", uid=1), NOW)
        is_present = [await store.get(key) is not None for key in keys]
        assert is_present == [False, True, False, True]

    @pytest_twisted.ensureDeferred
    @pytest.mark.parametrize("word", ["INIT", "PENDING", "PULLING", "HASHING"])
    async def test_a_claim_removes_abandoned_work_of_an_original(
        self, place: Place, word: str
    ) -> None:
        """No process finishes such work any more; EXPIRED records stay."""
        place.put("1" * 24, OF_THE_ORIGINAL | {"status": word, "pulltag": "x:1", "tag": []})
        place.put("2" * 24, OF_THE_ORIGINAL | {"status": "EXPIRED", "pulltag": "x:1"})
        _, is_new = await place.store.claim(request("x:1"), NOW)
        assert is_new
        assert await place.store.get("1" * 24) is None
        assert await place.store.get("2" * 24) is not None

    @pytest_twisted.ensureDeferred
    async def test_a_claim_can_be_abandoned_until_an_attempt_begins(self, place: Place) -> None:
        """`abandon` removes the record only before its first attempt."""
        record, _ = await place.store.claim(request(), NOW)
        await place.store.abandon(record.key)
        assert await place.store.get(record.key) is None
        record = await begin_pull(place.store, request())
        await place.store.abandon(record.key)
        assert await place.store.get(record.key) == record


class WorkContract:
    """At most one attempt works on a record."""

    @pytest_twisted.ensureDeferred
    async def test_begin_starts_the_first_attempt(self, place: Place) -> None:
        """`begin` increments `attempt`, and stores the runner and a heartbeat."""
        record = await begin_pull(place.store, request())
        assert (record.attempt, record.status, record.runner) == (1, State.PULLING, "node:1")
        assert record.last_heartbeat == NOW

    @pytest_twisted.ensureDeferred
    async def test_begin_refuses_unknown_ended_and_living_work(self, place: Place) -> None:
        """`begin` returns None and changes nothing."""
        store = place.store
        assert await store.begin("f" * 24, "n", NOW, LIMIT) is None
        ready = await complete_pull(store, request("x:1"))
        assert await store.begin(ready.key, "n", NOW, LIMIT) is None
        record = await begin_pull(store, request())
        assert await store.begin(record.key, "n", NOW + 59, LIMIT) is None

    @pytest_twisted.ensureDeferred
    async def test_begin_starts_a_new_attempt_after_an_old_heartbeat(self, place: Place) -> None:
        """The new attempt starts at PULLING, whatever state the old one had reached."""
        store = place.store
        record = await begin_pull(store, request())
        await store.advance(record.key, 1, State.CONVERSION, "Converting", NOW)
        await store.heartbeat(record.key, 1, Progress("CONVERSION", 5, 10), NOW)
        attempt = await store.begin(record.key, "node:2", NOW + LIMIT, LIMIT)
        assert attempt is not None
        assert (attempt.attempt, attempt.status, attempt.done) == (2, State.PULLING, 0)

    @pytest_twisted.ensureDeferred
    async def test_one_of_many_concurrent_begins_succeeds(self, place: Place) -> None:
        """One call gets the record, and all others get None."""
        record, _ = await place.store.claim(request(), NOW)
        answers = await all_of(
            place.store.begin(record.key, f"n:{n}", NOW, LIMIT) for n in range(50)
        )
        assert sum(answer is not None for answer in answers) == 1

    @pytest_twisted.ensureDeferred
    async def test_processes_that_begin_at_once_share_the_records(self, place: Place) -> None:
        """Each record is begun by exactly one process."""
        keys = [(await place.store.claim(request(f"x:{n}"), NOW))[0].key for n in range(30)]
        answers = hammer.go(place.location, "begins", *[keys] * 3)
        assert sorted(key for answer in answers for key in answer) == sorted(keys)

    @pytest_twisted.ensureDeferred
    async def test_at_most_one_attempt_finishes_the_work(self, place: Place) -> None:
        """Three processes supersede each other's attempts all the time."""
        record, _ = await place.store.claim(request(), NOW)
        answers = hammer.go(place.location, "duel", *[[record.key]] * 3)
        remaining = await place.store.get(record.key)
        assert remaining is not None
        attempts = [attempt for answer in answers for attempt in answer]
        assert len(attempts) <= 1
        assert (remaining.status is State.READY) == (len(attempts) == 1)
        if attempts:
            assert remaining.attempt == attempts[0]

    @pytest_twisted.ensureDeferred
    async def test_steps_and_heartbeats_are_visible(self, place: Place) -> None:
        """A step sets state and message, a heartbeat the progress; both renew the heartbeat."""
        store = place.store
        key = (await begin_pull(store, request())).key
        layers = (LayerProgress("3f4a9c1b2d5e", 2, 6), LayerProgress("e6a49c6c9b02", 3, 4))
        await store.heartbeat(key, 1, Progress("PULLING", 5, 10, layers=layers), NOW + 1, "Waiting")
        record = await store.get(key)
        assert record is not None
        assert (record.stage, record.done, record.total) == ("PULLING", 5, 10)
        assert parse_layers(record.layers_in_flight) == [*layers]
        assert (record.status_message, record.last_heartbeat) == ("Waiting", NOW + 1)
        await store.advance(key, 1, State.CONVERSION, "Converting", NOW + 2)
        await store.heartbeat(key, 1, Progress("CONVERSION", 1, 4), NOW + 3)
        record = await store.get(key)
        assert record is not None
        assert (record.status, record.status_message) == (State.CONVERSION, "Converting")
        assert (record.done, record.last_heartbeat) == (1, NOW + 3)
        assert record.layers_in_flight is None

    @pytest_twisted.ensureDeferred
    async def test_a_superseded_attempt_changes_nothing(self, place: Place) -> None:
        """Each of its steps raises `Superseded` and leaves the document as it is."""
        store = place.store
        key = (await begin_pull(store, request())).key
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
    async def test_ended_work_takes_no_further_step(self, place: Place) -> None:
        """Steps on ended or unknown records raise `Superseded`."""
        store = place.store
        ready = await complete_pull(store, request())
        for key in (ready.key, "f" * 24):
            with pytest.raises(Superseded):
                await store.heartbeat(key, 1, Progress(), NOW)
            with pytest.raises(Superseded):
                await store.finish(key, 1, failure(), NOW)

    @pytest_twisted.ensureDeferred
    async def test_steps_outside_the_table_are_refused(self, place: Place) -> None:
        """Only `begin` and `finish` start and end work."""
        store = place.store
        waiting, _ = await store.claim(request("w:1"), NOW)
        key = (await begin_pull(store, request())).key
        await store.advance(key, 1, State.CONVERSION, "", NOW)
        for step in (
            store.advance(waiting.key, 0, State.PULLING, "", NOW),
            store.finish(waiting.key, 0, Ready(ID), NOW),
            store.advance(key, 1, State.PULLING, "", NOW),
            store.advance(key, 1, State.PENDING, "", NOW),
            store.advance(key, 1, State.READY, "", NOW),
            store.advance(key, 1, State.EXPIRED, "", NOW),
        ):
            with pytest.raises(IllegalStepError):
                await step

    @pytest_twisted.ensureDeferred
    async def test_finished_work_survives_a_killed_process(self, place: Place) -> None:
        """All confirmed steps of the process are in the store, and the store still works."""
        assert await place.store.queue("alpha") == []  # it is open before we hold the reactor up
        process = hammer.start(place.location, "churn", ["churn"])
        assert process.stdin is not None
        assert process.stdout is not None
        hammer.release(process)
        numbers = [int(process.stdout.readline()) for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        numbers += [int(line) for line in process.stdout.read().splitlines() if line]
        process.wait()
        process.stdin.close()
        process.stdout.close()

        for n in numbers:
            record = await place.store.find("alpha", "docker", [f"churn:{n}"])
            assert record is not None
            assert record.id == f"{n:064x}"
        _, is_new = await place.store.claim(request("new:1"), NOW)
        assert is_new
