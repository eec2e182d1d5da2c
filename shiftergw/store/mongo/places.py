"""Leases and blocks in MongoDB: who may write, and what must not lie, in an image directory."""

from __future__ import annotations

from collections.abc import Collection

from pymongo.errors import DuplicateKeyError

from shiftergw.mongo.database import Database, Document, Query
from shiftergw.store.attempts import is_attempt_over, may_take_over, parse_holder
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import BLOCKS, LEASES, place
from shiftergw.store.mongo.records import TRIES, document_at, too_busy


async def lease(
    db: Database, directory: str, image_id: str, holder: str, now: float, seconds: float
) -> bool:
    """Take or renew a lease; say whether it is the holder's.

    One that a change of the primary server could undo would be no lease: two would have it.
    """
    there = {"_id": place(directory, image_id)}
    free = {**there, "$or": [{"holder": holder}, {"until": {"$lte": now}}]}
    taken = {"directory": directory, "id": image_id, "holder": holder, "until": now + seconds}
    for _ in range(TRIES):
        try:
            await db.update(LEASES, free, {"$set": taken}, upsert=True)
        except DuplicateKeyError:  # it is there, and not free
            held = await db.first(Query(LEASES, there))
            if held is None:
                continue
            if not (may_take_over(holder, held["holder"]) or await _is_over(db, held["holder"])):
                return False
            followed = {**there, "holder": held["holder"]}
            if not await db.update(LEASES, followed, {"$set": taken}):
                continue
        return True
    raise too_busy()


async def _is_over(db: Database, holder: str) -> bool:
    key, attempt = parse_holder(holder)
    return is_attempt_over(await document_at(db, key), attempt)


async def release(db: Database, directory: str, image_id: str, holder: str) -> None:
    """Give a lease back that is the holder's."""
    own = {"_id": place(directory, image_id), "holder": holder}
    await db.delete(LEASES, own, durable=False)


async def forget_leases(db: Database, before: float) -> None:
    """Forget leases that ended before this time, and that nobody gave back."""
    await db.delete(LEASES, {"until": {"$lt": before}}, many=True, durable=False)


async def block(db: Database, directory: str, image_id: str, uid: int, now: float) -> None:
    """Keep an image out of a directory; the first order stays."""
    order: Document = {"directory": directory, "id": image_id, "uid": uid, "since": now}
    there = {"_id": place(directory, image_id)}
    for _ in range(2):
        try:
            await db.update(BLOCKS, there, {"$setOnInsert": order}, upsert=True)
        except DuplicateKeyError:  # another order of the same moment
            continue
        return


async def allow(db: Database, directory: str, image_id: str) -> bool:
    """Take a block back; say whether there was one."""
    removed, again = await db.delete(BLOCKS, {"_id": place(directory, image_id)})
    return removed > 0 or again


async def is_blocked(db: Database, directory: str, image_ids: Collection[str]) -> bool:
    """Say whether one of these ids is kept out of an image directory."""
    return await db.first(queries.blocks_of(directory, image_ids)) is not None
