"""What happens to images that are there, or are about to go, in MongoDB."""

from __future__ import annotations

import math
from collections.abc import Collection

from shiftergw.model import ImageRecord
from shiftergw.mongo.database import Database, Document
from shiftergw.store import documents, legacy_documents
from shiftergw.store.documents import MOVED_TAGS, Change
from shiftergw.store.legacy_documents import read_number, read_time
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.records import (
    IMAGES,
    READY,
    TRIES,
    change,
    document_at,
    id_of,
    is_ready,
    key_of,
    record_of,
    too_busy,
    update_of,
)


async def take_tag(db: Database, carrier: Document, tag: str, until: float, than: float) -> None:
    """Take a tag from a READY record as it was read, or as it is by now if pulled before `than`."""
    for _ in range(TRIES):
        left = [one for one in legacy_documents.read_tags(carrier) if one != tag]
        untagged = documents.replace_tags(carrier, left, until)
        pins = ("status", "tag", "last_pull", "expiration")
        if await change(db, carrier, pins, untagged) is not None:
            return
        now = await document_at(db, key_of(carrier))
        if now is None or not is_ready(now) or tag not in legacy_documents.read_tags(now):
            return
        if now.get("last_pull") != carrier.get("last_pull") and not pulled_by(now, than):
            return
        carrier = now
    raise too_busy()


def pulled_by(document: Document, time: float) -> bool:
    """Say whether an image was pulled at this time at the latest."""
    return read_time(document, "last_pull") <= time


async def keep_away(db: Database, system: str, itype: str, tag: str) -> None:
    """Note in the records that are to go that a tag is another image's now."""
    losing = queries.losing(system, itype, tag)
    await db.update(IMAGES, losing, {"$addToSet": {MOVED_TAGS: tag}}, many=True)


async def tags_left(db: Database, document: Document) -> list[str]:
    """Return the tags with which a record that is to go would come back."""
    left = []
    for tag in legacy_documents.read_tags(document):
        place = (document["system"], document["itype"], tag)
        if tag in document.get(MOVED_TAGS, ()):
            continue
        if await db.first(queries.with_tag(*place)) is None:
            left.append(tag)
    return left


async def untag(db: Database, key: str, tag: str) -> ImageRecord | None:
    """Take a tag from a READY record; with the last one the files are to go."""
    for _ in range(TRIES):
        document = await _ready(db, key)
        if document is None or tag not in legacy_documents.read_tags(document):
            return None
        left = [other for other in legacy_documents.read_tags(document) if other != tag]
        changes = Change({"tag": left})
        if not left:
            going = documents.request_removal(document, key)
            changes = Change({**going.members, "tag": left}, going.without)
        changed = await change(db, document, ("status", "tag", "claim"), changes)
        if changed is not None:
            return record_of(changed)
    raise too_busy()


async def expire(db: Database, key: str, expired_at: float | None) -> ImageRecord | None:
    """Have the files of a READY record removed."""
    for _ in range(TRIES):
        document = await _ready(db, key)
        if document is None:
            return None
        expiration = read_number(document.get("expiration"))
        if expired_at is not None and (expiration is None or expiration > expired_at):
            return None
        pins = ("status", "claim") if expired_at is None else ("status", "claim", "expiration")
        changed = await change(db, document, pins, documents.request_removal(document, key))
        if changed is not None:
            return record_of(changed)
    raise too_busy()


async def renew(db: Database, key: str, expiration: float) -> None:
    """Put off the expiration of a READY record."""
    ready: Document = {"_id": id_of(key), "status": {"$in": list(READY)}}
    later = {"expiration": {"$not": {"$gte": expiration, "$lt": math.inf}}}
    await db.update(IMAGES, ready | later, {"$set": {"expiration": expiration}}, durable=False)


async def set_access(db: Database, systems: Collection[str], image_id: str, access: Change) -> None:
    """Change who may read an image in all its records whose files are there."""
    records = queries.of_files(systems, image_id)
    await db.update(IMAGES, records, update_of(access), many=True)


async def _ready(db: Database, key: str) -> Document | None:
    document = await document_at(db, key)
    return document if document is not None and is_ready(document) else None
