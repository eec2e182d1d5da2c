"""Read a SQLite file as the documents that a migration writes into MongoDB.

All functions block: call them in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson.objectid import ObjectId

from shiftergw.errors import ConfigurationError, printable
from shiftergw.model.packed_data import PackedData
from shiftergw.mongo.database import Document
from shiftergw.store.mongo.queries import BLOCKS, LOOKUPS, RANGES, file_key
from shiftergw.store.mongo.ranges import ranges_document
from shiftergw.store.mongo.records import IMAGES, storable
from shiftergw.store.sqlite.database import open_alone
from shiftergw.store.sqlite.faults import translate_errors

PAGE = 200
"""Rows that are read at once."""

_LAST_SECOND = 2**32 - 1

_LEASES = "SELECT id FROM leases WHERE until > ? LIMIT ?"
_IN_FLIGHT = "SELECT claim FROM images WHERE claim IS NOT NULL LIMIT ?"
_IMAGES = "SELECT key, document FROM images WHERE key > ? ORDER BY key LIMIT ?"
_BLOCKS = """
SELECT id || ' ' || directory AS place, directory, id, uid, since FROM blocks
WHERE place > ? ORDER BY place LIMIT ?
"""
_RANGES = """
SELECT sha256, saved_at, content FROM file_ranges WHERE sha256 > ? ORDER BY sha256 LIMIT ?
"""
_LOOKUPS = "SELECT number, document FROM lookups WHERE number > ? ORDER BY number LIMIT ?"


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of document: its name in messages, its collection, and how to read it.

    `query` selects the rows of `table` after a key; `start` is a key before all others.
    """

    name: str
    collection: str
    table: str
    query: str
    start: Any
    document: Callable[[Sequence[Any]], Document]


class Export:
    """A SQLite file that no other process can open until this object is closed."""

    def __init__(self, path: Path) -> None:
        """Open the file; raise as `open_alone`."""
        self._db = open_alone(path)

    def close(self) -> None:
        """Close the file, so that other processes can open it."""
        self._db.close()

    def count(self, part: Part) -> int:
        """Return the number of documents of a part."""
        with translate_errors():
            count: int = self._db.execute(f"SELECT count(*) FROM {part.table}").fetchone()[0]  # noqa: S608 - a constant
        return count

    def page(self, part: Part, after: Any) -> tuple[list[Document], Any]:
        """Return the documents of the next rows after a key, and the key of the last one."""
        with translate_errors():
            rows = self._db.execute(part.query, (after, PAGE)).fetchall()
        return [part.document(row) for row in rows], rows[-1][0] if rows else after

    def unfinished_work(self, now: float, limit: int) -> list[str]:
        """Return at most `limit` names: claims of work in flight, and image ids of leases."""
        with translate_errors():
            claims = self._db.execute(_IN_FLIGHT, (limit,)).fetchall()
            leases = self._db.execute(_LEASES, (now, limit)).fetchall()
        return [name for (name,) in (*claims, *leases)][:limit]


def parts(before: float) -> list[Part]:
    """Return the parts of a file; a part can be read only once, page by page from its start.

    No key of a look-up row has a time after `before`, so that later rows sort after them.
    """
    keys = _LookupKeys(before)
    return [
        Part("images", IMAGES, "images", _IMAGES, "", _image),
        Part("blocks", BLOCKS, "blocks", _BLOCKS, "", _block),
        Part("ranges", RANGES, "file_ranges", _RANGES, "", _ranges),
        Part("look-ups", LOOKUPS, "lookups", _LOOKUPS, 0, keys.document),
    ]


def _image(row: Sequence[Any]) -> Document:
    key, text = row
    if not ObjectId.is_valid(key):
        raise ConfigurationError(
            f"The key of a record is not a MongoDB key: {printable(key, 40)}.",
            remedy="No gateway makes such keys: give the record another one.",
        )
    return {"_id": ObjectId(key), **_document(text)}


def _block(row: Sequence[Any]) -> Document:
    _, directory, image_id, uid, block_time = row
    values = {"directory": directory, "id": image_id, "uid": uid, "since": block_time}
    return {"_id": file_key(directory, image_id), **values}


def _ranges(row: Sequence[Any]) -> Document:
    sha256, time, content = row
    try:
        sizes = PackedData.decode(content).sizes()
    except ValueError:
        sizes = {}  # damaged: no delivery will find the file
    return ranges_document(sha256, sizes, content, time)


class _LookupKeys:
    """Make keys for look-up rows that sort in the order of the rows; each run makes the same."""

    def __init__(self, before: float) -> None:
        self._second = 0
        self._before = min(int(before), _LAST_SECOND)

    def document(self, row: Sequence[Any]) -> Document:
        number, text = row
        values = _document(text)
        time = values.get("time")
        if isinstance(time, int | float):
            self._second = max(self._second, min(int(time), self._before))
        key = self._second.to_bytes(4, "big") + int(number).to_bytes(8, "big")
        return {"_id": ObjectId(key), **values}


def _document(text: str) -> Document:
    document: Document = storable(json.loads(text))
    document.pop("_id", None)
    return document
