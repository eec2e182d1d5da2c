"""The MongoDB store keeps the contract, and what others keep in the same database."""

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
from shiftergw.model import Expired, Progress, Ready
from shiftergw.mongo import database as mongo_database
from shiftergw.ports import ImageStore
from shiftergw.states import State
from shiftergw.store.mongo.queries import CREDENTIALS
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
Named = tuple[str, Any]
"""A database's name, and pymongo's way to it."""


@pytest.fixture
def named(mongodb: str) -> Iterator[Named]:
    """Return a database of the test's own."""
    with mongod.database(mongodb) as there:
        yield there


@pytest.fixture
def place(mongodb: str, named: Named) -> Iterator[Place]:
    """Return a running store."""
    name, db = named
    store = MongoStore(reactor, mongodb, name)
    store.startService()
    yield mongo_place(store, mongodb, db)
    pytest_twisted.blockon(store.stopService())


@pytest.fixture
def port(mongodb: str) -> int:
    """Return the server's port on the loopback."""
    return urlsplit(mongodb).port or 27017


class TestMongoStore(StoreContract):
    """The contract, on MongoDB."""


@pytest_twisted.ensureDeferred
async def test_everything_is_there_after_a_restart(mongodb: str, named: Named) -> None:
    """What was stored is found by the next process."""
    name, _ = named
    async with mongo_running(mongodb, name) as store:
        record = await complete_pull(store, request())
    async with mongo_running(mongodb, name) as store:
        assert await store.get(record.key) == record


@pytest_twisted.ensureDeferred
async def test_another_gateway_that_starts_takes_nothing(
    mongodb: str, named: Named, place: Place
) -> None:
    """What waits and what runs for one gateway is left alone when another one starts and stops."""
    waiting, _ = await place.store.claim(request("x:1"), NOW)
    running_one = await begin_pull(place.store, request("x:2"))
    async with mongo_running(mongodb, named[0]) as other:
        assert await other.waiting(NOW, 5) == [waiting]
    assert await place.store.get(waiting.key) == waiting
    assert await place.store.get(running_one.key) == running_one


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
async def test_a_start_changes_nothing(mongodb: str, named: Named) -> None:
    """A database of the original is the same after a start, but for our indexes.

    Where there is nothing yet of what is indexed, an empty collection is made.
    """
    name, db = named
    db["images"].insert_many(ORIGINALS)
    db["metrics"].insert_one({**ROW, "_id": ObjectId("1" * 24)})
    db["elsewhere"].insert_one({"_id": 1})
    before = mongod.all_documents(db)
    async with mongo_running(mongodb, name) as store:
        await store.queue("alpha")
        await store.abandon((await store.claim(request("x:1"), NOW))[0].key)
        assert list(await store.lookups("alpha", 5)) == [ROW]
    assert mongod.all_documents(db) == {**before, CREDENTIALS: []}
    unique = {
        index for index, form in db["images"].index_information().items() if form.get("unique")
    }
    assert unique == {"shiftergw_claim"}


@pytest_twisted.ensureDeferred
async def test_indexes_that_are_there(mongodb: str, named: Named) -> None:
    """An index like ours is used whatever its name; of another kind it is in nobody's way."""
    name, db = named
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
async def test_no_claims_without_their_index(mongodb: str, named: Named) -> None:
    """Where the index of claims cannot be made nothing is claimed, and the log says why.

    The server is asked again after a minute only: each try reads all records.
    """
    name, db = named
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
async def test_keys_that_are_none(place: Place, key: str) -> None:
    """A key that is no ObjectId's is no record's."""
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


READY_ONE: dict[str, Any] = dict(OF_THE_ORIGINAL)
FLYING: dict[str, Any] = OF_THE_ORIGINAL | {
    "status": "PENDING", "claim": "alpha/docker/old:1", "tag": [], "id": None,
}  # fmt: skip
BEGUN = FLYING | {"status": "PULLING", "attempt": 1, "runner": "node:1", "last_heartbeat": NOW}
GOING = OF_THE_ORIGINAL | {
    "status": "EXPIRING", "claim": f"alpha/docker/@{KEY}", "attempt": 1, "runner": "node:1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("document", "change"),
    [
        (READY_ONE, lambda store: store.renew(KEY, NOW)),
        (READY_ONE, lambda store: store.untag(KEY, "old:1")),
        (READY_ONE, lambda store: store.expire(KEY)),
        (READY_ONE, lambda store: store.set_access(["alpha"], ID, True, (1,), ())),
        (READY_ONE, lambda store: complete_pull(store, request("new:1"))),
        (READY_ONE, lambda store: complete_pull(store, request("old:1"), OTHER_ID)),
        (FLYING, lambda store: store.begin(KEY, "n", NOW, LIMIT)),
        (BEGUN, lambda store: store.requeue(KEY, 1, "", died=True)),
        (BEGUN, lambda store: store.advance(KEY, 1, State.TRANSFER, "", NOW)),
        (BEGUN, lambda store: store.heartbeat(KEY, 1, Progress("x", 1, 2), NOW)),
        (BEGUN, lambda store: store.finish(KEY, 1, Ready(OTHER_ID), NOW)),
        (BEGUN, lambda store: store.finish(KEY, 1, failure(), NOW)),
        (GOING, lambda store: store.finish(KEY, 1, Expired(), NOW)),
        (GOING, lambda store: store.finish(KEY, 1, failure(), NOW)),
        (GOING, lambda store: complete_pull(store, request("new:1"))),
        (GOING, lambda store: complete_pull(store, request("old:1"), OTHER_ID)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_unknown_members_survive_everything(
    place: Place, document: dict[str, Any], change: Callable[[ImageStore], Awaitable[object]]
) -> None:
    """Whatever is done to a document, members that we do not know stay as they were."""
    unknown = {"site_note": {"kept": ["by", "us"]}, "ostcount": "5", "a member": None}
    place.put(KEY, document | unknown)
    await change(place.store)
    after = place.document(KEY)
    assert after != document | unknown | {"_id": ObjectId(KEY)}
    assert {name: after[name] for name in unknown} == unknown


@pytest_twisted.ensureDeferred
async def test_text_of_images(place: Place) -> None:
    """What an image says of itself cannot be what MongoDB cannot hold, or would take for its own.

    The document stays one that every client reads.
    """
    labels = {"$ref": "a", "$id": "b", "org.name": "c", "nul\0": "d", "low\udcff": "e", "": "f"}
    record = await begin_pull(place.store, request())
    changes = {"env": ("A=\udcff", "B=\0", "$where"), "labels": labels}
    done = await place.store.finish(record.key, 1, Ready(ID, changes), NOW)
    assert done == await place.store.get(record.key)
    assert done.env == ("A=\ufffd", "B=\0", "$where")
    kept = {"\uff04ref": "a", "\uff04id": "b", "org.name": "c", "": "f"}
    assert done.labels == kept | {"nul\ufffd": "d", "low\ufffd": "e"}
    assert place.document(record.key)["LABELS"] == done.labels


@pytest_twisted.ensureDeferred
async def test_systems_whose_names_begin_alike(place: Place) -> None:
    """The queue of one is not the other's."""
    store = place.store
    for system in ("alpha", "alpha0", "alpha-2", "alph", "alpha."):
        await store.claim(request(system=system), NOW)
    for system in ("alpha", "alph"):
        assert [record.system for record in await store.queue(system)] == [system]


@pytest_twisted.ensureDeferred
async def test_long_lists(
    place: Place, port: int, named: Named, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list comes in pieces; where the connection breaks in the middle it comes from the start."""
    monkeypatch.setattr(mongo_database, "BATCH", 7)
    for n in range(30):
        place.put(f"{n:024x}", OF_THE_ORIGINAL | {"id": f"{n:064x}", "tag": [f"x:{n}"]})
    assert [record.id for record in await place.store.list("alpha")] == [
        f"{n:064x}" for n in range(30)
    ]
    with Wire(port, cut="getMore") as wire:
        async with mongo_running(wire.uri, named[0]) as other:
            assert len(await other.list("alpha")) == 30
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
async def test_a_connection_that_breaks(
    place: Place,
    port: int,
    named: Named,
    command: str,
    call: Callable[[ImageStore, str], Awaitable[object]],
) -> None:
    """A call whose answer is lost once ends as if it had not been."""
    key = (await begin_pull(place.store, request())).key
    with Wire(port, cut=command) as wire:
        async with mongo_running(wire.uri, named[0]) as other:
            answer = await call(other, key)
    if isinstance(answer, tuple):
        assert answer[1], "it was created"
    if command == "findAndModify" and answer is not None:
        assert answer == await place.store.get(key)


@pytest_twisted.ensureDeferred
async def test_what_changes_between_look_and_write(place: Place, port: int, named: Named) -> None:
    """Others are quicker once: the step decides again on what is there then."""
    store, images = place.store, named[1]["images"]
    ready = await complete_pull(store, request("x:1"))
    number = {"_id": ObjectId(ready.key)}

    def tag_it(n: int, _: object) -> None:
        if n == 1:
            images.update_one(number, {"$set": {"tag": ["x:1", "y:1"]}})

    with Wire(port, before_write=tag_it) as wire:
        async with mongo_running(wire.uri, named[0]) as other:
            left = await other.untag(ready.key, "x:1")
    assert left is not None
    assert (left.status, left.tags) == (State.READY, ("y:1",))

    def renew_it(n: int, _: object) -> None:
        if n == 1:
            images.update_one(number, {"$set": {"expiration": NOW + 500}})

    await store.renew(ready.key, NOW + 5)
    with Wire(port, before_write=renew_it) as wire:
        async with mongo_running(wire.uri, named[0]) as other:
            assert await other.expire(ready.key, NOW + 10) is None

    def retag_it(n: int, _: object) -> None:
        if n == 1:  # a word that stood alone is a list now: the same to a filter, not to us
            images.update_one(number, {"$set": {"tag": ["y:1", "z:1"]}})

    images.update_one(number, {"$set": {"tag": "y:1"}})
    with Wire(port, before_write=retag_it) as wire:
        async with mongo_running(wire.uri, named[0]) as other:
            left = await other.untag(ready.key, "y:1")
    assert left is not None
    assert left.tags == ("z:1",)


@pytest_twisted.ensureDeferred
async def test_a_claim_that_fails_at_once(place: Place, port: int, named: Named) -> None:
    """Who makes a claim does not forget how it ended, be that before he is through."""
    images = named[1]["images"]

    def fail_it(n: int, _: object) -> None:
        if n == 1:
            images.update_one({}, {"$set": {"status": "FAILURE"}, "$unset": {"claim": ""}})

    with Wire(port, after_write=fail_it) as wire:
        async with mongo_running(wire.uri, named[0]) as other:
            record, created = await other.claim(request("x:1"), NOW)
    assert created
    failed = await place.store.get(record.key)
    assert failed is not None
    assert failed.status is State.FAILURE


@pytest_twisted.ensureDeferred
async def test_a_tag_that_goes_while_its_image_comes_back(
    place: Place, port: int, named: Named
) -> None:
    """A tag that is pulled as another image in that moment does not come back."""
    store = place.store
    await complete_pull(store, request("z:1"))
    await request_removal(store, request("y:1"))
    record = await begin_pull(store, request("x:1"))

    def pull_it(n: int, _: object) -> None:
        if n == 1:
            named[1]["images"].update_one({"status": "EXPIRING"}, {"$addToSet": {"moved": "z:1"}})

    with Wire(port, before_write=pull_it) as wire:
        async with mongo_running(wire.uri, named[0]) as other:
            back = await other.finish(record.key, 1, Ready(ID), NOW)
    assert back.tags == ("y:1", "x:1")
    assert "moved" not in place.document(back.key)


@pytest_twisted.ensureDeferred
async def test_cancelled_callers(place: Place) -> None:
    """A caller that is cancelled hears so at once, and nobody else of it."""
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
