"""Migration from SQLite to MongoDB: all documents arrive once, and no gateway works meanwhile."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_twisted
from bson.objectid import ObjectId
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import ConfigurationError, GatewayError, Unavailable
from shiftergw.model.packed_data import PackedData
from shiftergw.model.records import Expired
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import ImageStore
from shiftergw.store import export
from shiftergw.store.migration import migrate
from shiftergw.store.mongo import connections as mongo
from tests import mongod
from tests.installed_reactor import reactor
from tests.store.places import mongo_running, remove_record, running, sqlite_place
from tests.store.pulls import (
    ID,
    NOW,
    OF_THE_ORIGINAL,
    OTHER_ID,
    begin_pull,
    complete_pull,
    failure,
    request,
)
from tests.store.wire import Wire

LABELS = {"$where": "1", "a.b": "", "\ud800": "\udfff"}
"""What an image may name things, and no database likes."""

REPORT = {"big": 2**62, "half": 0.5, "in": {"": [0, None, True]}}


SHA256 = "c" * 64
DATA = PackedData.collect([("d" * 64, [(0, 96, 5000), (9000, 8000, 6000)])])


@dataclass
class Site:
    """A SQLite file, an empty database, and a migration from one to the other."""

    path: Path
    uri: str
    name: str
    db: Any
    threads: Threads
    lines: list[str] = field(default_factory=list)

    async def migrate(self, uri: str = "", origin: str = "here", patience: float = 0) -> Any:
        """Run the migration."""
        return await migrate(
            reactor, self.threads, self.path, origin, uri or self.uri, self.name,
            self.lines.append, patience,
        )  # fmt: skip

    async def refusal(self, kind: type[GatewayError], **how: Any) -> str:
        """Run the migration and return its error."""
        with pytest.raises(kind) as caught:
            await self.migrate(**how)
        return str(caught.value)


@pytest.fixture
def site(mongodb: str, tmp_path: Path, threads: Threads) -> Iterator[Site]:
    """Return a site whose file does not exist yet."""
    with mongod.database(mongodb) as (name, db):
        yield Site(tmp_path / "state.sqlite", mongodb, name, db, threads)


async def fill(site: Site, images: int = 3) -> None:
    """Fill the file with the state that a gateway leaves when it stops without work."""
    async with running(site.path) as store:
        for n in range(images):
            odd = {"labels": LABELS, "report": REPORT, "sha256": SHA256, "size": 4096}
            await complete_pull(store, request(f"x:{n}"), f"{n:064x}", NOW + n, **odd)
        removal = await complete_pull(store, request("gone:1"), OTHER_ID)
        assert await store.expire(removal.key) is not None
        bad_pull = await begin_pull(store, request("bad:1"))
        await store.finish(bad_pull.key, bad_pull.attempt, failure(own=True), NOW)
        attempt = await store.begin(removal.key, "n", NOW, 1)
        assert attempt is not None
        await store.finish(attempt.key, attempt.attempt, Expired(), NOW)
        await store.save_ranges(SHA256, DATA, NOW)
        await store.save_ranges(OTHER_ID, PackedData(), NOW)
        await store.block("/images", ID, 7, NOW)
        await store.block("/other images", ID, 8, NOW + 0.5)
        now = reactor.seconds()
        for n, age in enumerate((100, 95, 98, None, -86400, 94)):
            time = None if age is None else now - age
            row = {"user": f"user{n}", "uid": 1, "system": "alpha", "id": ID, "time": time}
            await store.record_lookup(row)
    sqlite_place(store, site.path).put("5" * 24, OF_THE_ORIGINAL)


async def answers_of(store: ImageStore) -> list[Any]:
    """Return a store's answers to all queries."""
    records = await store.list("alpha")
    return [
        records,
        [await store.get(record.key) for record in records],
        await store.queue("alpha"),
        await store.find("alpha", "docker", ["old:1"]),
        await store.find_id(["alpha"], OTHER_ID, expiring=True),
        [await store.is_blocked(record, [ID]) for record in ("/images", "/other images", "/none")],
        await store.lookups("alpha", 99),
        await store.find_bases(["alpha"], DATA.sizes(), "", 9),
    ]


def as_stored(answers: list[Any]) -> str:
    """Return answers as text, after MongoDB's own rules for text."""
    return (
        repr(answers)
        .replace("'$where", "'\uff04where")
        .replace("\\ud800", "\ufffd")
        .replace("\\udfff", "\ufffd")
    )


@pytest_twisted.ensureDeferred
async def test_everything_arrives(site: Site) -> None:
    """The new store gives the same answers, under the same keys, and new records sort last."""
    await fill(site)
    async with running(site.path) as store:
        before = await answers_of(store)
    assert before[-1][0].data == DATA
    counts = await site.migrate()
    assert counts == {"images": 6, "blocks": 2, "ranges": 2, "look-ups": 6}
    async with mongo_running(site.uri, site.name) as store:
        assert as_stored(await answers_of(store)) == as_stored(before)
        assert (await store.list("alpha"))[0].status == "READY"
        await store.record_lookup({"system": "alpha", "time": NOW, "user": "new"})
        assert (await store.lookups("alpha", 1))[0]["user"] == "new"
        assert (await complete_pull(store, request("x:1"), f"{1:064x}", NOW + 9)).tags == ("x:1",)
    document = site.db["images"].find_one({"_id": ObjectId("5" * 24)})
    assert document.pop("_id") == ObjectId("5" * 24)
    assert document == OF_THE_ORIGINAL
    async with running(site.path) as store:
        assert await answers_of(store) == before
    assert "6 images compared" in site.lines


@pytest_twisted.ensureDeferred
async def test_unfinished_work_prevents_the_migration(site: Site) -> None:
    """A pull that waits or runs, or a lease, leaves the file as it is."""
    async with running(site.path) as store:
        record, _ = await store.claim(request("busy:1"), NOW)
    assert "alpha/docker/" in await site.refusal(Unavailable)
    async with running(site.path) as store:
        await store.abandon(record.key)
        now = reactor.seconds()
        assert await store.lease("/images", ID, "k/1", now, 600)
    assert ID in await site.refusal(Unavailable)
    async with running(site.path) as store:
        await store.release("/images", ID, "k/1")
    assert site.db.list_collection_names() == []
    assert await site.migrate() == {"images": 0, "blocks": 0, "ranges": 0, "look-ups": 0}


@pytest_twisted.ensureDeferred
async def test_an_open_file_is_not_migrated(site: Site) -> None:
    """While a gateway has the file open, it is not copied; nor can a gateway open it meanwhile."""
    async with running(site.path):
        assert "Stop the gateway" in await site.refusal(Unavailable)
    source = await site.threads.run(export.Export, site.path)
    with pytest.raises(sqlite3.OperationalError), closing(sqlite3.connect(site.path, 0.1)) as db:
        db.execute("SELECT * FROM images").fetchall()
    await site.threads.run(source.close)


@pytest_twisted.ensureDeferred
async def test_an_invalid_file_is_not_changed(site: Site) -> None:
    """A missing file is not created, and another program's file is not touched."""
    assert "There is no database" in await site.refusal(ConfigurationError)
    assert not site.path.exists()
    site.path.write_bytes(b"x" * 5000)
    assert "is not a database" in await site.refusal(ConfigurationError)
    assert site.path.read_bytes() == b"x" * 5000


@pytest.mark.parametrize(
    ("collection", "document", "why"),
    [
        ("images", {"system": "alpha", "status": "READY"}, "has 1 images already"),
        ("metrics", {"system": "alpha"}, "has 1 look-ups already"),
        ("shiftergw.leases", {"until": 9e9}, "A gateway works"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_database_in_use_is_not_changed(
    site: Site, collection: str, document: dict[str, Any], why: str
) -> None:
    """No mark remains, so the gateway there continues."""
    await fill(site)
    site.db[collection].insert_one(document)
    assert why in await site.refusal(ConfigurationError)
    assert list(site.db[collection].find()) == [document]
    async with mongo_running(site.uri, site.name) as store:
        assert (await store.claim(request("new:1"), NOW))[1]


@pytest_twisted.ensureDeferred
async def test_a_gateway_on_the_database_accepts_no_work(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway refuses work from the start of the migration to its end."""
    monkeypatch.setattr(mongo, "CHECK_SECONDS", 0.05)
    await fill(site)
    port = urlsplit(site.uri).port
    assert port is not None
    async with mongo_running(site.uri, site.name) as store:
        record, _ = await store.claim(request("early:1"), NOW)
        await store.abandon(record.key)
        with Wire(port, until=2) as wire:
            await site.refusal(Unavailable, uri=wire.uri, patience=0.3)
        with pytest.raises(Unavailable) as caught:
            await store.claim(request("late:1"), NOW)
        assert "migrate" in caught.value.detail
        assert "migrate" not in str(caught.value)
        await site.migrate()
        await pause(0.3, reactor)
        assert (await store.claim(request("late:1"), NOW))[1]


@pytest_twisted.ensureDeferred
async def test_work_before_the_mark_ends_the_migration(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway may accept work before it reads the mark."""
    monkeypatch.setattr(mongo, "CHECK_SECONDS", 60)
    await fill(site)
    async with mongo_running(site.uri, site.name) as store:
        record, _ = await store.claim(request("early:1"), NOW)
        await store.abandon(record.key)
        moving = Deferred.fromCoroutine(site.migrate(patience=1))
        while not any("waiting" in text for text in site.lines):
            await pause(0.01, reactor)
        await store.claim(request("early:1"), NOW)
        with pytest.raises(ConfigurationError, match="A gateway works"):
            await moving
    assert site.db["shiftergw.state"].count_documents({}) == 0


@pytest.mark.parametrize("writes", range(6))
@pytest_twisted.ensureDeferred
async def test_an_interrupted_migration_can_be_repeated(
    site: Site, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """After an interruption at any point, the next run completes the migration."""
    monkeypatch.setattr(export, "PAGE", 3)
    await fill(site)
    port = urlsplit(site.uri).port
    assert port is not None
    with Wire(port, until=writes) as wire:
        await site.refusal(Unavailable, uri=wire.uri)
    assert await site.migrate() == {"images": 6, "blocks": 2, "ranges": 2, "look-ups": 6}
    for collection, count in (
        ("images", 6),
        ("shiftergw.blocks", 2),
        ("shiftergw.ranges", 2),
        ("metrics", 6),
    ):
        assert site.db[collection].count_documents({}) == count


@pytest_twisted.ensureDeferred
async def test_an_interrupt_releases_the_file(site: Site) -> None:
    """An interrupt releases the file, also while the migration waits for gateways."""
    await fill(site)
    moving = Deferred.fromCoroutine(site.migrate(patience=60))
    while not site.lines:
        await pause(0.01, reactor)
    moving.cancel()
    with pytest.raises(CancelledError):
        await moving
    async with running(site.path) as store:
        assert len(await store.list("alpha")) == 4


@pytest_twisted.ensureDeferred
async def test_large_documents_are_split_into_messages(site: Site) -> None:
    """Images with megabytes of metadata arrive, too."""
    async with running(site.path) as store:
        for n in range(12):
            labels = {"long": str(n) * 1_500_000}
            await complete_pull(store, request(f"x:{n}"), f"{n:064x}", NOW + n, labels=labels)
    assert (await site.migrate())["images"] == 12


@pytest_twisted.ensureDeferred
async def test_a_complete_migration_is_not_repeated(site: Site) -> None:
    """A repetition would undo later work of gateways, so it is refused; so is another file."""
    await fill(site)
    await site.migrate()
    async with mongo_running(site.uri, site.name) as store:
        await remove_record(store, "5" * 24)
    assert "copied into this database already" in await site.refusal(ConfigurationError)
    assert "Another file" in await site.refusal(ConfigurationError, origin="there")
    assert site.db["images"].count_documents({}) == 5


def damage(site: Site) -> dict[str, Callable[[], object]]:
    """Return functions that damage the database between the copy and the comparison."""
    images = site.db["images"]
    return {
        "a member": lambda: images.update_one({"pulltag": "x:1"}, {"$set": {"id": ID}}),
        "a kind": lambda: images.update_one({"pulltag": "x:1"}, {"$set": {"last_pull": 1000001}}),
        "one less": lambda: images.delete_one({"pulltag": "x:1"}),
        "one more": lambda: images.insert_one({"system": "alpha"}),
    }


@pytest.mark.parametrize("what", ["a member", "a kind", "one less", "one more"])
@pytest_twisted.ensureDeferred
async def test_differences_are_found(site: Site, what: str) -> None:
    """The migration fails if the database does not hold exactly the file's documents."""
    await fill(site)
    port = urlsplit(site.uri).port
    assert port is not None

    def spoil(_: int, command: dict[str, Any]) -> None:
        if command.get("update") == "metrics":  # the images are there by now
            damage(site)[what]()

    with Wire(port, before_write=spoil) as wire:
        why = await site.refusal(GatewayError, uri=wire.uri)
    assert "images" in why
    assert "done" not in site.db["shiftergw.state"].find_one()


@pytest.mark.parametrize(
    ("key", "document", "why"),
    [
        ("6" * 24, {"system": "alpha", "size": 2**63}, "MongoDB cannot store"),
        ("6" * 24, {"system": "alpha", "long": "x" * 17_000_000}, "bytes are too many"),
        ("no key", {"system": "alpha"}, "is not a MongoDB key"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_documents_that_mongodb_cannot_hold_are_named(
    site: Site, key: str, document: dict[str, Any], why: str
) -> None:
    """The error names the documents, and is raised before the first write."""
    await fill(site)
    with closing(sqlite3.connect(site.path)) as db, db:
        db.execute("INSERT INTO images (key, document) VALUES (?, ?)", (key, json.dumps(document)))
    assert why in await site.refusal(ConfigurationError)
    assert site.db.list_collection_names() == []
