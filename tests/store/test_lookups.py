"""Rows of lookup metrics: nobody waits for them, and they do not pile up."""

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
    """Return where the file is to be."""
    return tmp_path / "images.sqlite"


def written(path: Path) -> int:
    """Return how many rows are in the file."""
    with closing(sqlite3.connect(path)) as db:
        count: int = db.execute("SELECT count(*) FROM lookups").fetchone()[0]
    return count


async def record(store: SqliteStore, *numbers: int) -> None:
    """Record one row for each number, each a second after the last."""
    for n in numbers:
        await store.record_lookup({"system": "alpha", "n": n, "time": NOW + n})


async def kept(store: SqliteStore) -> list[int]:
    """Return the numbers of the rows."""
    return [row["n"] for row in await store.lookups("alpha", 1000)]


@pytest_twisted.ensureDeferred
async def test_rows_are_written_together_and_soon(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows wait a moment for one another; then they are written, also if nobody asks for them."""
    monkeypatch.setattr(lookups, "WRITE_SECONDS", 0.05)
    async with running(path) as store:
        for numbers in ((1, 2), (3,)):
            before = written(path)
            await record(store, *numbers)
            assert written(path) == before
            for _ in range(500):
                if written(path) > before:
                    break
                await pause(0.01, reactor)
            assert written(path) == before + len(numbers)


@pytest_twisted.ensureDeferred
async def test_rows_are_bounded_in_number(path: Path) -> None:
    """Beyond the number kept, old rows go."""
    async with running(path, max_lookups=10) as store:
        await record(store, *range(7))
        await kept(store)
        await record(store, *range(7, 25))
        assert await kept(store) == list(range(15, 25))


@pytest_twisted.ensureDeferred
async def test_rows_are_bounded_in_age(path: Path) -> None:
    """A row that is a year older than the newest goes, the others stay."""
    year = int(lookups.KEPT_SECONDS)
    async with running(path) as store:
        await record(store, 0, 5, 9)
        await record(store, year + 4)
        assert await kept(store) == [5, 9, year + 4]
        await record(store, 3 * year)
        assert await kept(store) == [3 * year]
        await record(store, 3 * year + 1)
        assert await kept(store) == [3 * year, 3 * year + 1]


@pytest_twisted.ensureDeferred
async def test_a_stop_loses_none(path: Path) -> None:
    """Rows that wait when the store stops are written before it closes."""
    async with running(path) as store:
        await record(store, 1, 2)
    async with running(path) as store:
        assert await kept(store) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_reader_who_goes_takes_none_along(path: Path) -> None:
    """Rows are written although he who asked for them, and so hurried them, is gone."""
    async with running(path) as store:
        await record(store, 1)
        first = Deferred.fromCoroutine(kept(store))
        await record(store, 2)  # while the first row is being written
        second = Deferred.fromCoroutine(kept(store))
        second.cancel()
        with pytest.raises(CancelledError):
            await second
        assert (await first)[0] == 1
        assert await kept(store) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_slow_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written, lookups go on, and rows beyond a number are lost and counted.

    Those that did wait are written then.
    """
    monkeypatch.setattr(lookups, "ROWS_WAITING", 5)
    async with running(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other, capturedLogs() as log:
            other.execute("BEGIN IMMEDIATE")
            asking = Deferred.fromCoroutine(kept(store))
            await record(store, *range(8))
            assert await store.find("alpha", "docker", ["x:1"]) is None
            assert not asking.called
            other.execute("ROLLBACK")
            await asking
            assert await kept(store) == [0, 1, 2, 3, 4]
        assert [event["n"] for event in log if "n" in event] == [3]


@pytest_twisted.ensureDeferred
async def test_a_broken_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that could not be written are counted in the log; later ones are written again."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    async with running(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other, capturedLogs() as log:
            other.execute("BEGIN IMMEDIATE")
            await record(store, 1, 2)
            assert await kept(store) == []
            other.execute("ROLLBACK")
        assert [event["n"] for event in log if "n" in event] == [2]
        assert any("locked" in str(event.get("detail")) for event in log)
        await record(store, 3)
        assert await kept(store) == [3]


@pytest_twisted.ensureDeferred
async def test_a_row_that_cannot_be_written(path: Path) -> None:
    """It is lost, with those beside it, and the log tells so; later ones are written as before."""
    async with running(path) as store:
        await store.record_lookup({"system": "alpha", "n": object(), "time": NOW})
        with capturedLogs() as log:
            assert await kept(store) == []
        assert [event["n"] for event in log if "lost" in str(event.get("log_format"))] == [1]
        await record(store, 2)
        assert await kept(store) == [2]
