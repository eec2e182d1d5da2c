"""Ranges of delivered files in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping

from shiftergw.ports import DeltaBase
from shiftergw.store.ranges import FileFacts, decode_base, usable_files
from shiftergw.store.sqlite import queries


def save(
    db: sqlite3.Connection, sha256: str, sizes: Mapping[str, int], content: bytes, now: float
) -> None:
    """Write the ranges of a file in place of earlier ones, in the current transaction."""
    db.execute(queries.REMOVE_RANGES, (sha256,))
    db.execute(queries.ADD_RANGES, (sha256, now, content))
    db.executemany(queries.ADD_DATA, [(data, sha256, size) for data, size in sizes.items()])


def find(
    db: sqlite3.Connection,
    systems: Collection[str],
    data_sizes: Mapping[str, int],
    excluded_id: str,
    limit: int,
) -> list[DeltaBase]:
    """Return the images that may have most of the data; see `RangeStore.find_bases`."""
    values = json.dumps(data_sizes), json.dumps(list(systems)), excluded_id
    files = [FileFacts(*row) for row in db.execute(queries.FIND_BASES, values)]
    bases: list[DeltaBase] = []
    for file in usable_files(files):
        if len(bases) == limit:
            break
        row = db.execute(queries.RANGES, (file.sha256,)).fetchone()
        base = None if row is None else decode_base(file, row[0])
        if base is not None:
            bases.append(base)
    return bases
