"""Credentials that were used, in MongoDB: the key of a collection lets each in once."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime

from bson.objectid import ObjectId
from pymongo.errors import DuplicateKeyError

from shiftergw.mongo.database import Database, Document
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import CREDENTIALS


async def use(db: Database, digest: bytes, now: float) -> bool:
    """Note the use of a credential; say whether it is the first."""
    used = _used(digest, now)
    try:
        # Each request waits for it: it outlives a change of the primary server, not a power cut.
        await db.insert(CREDENTIALS, [used], durable=False, agreed=True)
    except DuplicateKeyError:
        # Our own, if it was sent twice.
        found = await db.first(queries.used(digest))
        return found is not None and found.get("use") == used["use"]
    return True


async def note(db: Database, digests: Collection[bytes], now: float) -> None:
    """Note that credentials were used, whether that is known or not."""
    with suppress(DuplicateKeyError):
        await db.insert(CREDENTIALS, [_used(digest, now) for digest in digests])


def _used(digest: bytes, now: float) -> Document:
    # A date, because the server itself removes what is old.
    return {"_id": digest, "at": datetime.fromtimestamp(now, UTC), "use": ObjectId()}
