"""Used credentials in MongoDB: the key of the collection accepts each credential once."""

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
    """Note the use of a credential; return whether this is its first use."""
    document = _document(digest, now)
    try:
        # Each request waits for this write: it outlives a change of the primary server, but not a
        # power cut.
        await db.insert(CREDENTIALS, [document], durable=False, majority=True)
    except DuplicateKeyError:
        # The document is our own if the command was sent twice.
        first_use = await db.first(queries.use_of(digest))
        return first_use is not None and first_use.get("use") == document["use"]
    return True


async def note(db: Database, digests: Collection[bytes], now: float) -> None:
    """Note that credentials were used; those that are noted already stay."""
    with suppress(DuplicateKeyError):
        await db.insert(CREDENTIALS, [_document(digest, now) for digest in digests])


def _document(digest: bytes, now: float) -> Document:
    # A date, because the server itself removes old documents by their date.
    return {"_id": digest, "at": datetime.fromtimestamp(now, UTC), "use": ObjectId()}
