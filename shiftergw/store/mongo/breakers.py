"""Breakers in MongoDB: an update applies only to the entry that was read."""

from __future__ import annotations

from typing import Any

from pymongo.errors import DuplicateKeyError

from shiftergw.model import Breaker
from shiftergw.mongo.database import Database, Document
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import BREAKERS
from shiftergw.store.mongo.records import TRIES, storable, too_busy
from shiftergw.store.waits import BREAKER_LIFE, breaker_from, is_due, is_possible, trip_entry


async def check(db: Database, key: str, now: float, seconds: float) -> Breaker | None:
    """Return a breaker, and make the caller its probe if one is due."""
    for _ in range(TRIES):
        entry = await db.first(queries.breaker(key))
        if entry is None or not is_possible(entry, now):
            return None
        breaker = breaker_from(key, entry, now)
        if not is_due(entry, now):
            return breaker
        probed = {"$set": {"probed": now + seconds}}
        if await db.update(BREAKERS, _pinned(entry), probed, durable=False):
            return breaker
    raise too_busy()


async def trip(db: Database, key: str, until: float, why: str, now: float) -> None:
    """Hold requests back until a time, and remove the entries that have expired."""
    over = {"until": {"$lte": now - BREAKER_LIFE}}
    await db.delete(BREAKERS, over, many=True, durable=False)
    for _ in range(TRIES):
        entry = await db.first(queries.breaker(key))
        changed: dict[str, Any] = storable(trip_entry(entry, until, why, now))
        if entry is None:
            try:
                await db.insert(BREAKERS, [{"_id": key, **changed}], durable=False)
            except DuplicateKeyError:
                continue
            return
        if await db.update(BREAKERS, _pinned(entry), {"$set": changed}, durable=False):
            return
    raise too_busy()


async def close(db: Database, key: str, now: float) -> None:
    """Remove a breaker whose time has come."""
    await db.delete(BREAKERS, {"_id": key, "until": {"$lte": now}}, durable=False)


async def end_probe(db: Database, key: str, end: float, at: float) -> None:
    """Let the next probe follow from a time on, if the probe is still the one until `end`."""
    probe = {"_id": key, "probed": end}
    await db.update(BREAKERS, probe, {"$set": {"probed": min(end, at)}}, durable=False)


def _pinned(entry: Document) -> Document:
    return {name: entry[name] for name in ("_id", "until", "trips", "probed")}
