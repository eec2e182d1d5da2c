"""The buffer of look-up rows: no look-up waits for the database, and memory is bounded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from shiftergw.plumbing.timing import pause
from shiftergw.store import lookups
from shiftergw.store.sqlite import database
from shiftergw.store.sqlite.store import SqliteStore
from tests.store.places import running
from tests.store.pulls import NOW


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the database file."""
    return tmp_path / "images.sqlite"


def count_rows(path: Path) -> int:
    """Return the number of rows in the file."""
    with closing(sqlite3.connect(path)) as db:
        count: int = db.execute("SELECT count(*) FROM lookups").fetchone()[0]
    return count


async def record(store: SqliteStore, *numbers: int) -> None:
    """Record one row for each number, each a second after the last."""
    for n in numbers:
        await store.record_lookup({"system": "alpha", "n": n, "time": NOW + n})


async def row_numbers(store: SqliteStore) -> list[int]:
    """Return the numbers of the rows."""
    return [row["n"] for row in await store.lookups("alpha", 1000)]


@pytest_twisted.ensureDeferred
async def test_rows_are_written_in_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is written after a moment, also if nobody reads the rows."""
    monkeypatch.setattr(lookups, "WRITE_SECONDS", 0.05)
    async with running(path) as store:
        for numbers in ((1, 2), (3,)):
            before = count_rows(path)
            await record(store, *numbers)
            assert count_rows(path) == before
            for _ in range(500):
                if count_rows(path) > before:
                    break
                await pause(0.01, reactor)
            assert count_rows(path) == before + len(numbers)


@pytest_twisted.ensureDeferred
async def test_rows_are_bounded_in_number(path: Path) -> None:
    """Beyond the limit the oldest rows are removed."""
    async with running(path, max_lookups=10) as store:
        await record(store, *range(7))
        await row_numbers(store)
        await record(store, *range(7, 25))
        assert await row_numbers(store) == list(range(15, 25))


@pytest_twisted.ensureDeferred
async def test_rows_are_bounded_in_age(path: Path) -> None:
    """Rows a year older than the newest are removed."""
    year = int(lookups.MAX_AGE_SECONDS)
    async with running(path) as store:
        await record(store, 0, 5, 9)
        await record(store, year + 4)
        assert await row_numbers(store) == [5, 9, year + 4]
        await record(store, 3 * year)
        assert await row_numbers(store) == [3 * year]
        await record(store, 3 * year + 1)
        assert await row_numbers(store) == [3 * year, 3 * year + 1]


@pytest_twisted.ensureDeferred
async def test_a_stop_loses_no_rows(path: Path) -> None:
    """Rows in the buffer are written before the store closes."""
    async with running(path) as store:
        await record(store, 1, 2)
    async with running(path) as store:
        assert await row_numbers(store) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_cancelled_reader_loses_no_rows(path: Path) -> None:
    """The rows are written although the call that flushed them was cancelled."""
    async with running(path) as store:
        await record(store, 1)
        first = Deferred.fromCoroutine(row_numbers(store))
        await record(store, 2)  # while the first row is being written
        second = Deferred.fromCoroutine(row_numbers(store))
        second.cancel()
        with pytest.raises(CancelledError):
            await second
        assert (await first)[0] == 1
        assert await row_numbers(store) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_slow_disk_delays_no_lookup(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond the limit are dropped and counted.

    The rows in the buffer are written later.
    """
    monkeypatch.setattr(lookups, "ROWS_WAITING", 5)
    async with running(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as locker, capturedLogs() as log:
            locker.execute("BEGIN IMMEDIATE")
            asking = Deferred.fromCoroutine(row_numbers(store))
            await record(store, *range(8))
            assert await store.find("alpha", "docker", ["x:1"]) is None
            assert not asking.called
            locker.execute("ROLLBACK")
            await asking
            assert await row_numbers(store) == [0, 1, 2, 3, 4]
        assert [event["n"] for event in log if "n" in event] == [3]


@pytest_twisted.ensureDeferred
async def test_rows_on_a_broken_disk_are_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that could not be written are counted in the log, and later rows are written."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    async with running(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as locker, capturedLogs() as log:
            locker.execute("BEGIN IMMEDIATE")
            await record(store, 1, 2)
            assert await row_numbers(store) == []
            locker.execute("ROLLBACK")
        assert [event["n"] for event in log if "n" in event] == [2]
        assert any("locked" in str(event.get("detail")) for event in log)
        await record(store, 3)
        assert await row_numbers(store) == [3]


@pytest_twisted.ensureDeferred
async def test_an_invalid_row_does_not_stop_the_buffer(path: Path) -> None:
    """The batch of the invalid row is lost and logged, and later rows are written."""
    async with running(path) as store:
        await store.record_lookup({"system": "alpha", "n": object(), "time": NOW})
        with capturedLogs() as log:
            assert await row_numbers(store) == []
        assert [event["n"] for event in log if "lost" in str(event.get("log_format"))] == [1]
        await record(store, 2)
        assert await row_numbers(store) == [2]
