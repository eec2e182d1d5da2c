"""Only those commits of the SQLite file are synced that work depends on."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.model.packed_data import PackedData
from shiftergw.model.records import Progress, Ready
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.store.pulls import ID, LIMIT, NOW, begin_pull, complete_pull, holder, request


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return a running store."""
    running_store = SqliteStore(reactor, tmp_path / "images.sqlite")
    pytest_twisted.blockon(running_store.startService())
    yield running_store
    pytest_twisted.blockon(running_store.stopService())


NORMAL, FULL = 1, 2  # as SQLite counts them

Write = Callable[[SqliteStore, str, str], Awaitable[object]]
"""Writes with a store, the key of a record in work, and that of a READY one."""

DURABLE: dict[str, Write] = {
    "claim": lambda store, *_: store.claim(request("new:1"), NOW),
    "begin": lambda store, work, _: store.begin(work, "n", NOW + 2 * LIMIT, LIMIT),
    "requeue": lambda store, work, _: store.requeue(work, 1, "", died=True),
    "postpone": lambda store, work, _: store.postpone(work, 1, NOW + 9, "x", NOW),
    "advance": lambda store, work, _: store.advance(work, 1, State.TRANSFER, "", NOW),
    "finish": lambda store, work, _: store.finish(work, 1, Ready(ID), NOW),
    "abandon": lambda store, work, _: store.abandon(work),
    "untag": lambda store, _, ready: store.untag(ready, "ready:1"),
    "expire": lambda store, _, ready: store.expire(ready),
    "note_use": lambda store, _, ready: store.note_use(ready, 7),
    "pin": lambda store, _, ready: store.pin(ready, 7, None),
    "unpin": lambda store, _, ready: store.unpin(ready),
    "set_access": lambda store, *_: store.set_access(["alpha"], ID, True, [1], []),
    "block": lambda store, *_: store.block("/images", ID, 0, NOW),
    "allow": lambda store, *_: store.allow("/images", ID),
    "forget_ended": lambda store, *_: store.forget_ended(NOW),
}

PASSING: dict[str, Write] = {
    "heartbeat": lambda store, work, _: store.heartbeat(work, 1, Progress(), NOW),
    "save_ranges": lambda store, *_: store.save_ranges(ID, PackedData(), NOW),
    "forget_ranges": lambda store, *_: store.forget_ranges(NOW),
    "renew": lambda store, _, ready: store.renew(ready, NOW + 9),
    "lease": lambda store, work, _: store.lease("/images", ID, f"{work}/1", NOW, 9),
    "release": lambda store, work, _: store.release("/images", ID, f"{work}/1"),
}


async def levels(store: SqliteStore, write: Write) -> set[str]:
    """Return the `synchronous` levels of a write's commits."""
    work = await begin_pull(store, request("work:1"))
    ready = await complete_pull(store, request("ready:1"))
    assert holder(work) == f"{work.key}/1"
    lane = store._writer
    assert lane is not None
    statements: list[str] = []
    lane._connection.set_trace_callback(statements.append)
    await write(store, work.key, ready.key)
    lane._connection.set_trace_callback(None)
    assert "COMMIT" in statements
    prefix = "PRAGMA synchronous = "
    return {text.removeprefix(prefix) for text in statements if text.startswith(prefix)}


@pytest.mark.parametrize("name", DURABLE)
@pytest_twisted.ensureDeferred
async def test_important_commits_are_synced(store: SqliteStore, name: str) -> None:
    """In WAL mode only FULL syncs a commit before the answer."""
    assert await levels(store, DURABLE[name]) == {"FULL"}


@pytest.mark.parametrize("name", PASSING)
@pytest_twisted.ensureDeferred
async def test_heartbeats_are_not_synced(store: SqliteStore, name: str) -> None:
    """Heartbeats are not synced: thousands of them must not wait for the disk."""
    assert await levels(store, PASSING[name]) == {"NORMAL"}


@pytest_twisted.ensureDeferred
async def test_one_durable_step_syncs_its_whole_turn(store: SqliteStore) -> None:
    """The level that SQLite itself reports is that of the durable step."""
    lane = store._writer
    assert lane is not None

    def level(db: sqlite3.Connection) -> int:
        level: int = db.execute("PRAGMA synchronous").fetchone()[0]
        return level

    answers = [
        Deferred.fromCoroutine(lane.run(level, durable=durable)) for durable in (False, True, False)
    ]
    # The first one has a turn of its own, which begins at once.
    assert [await answer for answer in answers] == [NORMAL, FULL, FULL]
