"""The SQLite store keeps the contract, and its file."""

from __future__ import annotations

import json
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import ConfigurationError, Superseded, TooMany, Unavailable
from shiftergw.model.packed_data import PackedData
from shiftergw.model.records import Progress, Ready
from shiftergw.model.requests import QueueLimits
from shiftergw.store.sqlite import database, queries
from shiftergw.store.sqlite.store import SqliteStore
from tests.patience import patient
from tests.store import hammer
from tests.store.contract import StoreContract
from tests.store.places import Place, running, sqlite_place
from tests.store.pulls import ID, NOW, OF_THE_ORIGINAL, begin_pull, complete_pull, request


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the database file."""
    return tmp_path / "images.sqlite"


@pytest.fixture
def place(path: Path) -> Iterator[Place]:
    """Return a running store."""
    store = SqliteStore(reactor, path)
    pytest_twisted.blockon(store.startService())
    yield sqlite_place(store, path)
    pytest_twisted.blockon(store.stopService())


class TestSqliteStore(StoreContract):
    """The contract on SQLite."""


def test_the_file_is_private(place: Place, path: Path) -> None:
    """Only its owner may read the database and the files beside it."""
    names = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert names["images.sqlite"] == 0o600
    assert set(names.values()) == {0o600}
    assert set(names) <= {"images.sqlite", "images.sqlite-wal", "images.sqlite-shm"}


@pytest_twisted.ensureDeferred
async def test_all_data_survives_a_restart(path: Path) -> None:
    """The next process finds all data."""
    async with running(path) as store:
        record = await complete_pull(store, request())
    assert [file.name for file in path.parent.iterdir()] == ["images.sqlite"]
    async with running(path) as store:
        copy = await store.get(record.key)
    assert copy == record


@pytest_twisted.ensureDeferred
async def test_a_second_gateway_takes_no_work(place: Place, path: Path) -> None:
    """The second gateway starts and stops without a change to waiting and running work."""
    waiting, _ = await place.store.claim(request("x:1"), NOW)
    running_record = await begin_pull(place.store, request("x:2"))
    async with running(path) as peer:
        assert await peer.waiting(NOW, 5) == [waiting]
    assert await place.store.get(waiting.key) == waiting
    assert await place.store.get(running_record.key) == running_record


def test_many_processes_create_one_file(path: Path) -> None:
    """Processes that start in an empty directory at once share one database."""
    assert sum(hammer.go(("sqlite", str(path)), "claims", *[["5"]] * 4)) == 5


async def _broken_start(path: Path, expected: type[Exception]) -> Exception:
    store = SqliteStore(reactor, path)
    with pytest.raises(expected) as caught:
        await store.startService()
    assert not store.running
    return caught.value


@pytest_twisted.ensureDeferred
async def test_a_newer_file_is_refused(path: Path) -> None:
    """The file of a newer version stays as it is, and the error says so."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    assert "newer version" in str(await _broken_start(path, ConfigurationError))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


@pytest_twisted.ensureDeferred
async def test_another_file_is_refused(path: Path) -> None:
    """A file that is not a database stays unchanged."""
    path.write_bytes(  # noqa: ASYNC240
        b"no database at all" * 1000
    )
    assert "not a database" in str(await _broken_start(path, ConfigurationError))


@pytest_twisted.ensureDeferred
async def test_a_missing_directory_is_an_error_for_the_operator(tmp_path: Path) -> None:
    """A file in a missing directory cannot be created; the error is for the operator."""
    assert "cannot be made" in str(await _broken_start(tmp_path / "no" / "x", ConfigurationError))


@pytest_twisted.ensureDeferred
async def test_an_old_sqlite_is_refused_at_the_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SQLite without generated columns is refused."""
    monkeypatch.setattr(database, "OLDEST_SQLITE", (99, 0))
    assert "too old" in str(await _broken_start(path, ConfigurationError))


FIRST_VERSION = "45450d8616797fa39e23f526351103fedc34df18290664b38ef4ea3e46f9d431"
"""Of the script that made the first files; others follow it."""


def _file_of_the_first_version(path: Path) -> None:
    """Create a file of the first version with a READY image and two pulls in flight."""
    script = files("shiftergw.store.sqlite").joinpath("schema.sql").read_text(encoding="utf-8")
    assert sha256(script.encode()).hexdigest() == FIRST_VERSION
    flying: dict[str, Any] = {
        "status": "PENDING",
        "tag": [],
        "id": None,
        "attempt": 0,
        "requested_by": 7,
    }
    began = {"status": "CONVERSION", "attempt": 2, "runner": "n:1", "last_heartbeat": NOW}
    documents = [
        OF_THE_ORIGINAL,
        OF_THE_ORIGINAL | flying | {"claim": "alpha/docker/x:1"},
        OF_THE_ORIGINAL | flying | {"claim": "alpha/docker/y:1"} | began,
    ]
    with closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA journal_mode = WAL; BEGIN;" + script + "COMMIT")
        for n, document in enumerate(documents):
            values = (str(n) * 24, json.dumps(document))
            db.execute("INSERT INTO images (key, document) VALUES (?, ?)", values)
        db.execute("INSERT INTO lookups (system, document) VALUES ('alpha', '{\"n\": 1}')")
        db.execute("PRAGMA user_version = 1")
        db.commit()


@pytest_twisted.ensureDeferred
async def test_a_file_of_the_first_version_is_upgraded(path: Path) -> None:
    """An upgraded file keeps all its data."""
    _file_of_the_first_version(path)
    async with running(path) as store:
        old_record = await store.find("alpha", "docker", ["old:1"])
        assert old_record is not None
        assert old_record.key == "0" * 24
        assert [record.key for record in await store.waiting(NOW + 99, 9)] == ["1" * 24]
        assert [record.key for record in await store.stale(NOW + 61, 60)] == ["2" * 24]
        with pytest.raises(TooMany):
            await store.claim(request("z:1"), NOW, QueueLimits(1, 1))
        await store.block("/images", ID, 0, NOW)
        assert await store.is_blocked("/images", [ID])
        assert list(await store.lookups("alpha", 9)) == [{"n": 1}]
        await store.save_ranges("c" * 64, PackedData(), NOW)
        assert await store.forget_ranges(NOW + 1) == 1
        assert (await store.finish("2" * 24, 2, Ready(ID), NOW)).key == "0" * 24
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (6,)


@pytest_twisted.ensureDeferred
async def test_an_upgrade_is_atomic(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets all missing scripts or none, and can be upgraded later."""
    _file_of_the_first_version(path)
    with monkeypatch.context() as patch:
        # The first script once more stands for one that fails: its tables exist.
        patch.setattr(database, "SCHEMA", (*database.SCHEMA, "schema.sql"))
        await _broken_start(path, Unavailable)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        assert ("blocks",) not in tables
    async with running(path) as store:
        assert not await store.is_blocked("/images", [ID])


@pytest_twisted.ensureDeferred
async def test_writes_to_a_locked_file_are_unavailable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes to a locked file raise `Unavailable`, and reads continue."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    store = SqliteStore(reactor, path)
    await store.startService()
    record, _ = await store.claim(request(), NOW)
    with closing(sqlite3.connect(path, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            await store.begin(record.key, "n", NOW, 60)
        assert "locked" in caught.value.detail
        assert "locked" not in str(caught.value)
        assert await store.get(record.key) == record
        locker.execute("ROLLBACK")
    assert await store.begin(record.key, "n", NOW, 60) is not None
    await store.stopService()


@pytest_twisted.ensureDeferred
async def test_a_closed_store_says_so(path: Path) -> None:
    """Each call before the start and after the stop raises `Unavailable`."""
    store = SqliteStore(reactor, path)
    with pytest.raises(Unavailable):
        await store.get("1" * 24)
    await store.startService()
    await store.stopService()
    with pytest.raises(Unavailable):
        await store.abandon("1" * 24)


@pytest_twisted.ensureDeferred
async def test_a_failed_statement_changes_nothing(place: Place, path: Path) -> None:
    """The store continues as soon as it can."""
    key = (await begin_pull(place.store, request())).key
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE turns RENAME TO elsewhere")
        db.execute("ALTER TABLE lookups RENAME TO nowhere")
    with pytest.raises(Unavailable):
        await place.store.lookups("alpha", 1)
    peer, _ = await place.store.claim(request("x:1"), NOW)
    with pytest.raises(Unavailable):
        await place.store.begin(peer.key, "n", NOW, 60)
    await place.store.heartbeat(key, 1, Progress("x", 7, 9), NOW)
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE elsewhere RENAME TO turns")
        db.execute("ALTER TABLE nowhere RENAME TO lookups")
    second = await place.store.begin(peer.key, "n", NOW, 60)
    assert second is not None
    assert second.attempt == 1
    assert list(await place.store.lookups("alpha", 1)) == []


@contextmanager
def no_more_room(path: Path) -> Iterator[None]:
    """Limit the size of files of this process to the current size of the database's log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.with_name(f"{path.name}-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest_twisted.ensureDeferred
async def test_a_full_disk_refuses_writes(place: Place, path: Path) -> None:
    """Refused data is not stored, reads continue, and later writes succeed."""
    store = place.store
    record = await begin_pull(store, request())
    with no_more_room(path):
        for n in range(3):
            with pytest.raises(Unavailable) as caught:
                await store.claim(request(f"x:{n}"), NOW)
            assert "disk" in caught.value.detail
        with pytest.raises(Unavailable):
            await store.finish(record.key, 1, Ready(ID), NOW)
        assert list(await store.queue("alpha")) == [record]
    assert (await store.claim(request("x:1"), NOW))[1]
    assert (await store.finish(record.key, 1, Ready(ID), NOW)).id == ID


@pytest_twisted.ensureDeferred
async def test_a_refused_step_does_not_affect_its_turn(place: Place) -> None:
    """The other steps of the transaction are committed."""
    store = place.store
    keys = [(await begin_pull(store, request(f"x:{n}"), NOW + n)).key for n in range(3)]
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
async def test_readiness_and_look_ups_wait_for_no_list(place: Place) -> None:
    """Lists have their own connection, however many calls wait for it."""
    store, release = place.store, Event()
    assert isinstance(store, SqliteStore)
    lister = store._lister
    assert lister is not None
    stall = Deferred.fromCoroutine(lister.run(lambda _: release.wait(patient(60))))
    calls = (store.list("alpha"), store.list("alpha", "", 9), store.queue("alpha", "", 9))
    listings = [Deferred.fromCoroutine(call) for call in calls]
    try:
        await store.ready()
        assert await store.find("alpha", "docker", ["x:1"]) is None
        assert not any(listing.called for listing in listings)
    finally:
        release.set()
    assert await stall
    assert [await listing for listing in listings] == [[], [], []]


@pytest_twisted.ensureDeferred
async def test_the_queue_comes_in_pages(place: Place) -> None:
    """A page is limited, and all pages together have each record once."""
    for number in range(7):
        await place.store.claim(request(f"x:{number}"), NOW + number)
    pages: list[list[str | None]] = []
    after = ""
    while page := await place.store.queue("alpha", after, 3):
        pages.append([record.pulltag for record in page])
        after = page[-1].key
    assert pages == [["x:0", "x:1", "x:2"], ["x:3", "x:4", "x:5"], ["x:6"]]


@pytest_twisted.ensureDeferred
async def test_a_cancellation_affects_one_caller(place: Place) -> None:
    """The caller gets `CancelledError` at once, and a step that has not begun is not run."""
    store = place.store
    running_claim = Deferred.fromCoroutine(store.claim(request("x:1"), NOW))
    waiting_claim = Deferred.fromCoroutine(store.claim(request("x:2"), NOW + 1))
    for caller in (running_claim, waiting_claim):
        caller.cancel()
        with pytest.raises(CancelledError):
            await caller
    await store.claim(request("x:3"), NOW + 2)
    assert [record.pulltag for record in await store.queue("alpha")] == ["x:1", "x:3"]


@pytest_twisted.ensureDeferred
async def test_a_stop_runs_the_waiting_steps(path: Path) -> None:
    """Waiting steps end before the file is closed."""
    store = SqliteStore(reactor, path)
    await store.startService()
    answers = [Deferred.fromCoroutine(store.claim(request(f"x:{n}"), NOW)) for n in range(250)]
    stop = store.stopService()
    assert all(is_new for _, is_new in [await answer for answer in answers])
    await stop


FEW = ("images_in_flight", "images_turns", "images_ended", "images_expiration")
"""Indexes of what is in flight, has ended, or has an end: the only ones to be walked through."""


@pytest.mark.parametrize(
    ("query", "values", "expected"),
    [
        (queries.GET, 1, ["sqlite_autoindex_images_1"]),
        (queries.IN_FLIGHT, 1, ["images_in_flight"]),
        (queries.FIND, 3, ["tags USING PRIMARY KEY", "sqlite_autoindex_images_1"]),
        (queries.FIND_ID, 2, ["images_ready"]),
        (queries.FIND_PREFIX, 4, ["images_ready (system=? AND id>? AND id<?)"]),
        (queries.FIND_EXPIRING, 2, ["images_expiring"]),
        (queries.FIND_WORK, 4, ["images_in_flight", "images_ended"]),
        (queries.LIST, 3, ["images_listed (system=? AND key>?)"]),
        (queries.QUEUE, 3, ["images_in_flight", "images_ended"]),
        (queries.ALL_IN_FLIGHT, 1, ["images_turns", "turns USING INTEGER PRIMARY KEY"]),
        (queries.COUNT_WAITING, 0, ["images_turns (status=?)"]),
        (queries.COUNT_WAITING_OF_USER, 1, ["images_turns (status=? AND requested_by=? AND"]),
        (queries.COUNT_POSTPONED, 2, ["images_turns (status=?)"]),
        (queries.STALE, 1, ["images_turns"]),
        (queries.LIST_EXPIRED, 4, ["images_expiration"]),
        (queries.COUNT_PINS, 2, ["images_listed (system=?)"]),
        (queries.FORGET_EARLIER, 4, ["images_ended"]),
        (queries.FORGET_ENDED, 2, ["images_ended"]),
        (queries.READY_OF_ID, 3, ["images_ready"]),
        (queries.EXPIRING_OF_ID, 3, ["images_expiring"]),
        (queries.CARRIERS, 4, ["tags USING PRIMARY KEY", "sqlite_autoindex_images_1"]),
        (queries.FIND_BLOCKS, 4, ["blocks USING PRIMARY KEY (directory=? AND id>? AND id<?)"]),
        (queries.FIND_BLOCK, 2, ["blocks USING PRIMARY KEY"]),
        (queries.FIND_BASES, 3, ["file_data USING PRIMARY KEY", "images_of_file"]),
        (queries.LOOKUPS, 2, ["lookups_of_system"]),
        (queries.KEEP_LOOKUPS, 1, ["lookups USING INTEGER PRIMARY KEY"]),
    ],
)
def test_every_query_has_its_index(
    place: Place, path: Path, query: str, values: int, expected: list[str]
) -> None:
    """No query reads all images, however many there are."""
    with closing(sqlite3.connect(path)) as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {query}", ["1"] * values).fetchall()
    steps_of_plan = [row[3] for row in plan]
    for step in steps_of_plan:
        if step.startswith(("SCAN images", "SCAN tags", "SCAN lookups")):
            # Only what is in flight, has failed, or has an end is ever walked through.
            assert step.endswith(FEW)
    for name in expected:
        assert any(name in step for step in steps_of_plan), steps_of_plan


@pytest_twisted.ensureDeferred
async def test_invalid_utf8_is_stored_unchanged(place: Place) -> None:
    """Invalid UTF-8 in the name of an image is stored unchanged."""
    record = await begin_pull(place.store, request())
    done = await place.store.finish(record.key, 1, Ready(ID, {"env": ("A=\udcff",)}), NOW)
    assert done == await place.store.get(record.key)
