"""What the contract needs of a store: the store, and a way behind its back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet import reactor

from shiftergw.ports import ImageStore
from shiftergw.store.sqlite import LOOKUPS_KEPT, SqliteStore


@dataclass(frozen=True)
class Place:
    """A running store; raw documents go in by `put` and come out by `document`.

    `location` is what `tests.store.hammer` opens in processes of its own.
    """

    store: ImageStore
    put: Callable[[str, dict[str, Any]], None]
    document: Callable[[str], dict[str, Any]]
    location: tuple[str, str]


def open_store(kind: str, location: str) -> SqliteStore:
    """Return the store of a location, not started."""
    return {"sqlite": lambda: SqliteStore(reactor, Path(location))}[kind]()


@asynccontextmanager
async def running(path: Path, lookups_kept: int = LOOKUPS_KEPT) -> AsyncIterator[SqliteStore]:
    """Run a store while the context lives."""
    store = SqliteStore(reactor, path, lookups_kept)
    await store.startService()
    try:
        yield store
    finally:
        await store.stopService()


def sqlite_place(store: SqliteStore, path: Path) -> Place:
    """Return the place of a SQLite file."""

    def put(key: str, document: dict[str, Any]) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(
                "INSERT INTO images (key, document) VALUES (?, ?)", (key, json.dumps(document))
            )

    def document(key: str) -> dict[str, Any]:
        with closing(sqlite3.connect(path)) as db:
            row = db.execute("SELECT document FROM images WHERE key = ?", (key,)).fetchone()
        found: dict[str, Any] = json.loads(row[0])
        return found

    return Place(store, put, document, ("sqlite", str(path)))
