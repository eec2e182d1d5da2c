"""Whether images expire on schedule: in a database taken over not before somebody says so.

Another gateway dated its images otherwise, or not at all: there a schedule that began by itself
could remove within minutes what a site has gathered in years. That there were records of another
program is kept, since one day the last of them will have been pulled again.
"""

from __future__ import annotations

from contextlib import suppress

from pymongo.errors import DuplicateKeyError
from twisted.logger import Logger

from shiftergw.mongo.database import Database, Document, Query
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import STATE
from shiftergw.store.mongo.records import IMAGES, READY

FACT = "expiry"
"""The key of what is kept: `taken_over`, and once it is switched on `begun`; both are times."""

PIECE = 200
"""Records that get a date together: no command takes long, however many there are."""

_log = Logger()


async def expires(db: Database, wanted: bool | None, now: float, kept: float | None) -> bool:
    """See `ImageStore`."""
    fact = await db.first(queries.fact(FACT))
    if fact is None:
        if await db.first(queries.by_others()) is None:
            return wanted is not False
        fact = {"_id": FACT, "taken_over": now}
        with suppress(DuplicateKeyError):  # another gateway knows it too
            await db.insert(STATE, [fact])
    if wanted and fact.get("begun") is None:
        dated = await _date_all(db, now, kept)
        _log.info("{n} images without an expiration, or past it: it counts from now", n=dated)
        await db.update(STATE, {"_id": FACT, "begun": None}, {"$set": {"begun": now}})
    return bool(wanted)


async def is_taken_over(db: Database) -> bool:
    """Say whether another program has filled the database, and the schedule has not begun."""
    fact = await db.first(queries.fact(FACT))
    if fact is None:
        return await db.first(queries.by_others()) is not None
    return fact.get("begun") is None


async def _date_all(db: Database, now: float, kept: float | None) -> int:
    """Have every date of what is READY lie ahead; done again, it finds nothing to do."""
    change: Document = {"$set": {"expiration": now + kept}} if kept is not None else {}
    dated = 0
    for word in READY:
        past, absent = queries.undated(word, now)
        dated += await _date(db, past, change or {"$unset": {"expiration": ""}})
        dated += await _date(db, absent, change) if change else 0
    return dated


async def _date(db: Database, wanted: Document, change: Document) -> int:
    dated = 0
    while found := await db.find(Query(IMAGES, wanted, limit=PIECE, members=("_id",))):
        keys = {"_id": {"$in": [one["_id"] for one in found]}}
        dated += await db.update(IMAGES, keys | wanted, change, many=True)
    return dated
