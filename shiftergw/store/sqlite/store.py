"""Images and work in one SQLite file, shared by the gateway and its workers on one machine.

The file is in WAL mode: readers never wait for writers. Everything that writes begins with
`BEGIN IMMEDIATE`, so that no transaction ever has to be given up half-way. What the work depends on
is synced to disk with its commit; heartbeats, renewals, leases and metrics follow a little later,
because after a power cut nobody is left whom they concern.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from shiftergw.errors import Unavailable
from shiftergw.model import (
    Breaker,
    Expired,
    Failed,
    ImageRecord,
    PostponeLimits,
    Progress,
    PullRequest,
    QueueLimits,
    Ready,
)
from shiftergw.plumbing.threads import Threads
from shiftergw.states import State, WaitCause
from shiftergw.store import documents
from shiftergw.store.fair_schedule import InFlight, fair_schedule
from shiftergw.store.lookups import LookupBuffer, LookupRow
from shiftergw.store.sqlite import breakers, images, leases, queries, rows, steps
from shiftergw.store.sqlite.database import open_reader, rewrite_version
from shiftergw.store.sqlite.integrity import open_checked
from shiftergw.store.sqlite.lane import Lane, reading, writing

T = TypeVar("T")

LOOKUPS_KEPT = 100_000
"""Rows of lookup metrics; older ones go."""


class SqliteStore(Service):
    """An `ImageStore` in one file. It asks no clock, and removes nothing by itself."""

    used_credentials = None

    def __init__(
        self,
        reactor: Any,
        path: Path,
        lookups_kept: int = LOOKUPS_KEPT,
        check_seconds: float | None = None,
    ) -> None:
        """Keep everything in `path`, on a local file system.

        `check_seconds` is the time to look for damage at the start; without it nobody looks.
        """
        self._check_seconds = check_seconds
        self._path = path
        self._lookups_kept = lookups_kept
        self._reactor = reactor
        self._threads = Threads(reactor, 3, "store")
        self._writer: Lane | None = None
        self._reader: Lane | None = None
        self._lister: Lane | None = None
        self._lookups: LookupBuffer | None = None

    def startService(self) -> Deferred[None]:
        """Fire when the file is open; fail with `ConfigurationError` or `Unavailable`."""
        super().startService()
        self._threads.startService()
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        try:
            connection = await self._threads.run(open_checked, self._path, self._check_seconds)
            self._writer = Lane(self._threads, connection, writing, self._reactor)
            self._lookups = LookupBuffer(partial(self._add_lookups, self._writer), self._reactor)
            self._reader = await self._reading_lane()
            # A long listing must not hold up the look-ups.
            self._lister = await self._reading_lane()
        except BaseException:
            super().stopService()
            await self._close()
            raise

    async def _reading_lane(self) -> Lane:
        connection = await self._threads.run(open_reader, self._path)
        return Lane(self._threads, connection, reading, self._reactor)

    def stopService(self) -> Deferred[None]:
        """Fire when what was asked for is done and the file is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        lookups, lanes = self._lookups, (self._lister, self._reader, self._writer)
        self._lookups = self._lister = self._reader = self._writer = None
        if lookups is not None:
            await lookups.flush()
        for lane in lanes:
            if lane is not None:
                await lane.close()
        await self._threads.stopService()

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await _opened(self._reader).run(work)

    async def _few(self, query: str, *values: Any) -> Sequence[ImageRecord]:
        return await self._read(lambda db: rows.records_of(db.execute(query, values)))

    async def _many(self, query: str, *values: Any) -> Sequence[ImageRecord]:
        lane = _opened(self._lister)
        return await lane.run(lambda db: rows.records_of(db.execute(query, values)))

    async def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write what must outlive a power cut."""
        return await _opened(self._writer).run(work, durable=True)

    async def _note(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write what need not."""
        return await _opened(self._writer).run(work)

    async def _change(self, query: str, *values: Any) -> int:
        """Do what must outlive a power cut in one statement; return how many rows it changed."""
        return await self._work(lambda db: db.execute(query, values).rowcount)

    async def ready(self) -> None:
        """See `ImageStore`."""
        writer, lanes = _opened(self._writer), (self._lister, self._reader, self._writer)
        for lane in lanes:
            if lane is not None and lane.damage is not None:
                raise lane.damage
        await self._few(queries.GET, "")  # not behind long lists
        # An empty transaction takes the lock. After a failure only a real write proves anything.
        await writer.run(rewrite_version if writer.is_failing else lambda _: None)

    async def claim(
        self, request: PullRequest, now: float, limits: QueueLimits | None = None
    ) -> tuple[ImageRecord, bool]:
        """See `ImageStore`."""
        return await self._work(lambda db: steps.claim(db, request, now, limits))

    async def begin(self, key: str, runner: str, now: float, limit: float) -> ImageRecord | None:
        """See `ImageStore`."""
        return await self._work(lambda db: steps.begin(db, key, runner, now, limit))

    async def requeue(self, key: str, attempt: int, message: str, *, died: bool) -> ImageRecord:
        """See `ImageStore`."""
        return await self._work(lambda db: steps.requeue(db, key, attempt, message, died=died))

    async def postpone(
        self,
        key: str,
        attempt: int,
        not_before: float,
        why: str,
        now: float,
        limits: PostponeLimits | None = None,
        cause: WaitCause = "registry",
    ) -> ImageRecord:
        """See `ImageStore`."""
        return await self._work(
            lambda db: steps.postpone(db, key, attempt, not_before, why, now, limits, cause)
        )

    async def advance(self, key: str, attempt: int, state: State, message: str, now: float) -> None:
        """See `ImageStore`."""
        await self._work(lambda db: steps.advance(db, key, attempt, state, message, now))

    async def heartbeat(
        self, key: str, attempt: int, progress: Progress, now: float, message: str | None = None
    ) -> None:
        """See `ImageStore`."""
        change = documents.heartbeat(progress, now, message)
        await self._note(lambda db: steps.heartbeat(db, key, attempt, change))

    async def finish(
        self, key: str, attempt: int, outcome: Ready | Expired | Failed, now: float
    ) -> ImageRecord:
        """See `ImageStore`."""
        return await self._work(lambda db: steps.finish(db, key, attempt, outcome, now))

    async def abandon(self, key: str) -> None:
        """See `ImageStore`."""
        await self._work(lambda db: steps.abandon(db, key))

    async def get(self, key: str) -> ImageRecord | None:
        """See `ImageStore`."""
        return next(iter(await self._few(queries.GET, key)), None)

    async def find(self, system: str, itype: str, tags: Sequence[str]) -> ImageRecord | None:
        """See `ImageStore`."""

        def first(db: sqlite3.Connection) -> ImageRecord | None:
            for tag in tags:
                row = db.execute(queries.FIND, (system, itype, tag)).fetchone()
                if row is not None:
                    return rows.record_of(row)
            return None

        return await self._read(first)

    async def find_id(
        self, systems: Collection[str], image_id: str, *, expiring: bool = False
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        place = json.dumps(list(systems)), image_id
        found = await self._few(queries.FIND_ID, *place)
        return [*found, *await self._few(queries.FIND_EXPIRING, *place)] if expiring else found

    async def find_work(self, system: str, itype: str, tag: str) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._few(queries.FIND_WORK, f"{system}/{itype}/{tag}", system, itype, tag)

    async def list(
        self, system: str, after: str = "", limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        if limit is None:
            return await self._many(queries.LIST, system, after, -1)
        lane = _opened(self._lister)
        return await lane.run(
            lambda db: rows.page_of(db.execute(queries.PAGE, (system, after, limit)))
        )

    async def queue(
        self, system: str, after: str = "", limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        if limit is None:
            return await self._many(queries.QUEUE, system, after, -1)
        lane = _opened(self._lister)
        return await lane.run(
            lambda db: rows.page_of(db.execute(queries.QUEUE, (system, after, limit)))
        )

    async def waiting(
        self,
        now: float,
        limit: int,
        running_per_user: int | None = None,
        offered: Collection[str] = (),
        without: Collection[str] = (),
        share: int | None = None,
        system_shares: Mapping[str, int] | None = None,
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""

        def chosen(db: sqlite3.Connection) -> Sequence[ImageRecord]:
            db.execute("BEGIN")  # nothing is begun between the two reads
            try:
                flights = [InFlight(*row) for row in db.execute(queries.FLIGHTS, (now,))]
                shares = (share, system_shares)
                keys = fair_schedule(flights, limit, running_per_user, offered, without, *shares)
                return [rows.record_of(db.execute(queries.GET, (key,)).fetchone()) for key in keys]
            finally:
                db.execute("COMMIT")

        return await _opened(self._lister).run(chosen)

    async def stale(self, now: float, limit: float) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._many(queries.STALE, now - limit)

    async def check_breaker(self, key: str, now: float, seconds: float) -> Breaker | None:
        """See `ImageStore`. Most requests find none, and write nothing."""
        breaker, due = await self._read(lambda db: breakers.look(db, key, now))
        if not due:
            return breaker
        return await self._note(lambda db: breakers.check(db, key, now, seconds))

    async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
        """See `ImageStore`."""
        await self._note(lambda db: breakers.trip(db, key, until, why, now))

    async def close_breaker(self, key: str, now: float) -> None:
        """See `ImageStore`."""
        await self._note(lambda db: breakers.close(db, key, now))

    async def end_probe(self, key: str, end: float, at: float) -> None:
        """See `ImageStore`."""
        await self._note(lambda db: breakers.end_probe(db, key, end, at))

    async def renew(self, key: str, expiration: float) -> None:
        """See `ImageStore`."""
        await self._note(lambda db: images.renew(db, key, expiration))

    async def expired(
        self, now: float, systems: Collection[str] | None = None, limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        wanted = None if systems is None else json.dumps(list(systems))
        most = -1 if limit is None else limit
        return await self._many(queries.EXPIRED, now, wanted, wanted, most)

    async def untag(self, key: str, tag: str) -> ImageRecord | None:
        """See `ImageStore`."""
        return await self._work(lambda db: images.untag(db, key, tag))

    async def expire(self, key: str, expired_at: float | None = None) -> ImageRecord | None:
        """See `ImageStore`."""
        return await self._work(lambda db: images.expire(db, key, expired_at))

    async def set_access(
        self,
        systems: Collection[str],
        image_id: str,
        private: bool,
        user_acl: Sequence[int],
        group_acl: Sequence[int],
    ) -> None:
        """See `ImageStore`."""
        change = documents.set_access(private, user_acl, group_acl)
        await self._work(lambda db: images.set_access(db, systems, image_id, change))

    async def block(self, directory: str, image_id: str, uid: int, now: float) -> None:
        """See `ImageStore`."""
        await self._change(queries.BLOCK, directory, image_id, uid, now)

    async def allow(self, directory: str, image_id: str) -> bool:
        """See `ImageStore`."""
        return await self._change(queries.ALLOW, directory, image_id) > 0

    async def blocked(self, directory: str, image_ids: Collection[str]) -> bool:
        """See `ImageStore`."""
        values = (directory, json.dumps(list(image_ids)))
        row = await self._read(lambda db: db.execute(queries.BLOCKED, values).fetchone())
        return row is not None

    async def expires(
        self,
        wanted: bool | None,
        now: float,  # noqa: ARG002 - see below
        kept: float | None,  # noqa: ARG002
    ) -> bool:
        """See `ImageStore`. No other program fills this file."""
        return wanted is not False

    async def forget_ended(self, before: float, *, others: bool = True) -> int:
        """See `ImageStore`."""
        return await self._change(queries.FORGET_ENDED, before, others)

    async def lease(
        self, directory: str, image_id: str, holder: str, now: float, seconds: float
    ) -> bool:
        """See `ImageStore`."""
        values = directory, image_id, holder, now, seconds
        return await self._note(lambda db: leases.take(db, *values))

    async def release(self, directory: str, image_id: str, holder: str) -> None:
        """See `ImageStore`."""
        values = (directory, image_id, holder)
        await self._note(lambda db: db.execute(queries.RELEASE, values).rowcount)

    async def _add_lookups(self, lane: Lane, added: Sequence[LookupRow]) -> None:
        def add(db: sqlite3.Connection) -> None:
            if added:
                rows.add_lookups(db, added, self._lookups_kept)

        await lane.run(add)

    async def record_lookup(self, row: Mapping[str, Any]) -> None:
        """See `ImageStore`."""
        _opened(self._lookups).add(row)

    async def lookups(self, system: str, limit: int) -> Sequence[dict[str, Any]]:
        """See `ImageStore`."""

        def last(db: sqlite3.Connection) -> Sequence[dict[str, Any]]:
            found = db.execute(queries.LOOKUPS, (system, max(0, limit))).fetchall()
            return [json.loads(text) for (text,) in reversed(found)]

        await _opened(self._lookups).flush()
        return await self._read(last)


def _opened(part: T | None) -> T:
    if part is None:
        raise Unavailable("The gateway's database is not open.")
    return part
