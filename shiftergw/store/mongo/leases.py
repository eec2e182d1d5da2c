"""Leases and blocks in MongoDB: which job may write an image's files, and which must not exist."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pymongo.errors import DuplicateKeyError

from shiftergw.mongo.database import Database, Document, Query
from shiftergw.store.attempts import is_attempt_over, may_take_over, parse_holder
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import BLOCKS, LEASES, file_key
from shiftergw.store.mongo.records import TRIES, document_at, too_busy


async def take(
    db: Database, directory: str, image_id: str, holder: str, now: float, seconds: float
) -> bool:
    """Take or renew a lease; return whether the holder has it.

    The write is durable. Otherwise a change of the primary server could undo it, and two holders
    would have the same lease.
    """
    key = {"_id": file_key(directory, image_id)}
    free_lease = {**key, "$or": [{"holder": holder}, {"until": {"$lte": now}}]}
    lease = {"directory": directory, "id": image_id, "holder": holder, "until": now + seconds}
    for _ in range(TRIES):
        try:
            await db.update(LEASES, free_lease, {"$set": lease}, upsert=True)
        except DuplicateKeyError:  # the lease exists and is not free
            current = await db.first(Query(LEASES, key))
            if current is None:
                continue
            if not await _may_take_over(db, holder, current["holder"]):
                return False
            current_lease = {**key, "holder": current["holder"]}
            if not await db.update(LEASES, current_lease, {"$set": lease}):
                continue
        return True
    raise too_busy()


async def _may_take_over(db: Database, holder: str, current_holder: str) -> bool:
    if may_take_over(holder, current_holder):
        return True
    key, attempt = parse_holder(current_holder)
    return is_attempt_over(await document_at(db, key), attempt)


async def release(db: Database, directory: str, image_id: str, holder: str) -> None:
    """Give back a lease if this holder has it."""
    lease = {"_id": file_key(directory, image_id), "holder": holder}
    await db.delete(LEASES, lease, durable=False)


async def forget_expired(db: Database, before: float) -> None:
    """Remove leases that ended before a time and were never given back."""
    await db.delete(LEASES, {"until": {"$lt": before}}, multi=True, durable=False)


async def block(db: Database, directory: str, image_id: str, uid: int, now: float) -> None:
    """Keep an image out of an image directory; an earlier block stays as it is."""
    new_block: Document = {"directory": directory, "id": image_id, "uid": uid, "since": now}
    key = {"_id": file_key(directory, image_id)}
    for _ in range(2):
        try:
            await db.update(BLOCKS, key, {"$setOnInsert": new_block}, upsert=True)
        except DuplicateKeyError:  # another gateway inserted a block at the same moment
            continue
        return


async def allow(db: Database, directory: str, image_id: str) -> bool:
    """Remove a block; return whether there was one."""
    removed_count, is_repeated = await db.delete(BLOCKS, {"_id": file_key(directory, image_id)})
    return removed_count > 0 or is_repeated


async def find_blocks(db: Database, directory: str, prefix: str, limit: int) -> Sequence[str]:
    """Return the blocked image ids that begin with a prefix, sorted."""
    blocks = await db.find(queries.blocks_with_prefix(prefix))
    return [str(block["id"]) for block in blocks if block.get("directory") == directory][:limit]


async def is_blocked(db: Database, directory: str, image_ids: Collection[str]) -> bool:
    """Return whether one of these images is kept out of an image directory."""
    return await db.first(queries.blocks_of(directory, image_ids)) is not None
