"""Changes of images that are READY or EXPIRING, in MongoDB."""

from __future__ import annotations

import math
from collections.abc import Collection

from shiftergw.model.records import ImageRecord
from shiftergw.mongo.database import Database, Document
from shiftergw.store import documents, image_users
from shiftergw.store.documents import MOVED_TAGS, Change
from shiftergw.store.legacy_documents import (
    READY_WORDS,
    is_ready,
    read_document,
    read_number,
    read_tags,
    read_time,
)
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.records import (
    IMAGES,
    TRIES,
    change,
    document_at,
    id_of,
    key_of,
    record_of,
    too_busy,
    update_of,
)


async def take_tag(
    db: Database, carrier: Document, tag: str, until: float, pulled_by: float
) -> None:
    """Remove a tag from a READY record; without any tag it does not expire before `until`.

    If the record was pulled again since it was read, the tag is removed only if that pull ended at
    `pulled_by` or earlier.
    """
    for _ in range(TRIES):
        tags = [name for name in read_tags(carrier) if name != tag]
        pins = ("status", "tag", "last_pull", "expiration")
        new_tags = documents.replace_tags(carrier, tags, until)
        if await change(db, carrier, pins, new_tags) is not None:
            return
        current = await document_at(db, key_of(carrier))
        if current is None or not is_ready(current) or tag not in read_tags(current):
            return
        is_pulled_again = current.get("last_pull") != carrier.get("last_pull")
        if is_pulled_again and read_time(current, "last_pull") > pulled_by:
            return
        carrier = current
    raise too_busy()


async def note_moved_tag(db: Database, system: str, itype: str, tag: str) -> None:
    """Note in EXPIRING records with this tag that another image has it now."""
    records = queries.expiring_with_tag(system, itype, tag)
    await db.update(IMAGES, records, {"$addToSet": {MOVED_TAGS: tag}}, multi=True)


async def remaining_tags(db: Database, document: Document) -> list[str]:
    """Return the tags that an EXPIRING record has if it becomes READY again."""
    tags = []
    for tag in read_tags(document):
        if tag in document.get(MOVED_TAGS, ()):
            continue
        query = queries.with_tag(document["system"], document["itype"], tag)
        if await db.first(query) is None:
            tags.append(tag)
    return tags


async def untag(
    db: Database, key: str, tag: str, expected: ImageRecord | None
) -> ImageRecord | None:
    """Remove a tag from a READY record; without any tag the record becomes EXPIRING."""
    for _ in range(TRIES):
        document = await _ready_document(db, key, expected)
        if document is None or tag not in read_tags(document):
            return None
        tags = [name for name in read_tags(document) if name != tag]
        new_tags = Change({"tag": tags})
        if not tags:
            removal = documents.request_removal(document, key)
            new_tags = Change({**removal.members, "tag": tags}, removal.without)
        pins = {"status", "tag", "claim", *_pinned_rights(expected)}
        new_document = await change(db, document, pins, new_tags)
        if new_document is not None:
            return record_of(new_document)
    raise too_busy()


async def expire(
    db: Database,
    key: str,
    expired_at: float | None = None,
    expected: ImageRecord | None = None,
) -> ImageRecord | None:
    """Make a READY record EXPIRING, if its state permits; see `ImageStore.expire`."""
    for _ in range(TRIES):
        document = await _ready_document(db, key, expected)
        if document is None:
            return None
        expiration = read_number(document.get("expiration"))
        if expired_at is not None and (
            expiration is None or expiration > expired_at or document.get("pinned_by") is not None
        ):
            return None
        pins = {"status", "claim", *_pinned_rights(expected)}
        if expired_at is not None:
            pins |= {"expiration", "pinned_by"}
        removal = documents.request_removal(document, key)
        new_document = await change(db, document, pins, removal)
        if new_document is not None:
            return record_of(new_document)
    raise too_busy()


async def renew(db: Database, key: str, expiration: float) -> None:
    """Set the expiration of a READY record, never to an earlier time."""
    record: Document = {"_id": id_of(key), "status": {"$in": list(READY_WORDS)}}
    is_earlier = {"expiration": {"$not": {"$gte": expiration, "$lt": math.inf}}}
    await db.update(
        IMAGES, record | is_earlier, {"$set": {"expiration": expiration}}, durable=False
    )


async def note_use(db: Database, key: str, uid: int) -> bool:
    """Note in a record that a user has asked for its image; see `ImageStore.note_use`."""
    for _ in range(TRIES):
        document = await document_at(db, key)
        if document is None or not image_users.is_usable(document):
            return False
        use = image_users.note_use(document, uid)
        if use is None or await change(db, document, ("status", "only_user"), use) is not None:
            return True
    raise too_busy()


async def pin(db: Database, key: str, uid: int, limit: int | None) -> ImageRecord | None:
    """Pin the image of a READY record; see `ImageStore.pin`.

    The user's other pins are counted before and after the write, because two may be made at once.
    """
    for _ in range(TRIES):
        document = await _ready_document(db, key)
        if document is None or document.get("pinned_by") is not None:
            return None if document is None else record_of(document)
        if limit is not None:
            image_users.check_pins(await _count_pins(db, document, uid), limit)
        new_document = await change(db, document, ("status", "pinned_by"), image_users.pin(uid))
        if new_document is None:
            continue
        if limit is not None and await _count_pins(db, document, uid) > limit:
            await change(db, new_document, ("pinned_by",), image_users.unpin())
            image_users.check_pins(limit, limit)
        return record_of(new_document)
    raise too_busy()


async def _count_pins(db: Database, document: Document, uid: int) -> int:
    return len(await db.find(queries.pins_of(document["system"], uid)))


async def unpin(db: Database, key: str) -> ImageRecord | None:
    """Unpin the image of a READY record."""
    for _ in range(TRIES):
        document = await _ready_document(db, key)
        if document is None:
            return None
        new_document = await change(db, document, ("status",), image_users.unpin())
        if new_document is not None:
            return record_of(new_document)
    raise too_busy()


async def set_access(db: Database, systems: Collection[str], image_id: str, access: Change) -> None:
    """Change who may read an image in all its records whose files exist."""
    records = queries.with_files(systems, image_id)
    await db.update(IMAGES, records, update_of(access), multi=True)


async def _ready_document(
    db: Database, key: str, expected: ImageRecord | None = None
) -> Document | None:
    document = await document_at(db, key)
    if document is None or not is_ready(document):
        return None
    return document if image_users.has_rights_of(read_document(document), expected) else None


def _pinned_rights(expected: ImageRecord | None) -> tuple[str, ...]:
    return () if expected is None else image_users.RIGHTS
