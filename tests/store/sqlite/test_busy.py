"""A SQLite file that another process has locked: each call ends within five seconds."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from shiftergw.errors import DatabaseBusy
from shiftergw.store.sqlite.database import BUSY_SECONDS
from shiftergw.store.sqlite.faults import translate_errors
from shiftergw.store.sqlite.lane import TURN, Step, run_reads
from shiftergw.store.sqlite.store import SqliteStore
from tests.installed_reactor import reactor
from tests.patience import stretch
from tests.store.pulls import NOW, request

ANSWER_SECONDS = 5.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the database file."""
    return tmp_path / "images.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """Return a running store."""
    running_store = SqliteStore(reactor, path)
    pytest_twisted.blockon(running_store.startService())
    yield running_store
    pytest_twisted.blockon(running_store.stopService())


@pytest_twisted.ensureDeferred
async def test_every_request_is_answered_in_time(store: SqliteStore, path: Path) -> None:
    """All waiting calls end in time; the gateway is ready only after the lock has ended."""
    seconds: list[float] = []
    statements: list[str] = []
    lane = store._writer
    assert lane is not None
    lane._connection.set_trace_callback(statements.append)

    async def claim(number: int) -> None:
        begin = time.monotonic()
        with pytest.raises(DatabaseBusy):
            await store.claim(request(f"x:{number}"), NOW)
        seconds.append(time.monotonic() - begin)

    with closing(sqlite3.connect(path, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        claims = [Deferred.fromCoroutine(claim(0))]
        await deferLater(reactor, 0.1)  # the first one waits for the lock alone
        claims += [Deferred.fromCoroutine(claim(number)) for number in range(1, 2 * TURN + 10)]
        await claims[0]
        with pytest.raises(DatabaseBusy):
            await store.ready()
        for waiting in claims:
            await waiting
        assert await store.list("alpha") == []
        locker.execute("ROLLBACK")
    # The turn of the first one waits, and that of all the others.
    assert statements.count("PRAGMA synchronous = FULL") == 2
    lane._connection.set_trace_callback(None)
    assert BUSY_SECONDS <= max(seconds) < stretch(ANSWER_SECONDS)
    await store.ready()
    assert (await store.claim(request("x:1"), NOW))[1]


def test_readers_wait_once() -> None:
    """Steps after one that has waited in vain do not wait again."""
    tries: list[None] = []

    def raise_lock(_: sqlite3.Connection) -> None:
        tries.append(None)
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    with closing(sqlite3.connect(":memory:")) as connection:
        turn = [Step(raise_lock, durable=False) for _ in range(3)]
        run_reads(connection, turn)
    assert len(tries) == 1
    assert all(isinstance(step.error, DatabaseBusy) for step in turn)


def test_other_errors_are_no_locks() -> None:
    """Steps after another error are run."""
    with closing(sqlite3.connect(":memory:")) as connection:
        turn = [
            Step(lambda db: db.execute("SELECT * FROM nothing"), durable=False),
            Step(lambda db: db.execute("SELECT 7").fetchone()[0], durable=False),
        ]
        run_reads(connection, turn)
    assert turn[0].error is not None
    assert not isinstance(turn[0].error, DatabaseBusy)
    assert turn[1].result == 7
    with pytest.raises(DatabaseBusy), translate_errors():
        _raise_busy()


def _raise_busy() -> None:
    error = sqlite3.OperationalError("database table is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_LOCKED_SHAREDCACHE
    raise error
