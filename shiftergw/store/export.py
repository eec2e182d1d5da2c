"""What a SQLite file holds, as the documents that MongoDB is to hold of it.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson.objectid import ObjectId

from shiftergw.errors import ConfigurationError, printable
from shiftergw.mongo.database import Document
from shiftergw.store.mongo.queries import BLOCKS, LOOKUPS, file_key
from shiftergw.store.mongo.records import IMAGES, storable
from shiftergw.store.sqlite.database import open_alone
from shiftergw.store.sqlite.faults import translated

PAGE = 200
"""Rows that are read together."""

_LAST_SECOND = 2**32 - 1

_LEASES = "SELECT id FROM leases WHERE until > ? LIMIT ?"
_IN_FLIGHT = "SELECT claim FROM images WHERE claim IS NOT NULL LIMIT ?"
_IMAGES = "SELECT key, document FROM images WHERE key > ? ORDER BY key LIMIT ?"
_BLOCKS = """
SELECT id || ' ' || directory AS place, directory, id, uid, since FROM blocks
WHERE place > ? ORDER BY place LIMIT ?
"""
_LOOKUPS = "SELECT number, document FROM lookups WHERE number > ? ORDER BY number LIMIT ?"


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of thing: what it is called, the collection it belongs in, and how to get it.

    `table` is where it lies, `query` asks for the rows after a `first` key.
    """

    what: str
    collection: str
    table: str
    query: str
    first: Any
    document: Callable[[Sequence[Any]], Document]


class Export:
    """A file that nobody else can open until this is closed."""

    def __init__(self, path: Path) -> None:
        """Open it; raises as `open_alone`."""
        self._db = open_alone(path)

    def close(self) -> None:
        """Let others have it."""
        self._db.close()

    def count(self, part: Part) -> int:
        """Return how many there are."""
        with translated():
            found: int = self._db.execute(f"SELECT count(*) FROM {part.table}").fetchone()[0]  # noqa: S608 - a constant
        return found

    def page(self, part: Part, after: Any) -> tuple[list[Document], Any]:
        """Return the next documents, and the key of the last one."""
        with translated():
            rows = self._db.execute(part.query, (after, PAGE)).fetchall()
        return [part.document(row) for row in rows], rows[-1][0] if rows else after

    def busy(self, now: float, most: int) -> list[str]:
        """Return what is not at an end, by name; no more than `most` of it."""
        with translated():
            flying = self._db.execute(_IN_FLIGHT, (most,)).fetchall()
            held = self._db.execute(_LEASES, (now, most)).fetchall()
        return [name for (name,) in (*flying, *held)][:most]


def parts(before: float) -> list[Part]:
    """Return what is to be read, once from its beginning to its end.

    No row of metrics is younger than `before`, so that those to come stand behind them.
    """
    rows = _Rows(before)
    return [
        Part("images", IMAGES, "images", _IMAGES, "", _image),
        Part("blocks", BLOCKS, "blocks", _BLOCKS, "", _block),
        Part("look-ups", LOOKUPS, "lookups", _LOOKUPS, 0, rows.document),
    ]


def _image(row: Sequence[Any]) -> Document:
    key, text = row
    if not ObjectId.is_valid(key):
        raise ConfigurationError(
            f"The key of a record is none for MongoDB: {printable(key, 40)}.",
            remedy="No gateway makes such keys: whoever did must give it another one.",
        )
    return {"_id": ObjectId(key), **_plain(text)}


def _block(row: Sequence[Any]) -> Document:
    _, directory, image_id, uid, since = row
    values = {"directory": directory, "id": image_id, "uid": uid, "since": since}
    return {"_id": file_key(directory, image_id), **values}


class _Rows:
    """Gives rows of metrics keys in their order, always the same ones."""

    def __init__(self, before: float) -> None:
        self._second = 0
        self._before = min(int(before), _LAST_SECOND)

    def document(self, row: Sequence[Any]) -> Document:
        number, text = row
        values = _plain(text)
        time = values.get("time")
        if isinstance(time, int | float):
            self._second = max(self._second, min(int(time), self._before))
        key = self._second.to_bytes(4, "big") + int(number).to_bytes(8, "big")
        return {"_id": ObjectId(key), **values}


def _plain(text: str) -> Document:
    found: Document = storable(json.loads(text))
    found.pop("_id", None)
    return found
