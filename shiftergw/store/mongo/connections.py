"""The connections to MongoDB, and what is checked and written beside the calls of the store.

They open and close as one service.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from shiftergw.errors import Unavailable
from shiftergw.mongo.address import MongoAddress
from shiftergw.mongo.connector import HOST_SECONDS, NO_ANSWER, PrimaryConnector
from shiftergw.mongo.database import Database
from shiftergw.mongo.pool import ConnectionPool
from shiftergw.plumbing.rounds import Rounds
from shiftergw.store.lookups import LookupBuffer
from shiftergw.store.mongo.indexes import Indexes
from shiftergw.store.mongo.lookups import LookupCollection

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

CHECK_SECONDS = 10.0
"""Seconds between two checks of the database's indexes and of a migration into it."""


@dataclass(frozen=True, slots=True)
class _Resources:
    """What exists while the store is open."""

    pool: ConnectionPool
    db: Database
    indexes: Indexes
    lookup_collection: LookupCollection
    lookup_buffer: LookupBuffer
    checks: Rounds


class MongoConnections(Service):
    """The connections to one database, its indexes, and the look-up rows to be written."""

    def __init__(
        self,
        reactor: Reactor,
        uri: str,
        name: str,
        seconds: float,
        max_rows: int,
    ) -> None:
        """Use the database `name`; a command may take `seconds` seconds.

        At most `max_rows` rows of look-ups stay in it.
        """
        self._reactor = reactor
        self._uri = uri
        self._database = name
        self._seconds = seconds
        self._max_rows = max_rows
        self._resources: _Resources | None = None

    def startService(self) -> None:
        """Return at once, whether the server answers or not; raise `ConfigurationError`."""
        address = MongoAddress.parse(self._uri)
        clock, seconds = self._reactor, self._seconds
        connector = PrimaryConnector(self._reactor, address, min(HOST_SECONDS, seconds))
        super().startService()
        pool = ConnectionPool(connector.open, clock, seconds)
        db = Database(clock, pool, self._database, address.write_concern, seconds)
        indexes = Indexes(db, pool, seconds)
        collection = LookupCollection(db, self._max_rows)

        async def check() -> None:
            with suppress(Unavailable):  # the pool has logged it
                await indexes.create()

        checks = Rounds(check, clock, CHECK_SECONDS, "MongoDB")
        buffer = LookupBuffer(collection.write, clock)
        self._resources = _Resources(pool, db, indexes, collection, buffer, checks)
        checks.startService()

    def stopService(self) -> Deferred[None]:
        """Write the look-up rows in the buffer, if that is possible, and close all connections."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        resources, self._resources = self._resources, None
        if resources is not None:
            await resources.lookup_buffer.flush()
            await resources.pool.close()
            await resources.checks.stopService()

    def _require_open(self) -> _Resources:
        if self._resources is None:
            raise Unavailable(NO_ANSWER, detail="MongoDB: the store is not open")
        return self._resources

    @property
    def _db(self) -> Database:
        return self._require_open().db
