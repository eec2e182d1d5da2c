"""The end of a pull in MongoDB takes several writes, and the process may die after each."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_twisted
from bson.objectid import ObjectId
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.errors import Superseded, Unavailable
from shiftergw.model.records import ImageRecord, Ready
from shiftergw.plumbing.timing import pause
from shiftergw.ports import ImageStore
from tests import mongod
from tests.patience import patient, stretch
from tests.store.places import mongo_running
from tests.store.pulls import (
    ID,
    LIMIT,
    NOW,
    OTHER_ID,
    all_of,
    begin_pull,
    complete_pull,
    request,
    request_removal,
)
from tests.store.wire import Wire

Prepare = Callable[[ImageStore], Awaitable[ImageRecord]]
OUTCOME = Ready(ID, {"user_acl": (1,)}, untagged_until=NOW + 500, directory="/images")
FINISH_TIME = NOW + 10


@pytest.fixture
def empty_database(mongodb: str) -> Iterator[tuple[str, Any]]:
    """Return the name of an empty database and pymongo's object for it."""
    with mongod.database(mongodb) as name_and_database:
        yield name_and_database


@pytest.fixture
def port(mongodb: str) -> int:
    """Return the server's port on the loopback."""
    return urlsplit(mongodb).port or 27017


async def new_image(store: ImageStore) -> ImageRecord:
    """Return a pull of a tag that is the last tag of another image."""
    await complete_pull(store, request("x:1"), OTHER_ID)
    return await begin_pull(store, request("x:1"), NOW + 1)


async def known_image(store: ImageStore) -> ImageRecord:
    """Return a pull of another image's tag for an image that has its own record and tag."""
    await complete_pull(store, request("y:1"))
    return await new_image(store)


async def expiring_image(store: ImageStore) -> ImageRecord:
    """Return a pull of an EXPIRING image; another image has one of its tags."""
    await complete_pull(store, request("z:1"))
    await request_removal(store, request("y:1"))
    await complete_pull(store, request("z:1"), "c" * 64)
    return await new_image(store)


async def blocked_image(store: ImageStore) -> ImageRecord:
    """Return a pull of an image that was blocked meanwhile."""
    await store.block("/images", ID, 0, NOW)
    return await new_image(store)


async def blocked_known_image(store: ImageStore) -> ImageRecord:
    """Return a pull of an image that has a record and was blocked meanwhile."""
    await store.block("/images", ID, 0, NOW)
    return await known_image(store)


def state_of(db: Any) -> list[tuple[Any, ...]]:
    """Return the visible state of all records, without keys and attempts."""
    members = ("status", "id", "tag", "userACL", "expiration", "kind", "pulltag", "moved")
    return sorted(
        (*(str(record.get(name)) for name in members), "claim" in record, "finishing" in record)
        for record in db["images"].find()
    )


def empty(db: Any) -> None:
    """Remove all documents; the indexes stay."""
    for name in db.list_collection_names():
        db[name].delete_many({})


async def next_attempt(store: ImageStore) -> None:
    """Recover work whose worker has died, as the gateway and its workers do."""
    for record in await store.stale(NOW + 1000, LIMIT):
        second = await store.begin(record.key, "node:2", NOW + 1000, LIMIT)
        assert second is not None
        await store.finish(second.key, second.attempt, OUTCOME, FINISH_TIME)


@pytest.mark.parametrize(
    "prepare", [new_image, known_image, expiring_image, blocked_image, blocked_known_image]
)
@pytest_twisted.ensureDeferred
async def test_a_crash_after_any_write_is_repaired(
    mongodb: str, port: int, empty_database: tuple[str, Any], prepare: Prepare
) -> None:
    """Readers find the tag all the time, and the final state is the same."""
    name, db = empty_database
    async with mongo_running(mongodb, name) as store:
        record = await prepare(store)
        await store.finish(record.key, 1, OUTCOME, FINISH_TIME)
        expected = state_of(db)
        crashes = 0
        while True:
            empty(db)
            record = await prepare(store)
            with Wire(port, until=crashes) as wire:
                async with mongo_running(wire.uri, name, seconds=stretch(1)) as dying:
                    try:
                        await dying.finish(record.key, 1, OUTCOME, FINISH_TIME)
                    except Unavailable:
                        assert wire.writes > crashes
                    else:
                        break
            image = await store.find("alpha", "docker", ["x:1"])
            if "blocked" not in prepare.__name__:
                assert image is not None
                assert image.id == (ID if crashes else OTHER_ID)
            await next_attempt(store)
            assert state_of(db) == expected, crashes
            crashes += 1
        assert wire.writes == crashes >= 4


@pytest.mark.parametrize("prepare", [new_image, known_image, expiring_image])
@pytest_twisted.ensureDeferred
async def test_a_lost_answer_does_not_repeat_a_write(
    mongodb: str, port: int, empty_database: tuple[str, Any], prepare: Prepare
) -> None:
    """After a lost answer the call completes as if the answer had arrived."""
    name, db = empty_database
    async with mongo_running(mongodb, name) as store:
        record = await prepare(store)
        first = await store.finish(record.key, 1, OUTCOME, FINISH_TIME)
        expected = state_of(db)
        for number in range(1, 5):
            empty(db)
            record = await prepare(store)
            with Wire(port, lost_answer=number) as wire:
                async with mongo_running(wire.uri, name) as peer:
                    result = await peer.finish(record.key, 1, OUTCOME, FINISH_TIME)
            assert result == await store.get(result.key)
            assert (result.status, result.tags) == (first.status, first.tags)
            assert state_of(db) == expected, number


@pytest.mark.parametrize(
    ("prepare", "number"),
    [
        (new_image, 1),
        (new_image, 2),
        (new_image, 3),
        (new_image, 4),
        (known_image, 1),
        (known_image, 2),
        (known_image, 3),
        (known_image, 4),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_suspended_attempt_takes_no_tag_back(
    mongodb: str, port: int, empty_database: tuple[str, Any], prepare: Prepare, number: int
) -> None:
    """If the tag is pulled again meanwhile, the new image keeps it."""
    name, _ = empty_database
    is_reached, may_continue = threading.Event(), threading.Event()

    def hold(n: int, _: object) -> None:
        if n == number:
            is_reached.set()
            may_continue.wait(patient(10))

    with Wire(port, before_write=hold) as wire:
        async with mongo_running(mongodb, name) as store, mongo_running(wire.uri, name) as slow:
            record = await prepare(store)
            ending = Deferred.fromCoroutine(slow.finish(record.key, 1, OUTCOME, FINISH_TIME))
            while not is_reached.is_set():
                await pause(0.01, reactor)
            second, _ = await store.claim(request("x:1"), FINISH_TIME + 100)
            new_attempt = await store.begin(second.key, "node:2", FINISH_TIME + 100, LIMIT)
            assert new_attempt is not None
            outcome = Ready("d" * 64, untagged_until=NOW + 500)
            newer = await store.finish(second.key, new_attempt.attempt, outcome, FINISH_TIME + 110)
            may_continue.set()
            if prepare is known_image or number == 1:
                with pytest.raises(Superseded):
                    await ending
            else:
                await ending
            assert await store.find("alpha", "docker", ["x:1"]) == newer
            carriers = [record.id for record in await store.list("alpha") if "x:1" in record.tags]
            assert carriers == ["d" * 64]
            assert list(await store.queue("alpha")) == []


@pytest_twisted.ensureDeferred
async def test_two_pulls_of_one_image_leave_one_record(
    mongodb: str, empty_database: tuple[str, Any]
) -> None:
    """The record has both tags, for any order of the writes."""
    name, db = empty_database
    async with mongo_running(mongodb, name) as store, mongo_running(mongodb, name) as peer:
        for _ in range(10):
            empty(db)
            first = await begin_pull(store, request("x:1"))
            second = await begin_pull(store, request("y:1"))
            await all_of(
                any_store.finish(record.key, 1, OUTCOME, FINISH_TIME)
                for any_store, record in ((store, first), (peer, second))
            )
            (remaining,) = await store.list("alpha")
            assert set(remaining.tags) == {"x:1", "y:1"}
            assert db["images"].count_documents({}) == 1


@pytest.mark.parametrize(
    ("key", "kind", "records"),
    [("1" * 24, "pull", 1), ("f" * 24, "pull", 1), ("1" * 24, None, 2), ("f" * 24, None, 2)],
)
@pytest_twisted.ensureDeferred
async def test_the_older_twin_stays(
    mongodb: str,
    port: int,
    empty_database: tuple[str, Any],
    key: str,
    kind: str | None,
    records: int,
) -> None:
    """The older record gets all tags; documents of an original are not removed."""
    name, db = empty_database
    twin = {"_id": ObjectId(key), "system": "alpha", "itype": "docker", "status": "READY", "id": ID,
            "tag": ["y:1"], "last_pull": FINISH_TIME - 1, "site_note": 1}  # fmt: skip
    if kind is not None:
        twin["kind"] = kind

    def insert_twin(number: int, _: object) -> None:
        if number == 1:
            db["images"].insert_one(twin)

    with Wire(port, before_write=insert_twin) as wire:
        async with (
            mongo_running(mongodb, name) as store,
            mongo_running(wire.uri, name) as peer,
        ):
            record = await new_image(store)
            result = await peer.finish(record.key, 1, OUTCOME, FINISH_TIME)
            assert result == await store.get(result.key)
            copies = [record for record in await store.list("alpha") if record.id == ID]
            assert len(copies) == records
            assert {tag for record in copies for tag in record.tags} == {"x:1", "y:1"}
            assert "finishing" not in db["images"].find_one({"_id": ObjectId(result.key)})
            if kind is None:
                assert db["images"].find_one({"_id": ObjectId(key)})["site_note"] == 1
            else:
                assert result.key == min(key, record.key)


@pytest_twisted.ensureDeferred
async def test_a_merged_twin_keeps_its_tag(
    mongodb: str, port: int, empty_database: tuple[str, Any]
) -> None:
    """The other pull has given the tag to the same image."""
    name, db = empty_database
    older = {"_id": ObjectId("1".zfill(24)), "system": "alpha", "itype": "docker", "id": ID,
             "status": "READY", "tag": ["y:1", "x:1"], "last_pull": FINISH_TIME,
             "kind": "pull"}  # fmt: skip

    def replace_record(number: int, _: object) -> None:
        if number == 2:
            db["images"].delete_one({"id": ID})
            db["images"].insert_one(older)

    with Wire(port, before_write=replace_record) as wire:
        async with (
            mongo_running(mongodb, name) as store,
            mongo_running(wire.uri, name) as peer,
        ):
            record = await begin_pull(store, request("x:1"))
            result = await peer.finish(record.key, 1, OUTCOME, FINISH_TIME)
            (remaining,) = await store.list("alpha")
            assert set(remaining.tags) == {"x:1", "y:1"}
            assert result.id == ID
