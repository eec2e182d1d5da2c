"""The contract's part on claims and attempts."""

from __future__ import annotations

import signal

import pytest
import pytest_twisted

from shiftergw.errors import Superseded
from shiftergw.model import Progress, Ready
from shiftergw.states import IllegalStepError, State
from tests.store import hammer
from tests.store.places import Place
from tests.store.pulls import (
    ID,
    LIMIT,
    NOW,
    OF_THE_ORIGINAL,
    all_of,
    begun,
    failure,
    pulled,
    request,
)


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
            store.advance(key, 1, State.PENDING, "", NOW),
            store.advance(key, 1, State.READY, "", NOW),
            store.advance(key, 1, State.EXPIRED, "", NOW),
        ):
            with pytest.raises(IllegalStepError):
                await step

    @pytest_twisted.ensureDeferred
    async def test_a_process_killed_in_the_middle(self, place: Place) -> None:
        """What a killed process was told is done is there, and the store works on."""
        assert await place.store.queue("alpha") == []  # it is open before we hold the reactor up
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
