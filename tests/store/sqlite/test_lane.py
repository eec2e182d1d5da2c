"""Turns on one connection: each caller gets a result or an error."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import Unavailable
from shiftergw.plumbing.threads import Threads
from shiftergw.store.sqlite.lane import HANG_SECONDS, Lane, Step, run_reads, run_writes
from tests.patience import patient


@pytest_twisted.async_yield_fixture()
async def threads() -> AsyncIterator[Threads]:
    """Return a running thread pool."""
    pool = Threads(reactor, 1, "test")
    pool.startService()
    yield pool
    await pool.stopService()


class BreakingConnection(sqlite3.Connection):
    """A connection whose ROLLBACK fails as well, because its disk is gone."""

    is_broken = False

    def execute(self, text: str, *values: Any) -> sqlite3.Cursor:
        """Execute a statement, or fail."""
        if self.is_broken and text in {"COMMIT", "ROLLBACK"}:
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(text, *values)


@pytest_twisted.ensureDeferred
async def test_a_failing_disk_fails_the_callers(threads: Threads) -> None:
    """Neither COMMIT nor ROLLBACK works; later turns work again.

    Refused changes are not in the database then.
    """
    connection = sqlite3.connect(
        ":memory:", isolation_level=None, check_same_thread=False, factory=BreakingConnection
    )
    connection.execute("CREATE TABLE t (n)")
    lane = Lane(threads, connection, run_writes, Clock())

    def add(n: int) -> Deferred[Any]:
        return Deferred.fromCoroutine(
            lane.run(lambda db: db.execute("INSERT INTO t VALUES (?)", (n,)).rowcount)
        )

    connection.is_broken = True
    for waiting in [add(n) for n in range(3)]:
        with pytest.raises(Unavailable) as caught:
            await waiting.addTimeout(patient(5), reactor)
        assert "disk I/O error" in caught.value.detail
    connection.is_broken = False
    assert await add(4) == 1
    assert await lane.run(lambda db: db.execute("SELECT n FROM t").fetchall()) == [(4,)]
    await lane.close()


@pytest_twisted.ensureDeferred
async def test_an_error_of_a_turn_reaches_all_its_callers(threads: Threads) -> None:
    """All callers of the turn get its error, and the next turn is run."""
    faults = [MemoryError()]

    def turn(_: sqlite3.Connection, steps: Sequence[Step[Any]]) -> None:
        if faults:
            raise faults.pop()
        for step in steps:
            step.result = 7

    lane = Lane(threads, sqlite3.connect(":memory:", check_same_thread=False), turn, Clock())
    first, second = (Deferred.fromCoroutine(lane.run(lambda _: 7)) for _ in range(2))
    with pytest.raises(Unavailable):
        await first.addTimeout(patient(5), reactor)
    assert await second == 7
    await lane.close()


@pytest_twisted.ensureDeferred
async def test_callers_of_a_hanging_disk_are_refused(threads: Threads) -> None:
    """Later calls fail at once, until the disk works again."""
    clock, release = Clock(), Event()
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    lane = Lane(threads, connection, run_reads, clock)

    def ask(work: Callable[[sqlite3.Connection], Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(lane.run(work)).addTimeout(patient(60), reactor)

    try:
        hanging = ask(lambda _: release.wait(patient(60)))
        waiting = ask(lambda _: 7)
        clock.advance(HANG_SECONDS)
        for request in (hanging, waiting, ask(lambda _: 8)):
            with pytest.raises(Unavailable, match="does not answer"):
                await request
        was_failing = lane.is_failing
    finally:
        release.set()
    assert lane._draining is not None
    await lane._draining
    assert await ask(lambda _: 9) == 9
    assert (was_failing, lane.is_failing) == (True, False)
    assert clock.getDelayedCalls() == []
    await lane.close()
