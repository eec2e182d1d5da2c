"""The SQLite store keeps the contract, and its file."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import ConfigurationError, Superseded, Unavailable
from shiftergw.model import Progress, Ready
from shiftergw.store import database, sqlite, steps
from shiftergw.store.sqlite import SqliteStore
from tests.store import hammer
from tests.store.contract import StoreContract
from tests.store.places import Place, sqlite_place
from tests.store.pulls import ID, NOW, all_of, begun, pulled, request


@asynccontextmanager
async def running(
    path: Path, lookups_kept: int = sqlite.LOOKUPS_KEPT
) -> AsyncIterator[SqliteStore]:
    """Run a store while the context lives."""
    store = SqliteStore(reactor, path, lookups_kept)
    await store.startService()
    try:
        yield store
    finally:
        await store.stopService()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file is to be."""
    return tmp_path / "images.sqlite"


@pytest.fixture
def place(path: Path) -> Iterator[Place]:
    """Return a running store."""
    store = SqliteStore(reactor, path)
    pytest_twisted.blockon(store.startService())
    yield sqlite_place(store, path)
    pytest_twisted.blockon(store.stopService())


class TestSqliteStore(StoreContract):
    """The contract, on SQLite."""


def test_the_file_is_private(place: Place, path: Path) -> None:
    """The database and what belongs to it are private; nothing else is left."""
    names = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert names["images.sqlite"] == 0o600
    assert set(names.values()) == {0o600}
    assert set(names) <= {"images.sqlite", "images.sqlite-wal", "images.sqlite-shm"}


@pytest_twisted.ensureDeferred
async def test_everything_is_there_after_a_restart(path: Path) -> None:
    """What was stored is found by the next process."""
    async with running(path) as store:
        record = await pulled(store, request())
    assert [file.name for file in path.parent.iterdir()] == ["images.sqlite"]
    async with running(path) as store:
        found = await store.get(record.key)
    assert found == record


def test_many_processes_make_one_file(path: Path) -> None:
    """Processes that start on an empty directory at once share one database."""
    crowd = [hammer.start(("sqlite", str(path)), "claims", "5") for _ in range(4)]
    assert sum(hammer.go(crowd)) == 5


async def _broken_start(path: Path, expected: type[Exception]) -> Exception:
    store = SqliteStore(reactor, path)
    with pytest.raises(expected) as caught:
        await store.startService()
    assert not store.running
    return caught.value


@pytest_twisted.ensureDeferred
async def test_a_newer_file_is_refused(path: Path) -> None:
    """A file of a newer version is left alone, and the error says so."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    assert "newer version" in str(await _broken_start(path, ConfigurationError))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


@pytest_twisted.ensureDeferred
async def test_another_file_is_refused(path: Path) -> None:
    """A file that is no database is left alone."""
    path.write_bytes(  # noqa: ASYNC240
        b"no database at all" * 1000
    )
    assert "not a database" in str(await _broken_start(path, ConfigurationError))


@pytest_twisted.ensureDeferred
async def test_a_missing_directory(tmp_path: Path) -> None:
    """A place where no file can be made is the operator's to mend."""
    assert "cannot be made" in str(await _broken_start(tmp_path / "no" / "x", ConfigurationError))


@pytest_twisted.ensureDeferred
async def test_an_old_sqlite(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite without generated columns is refused at the start."""
    monkeypatch.setattr(database, "OLDEST_SQLITE", (99, 0))
    assert "too old" in str(await _broken_start(path, ConfigurationError))


@pytest_twisted.ensureDeferred
async def test_an_upgrade(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of an older version gets the scripts that it lacks, all of them or none."""
    async with running(path) as store:
        record = await pulled(store, request())
    # The first script once more stands for one that fails: its tables exist.
    monkeypatch.setattr(database, "SCHEMA", ("schema.sql", "schema.sql"))
    await _broken_start(path, Unavailable)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        db.executescript("DROP TABLE images; DROP TABLE tags; DROP TABLE turns")
        db.executescript("DROP TABLE leases; DROP TABLE lookups")
    async with running(path) as store:
        found = await store.get(record.key)
    assert found is None
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


@pytest_twisted.ensureDeferred
async def test_a_locked_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that will not let go makes writes `Unavailable`; reads go on."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    store = SqliteStore(reactor, path)
    await store.startService()
    record, _ = await store.claim(request(), NOW)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            await store.begin(record.key, "n", NOW, 60)
        assert "locked" in caught.value.detail
        assert "locked" not in str(caught.value)
        assert await store.get(record.key) == record
        other.execute("ROLLBACK")
    assert await store.begin(record.key, "n", NOW, 60) is not None
    await store.stopService()


@pytest_twisted.ensureDeferred
async def test_a_store_that_is_not_open(path: Path) -> None:
    """Before the start and after the stop every call says that the store is away."""
    store = SqliteStore(reactor, path)
    with pytest.raises(Unavailable):
        await store.get("1" * 24)
    await store.startService()
    await store.stopService()
    with pytest.raises(Unavailable):
        await store.remove("1" * 24)


@pytest_twisted.ensureDeferred
async def test_a_damaged_database(place: Place, path: Path) -> None:
    """A statement that fails changes nothing, and the store goes on once it can."""
    key = (await begun(place.store, request())).key
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE turns RENAME TO elsewhere")
        db.execute("ALTER TABLE lookups RENAME TO nowhere")
    with pytest.raises(Unavailable):
        await place.store.lookups("alpha", 1)
    other, _ = await place.store.claim(request("x:1"), NOW)
    with pytest.raises(Unavailable):
        await place.store.begin(other.key, "n", NOW, 60)
    await place.store.heartbeat(key, 1, Progress("x", 7, 9), NOW)
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE elsewhere RENAME TO turns")
        db.execute("ALTER TABLE nowhere RENAME TO lookups")
    again = await place.store.begin(other.key, "n", NOW, 60)
    assert again is not None
    assert again.attempt == 1
    assert list(await place.store.lookups("alpha", 1)) == []


@pytest_twisted.ensureDeferred
async def test_neighbours_of_a_refused_step(place: Place) -> None:
    """Steps that share a transaction with one that is refused are not touched by it."""
    store = place.store
    keys = [(await begun(store, request(f"x:{n}"), NOW + n)).key for n in range(3)]
    first = Deferred.fromCoroutine(store.claim(request("y:1"), NOW + 9))  # the others wait together
    waiting = [
        Deferred.fromCoroutine(store.finish(keys[0], 1, Ready(ID), NOW)),
        Deferred.fromCoroutine(store.finish(keys[1], 7, Ready(ID), NOW)),
        Deferred.fromCoroutine(store.finish(keys[2], 1, Ready("c" * 64), NOW)),
    ]
    await first
    assert (await waiting[0]).id == ID
    with pytest.raises(Superseded):
        await waiting[1]
    assert (await waiting[2]).id == "c" * 64
    assert (await store.queue("alpha"))[0].key == keys[1]


@pytest_twisted.ensureDeferred
async def test_cancelled_callers(place: Place) -> None:
    """A caller that is cancelled hears so at once; what had not begun is not done."""
    store = place.store
    begun_already = Deferred.fromCoroutine(store.claim(request("x:1"), NOW))
    not_yet = Deferred.fromCoroutine(store.claim(request("x:2"), NOW + 1))
    for caller in (begun_already, not_yet):
        caller.cancel()
        with pytest.raises(CancelledError):
            await caller
    await store.claim(request("x:3"), NOW + 2)
    assert [record.pulltag for record in await store.queue("alpha")] == ["x:1", "x:3"]


@pytest_twisted.ensureDeferred
async def test_stop_does_what_was_asked_for(path: Path) -> None:
    """Steps that wait when the store stops are done before it closes."""
    store = SqliteStore(reactor, path)
    await store.startService()
    answers = [Deferred.fromCoroutine(store.claim(request(f"x:{n}"), NOW)) for n in range(250)]
    stopped = store.stopService()
    assert all(created for _, created in [await answer for answer in answers])
    await stopped


@pytest_twisted.ensureDeferred
async def test_lookup_rows_are_bounded(path: Path) -> None:
    """Beyond the number kept, old rows of metrics go."""
    async with running(path, lookups_kept=10) as store:
        await all_of(store.record_lookup({"system": "alpha", "n": n}) for n in range(25))
        rows = await store.lookups("alpha", 100)
        assert [row["n"] for row in rows] == list(range(15, 25))


@pytest.mark.parametrize(
    ("query", "values", "expected"),
    [
        (sqlite.GET, 1, ["sqlite_autoindex_images_1"]),
        (sqlite.FIND, 3, ["tags USING PRIMARY KEY", "sqlite_autoindex_images_1"]),
        (sqlite.FIND_ID, 2, ["images_ready"]),
        (sqlite.FIND_WORK, 4, ["images_in_flight", "images_ended"]),
        (sqlite.LIST, 1, ["images_ready"]),
        (sqlite.QUEUE, 2, ["images_in_flight", "images_ended"]),
        (sqlite.WAITING, 1, ["images_in_flight"]),
        (sqlite.STALE, 1, ["images_in_flight"]),
        (sqlite.EXPIRED, 1, ["images_expiration"]),
        (sqlite.FORGET_FAILURES, 1, ["images_ended"]),
        (sqlite.LOOKUPS, 2, ["lookups_of_system"]),
        (steps.EARLIER, 4, ["images_ended"]),
        (steps.READY_OF_ID, 3, ["images_ready"]),
        ("SELECT key FROM images WHERE claim = ?", 1, ["images_in_flight"]),
    ],
)
def test_every_query_has_its_index(
    place: Place, path: Path, query: str, values: int, expected: list[str]
) -> None:
    """No query walks through all images, however many there are."""
    with closing(sqlite3.connect(path)) as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {query}", ["1"] * values).fetchall()
    steps_of_plan = [row[3] for row in plan]
    for step in steps_of_plan:
        if step.startswith(("SCAN images", "SCAN tags", "SCAN lookups")):
            # Only what is in flight, has failed, or has an end is ever walked through.
            assert step.endswith(("images_in_flight", "images_ended", "images_expiration"))
    for name in expected:
        assert any(name in step for step in steps_of_plan), steps_of_plan


@pytest_twisted.ensureDeferred
async def test_a_foreign_name_in_broken_utf8(place: Place) -> None:
    """Text that is no UTF-8 goes in and out unchanged."""
    record = await begun(place.store, request())
    done = await place.store.finish(record.key, 1, Ready(ID, {"env": ("A=\udcff",)}), NOW)
    assert done == await place.store.get(record.key)
