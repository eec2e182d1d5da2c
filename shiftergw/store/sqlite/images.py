"""Changes of images that are READY or EXPIRING; each function runs in one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from shiftergw.model.records import ImageRecord
from shiftergw.store import documents, image_users
from shiftergw.store.documents import Change
from shiftergw.store.legacy_documents import is_ready, read_tags
from shiftergw.store.sqlite import queries, rows


def find_image(
    db: sqlite3.Connection, system: str, itype: str, image_id: str
) -> tuple[str, dict[str, Any]] | None:
    """Return the key and the document of an image's READY record.

    If there is only an EXPIRING record, return it as it is after its removal is cancelled.
    """
    row = db.execute(queries.READY_OF_ID, (system, image_id, itype)).fetchone()
    if row is not None:
        return row[0], json.loads(row[1])
    row = db.execute(queries.EXPIRING_OF_ID, (system, image_id, itype)).fetchone()
    if row is None:
        return None
    key, document = row[0], json.loads(row[1])
    return key, cancel_removal(db, key, document, "").apply(document)


def cancel_removal(
    db: sqlite3.Connection, key: str, document: Mapping[str, Any], message: str
) -> Change:
    """Return the change that makes an EXPIRING record READY again.

    The record loses those of its tags that were pulled as another image meanwhile.
    """
    owner = document["system"], document["itype"]
    tags = [
        tag
        for tag in read_tags(document)
        if db.execute(queries.CARRIERS, (*owner, tag, key)).fetchone() is None
    ]
    return documents.cancel_removal(message, tags)


def take_tag(
    db: sqlite3.Connection, tag: tuple[str, str, str], new_owner: str, untagged_until: float
) -> None:
    """Take a tag, (system, type, tag), from all READY records except `new_owner`.

    A record that loses its last tag does not expire before `untagged_until`.
    """
    for key, text in db.execute(queries.CARRIERS, (*tag, new_owner)).fetchall():
        document = json.loads(text)
        tags = [name for name in read_tags(document) if name != tag[2]]
        rows.change(db, key, document, documents.replace_tags(document, tags, untagged_until))


def untag(
    db: sqlite3.Connection, key: str, tag: str, expected: ImageRecord | None
) -> ImageRecord | None:
    """Remove a tag from a READY record; without any tag the record becomes EXPIRING."""
    document = _ready_document(db, key, expected)
    if document is None or tag not in read_tags(document):
        return None
    tags = [name for name in read_tags(document) if name != tag]
    document["tag"] = tags
    removal = Change({}) if tags else documents.request_removal(document, key)
    return rows.change(db, key, document, removal)


def expire(
    db: sqlite3.Connection,
    key: str,
    expired_at: float | None = None,
    expected: ImageRecord | None = None,
) -> ImageRecord | None:
    """Make a READY record EXPIRING, if its state permits; see `ImageStore.expire`."""
    document = _ready_document(db, key, expected)
    if document is None:
        return None
    if expired_at is not None:
        expiration = document.get("expiration")
        if expiration is None or expiration > expired_at or document.get("pinned_by") is not None:
            return None
    return rows.change(db, key, document, documents.request_removal(document, key))


def renew(db: sqlite3.Connection, key: str, expiration: float) -> None:
    """Set the expiration of a READY record, never to an earlier time."""
    document = _ready_document(db, key)
    if document is not None and (document.get("expiration") or 0) < expiration:
        rows.change(db, key, document, Change({"expiration": expiration}))


def note_use(db: sqlite3.Connection, key: str, uid: int) -> bool:
    """Note in a record that a user has asked for its image; see `ImageStore.note_use`."""
    document = rows.document_at(db, key)
    if document is None or not image_users.is_usable(document):
        return False
    change = image_users.note_use(document, uid)
    if change is not None:
        rows.change(db, key, document, change)
    return True


def pin(db: sqlite3.Connection, key: str, uid: int, limit: int | None) -> ImageRecord | None:
    """Pin the image of a READY record; see `ImageStore.pin`."""
    document = _ready_document(db, key)
    if document is None or document.get("pinned_by") is not None:
        return None if document is None else ImageRecord.from_document({**document, "_id": key})
    if limit is not None:
        values = document["system"], uid
        image_users.check_pins(db.execute(queries.COUNT_PINS, values).fetchone()[0], limit)
    return rows.change(db, key, document, image_users.pin(uid))


def unpin(db: sqlite3.Connection, key: str) -> ImageRecord | None:
    """Unpin the image of a READY record."""
    document = _ready_document(db, key)
    return None if document is None else rows.change(db, key, document, image_users.unpin())


def set_access(
    db: sqlite3.Connection, systems: Collection[str], image_id: str, change: Change
) -> None:
    """Change who may read an image in all its records whose files exist."""
    for query in (queries.FIND_ID, queries.FIND_EXPIRING):
        for key, text in db.execute(query, (json.dumps(list(systems)), image_id)).fetchall():
            rows.change(db, key, json.loads(text), change)


def is_blocked(db: sqlite3.Connection, directory: str, image_ids: Collection[str]) -> bool:
    """Return whether one of these images is kept out of an image directory."""
    ids = json.dumps(list(image_ids))
    return db.execute(queries.FIND_BLOCK, (directory, ids)).fetchone() is not None


def _ready_document(
    db: sqlite3.Connection, key: str, expected: ImageRecord | None = None
) -> dict[str, Any] | None:
    document = rows.document_at(db, key)
    if document is None or not is_ready(document):
        return None
    return document if image_users.has_rights_of(document, expected) else None
