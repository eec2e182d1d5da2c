"""Rows of look-up metrics in MongoDB, as the original gateway wrote them."""

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
"""Rows of all systems; older ones go."""

TIDY_SECONDS = 3600.0
"""How often a process looks for rows that are too old, or too many."""


class LookupCollection:
    """The collection of rows; those of one process stand in the order of their coming."""

    def __init__(self, db: Database, kept: int = MAX_ROWS) -> None:
        """Keep about `kept` rows in `db`."""
        self._db = db
        self._kept = kept
        self._tidied: float | None = None

    async def write(self, rows: Sequence[LookupRow]) -> None:
        """Add rows, and remove old ones now and then."""
        if not rows:
            return
        documents = [{"_id": ObjectId(), **storable(row)} for row in rows]
        with suppress(DuplicateKeyError):  # sent twice
            await self._db.insert(LOOKUPS, documents, durable=False)
        now = self._db.clock.seconds()
        if self._tidied is None or now - self._tidied >= TIDY_SECONDS:
            self._tidied = now
            await self._tidy(cutoff_time(rows))

    async def _tidy(self, oldest: float) -> None:
        await self._remove({"time": {"$lt": oldest}})
        # All of them are counted without being read.
        surplus = await self._db.count(LOOKUPS, {}) - self._kept
        if surplus > 0:
            query = Query(LOOKUPS, {}, {"_id": 1}, members=("_id",), skip=surplus)
            first_kept = await self._db.first(query)
            if first_kept is not None:
                await self._remove({"_id": {"$lt": first_kept["_id"]}})

    async def _remove(self, wanted: dict[str, Any]) -> None:
        await self._db.delete(LOOKUPS, wanted, many=True, durable=False)

    async def last(self, system: str, limit: int) -> list[dict[str, Any]]:
        """Return the last `limit` rows of a system, oldest first."""
        if limit <= 0:
            return []
        rows = await self._db.find(queries.rows_of(system, limit))
        return [
            {name: _plain(value) for name, value in row.items() if name != "_id"}
            for row in reversed(rows)
        ]


def _plain(value: object) -> object:
    """Return a value as JSON can hold it, whoever wrote the row."""
    if value is None or isinstance(value, str | bool):
        return value
    number = read_number(value)
    return str(value) if number is None else number
