"""Look-up rows in MongoDB, in the collection and the form of the original gateway."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bson.objectid import ObjectId
from pymongo.errors import DuplicateKeyError

from shiftergw.mongo.database import Database, Query
from shiftergw.store.legacy_documents import read_number
from shiftergw.store.lookups import LookupRow, cutoff_time
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import LOOKUPS
from shiftergw.store.mongo.records import storable

MAX_ROWS = 1_000_000
"""Look-up rows of all systems; the oldest ones are removed."""

TIDY_SECONDS = 3600.0
"""Seconds after which a process again removes rows that are too old or too many."""


class LookupCollection:
    """The collection of look-up rows; the rows of one process are in the order of their arrival."""

    def __init__(self, db: Database, limit: int = MAX_ROWS) -> None:
        """Store about `limit` rows in `db` at most."""
        self._db = db
        self._limit = limit
        self._last_cleanup: float | None = None

    async def write(self, rows: Sequence[LookupRow]) -> None:
        """Add rows; remove old ones every `TIDY_SECONDS`."""
        if not rows:
            return
        documents = [{"_id": ObjectId(), **storable(row)} for row in rows]
        with suppress(DuplicateKeyError):  # the command was sent twice
            await self._db.insert(LOOKUPS, documents, durable=False)
        now = self._db.clock.seconds()
        if self._last_cleanup is None or now - self._last_cleanup >= TIDY_SECONDS:
            self._last_cleanup = now
            await self._clean_up(cutoff_time(rows))

    async def _clean_up(self, cutoff: float) -> None:
        await self._remove({"time": {"$lt": cutoff}})
        # The server counts a whole collection without reading it.
        surplus = await self._db.count(LOOKUPS, {}) - self._limit
        if surplus > 0:
            query = Query(LOOKUPS, {}, {"_id": 1}, members=("_id",), skip=surplus)
            oldest = await self._db.first(query)
            if oldest is not None:
                await self._remove({"_id": {"$lt": oldest["_id"]}})

    async def _remove(self, rows: dict[str, Any]) -> None:
        await self._db.delete(LOOKUPS, rows, multi=True, durable=False)

    async def last(self, system: str, limit: int) -> list[dict[str, Any]]:
        """Return the last `limit` rows of a system, oldest first."""
        if limit <= 0:
            return []
        rows = await self._db.find(queries.last_lookups(system, limit))
        return [
            {name: _json_value(value) for name, value in row.items() if name != "_id"}
            for row in reversed(rows)
        ]


def _json_value(value: object) -> object:
    """Return a value that JSON can hold; another program may have written the row."""
    if value is None or isinstance(value, str | bool):
        return value
    number = read_number(value)
    return str(value) if number is None else number
