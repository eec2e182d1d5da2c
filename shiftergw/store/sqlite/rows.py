"""Records as rows of the SQLite file: a key and a document, in JSON."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shiftergw.model.records import ImageRecord
from shiftergw.store.documents import Change
from shiftergw.store.lookups import LookupRow, cutoff_time
from shiftergw.store.sqlite import queries

Row = tuple[str, str]
"""Key and document."""

PAGE_SIZE = 1 << 20
"""Bytes of documents after which a page of a list ends, however few records it has."""


def record_of(row: Row) -> ImageRecord:
    """Return the record of a row."""
    key, text = row
    document: dict[str, Any] = json.loads(text)
    document["_id"] = key
    return ImageRecord.from_document(document)


def records_of(rows: Iterable[Row]) -> list[ImageRecord]:
    """Return the records of rows."""
    return [record_of(row) for row in rows]


def page_of(rows: Iterable[Row]) -> list[ImageRecord]:
    """Return the records of the first rows that have `PAGE_SIZE` bytes together."""
    page, size = [], 0
    for row in rows:
        page.append(record_of(row))
        size += len(row[1])
        if size >= PAGE_SIZE:
            break
    return page


def document_at(db: sqlite3.Connection, key: str) -> dict[str, Any] | None:
    """Return the document with this key."""
    row = db.execute(queries.GET, (key,)).fetchone()
    return None if row is None else json.loads(row[1])


def add(db: sqlite3.Connection, key: str, document: Mapping[str, Any]) -> ImageRecord:
    """Insert a document and return its record."""
    db.execute("INSERT INTO images (key, document) VALUES (?, ?)", (key, _to_json(document)))
    return ImageRecord.from_document({**document, "_id": key})


def change(
    db: sqlite3.Connection, key: str, document: Mapping[str, Any], change: Change
) -> ImageRecord:
    """Apply a change to the document that was read; write it and return its record."""
    new_document = change.apply(document)
    db.execute("UPDATE images SET document = ? WHERE key = ?", (_to_json(new_document), key))
    return ImageRecord.from_document(new_document | {"_id": key})


def add_lookups(db: sqlite3.Connection, lookups: Sequence[LookupRow], limit: int) -> None:
    """Add look-up rows; remove the oldest of all beyond `limit`, and those that are too old."""
    values = [(row["system"], json.dumps(row)) for row in lookups]
    db.executemany(queries.ADD_LOOKUP, values)
    db.execute(queries.KEEP_LOOKUPS, (limit,))
    db.execute(queries.FORGET_LOOKUPS, (cutoff_time(lookups),))


def last_lookups(db: sqlite3.Connection, system: str, limit: int) -> Sequence[LookupRow]:
    """Return the last `limit` look-up rows of a system, the oldest first."""
    lookups = db.execute(queries.LOOKUPS, (system, max(0, limit))).fetchall()
    return [json.loads(text) for (text,) in reversed(lookups)]


def _to_json(document: Mapping[str, Any]) -> str:
    # Plain ASCII: a lone surrogate in a name of an image must not reach SQLite's UTF-8.
    return json.dumps(document, separators=(",", ":"), allow_nan=False)
