"""Images and work in one SQLite file, shared by the gateway and its workers on one machine.

The file is in WAL mode: readers never wait for writers. Each write starts with `BEGIN IMMEDIATE`,
so no transaction has to be given up half-way. A commit that work depends on is synced to the disk
at once. Heartbeats, renewals, leases, breakers and look-up rows are synced a little later: a power
cut ends the processes that they concern as well.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from shiftergw.model.packed_data import PackedData
from shiftergw.model.postponement import Breaker, PostponeLimits
from shiftergw.model.records import Expired, Failed, ImageRecord, Progress, Ready
from shiftergw.model.requests import PullRequest, QueueLimits
from shiftergw.model.throughput import Throughput
from shiftergw.ports import DeltaBase
from shiftergw.states import State, WaitCause
from shiftergw.store import documents
from shiftergw.store.fair_schedule import InFlight, fair_order, fair_schedule
from shiftergw.store.sqlite import (
    breakers,
    images,
    leases,
    queries,
    ranges,
    rows,
    steps,
    throughput,
)
from shiftergw.store.sqlite.connections import require_open
from shiftergw.store.sqlite.lookups import SqliteLookups


class SqliteStore(SqliteLookups):
    """An `ImageStore` in one file. Callers pass the times of records."""

    used_credentials = None

    async def claim(
        self, request: PullRequest, now: float, limits: QueueLimits | None = None
    ) -> tuple[ImageRecord, bool]:
        """See `ImageStore`."""
        return await self._write_durably(lambda db: steps.claim(db, request, now, limits))

    async def begin(self, key: str, runner: str, now: float, limit: float) -> ImageRecord | None:
        """See `ImageStore`."""
        return await self._write_durably(lambda db: steps.begin(db, key, runner, now, limit))

    async def requeue(self, key: str, attempt: int, message: str, *, died: bool) -> ImageRecord:
        """See `ImageStore`."""
        return await self._write_durably(
            lambda db: steps.requeue(db, key, attempt, message, died=died)
        )

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
        return await self._write_durably(
            lambda db: steps.postpone(db, key, attempt, not_before, why, now, limits, cause)
        )

    async def advance(self, key: str, attempt: int, state: State, message: str, now: float) -> None:
        """See `ImageStore`."""
        await self._write_durably(lambda db: steps.advance(db, key, attempt, state, message, now))

    async def heartbeat(
        self, key: str, attempt: int, progress: Progress, now: float, message: str | None = None
    ) -> None:
        """See `ImageStore`."""
        change = documents.heartbeat(progress, now, message)
        await self._write(lambda db: steps.heartbeat(db, key, attempt, change))

    async def finish(
        self, key: str, attempt: int, outcome: Ready | Expired | Failed, now: float
    ) -> ImageRecord:
        """See `ImageStore`."""
        return await self._write_durably(lambda db: steps.finish(db, key, attempt, outcome, now))

    async def abandon(self, key: str) -> None:
        """See `ImageStore`."""
        await self._write_durably(lambda db: steps.abandon(db, key))

    async def get(self, key: str) -> ImageRecord | None:
        """See `ImageStore`."""
        return next(iter(await self._find_records(queries.GET, key)), None)

    async def find(self, system: str, itype: str, tags: Sequence[str]) -> ImageRecord | None:
        """See `ImageStore`."""

        def find_first(db: sqlite3.Connection) -> ImageRecord | None:
            for tag in tags:
                row = db.execute(queries.FIND, (system, itype, tag)).fetchone()
                if row is not None:
                    return rows.record_of(row)
            return None

        return await self._read(find_first)

    async def find_id(
        self, systems: Collection[str], image_id: str, *, expiring: bool = False
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        values = json.dumps(list(systems)), image_id
        records = await self._find_records(queries.FIND_ID, *values)
        if expiring:
            return [*records, *await self._find_records(queries.FIND_EXPIRING, *values)]
        return records

    async def find_prefix(
        self, systems: Collection[str], prefix: str, limit: int
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        values = json.dumps(list(systems)), prefix, documents.after_prefix(prefix), limit
        return await self._list_records(queries.FIND_PREFIX, *values)

    async def find_work(self, system: str, itype: str, tag: str) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._find_records(
            queries.FIND_WORK, f"{system}/{itype}/{tag}", system, itype, tag
        )

    async def list(
        self, system: str, after: str = "", limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        if limit is None:
            return await self._list_records(queries.LIST, system, after, -1)
        return await self._list_page(queries.PAGE, system, after, limit)

    async def reports(self, system: str, limit: int) -> Sequence[Mapping[str, Any]]:
        """See `ImageStore`."""
        values = system, limit
        texts = await self._read(lambda db: db.execute(queries.REPORTS, values).fetchall())
        return [json.loads(text) for (text,) in texts if text is not None]

    async def queue(
        self, system: str, after: str = "", limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        if limit is None:
            return await self._list_records(queries.QUEUE, system, after, -1)
        return await self._list_page(queries.QUEUE, system, after, limit)

    async def count_work(self) -> Mapping[tuple[str, str], int]:
        """See `ImageStore`."""
        rows = await self._read(lambda db: db.execute(queries.COUNT_WORK).fetchall())
        return {(system, status): number for system, status, number in rows}

    async def list_breakers(self, now: float) -> Sequence[Breaker]:
        """See `ImageStore`."""
        return await self._read(lambda db: breakers.list_open(db, now))

    async def add_throughput(self, work: Throughput) -> None:
        """See `ImageStore`."""
        await self._write(lambda db: throughput.add(db, work))

    async def list_throughput(self, since: float) -> Sequence[Throughput]:
        """See `ImageStore`."""
        return await self._read(lambda db: throughput.list_since(db, since))

    async def waiting(
        self,
        now: float,
        limit: int,
        running_per_user: int | None = None,
        offers: Collection[str] = (),
        without: Collection[str] = (),
        share: int | None = None,
        system_shares: Mapping[str, int] | None = None,
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""

        def choose(db: sqlite3.Connection) -> Sequence[ImageRecord]:
            db.execute("BEGIN")  # both reads see the same state
            try:
                records = [InFlight(*row) for row in db.execute(queries.ALL_IN_FLIGHT, (now,))]
                shares = (share, system_shares)
                keys = fair_schedule(records, limit, running_per_user, offers, without, *shares)
                return [rows.record_of(db.execute(queries.GET, (key,)).fetchone()) for key in keys]
            finally:
                db.execute("COMMIT")

        return await require_open(self._lister).run(choose)

    async def schedule(self, now: float) -> Sequence[str]:
        """See `ImageStore`."""

        def order(db: sqlite3.Connection) -> list[str]:
            rows_in_flight = db.execute(queries.ALL_IN_FLIGHT, (now,))
            return fair_order(InFlight(*row) for row in rows_in_flight)

        return await require_open(self._lister).run(order)

    async def stale(self, now: float, limit: float) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await self._list_records(queries.STALE, now - limit)

    async def check_breaker(self, key: str, now: float, seconds: float) -> Breaker | None:
        """See `ImageStore`. Most calls find no breaker, and write nothing."""
        breaker, is_due = await self._read(lambda db: breakers.find(db, key, now))
        if not is_due:
            return breaker
        return await self._write(lambda db: breakers.check(db, key, now, seconds))

    async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
        """See `ImageStore`."""
        await self._write(lambda db: breakers.trip(db, key, until, why, now))

    async def close_breaker(self, key: str, now: float) -> None:
        """See `ImageStore`."""
        await self._write(lambda db: breakers.close(db, key, now))

    async def end_probe(self, key: str, end: float, at: float) -> None:
        """See `ImageStore`."""
        await self._write(lambda db: breakers.end_probe(db, key, end, at))

    async def renew(self, key: str, expiration: float) -> None:
        """See `ImageStore`."""
        await self._write(lambda db: images.renew(db, key, expiration))

    async def list_expired(
        self, now: float, systems: Collection[str] | None = None, limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        names = None if systems is None else json.dumps(list(systems))
        limit = -1 if limit is None else limit
        return await self._list_records(queries.LIST_EXPIRED, now, names, names, limit)

    async def untag(
        self, key: str, tag: str, expected: ImageRecord | None = None
    ) -> ImageRecord | None:
        """See `ImageStore`."""
        return await self._write_durably(lambda db: images.untag(db, key, tag, expected))

    async def expire(
        self, key: str, expired_at: float | None = None, expected: ImageRecord | None = None
    ) -> ImageRecord | None:
        """See `ImageStore`."""
        return await self._write_durably(lambda db: images.expire(db, key, expired_at, expected))

    async def note_use(self, key: str, uid: int) -> bool:
        """See `ImageStore`."""
        return await self._write_durably(lambda db: images.note_use(db, key, uid))

    async def pin(self, key: str, uid: int, limit: int | None) -> ImageRecord | None:
        """See `ImageStore`."""
        return await self._write_durably(lambda db: images.pin(db, key, uid, limit))

    async def unpin(self, key: str) -> ImageRecord | None:
        """See `ImageStore`."""
        return await self._write_durably(lambda db: images.unpin(db, key))

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
        await self._write_durably(lambda db: images.set_access(db, systems, image_id, change))

    async def block(self, directory: str, image_id: str, uid: int, now: float) -> None:
        """See `ImageStore`."""
        await self._execute(queries.BLOCK, directory, image_id, uid, now)

    async def allow(self, directory: str, image_id: str) -> bool:
        """See `ImageStore`."""
        return await self._execute(queries.ALLOW, directory, image_id) > 0

    async def find_blocks(self, directory: str, prefix: str, limit: int) -> Sequence[str]:
        """See `ImageStore`."""
        values = directory, prefix, documents.after_prefix(prefix), limit
        rows = await self._read(lambda db: db.execute(queries.FIND_BLOCKS, values).fetchall())
        return [image_id for (image_id,) in rows]

    async def is_blocked(self, directory: str, image_ids: Collection[str]) -> bool:
        """See `ImageStore`."""
        values = (directory, json.dumps(list(image_ids)))
        row = await self._read(lambda db: db.execute(queries.FIND_BLOCK, values).fetchone())
        return row is not None

    async def expires(
        self,
        setting: bool | None,
        now: float,  # noqa: ARG002 - see below
        lifetime: float | None,  # noqa: ARG002
    ) -> bool:
        """See `ImageStore`. No other program writes into this file."""
        return setting is not False

    async def forget_ended(self, before: float, *, foreign: bool = True) -> int:
        """See `ImageStore`."""
        return await self._execute(queries.FORGET_ENDED, before, foreign)

    async def save_ranges(self, sha256: str, data: PackedData, now: float) -> None:
        """See `ImageStore`."""
        values = sha256, data.sizes(), data.encode(), now
        await self._write(lambda db: ranges.save(db, *values))

    async def find_bases(
        self, systems: Collection[str], data_sizes: Mapping[str, int], excluded_id: str, limit: int
    ) -> Sequence[DeltaBase]:
        """See `ImageStore`."""
        lane = require_open(self._lister)
        return await lane.run(lambda db: ranges.find(db, systems, data_sizes, excluded_id, limit))

    async def forget_ranges(self, before: float) -> int:
        """See `ImageStore`."""
        return await self._write(lambda db: db.execute(queries.FORGET_RANGES, (before,)).rowcount)

    async def lease(
        self, directory: str, image_id: str, holder: str, now: float, seconds: float
    ) -> bool:
        """See `ImageStore`."""
        values = directory, image_id, holder, now, seconds
        return await self._write(lambda db: leases.take(db, *values))

    async def release(self, directory: str, image_id: str, holder: str) -> None:
        """See `ImageStore`."""
        values = (directory, image_id, holder)
        await self._write(lambda db: db.execute(queries.RELEASE, values).rowcount)
