"""The tables and collections of the stores, and the members of each document at each step."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests import mongod
from tests.golden import program
from tests.golden.quotes import quoted_collections
from tests.golden.records import check, load
from tests.golden.registry import image_of
from tests.golden.state import DATABASE, STATES, restore
from tests.store.places import Place, mongo_place, mongo_running, running, sqlite_place

NOW = 1_000_000.0
LIMIT = 60.0
ID, OTHER_ID, TWO_TAGS_ID = "a" * 64, "b" * 64, "d" * 64
RUNNER = "node1:7"
DIRECTORY = "/images"
TABLES = (
    "leases",
    "blocks",
    "breakers",
    "turns",
    "lookups",
    "file_ranges",
    "file_data",
    "throughput",
)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the local time zone to UTC: messages to users contain local times."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="module")
def mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URI of a MongoDB server."""
    with mongod.any_server(tmp_path_factory.mktemp("mongod")) as uri:
        yield uri


async def _history(place: Place) -> dict[str, Any]:
    """Perform each step on records; return the document after each of them."""
    store = place.store
    documents: dict[str, Any] = {}

    def note(name: str, key: str) -> None:
        documents[name] = _plain({**place.document(key), "_id": key}, key)

    pull = program.pull_request("lib/app:1", 2001, location="hub", requester="alice")
    record, _ = await store.claim(pull, NOW)
    key = record.key
    note("claimed", key)
    await store.begin(key, RUNNER, NOW + 1, LIMIT)
    note("begun", key)
    await store.heartbeat(key, 1, program.Progress("fetch", 5, 10), NOW + 2, "Pulling layers")
    note("heartbeat", key)
    await store.advance(key, 1, program.State.CONVERSION, "Converting image", NOW + 3)
    note("advanced", key)
    await store.postpone(key, 1, NOW + 60, "hub (rate limit)", NOW + 4)
    note("postponed for a registry", key)
    await store.begin(key, RUNNER, NOW + 60, LIMIT)
    await store.postpone(key, 2, NOW + 70, "another pull", NOW + 60, cause="pull")
    note("postponed for a pull", key)
    await store.begin(key, RUNNER, NOW + 70, LIMIT)
    why = "the system mycluster (its host does not answer)"
    await store.postpone(key, 3, NOW + 75, why, NOW + 70, cause="system")
    note("postponed for its system", key)
    await store.begin(key, RUNNER, NOW + 75, LIMIT)
    await store.requeue(key, 4, "The worker was killed.", died=True)
    note("requeued after a death", key)
    await store.begin(key, RUNNER, NOW + 80, LIMIT)
    await store.begin(key, RUNNER, NOW + 200, LIMIT)
    note("begun after a silence", key)
    await store.finish(key, 6, program.ready_end(ID), NOW + 300)
    note("READY", key)
    await store.renew(key, NOW + 5000)
    note("renewed", key)
    await store.set_access(["mycluster"], ID, True, [2001], [2100])
    note("with other readers", key)
    await _removals(place, note, key)
    await _tags(place, note)
    await _failures(place, note)
    await _uploads(place, note)
    return documents


async def _removals(place: Place, note: Callable[[str, str], None], key: str) -> None:
    """Remove the image of a record; the first attempt fails."""
    store = place.store
    await store.expire(key)
    note("EXPIRING", key)
    await store.begin(key, RUNNER, NOW + 400, LIMIT)
    note("EXPIRING, begun", key)
    successor, _ = await store.claim(program.pull_request("lib/app:1", 2002), NOW + 401)
    await store.begin(successor.key, RUNNER, NOW + 401, LIMIT)
    await store.finish(successor.key, 1, program.ready_end(OTHER_ID), NOW + 402)
    note("EXPIRING, whose tag is another's", key)
    await store.requeue(key, 7, "The worker was stopped.", died=False)
    note("EXPIRING, requeued", key)
    await store.begin(key, RUNNER, NOW + 500, LIMIT)
    await store.finish(key, 8, program.expired_end(), NOW + 501)
    note("EXPIRED", key)
    await store.untag(successor.key, "lib/app:1")
    note("without its last tag", successor.key)
    await store.begin(successor.key, RUNNER, NOW + 600, LIMIT)
    await store.finish(successor.key, 2, program.failed_end(), NOW + 601)
    note("EXPIRING, put off", successor.key)


async def _tags(place: Place, note: Callable[[str, str], None]) -> None:
    """Pull an image by several tags, and try to remove it."""
    store = place.store

    async def pull(tag: str, image_id: str, now: float) -> str:
        record, _ = await store.claim(program.pull_request(tag, 2001), now)
        await store.begin(record.key, RUNNER, now, LIMIT)
        key: str = (await store.finish(record.key, 1, program.ready_end(image_id), now + 1)).key
        return key

    key = await pull("lib/two:1", TWO_TAGS_ID, NOW)
    await pull("lib/two:2", TWO_TAGS_ID, NOW + 10)
    note("with two tags", key)
    await pull("lib/two:1", "e" * 64, NOW + 20)
    note("with one tag left", key)
    await store.expire(key)
    await store.begin(key, RUNNER, NOW + 30, LIMIT)
    await store.finish(key, 2, program.failed_end(), NOW + 31)
    note("EXPIRING after a removal that failed", key)
    await store.expire(key)
    await pull("lib/two:3", TWO_TAGS_ID, NOW + 40)
    note("READY after a pull during its removal", key)
    await pull("lib/two:2", "e" * 64, NOW + 50)
    await pull("lib/two:3", "e" * 64, NOW + 60)
    note("with no tag left", key)


async def _failures(place: Place, note: Callable[[str, str], None]) -> None:
    """Fail two pulls; the caller of one is an admin with a login."""
    store = place.store
    for name, members in {
        "FAILURE": {},
        "FAILURE with a login": {"sealed": "sealed", "by_admin": True, "kind": "acl"},
    }.items():
        pull = program.pull_request(f"lib/{len(name)}:1", 2001, **members)
        record, _ = await store.claim(pull, NOW)
        if members:
            note("claimed with a login", record.key)
        await store.begin(record.key, RUNNER, NOW, LIMIT)
        await store.finish(record.key, 1, program.failed_end(own=bool(members)), NOW + 1)
        note(name, record.key)


async def _uploads(place: Place, note: Callable[[str, str], None]) -> None:
    """Make an image of an upload."""
    request = program.upload_request("mine:1", 2001)
    record, _ = await place.store.claim(request, NOW)
    note("claimed with an upload", record.key)
    await place.store.begin(record.key, RUNNER, NOW, LIMIT)
    await place.store.finish(record.key, 1, program.upload_end("f" * 64, request), NOW + 1)
    note("READY, made of an upload", record.key)


async def _tables(place: Place) -> None:
    """Store something of every kind that is not a record."""
    store = place.store
    record, _ = await store.claim(program.pull_request("lib/leased:1", 2001), NOW)
    await store.begin(record.key, RUNNER, NOW, LIMIT)
    await store.lease(DIRECTORY, ID, f"{record.key}/1", NOW, 120)
    await store.block(DIRECTORY, OTHER_ID, 0, NOW)
    await store.trip_breaker("limit hub anonymous node1", NOW + 60, "hub (rate limit)", NOW)
    await store.trip_breaker("limit hub anonymous node2", NOW + 60, "hub (rate limit)", NOW)
    await store.check_breaker("limit hub anonymous node2", NOW + 61, 90)
    await store.save_ranges("c" * 64, program.packed_data(), NOW)
    await store.add_throughput(program.throughput(NOW))
    row = {"user": "alice", "uid": 2001, "system": "mycluster", "type": "docker"}
    await store.record_lookup({**row, "tag": "lib/app:1", "id": ID, "time": NOW})


def _plain(value: Any, key: str = "") -> Any:
    """Return a document of a database as JSON, with marks for values that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _plain(inner, key) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, key) for inner in value]
    if isinstance(value, str):
        return re.sub(r"(?<![0-9a-f])[0-9a-f]{24}(?![0-9a-f])", "<key>", value)
    if isinstance(value, int | float | None):
        return value
    return f"<{type(value).__name__}>"


@pytest_twisted.ensureDeferred
async def test_sqlite_documents(tmp_path: Path) -> None:
    """Each step leaves the recorded document in the file."""
    path = tmp_path / "shiftergw.sqlite"
    async with running(path) as store:
        documents = await _history(sqlite_place(store, path))
    check("documents", documents)


@pytest_twisted.ensureDeferred
async def test_sqlite_tables(tmp_path: Path) -> None:
    """The file has the recorded tables, columns and indexes, and rows that are not records."""
    path = tmp_path / "shiftergw.sqlite"
    async with running(path) as store:
        await _tables(sqlite_place(store, path))
    with closing(sqlite3.connect(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        facts = {"user_version": version, "schema": _schema(db)}
        for table in TABLES:
            rows = db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            facts[table] = [_plain(list(row)) for row in rows]
    check("sqlite", facts)


def _schema(db: sqlite3.Connection) -> dict[str, str]:
    """Return the statements of a schema, without comments and line ends."""
    query = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY 1 DESC, 2"
    return {
        f"{kind} {name}": " ".join(re.sub(r"--[^\n]*", "", sql).split())
        for kind, name, sql in db.execute(query)
    }


def test_sqlite_scripts() -> None:
    """The scripts that created the files of earlier versions change only in comments."""
    scripts = {}
    for path in program.schema_scripts():
        scripts[path.name] = " ".join(re.sub(r"--[^\n]*", "", path.read_text()).split())
    check("sqlite-scripts", dict(sorted(scripts.items())))


@pytest_twisted.ensureDeferred
async def test_mongodb(mongodb: str) -> None:
    """MongoDB has the recorded collections and indexes, and the same documents as SQLite."""
    with mongod.database(mongodb) as (name, db):
        db["images"].insert_one({"system": "mycluster", "status": "READY", "tag": ["old:1"]})
        async with mongo_running(mongodb, name) as store:
            place = mongo_place(store, mongodb, db)
            documents = await _history(place)
            db["images"].delete_many({})
            db["shiftergw.turns"].delete_many({})
            await _tables(place)
            await store.use(b"digest", NOW)
            db["images"].insert_one({"system": "mycluster", "status": "READY", "id": ID})
            await store.expires(True, NOW, 60)
        # MongoDB keeps the members in the order of insertion, and SQLite does not.
        different_documents = {
            step: dict(sorted(document.items()))
            for step, document in documents.items()
            if document != load("documents")[step]
        }
        database = {
            "documents that differ from those in SQLite": different_documents,
            "collections": {
                collection: [_plain(document) for document in rows]
                for collection, rows in mongod.all_documents(db).items()
                if collection != "images"
            },
            "indexes": {
                collection: _indexes(db, collection)
                for collection in sorted(db.list_collection_names())
            },
        }
    check("mongodb", database)


def test_collections() -> None:
    """The documents name all our collections, and `shiftergw check` examines each."""
    collections = set(load("mongodb")["collections"]) | {"images"}
    assert program.checked_collections() == collections
    assert quoted_collections() == {name for name in collections if name.startswith("shiftergw.")}


@pytest_twisted.ensureDeferred
async def test_mongodb_of_interrupted_work(mongodb: str) -> None:
    """The end of a pull and a migration that a dead process has left are completed."""
    rest = {"tag": "lib/app:1", "until": NOW + 99, "directory": DIRECTORY, "since": NOW}
    image = {"system": "mycluster", "itype": "docker", "status": "READY", "tag": ["lib/app:1"]}
    with mongod.database(mongodb) as (name, db):
        db["images"].insert_one({**image, "id": ID, "last_pull": NOW, "finishing": rest})
        db["images"].insert_one({**image, "id": OTHER_ID, "last_pull": NOW - 1})
        async with mongo_running(mongodb, name) as store:
            await store.stale(NOW + 100, LIMIT)
        new_image, old_image = db["images"].find({}, {"_id": 0}).sort("_id")
        assert "finishing" not in new_image
        assert (new_image["tag"], old_image["tag"], old_image["expiration"]) == (
            ["lib/app:1"],
            [],
            NOW + 99,
        )
        db["shiftergw.state"].insert_one({"_id": "migration", "source": "file", "begun": NOW})
        async with mongo_running(mongodb, name) as store:
            with pytest.raises(program.Unavailable):
                await store.claim(program.pull_request("lib/app:2", 2001), NOW)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("version", sorted(path.name for path in STATES.iterdir()))
async def test_documents_of_an_earlier_version(mongodb: str, version: str, tmp_path: Path) -> None:
    """Both stores return the same records from the documents of an earlier version."""
    now = restore(version, tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        rows = db.execute("SELECT key, document FROM images").fetchall()
        turns = db.execute("SELECT uid, served FROM turns").fetchall()
    async with running(tmp_path / DATABASE) as store:
        in_sqlite = await _records_of(store, now)
    with mongod.database(mongodb) as (name, mongo):
        async with mongo_running(mongodb, name) as store:
            place = mongo_place(store, mongodb, mongo)
            for key, document in rows:
                place.put(key, json.loads(document))
            for uid, count in turns:
                mongo["shiftergw.turns"].insert_one({"_id": uid, "served": count})
            assert await _records_of(store, now) == in_sqlite
    tags = {look: [record.pulltag for record in records] for look, records in in_sqlite.items()}
    check(f"store-{version}", {look: sorted(names) for look, names in tags.items()})


async def _records_of(store: Any, now: float) -> dict[str, list[Any]]:
    """Return the records that each query of a store returns."""
    tags = ("lib/ready:1", "closed/ready:1", "lib/pulling:1", "missing/app:1")
    images = [await store.find("mycluster", "docker", [tag]) for tag in tags]
    work = [await store.find_work("mycluster", "docker", tag) for tag in tags]
    return {
        "images by tag": [image for image in images if image is not None],
        "work by tag": [record for records in work for record in records],
        "images by id": list(await store.find_id(["mycluster"], image_of("lib/ready").digest.hex)),
        "list": list(await store.list("mycluster")),
        "queue": list(await store.queue("mycluster")),
        "waiting": list(await store.waiting(now, 100)),
        "stale": list(await store.stale(now, LIMIT)),
        "expired": list(await store.list_expired(now + 1e9)),
    }


def _indexes(db: Any, collection: str) -> dict[str, Any]:
    facts = ("unique", "sparse", "expireAfterSeconds")
    return {
        name: {
            "key": ", ".join(f"{member} {int(order)}" for member, order in index["key"]),
            **{fact: index[fact] for fact in facts if index.get(fact)},
        }
        for name, index in sorted(db[collection].index_information().items())
        if name != "_id_"
    }
