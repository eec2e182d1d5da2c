"""The MongoDB store keeps the contract, and the data of other programs in its database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_twisted
from bson.objectid import ObjectId
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from shiftergw.errors import Superseded, Unavailable
from shiftergw.model.records import Expired, Progress, Ready
from shiftergw.mongo import database as mongo_database
from shiftergw.ports import ImageStore
from shiftergw.states import State
from shiftergw.store.mongo.queries import BREAKERS, CREDENTIALS, RANGES
from shiftergw.store.mongo.store import MongoStore
from tests import mongod
from tests.store.contract import StoreContract
from tests.store.places import Place, mongo_place, mongo_running
from tests.store.pulls import (
    ID,
    LIMIT,
    NOW,
    OF_THE_ORIGINAL,
    OTHER_ID,
    begin_pull,
    complete_pull,
    failure,
    request,
    request_removal,
)
from tests.store.wire import Wire

KEY = "1" * 24
NamedDatabase = tuple[str, Any]
"""A database's name, and pymongo's way to it."""


@pytest.fixture
def empty_database(mongodb: str) -> Iterator[NamedDatabase]:
    """Return the name of an empty database and pymongo's object for it."""
    with mongod.database(mongodb) as name_and_database:
        yield name_and_database


@pytest.fixture
def place(mongodb: str, empty_database: NamedDatabase) -> Iterator[Place]:
    """Return a running store."""
    name, db = empty_database
    store = MongoStore(reactor, mongodb, name)
    store.startService()
    yield mongo_place(store, mongodb, db)
    pytest_twisted.blockon(store.stopService())


@pytest.fixture
def port(mongodb: str) -> int:
    """Return the server's port on the loopback."""
    return urlsplit(mongodb).port or 27017


class TestMongoStore(StoreContract):
    """The contract on MongoDB."""


@pytest_twisted.ensureDeferred
async def test_all_data_survives_a_restart(mongodb: str, empty_database: NamedDatabase) -> None:
    """The next process finds all data."""
    name, _ = empty_database
    async with mongo_running(mongodb, name) as store:
        record = await complete_pull(store, request())
    async with mongo_running(mongodb, name) as store:
        assert await store.get(record.key) == record


@pytest_twisted.ensureDeferred
async def test_a_second_gateway_takes_no_work(
    mongodb: str, empty_database: NamedDatabase, place: Place
) -> None:
    """The second gateway starts and stops without a change to waiting and running work."""
    waiting, _ = await place.store.claim(request("x:1"), NOW)
    running_record = await begin_pull(place.store, request("x:2"))
    async with mongo_running(mongodb, empty_database[0]) as peer:
        assert await peer.waiting(NOW, 5) == [waiting]
    assert await place.store.get(waiting.key) == waiting
    assert await place.store.get(running_record.key) == running_record


ORIGINALS = [
    OF_THE_ORIGINAL | {"_id": ObjectId("1" * 24), "last_pull": 5.5},
    OF_THE_ORIGINAL | {"_id": ObjectId("2" * 24), "status": "SUCCESS", "tag": "one:1"},
    OF_THE_ORIGINAL | {"_id": ObjectId("3" * 24), "status": "EXPIRED"},
    OF_THE_ORIGINAL | {"_id": ObjectId("4" * 24), "status": "PENDING", "tag": [], "id": None},
    OF_THE_ORIGINAL | {"_id": ObjectId("5" * 24), "status": "HASHING", "odd": ObjectId("6" * 24)},
    {"_id": "no ObjectId", "system": "alpha", "anything": {"at": ["all"]}},
    {"_id": ObjectId("7" * 24)},
]
"""Documents that an original, or an admin, may have left."""

ROW = {
    "user": "me",
    "uid": 7,
    "system": "alpha",
    "type": "docker",
    "tag": "x:1",
    "id": ID,
    "time": 5.5,
}


@pytest_twisted.ensureDeferred
async def test_a_start_only_creates_indexes(mongodb: str, empty_database: NamedDatabase) -> None:
    """All documents of the original stay as they are.

    The indexes of missing collections create them, empty.
    """
    name, db = empty_database
    db["images"].insert_many(ORIGINALS)
    db["metrics"].insert_one({**ROW, "_id": ObjectId("1" * 24)})
    db["elsewhere"].insert_one({"_id": 1})
    before = mongod.all_documents(db)
    async with mongo_running(mongodb, name) as store:
        await store.queue("alpha")
        await store.abandon((await store.claim(request("x:1"), NOW))[0].key)
        assert list(await store.lookups("alpha", 5)) == [ROW]
    assert mongod.all_documents(db) == {**before, BREAKERS: [], CREDENTIALS: [], RANGES: []}
    unique = {
        index for index, form in db["images"].index_information().items() if form.get("unique")
    }
    assert unique == {"shiftergw_claim"}


@pytest_twisted.ensureDeferred
async def test_existing_indexes_are_used(mongodb: str, empty_database: NamedDatabase) -> None:
    """An equivalent index is used under any name, and other indexes do no harm."""
    name, db = empty_database
    db["images"].create_index("claim", unique=True, sparse=True, name="theirs")
    db["images"].create_index("status", name="status")
    db["metrics"].create_index("time", expireAfterSeconds=5)
    async with mongo_running(mongodb, name) as store:
        await store.claim(request(), NOW)
        await store.stale(NOW, LIMIT)
    indexes = db["images"].index_information()
    assert "shiftergw_claim" not in indexes
    assert {"theirs", "status", "shiftergw_tag", "shiftergw_list"} <= indexes.keys()


@pytest_twisted.ensureDeferred
async def test_no_claim_without_the_unique_index(
    mongodb: str, empty_database: NamedDatabase
) -> None:
    """If the server refuses it, claims are refused and the log says why.

    The index is tried again only after a minute, because each try reads all records.
    """
    name, db = empty_database
    db["images"].insert_many([{"claim": "twice"}, {"claim": "twice"}])
    async with mongo_running(mongodb, name) as store:
        with capturedLogs() as log:
            for _ in range(3):
                with pytest.raises(Unavailable, match="two records of one pull") as caught:
                    await store.claim(request(), NOW)
                assert "twice" in caught.value.detail
                assert "check --database" in caught.value.remedy
        tries = [event for event in log if event.get("name") == "shiftergw_claim"]
        assert len(tries) <= 2  # one that begins, and its refusal
        assert await store.list("alpha") == []
        db["images"].delete_many({})
        store._require_open().indexes._refused_until = 0.0
        assert (await store.claim(request(), NOW))[1]


@pytest.mark.parametrize(
    "key", ["", "x", "1" * 23, "1" * 25, "g" * 24, "1" * 12, "{'$gt': ''}", "é" * 12]
)
@pytest_twisted.ensureDeferred
async def test_invalid_keys_find_no_record(place: Place, key: str) -> None:
    """A key that is not an ObjectId belongs to no record."""
    store = place.store
    assert await store.get(key) is None
    assert await store.begin(key, "n", NOW, LIMIT) is None
    assert await store.expire(key) is None
    assert await store.untag(key, "x:1") is None
    await store.abandon(key)
    await store.renew(key, NOW)
    for step in (
        store.heartbeat(key, 1, Progress(), NOW),
        store.advance(key, 1, State.TRANSFER, "", NOW),
        store.finish(key, 1, failure(), NOW),
    ):
        with pytest.raises(Superseded):
            await step


READY_RECORD: dict[str, Any] = dict(OF_THE_ORIGINAL)
CLAIM: dict[str, Any] = OF_THE_ORIGINAL | {
    "status": "PENDING", "claim": "alpha/docker/old:1", "tag": [], "id": None,
}  # fmt: skip
IN_PROGRESS = CLAIM | {
    "status": "PULLING",
    "attempt": 1,
    "runner": "node:1",
    "last_heartbeat": NOW,
}
REMOVAL = OF_THE_ORIGINAL | {
    "status": "EXPIRING", "claim": f"alpha/docker/@{KEY}", "attempt": 1, "runner": "node:1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("document", "change"),
    [
        (READY_RECORD, lambda store: store.renew(KEY, NOW)),
        (READY_RECORD, lambda store: store.untag(KEY, "old:1")),
        (READY_RECORD, lambda store: store.expire(KEY)),
        (READY_RECORD, lambda store: store.set_access(["alpha"], ID, True, (1,), ())),
        (READY_RECORD, lambda store: complete_pull(store, request("new:1"))),
        (READY_RECORD, lambda store: complete_pull(store, request("old:1"), OTHER_ID)),
        (CLAIM, lambda store: store.begin(KEY, "n", NOW, LIMIT)),
        (IN_PROGRESS, lambda store: store.requeue(KEY, 1, "", died=True)),
        (IN_PROGRESS, lambda store: store.advance(KEY, 1, State.TRANSFER, "", NOW)),
        (IN_PROGRESS, lambda store: store.heartbeat(KEY, 1, Progress("x", 1, 2), NOW)),
        (IN_PROGRESS, lambda store: store.finish(KEY, 1, Ready(OTHER_ID), NOW)),
        (IN_PROGRESS, lambda store: store.finish(KEY, 1, failure(), NOW)),
        (REMOVAL, lambda store: store.finish(KEY, 1, Expired(), NOW)),
        (REMOVAL, lambda store: store.finish(KEY, 1, failure(), NOW)),
        (REMOVAL, lambda store: complete_pull(store, request("new:1"))),
        (REMOVAL, lambda store: complete_pull(store, request("old:1"), OTHER_ID)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_unknown_members_survive_every_change(
    place: Place, document: dict[str, Any], change: Callable[[ImageStore], Awaitable[object]]
) -> None:
    """Members of other programs stay as they are."""
    unknown = {"site_note": {"kept": ["by", "us"]}, "ostcount": "5", "a member": None}
    place.put(KEY, document | unknown)
    await change(place.store)
    after = place.document(KEY)
    assert after != document | unknown | {"_id": ObjectId(KEY)}
    assert {name: after[name] for name in unknown} == unknown


@pytest_twisted.ensureDeferred
async def test_any_text_of_an_image_can_be_stored(place: Place) -> None:
    """MongoDB's restrictions of names and text are observed.

    Every client can read the document.
    """
    labels = {"$ref": "a", "$id": "b", "org.name": "c", "nul\0": "d", "low\udcff": "e", "": "f"}
    record = await begin_pull(place.store, request())
    changes = {"env": ("A=\udcff", "B=\0", "$where"), "labels": labels}
    done = await place.store.finish(record.key, 1, Ready(ID, changes), NOW)
    assert done == await place.store.get(record.key)
    assert done.env == ("A=\ufffd", "B=\0", "$where")
    expected_labels = {"\uff04ref": "a", "\uff04id": "b", "org.name": "c", "": "f"}
    assert done.labels == expected_labels | {"nul\ufffd": "d", "low\ufffd": "e"}
    assert place.document(record.key)["LABELS"] == done.labels


@pytest_twisted.ensureDeferred
async def test_a_queue_has_one_system_only(place: Place) -> None:
    """Names of systems may start with another's name."""
    store = place.store
    for system in ("alpha", "alpha0", "alpha-2", "alph", "alpha."):
        await store.claim(request(system=system), NOW)
    for system in ("alpha", "alph"):
        assert [record.system for record in await store.queue(system)] == [system]


@pytest_twisted.ensureDeferred
async def test_long_lists_come_in_batches(
    place: Place, port: int, empty_database: NamedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the connection breaks in the middle, the list starts again."""
    monkeypatch.setattr(mongo_database, "BATCH", 7)
    for n in range(30):
        place.put(f"{n:024x}", OF_THE_ORIGINAL | {"id": f"{n:064x}", "tag": [f"x:{n}"]})
    assert [record.id for record in await place.store.list("alpha")] == [
        f"{n:064x}" for n in range(30)
    ]
    with Wire(port, cut="getMore") as wire:
        async with mongo_running(wire.uri, empty_database[0]) as peer:
            assert len(await peer.list("alpha")) == 30
    assert wire.commands.count("getMore") > 4


CUTS: list[tuple[str, Callable[[ImageStore, str], Awaitable[object]]]] = [
    ("find", lambda store, key: store.get(key)),
    ("find", lambda store, _: store.queue("alpha")),
    ("count", lambda store, _: store.claim(request("y:1"), NOW)),
    ("insert", lambda store, _: store.claim(request("y:1"), NOW)),
    ("update", lambda store, key: store.heartbeat(key, 1, Progress(), NOW)),
    ("findAndModify", lambda store, key: store.advance(key, 1, State.TRANSFER, "", NOW)),
    ("findAndModify", lambda store, key: store.begin(key, "other", NOW + 100, LIMIT)),
    ("findAndModify", lambda store, key: store.finish(key, 1, failure(), NOW)),
    ("update", lambda store, _: store.lease("/images", ID, "k/1", NOW, 9)),
    ("update", lambda store, _: store.block("/images", ID, 0, NOW)),
    ("delete", lambda store, _: store.allow("/images", ID)),
]


@pytest.mark.parametrize(("command", "call"), CUTS)
@pytest_twisted.ensureDeferred
async def test_a_lost_answer_changes_no_result(
    place: Place,
    port: int,
    empty_database: NamedDatabase,
    command: str,
    call: Callable[[ImageStore, str], Awaitable[object]],
) -> None:
    """After a lost answer the call ends as if the answer had arrived."""
    key = (await begin_pull(place.store, request())).key
    with Wire(port, cut=command) as wire:
        async with mongo_running(wire.uri, empty_database[0]) as peer:
            answer = await call(peer, key)
    if isinstance(answer, tuple):
        assert answer[1], "it was created"
    if command == "findAndModify" and answer is not None:
        assert answer == await place.store.get(key)


@pytest_twisted.ensureDeferred
async def test_a_use_and_a_removal_notice_each_other(
    place: Place, port: int, empty_database: NamedDatabase
) -> None:
    """Whichever is written first is seen by the other one, which has read the record before."""
    images = empty_database[1]["images"]
    ready = await complete_pull(place.store, request("x:1"))
    number = {"_id": ObjectId(ready.key)}
    use = {"$unset": {"only_user": ""}}
    removal = {"$set": {"status": "EXPIRING", "claim": "@"}}
    change = use

    def change_first(n: int, _: object) -> None:
        if n == 1:
            images.update_one(number, change)

    with Wire(port, before_write=change_first) as wire:
        async with mongo_running(wire.uri, empty_database[0]) as peer:
            assert await peer.expire(ready.key, expected=ready) is None
    images.update_one(number, {"$set": {"only_user": 7}})
    change = removal
    with Wire(port, before_write=change_first) as wire:
        async with mongo_running(wire.uri, empty_database[0]) as peer:
            assert not await peer.note_use(ready.key, 8)


@pytest_twisted.ensureDeferred
async def test_a_change_between_read_and_write_is_noticed(
    place: Place, port: int, empty_database: NamedDatabase
) -> None:
    """The step reads the document again and decides anew."""
    store, images = place.store, empty_database[1]["images"]
    ready = await complete_pull(store, request("x:1"))
    number = {"_id": ObjectId(ready.key)}

    def add_tag(n: int, _: object) -> None:
        if n == 1:
            images.update_one(number, {"$set": {"tag": ["x:1", "y:1"]}})

    with Wire(port, before_write=add_tag) as wire:
        async with mongo_running(wire.uri, empty_database[0]) as peer:
            result = await peer.untag(ready.key, "x:1")
    assert result is not None
    assert (result.status, result.tags) == (State.READY, ("y:1",))

    def renew(n: int, _: object) -> None:
        if n == 1:
            images.update_one(number, {"$set": {"expiration": NOW + 500}})

    await store.renew(ready.key, NOW + 5)
    with Wire(port, before_write=renew) as wire:
        async with mongo_running(wire.uri, empty_database[0]) as peer:
            assert await peer.expire(ready.key, NOW + 10) is None

    def replace_tag(n: int, _: object) -> None:
        if n == 1:  # a word that stood alone is a list now: the same to a filter, not to us
            images.update_one(number, {"$set": {"tag": ["y:1", "z:1"]}})

    images.update_one(number, {"$set": {"tag": "y:1"}})
    with Wire(port, before_write=replace_tag) as wire:
        async with mongo_running(wire.uri, empty_database[0]) as peer:
            result = await peer.untag(ready.key, "y:1")
    assert result is not None
    assert result.tags == ("z:1",)


@pytest_twisted.ensureDeferred
async def test_a_claim_does_not_remove_its_own_failure(
    place: Place, port: int, empty_database: NamedDatabase
) -> None:
    """The pull may fail before the call of `claim` returns."""
    images = empty_database[1]["images"]

    def fail(n: int, _: object) -> None:
        if n == 1:
            images.update_one({}, {"$set": {"status": "FAILURE"}, "$unset": {"claim": ""}})

    with Wire(port, after_write=fail) as wire:
        async with mongo_running(wire.uri, empty_database[0]) as peer:
            record, is_new = await peer.claim(request("x:1"), NOW)
    assert is_new
    failed_pull = await place.store.get(record.key)
    assert failed_pull is not None
    assert failed_pull.status is State.FAILURE


@pytest_twisted.ensureDeferred
async def test_a_tag_moved_during_a_finish_does_not_come_back(
    place: Place, port: int, empty_database: NamedDatabase
) -> None:
    """Another image gets the tag at that moment."""
    store = place.store
    await complete_pull(store, request("z:1"))
    await request_removal(store, request("y:1"))
    record = await begin_pull(store, request("x:1"))

    def move_tag(n: int, _: object) -> None:
        if n == 1:
            empty_database[1]["images"].update_one(
                {"status": "EXPIRING"}, {"$addToSet": {"moved": "z:1"}}
            )

    with Wire(port, before_write=move_tag) as wire:
        async with mongo_running(wire.uri, empty_database[0]) as peer:
            back = await peer.finish(record.key, 1, Ready(ID), NOW)
    assert back.tags == ("y:1", "x:1")
    assert "moved" not in place.document(back.key)


@pytest_twisted.ensureDeferred
async def test_a_cancellation_affects_one_caller(place: Place) -> None:
    """The caller gets `CancelledError` at once, and other calls continue."""
    waiting = [Deferred.fromCoroutine(place.store.queue("alpha")) for _ in range(3)]
    waiting[1].cancel()
    with pytest.raises(CancelledError):
        await waiting[1]
    assert await waiting[0] == await waiting[2] == []
    starting = Deferred.fromCoroutine(place.store.claim(request(), NOW))
    starting.cancel()
    with pytest.raises(CancelledError):
        await starting
    await place.store.claim(request("x:1"), NOW)
