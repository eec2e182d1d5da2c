"""Rows of look-ups in the SQLite file, written a little later than the look-ups are answered."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftergw.store.lookups import LookupBuffer, LookupRow
from shiftergw.store.sqlite import rows
from shiftergw.store.sqlite.connections import SqliteConnections, require_open
from shiftergw.store.sqlite.lane import Lane

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

MAX_LOOKUPS = 100_000
"""Look-up rows in the file; the oldest ones are removed."""


class SqliteLookups(SqliteConnections):
    """A `LookupStore` in one file."""

    def __init__(
        self,
        reactor: Reactor,
        path: Path,
        max_lookups: int = MAX_LOOKUPS,
        check_seconds: float | None = None,
    ) -> None:
        """Store everything in the file `path`, which is on a local file system.

        `check_seconds` limits the search for damage at the start; None means no search.
        """
        super().__init__(reactor, path, check_seconds)
        self._max_lookups = max_lookups
        self._lookups: LookupBuffer | None = None

    async def _open(self) -> None:
        await super()._open()
        writer = require_open(self._writer)
        self._lookups = LookupBuffer(partial(self._add_lookups, writer), self._reactor)

    async def _flush(self) -> None:
        lookups, self._lookups = self._lookups, None
        if lookups is not None:
            await lookups.flush()

    async def _add_lookups(self, lane: Lane, lookups: Sequence[LookupRow]) -> None:
        def add(db: sqlite3.Connection) -> None:
            if lookups:
                rows.add_lookups(db, lookups, self._max_lookups)

        await lane.run(add)

    async def record_lookup(self, row: Mapping[str, Any]) -> None:
        """See `ImageStore`."""
        require_open(self._lookups).add(row)

    async def lookups(self, system: str, limit: int) -> Sequence[dict[str, Any]]:
        """See `ImageStore`."""
        await require_open(self._lookups).flush()
        return await self._read(lambda db: rows.last_lookups(db, system, limit))
