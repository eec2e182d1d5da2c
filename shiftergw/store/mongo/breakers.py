"""Circuit breakers in MongoDB: an update applies only to the entry as it was read."""

from __future__ import annotations

from typing import Any

from pymongo.errors import DuplicateKeyError

from shiftergw.model.postponement import Breaker
from shiftergw.mongo.database import Database, Document
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import BREAKERS
from shiftergw.store.mongo.records import TRIES, storable, too_busy
from shiftergw.store.waits import (
    BREAKER_LIFE,
    MOST_BREAKERS,
    breaker_from,
    is_due,
    is_plausible,
    trip_entry,
)


async def list_open(db: Database, now: float) -> list[Breaker]:
    """Return the breakers whose time has not come."""
    entries = await db.find(queries.open_breakers(now, MOST_BREAKERS))
    return [
        breaker_from(str(entry["_id"]), entry, now) for entry in entries if is_plausible(entry, now)
    ]


async def check(db: Database, key: str, now: float, seconds: float) -> Breaker | None:
    """Return a breaker; if a probe is due, the caller has to make it within `seconds`."""
    for _ in range(TRIES):
        entry = await db.first(queries.breaker(key))
        if entry is None or not is_plausible(entry, now):
            return None
        breaker = breaker_from(key, entry, now)
        if not is_due(entry, now):
            return breaker
        probe = {"$set": {"probed": now + seconds}}
        if await db.update(BREAKERS, _as_read(entry), probe, durable=False):
            return breaker
    raise too_busy()


async def trip(db: Database, key: str, until: float, why: str, now: float) -> None:
    """Hold requests back until a time, and remove expired entries."""
    old_entries = {"until": {"$lte": now - BREAKER_LIFE}}
    await db.delete(BREAKERS, old_entries, multi=True, durable=False)
    for _ in range(TRIES):
        entry = await db.first(queries.breaker(key))
        members: dict[str, Any] = storable(trip_entry(entry, until, why, now))
        if entry is None:
            try:
                await db.insert(BREAKERS, [{"_id": key, **members}], durable=False)
            except DuplicateKeyError:
                continue
            return
        if await db.update(BREAKERS, _as_read(entry), {"$set": members}, durable=False):
            return
    raise too_busy()


async def close(db: Database, key: str, now: float) -> None:
    """Remove a breaker whose time has come."""
    await db.delete(BREAKERS, {"_id": key, "until": {"$lte": now}}, durable=False)


async def end_probe(db: Database, key: str, end: float, at: float) -> None:
    """Allow the next probe from the time `at` on, if the current probe is the one until `end`."""
    probe = {"_id": key, "probed": end}
    await db.update(BREAKERS, probe, {"$set": {"probed": min(end, at)}}, durable=False)


def _as_read(entry: Document) -> Document:
    """Return a filter that matches an entry as long as it is unchanged."""
    return {name: entry[name] for name in ("_id", "until", "trips", "probed")}
