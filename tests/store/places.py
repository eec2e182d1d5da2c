"""Running stores for tests, with direct access to their documents."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson.objectid import ObjectId
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred

from shiftergw.ports import ImageStore
from shiftergw.store.mongo.lookups import MAX_ROWS
from shiftergw.store.mongo.records import IMAGES
from shiftergw.store.mongo.store import MongoStore
from shiftergw.store.sqlite.lookups import MAX_LOOKUPS
from shiftergw.store.sqlite.store import SqliteStore


@dataclass(frozen=True)
class Place:
    """A running store; `put` and `document` write and read raw documents without the store.

    `tests.store.hammer` opens `location` in processes of its own.
    """

    store: ImageStore
    put: Callable[[str, dict[str, Any]], None]
    document: Callable[[str], dict[str, Any]]
    location: tuple[str, str]


def open_store(kind: str, location: str) -> SqliteStore | MongoStore:
    """Return the store of a location: a file, or the URI and the name of a database.

    The store is not started yet.
    """
    if kind == "sqlite":
        return SqliteStore(reactor, Path(location))
    uri, _, name = location.rpartition(" ")
    return MongoStore(reactor, uri, name)


@asynccontextmanager
async def running(path: Path, max_lookups: int = MAX_LOOKUPS) -> AsyncIterator[SqliteStore]:
    """Run a store on a file within the context."""
    store = SqliteStore(reactor, path, max_lookups)
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
        content: dict[str, Any] = json.loads(row[0])
        return content

    return Place(store, put, document, ("sqlite", str(path)))


async def remove_record(store: ImageStore, key: str) -> None:
    """Remove a record directly: no method of the port removes records."""
    if isinstance(store, MongoStore):
        await store._db.delete(IMAGES, {"_id": ObjectId(key)})
    else:
        assert isinstance(store, SqliteStore)
        await store._execute("DELETE FROM images WHERE key = ?", key)


@asynccontextmanager
async def mongo_running(
    uri: str, name: str, seconds: float = 5.0, max_rows: int = MAX_ROWS
) -> AsyncIterator[MongoStore]:
    """Run a store on a database within the context."""
    store = MongoStore(reactor, uri, name, seconds, max_rows)
    await maybeDeferred(store.startService)
    try:
        yield store
    finally:
        await store.stopService()


def mongo_place(store: MongoStore, uri: str, db: Any) -> Place:
    """Return the place of a database; `db` is pymongo's object for it."""

    def put(key: str, document: dict[str, Any]) -> None:
        db["images"].insert_one({**document, "_id": ObjectId(key)})

    def document(key: str) -> dict[str, Any]:
        content: dict[str, Any] = db["images"].find_one({"_id": ObjectId(key)})
        return content

    return Place(store, put, document, ("mongo", f"{uri} {db.name}"))
