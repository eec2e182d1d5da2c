"""The connections to the SQLite file: one that writes, one that reads, one for long lists.

They open and close as one service. The methods run a step on the lane that suits it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from shiftergw.errors import Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.plumbing.threads import Threads
from shiftergw.store.sqlite import queries, rows
from shiftergw.store.sqlite.database import open_reader, rewrite_version
from shiftergw.store.sqlite.integrity import open_checked
from shiftergw.store.sqlite.lane import Lane, run_reads, run_writes

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

T = TypeVar("T")


class SqliteConnections(Service):
    """The open file, with a lane for each kind of work."""

    def __init__(self, reactor: Reactor, path: Path, check_seconds: float | None) -> None:
        """Open the file `path` at the start; search it for damage for at most `check_seconds`."""
        self._check_seconds = check_seconds
        self._path = path
        self._reactor = reactor
        self._threads = Threads(reactor, 3, "store")
        self._writer: Lane | None = None
        self._reader: Lane | None = None
        self._lister: Lane | None = None

    def startService(self) -> Deferred[None]:
        """Open the file; fail with `ConfigurationError` or `Unavailable`."""
        super().startService()
        self._threads.startService()
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        try:
            connection = await self._threads.run(open_checked, self._path, self._check_seconds)
            self._writer = Lane(self._threads, connection, run_writes, self._reactor)
            self._reader = await self._open_reader()
            # A connection for long lists, so that look-ups do not wait for them.
            self._lister = await self._open_reader()
        except BaseException:
            super().stopService()
            await self._close()
            raise

    async def _open_reader(self) -> Lane:
        connection = await self._threads.run(open_reader, self._path)
        return Lane(self._threads, connection, run_reads, self._reactor)

    def stopService(self) -> Deferred[None]:
        """Finish all calls in progress and close the file."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        lanes = self._lister, self._reader, self._writer
        self._lister = self._reader = self._writer = None
        await self._flush()
        for lane in lanes:
            if lane is not None:
                await lane.close()
        await self._threads.stopService()

    async def _flush(self) -> None:
        """Write what is still buffered, on a lane that is about to close."""

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await require_open(self._reader).run(work)

    async def _find_records(self, query: str, *values: Any) -> Sequence[ImageRecord]:
        return await self._read(lambda db: rows.records_of(db.execute(query, values)))

    async def _list_records(self, query: str, *values: Any) -> Sequence[ImageRecord]:
        lane = require_open(self._lister)
        return await lane.run(lambda db: rows.records_of(db.execute(query, values)))

    async def _list_page(self, query: str, *values: Any) -> Sequence[ImageRecord]:
        lane = require_open(self._lister)
        return await lane.run(lambda db: rows.page_of(db.execute(query, values)))

    async def _write_durably(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write data that must outlive a power cut."""
        return await require_open(self._writer).run(work, durable=True)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write data that a power cut may lose."""
        return await require_open(self._writer).run(work)

    async def _execute(self, query: str, *values: Any) -> int:
        """Run one statement durably; return how many rows it changed."""
        return await self._write_durably(lambda db: db.execute(query, values).rowcount)

    async def ready(self) -> None:
        """See `ImageStore`."""
        writer, lanes = require_open(self._writer), (self._lister, self._reader, self._writer)
        for lane in lanes:
            if lane is not None and lane.damage is not None:
                raise lane.damage
        await self._find_records(queries.GET, "")  # on the connection that serves no long lists
        # An empty transaction takes the write lock. After a failure only a real write proves that
        # the disk takes writes again.
        await writer.run(rewrite_version if writer.is_failing else lambda _: None)


def require_open(resource: T | None) -> T:
    """Return a resource that exists while the file is open; raise `Unavailable` otherwise."""
    if resource is None:
        raise Unavailable("The gateway's database is not open.")
    return resource
