"""Images and work in one SQLite file, shared by the gateway and its workers on one machine.

The file is in WAL mode: readers never wait for writers. Everything that writes begins with
`BEGIN IMMEDIATE`, so that no transaction ever has to be given up half-way. What the work depends on
is synced to disk with its commit; heartbeats, renewals, leases and metrics follow a little later,
because after a power cut nobody is left whom they concern.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from shiftergw.errors import Unavailable
from shiftergw.model import Failed, ImageRecord, Progress, PullRequest, Ready
from shiftergw.plumbing.threads import Threads
from shiftergw.states import State
from shiftergw.store import documents, steps
from shiftergw.store.database import open_database, open_reader
from shiftergw.store.lane import Lane, reading, writing

T = TypeVar("T")

LOOKUPS_KEPT = 100_000
"""Rows of lookup metrics; older ones go."""

# Indexes are named where SQLite would rather walk through the table in the order asked for.

GET = "SELECT key, document FROM images WHERE key = ?"

FIND = """
    SELECT images.key, document FROM tags JOIN images USING (key)
    WHERE tags.system = ? AND tags.itype = ? AND tags.tag = ?
    ORDER BY last_pull DESC, images.key DESC LIMIT 1
"""

FIND_ID = """
    SELECT key, document FROM images WHERE system = ? AND id = ? AND status = 'READY' ORDER BY key
"""

FIND_WORK = """
    SELECT key, document FROM (
        SELECT key, document, 1 AS alive, last_pull FROM images WHERE claim = ?
        UNION ALL
        SELECT key, document, 0, last_pull FROM images
        WHERE system = ? AND itype = ? AND pulltag = ?
        AND claim IS NULL AND status <> 'READY' AND status = 'FAILURE'
    ) ORDER BY alive DESC, last_pull DESC, key DESC
"""

LIST = """
    SELECT key, document FROM images WHERE system = ? AND status = 'READY' ORDER BY id, key
"""

QUEUE = """
    SELECT key, document FROM (
        SELECT key, document FROM images INDEXED BY images_in_flight
        WHERE claim IS NOT NULL AND system = ?
        UNION ALL
        SELECT key, document FROM images
        WHERE system = ? AND claim IS NULL AND status <> 'READY' AND status = 'FAILURE'
    ) ORDER BY key
"""

# A user's turn is the number of pieces of work before this one that are his; among equal turns the
# user comes first who was not served for longest.
WAITING = """
    WITH flight AS (
        SELECT key, document, ifnull(requested_by, 0) AS uid,
            status = 'PENDING' AND ifnull(attempt, 0) = 0 AS waits
        FROM images INDEXED BY images_in_flight WHERE claim IS NOT NULL
    )
    SELECT key, document FROM (
        SELECT key, document, waits, uid,
            row_number() OVER (PARTITION BY uid ORDER BY waits, key) AS turn
        FROM flight
    ) LEFT JOIN turns USING (uid)
    WHERE waits ORDER BY turn, served, key LIMIT ?
"""

STALE = """
    SELECT key, document FROM images INDEXED BY images_in_flight
    WHERE claim IS NOT NULL AND attempt > 0 AND ifnull(last_heartbeat, 0) < ?
    ORDER BY last_heartbeat
"""

EXPIRED = """
    SELECT key, document FROM images
    WHERE status = 'READY' AND expiration IS NOT NULL AND expiration <= ? ORDER BY expiration
"""

FORGET_FAILURES = """
    DELETE FROM images WHERE claim IS NULL AND status <> 'READY' AND status = 'FAILURE'
    AND ifnull(last_pull, 0) < ?
"""

LEASE = """
    INSERT INTO leases (directory, id, holder, until) VALUES (?, ?, ?, ?)
    ON CONFLICT (directory, id) DO UPDATE SET until = excluded.until
    WHERE holder = excluded.holder
"""

LOOKUPS = """
    SELECT document FROM lookups WHERE system = ? ORDER BY number DESC LIMIT ?
"""


class SqliteStore(Service):
    """An `ImageStore` in one file. It asks no clock, and removes nothing by itself."""

    def __init__(self, reactor: Any, path: Path, lookups_kept: int = LOOKUPS_KEPT) -> None:
        """Keep everything in `path`, on a local file system."""
        self._path = path
        self._lookups_kept = lookups_kept
        self._threads = Threads(reactor, 3, "store")
        self._writer: Lane | None = None
        self._reader: Lane | None = None
        self._lister: Lane | None = None

    def startService(self) -> Deferred[None]:
        """Fire when the file is open; fail with `ConfigurationError` or `Unavailable`."""
        super().startService()
        self._threads.startService()
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        try:
            connection = await self._threads.run(open_database, self._path)
            self._writer = Lane(self._threads, connection, writing)
            self._reader = await self._reading_lane()
            # A long listing must not hold up the look-ups.
            self._lister = await self._reading_lane()
        except BaseException:
            super().stopService()
            await self._close()
            raise

    async def _reading_lane(self) -> Lane:
        return Lane(self._threads, await self._threads.run(open_reader, self._path), reading)

    def stopService(self) -> Deferred[None]:
        """Fire when what was asked for is done and the file is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        lanes = self._lister, self._reader, self._writer
        self._lister = self._reader = self._writer = None
        for lane in lanes:
            if lane is not None:
                await lane.close()
        await self._threads.stopService()

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await _open_lane(self._reader).run(work)

    async def _few(self, query: str, *values: Any) -> Sequence[ImageRecord]:
        return await self._read(lambda db: steps.records_of(db.execute(query, values)))

    async def _many(self, query: str, *values: Any) -> Sequence[ImageRecord]:
        lane = _open_lane(self._lister)
        return await lane.run(lambda db: steps.records_of(db.execute(query, values)))

    async def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write what must outlive a power cut."""
        return await _open_lane(self._writer).run(work, durable=True)

    async def _note(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write what need not."""
        return await _open_lane(self._writer).run(work)

    async def claim(self, request: PullRequest, now: float) -> tuple[ImageRecord, bool]:
        """See `ImageStore`."""
        return await self._work(lambda db: steps.claim(db, request, now))

    async def begin(self, key: str, runner: str, now: float, limit: float) -> ImageRecord | None:
        """See `ImageStore`."""
        return await self._work(lambda db: steps.begin(db, key, runner, now, limit))

    async def advance(self, key: str, attempt: int, state: State, message: str, now: float) -> None:
        """See `ImageStore`."""
        await self._work(lambda db: steps.advance(db, key, attempt, state, message, now))

    async def heartbeat(
        self, key: str, attempt: int, progress: Progress, now: float, message: str | None = None
    ) -> None:
        """See `ImageStore`."""
        change = documents.alive(progress, now, message)
        await self._note(lambda db: steps.heartbeat(db, key, attempt, change))

    async def finish(
        self, key: str, attempt: int, outcome: Ready | Failed, now: float
    ) -> ImageRecord:
        """See `ImageStore`."""
        return await self._work(lambda db: steps.finish(db, key, attempt, outcome, now))

    async def abandon(self, key: str) -> None:
        """See `ImageStore`."""
        await self._work(lambda db: steps.abandon(db, key))

    async def get(self, key: str) -> ImageRecord | None:
        """See `ImageStore`."""
        return next(iter(await self._few(GET, key)), None)

    async def find(self, system: str, itype: str, tags: Sequence[str]) -> ImageRecord | None:
        """See `ImageStore`."""

        def first(db: sqlite3.Connection) -> ImageRecord | None:
            for tag in tags:
                row = db.execute(FIND, (system, itype, tag)).fetchone()
                if row is not None:
                    return steps.record_of(row)
            return None

        return await self._read(first)

    async def find_id(self, system: str, image_id: str) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._few(FIND_ID, system, image_id)

    async def find_work(self, system: str, itype: str, tag: str) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._few(FIND_WORK, f"{system}/{itype}/{tag}", system, itype, tag)

    async def list(self, system: str) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._many(LIST, system)

    async def queue(self, system: str) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._many(QUEUE, system, system)

    async def waiting(self, limit: int) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._many(WAITING, limit)

    async def stale(self, now: float, limit: float) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._many(STALE, now - limit)

    async def renew(self, key: str, expiration: float) -> None:
        """See `ImageStore`."""
        await self._note(lambda db: steps.renew(db, key, expiration))

    async def expired(self, now: float) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._many(EXPIRED, now)

    async def forget_failures(self, before: float) -> int:
        """See `ImageStore`."""
        return await self._work(lambda db: db.execute(FORGET_FAILURES, (before,)).rowcount)

    async def lease(
        self, directory: str, image_id: str, holder: str, now: float, seconds: float
    ) -> bool:
        """See `ImageStore`."""

        def take(db: sqlite3.Connection) -> bool:
            db.execute("DELETE FROM leases WHERE until <= ?", (now,))
            return db.execute(LEASE, (directory, image_id, holder, now + seconds)).rowcount == 1

        return await self._note(take)

    async def release(self, directory: str, image_id: str, holder: str) -> None:
        """See `ImageStore`."""
        query = "DELETE FROM leases WHERE directory = ? AND id = ? AND holder = ?"
        await self._note(lambda db: db.execute(query, (directory, image_id, holder)).rowcount)

    async def remove(self, key: str) -> None:
        """See `ImageStore`."""
        await self._work(lambda db: db.execute("DELETE FROM images WHERE key = ?", (key,)).rowcount)

    async def record_lookup(self, row: Mapping[str, Any]) -> None:
        """See `ImageStore`."""
        values = (row["system"], json.dumps(row))

        def add(db: sqlite3.Connection) -> None:
            query = "INSERT INTO lookups (system, document) VALUES (?, ?)"
            number = db.execute(query, values).lastrowid or 0
            db.execute("DELETE FROM lookups WHERE number <= ?", (number - self._lookups_kept,))

        await self._note(add)

    async def lookups(self, system: str, limit: int) -> Sequence[dict[str, Any]]:
        """See `ImageStore`."""

        def last(db: sqlite3.Connection) -> Sequence[dict[str, Any]]:
            rows = db.execute(LOOKUPS, (system, max(0, limit))).fetchall()
            return [json.loads(text) for (text,) in reversed(rows)]

        return await self._read(last)


def _open_lane(lane: Lane | None) -> Lane:
    if lane is None:
        raise Unavailable("The gateway's database is not open.")
    return lane
