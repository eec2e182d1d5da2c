"""Whether images expire on schedule: in a database taken over, only after an admin's decision.

Another gateway may have set other expirations, or none. A schedule that started by itself could
remove within minutes what a site has gathered in years. The database stores the fact that it was
taken over, because some day this program will have replaced the last record of the other one.
"""

from __future__ import annotations

from contextlib import suppress

from pymongo.errors import DuplicateKeyError
from twisted.logger import Logger

from shiftergw.mongo.database import Database, Document, Query
from shiftergw.store.legacy_documents import READY_WORDS
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import STATE
from shiftergw.store.mongo.records import IMAGES

STATE_KEY = "expiry"
"""Key of a document in `STATE`.

Its members are times: `taken_over`, and `begun` once the schedule is switched on.
"""

BATCH = 200
"""Records that get a date in one command, so that no command takes long."""

_log = Logger()


async def expires(db: Database, setting: bool | None, now: float, lifetime: float | None) -> bool:
    """Return whether images expire on schedule; see `ImageStore.expires`."""
    state = await db.first(queries.state_document(STATE_KEY))
    if state is None:
        if await db.first(queries.foreign_record()) is None:
            return setting is not False
        state = {"_id": STATE_KEY, "taken_over": now}
        with suppress(DuplicateKeyError):  # another gateway was quicker
            await db.insert(STATE, [state])
    if setting and state.get("begun") is None:
        count = await _redate_all(db, now, lifetime)
        _log.info("{n} images without an expiration, or past it: it counts from now", n=count)
        await db.update(STATE, {"_id": STATE_KEY, "begun": None}, {"$set": {"begun": now}})
    return bool(setting)


async def is_taken_over(db: Database) -> bool:
    """Return whether another program has filled the database and the schedule is not on yet."""
    state = await db.first(queries.state_document(STATE_KEY))
    if state is None:
        return await db.first(queries.foreign_record()) is not None
    return state.get("begun") is None


async def _redate_all(db: Database, now: float, lifetime: float | None) -> int:
    """Give READY records without a future expiration a new one; return how many they were.

    A second run changes nothing.
    """
    change: Document = {"$set": {"expiration": now + lifetime}} if lifetime is not None else {}
    count = 0
    for word in READY_WORDS:
        past, missing = queries.without_future_expiration(word, now)
        count += await _redate(db, past, change or {"$unset": {"expiration": ""}})
        count += await _redate(db, missing, change) if change else 0
    return count


async def _redate(db: Database, records: Document, change: Document) -> int:
    count = 0
    while batch := await db.find(Query(IMAGES, records, limit=BATCH, members=("_id",))):
        keys = {"_id": {"$in": [document["_id"] for document in batch]}}
        count += await db.update(IMAGES, keys | records, change, multi=True)
    return count
