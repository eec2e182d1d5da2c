"""What happens to images that are there, or are about to go, in one IMMEDIATE transaction each."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from shiftergw.model import ImageRecord
from shiftergw.states import State
from shiftergw.store import documents, legacy_documents
from shiftergw.store.documents import Change
from shiftergw.store.sqlite import queries, rows


def held(
    db: sqlite3.Connection, system: str, itype: str, image_id: str
) -> tuple[str, dict[str, Any]] | None:
    """Return key and document of the READY record of an image; an EXPIRING one becomes it."""
    row = db.execute(queries.READY_OF_ID, (system, image_id, itype)).fetchone()
    if row is not None:
        return row[0], json.loads(row[1])
    row = db.execute(queries.EXPIRING_OF_ID, (system, image_id, itype)).fetchone()
    if row is None:
        return None
    key, document = row[0], json.loads(row[1])
    return key, taken_back(db, key, document, "").apply(document)


def taken_back(
    db: sqlite3.Connection, key: str, document: Mapping[str, Any], message: str
) -> Change:
    """Return the change that makes an EXPIRING record READY again, with the tags still its own.

    Nobody saw it meanwhile: a tag of its may have been pulled as another image.
    """
    place = document["system"], document["itype"]
    tags = [
        tag
        for tag in legacy_documents.read_tags(document)
        if db.execute(queries.CARRIERS, (*place, tag, key)).fetchone() is None
    ]
    return documents.cancel_removal(message, tags)


def take_tag(
    db: sqlite3.Connection, place: tuple[str, str, str], new_owner: str, untagged_until: float
) -> None:
    """Take a tag, (system, type, tag), from all READY records but one."""
    for key, text in db.execute(queries.CARRIERS, (*place, new_owner)).fetchall():
        document = json.loads(text)
        left = [tag for tag in legacy_documents.read_tags(document) if tag != place[2]]
        rows.change(db, key, document, documents.replace_tags(document, left, untagged_until))


def untag(db: sqlite3.Connection, key: str, tag: str) -> ImageRecord | None:
    """Take a tag from a READY record; with the last one the files are to go."""
    document = _ready(db, key)
    if document is None or tag not in legacy_documents.read_tags(document):
        return None
    left = [other for other in legacy_documents.read_tags(document) if other != tag]
    document["tag"] = left
    return rows.change(
        db, key, document, Change({}) if left else documents.request_removal(document, key)
    )


def expire(db: sqlite3.Connection, key: str, expired_at: float | None) -> ImageRecord | None:
    """Have the files of a READY record removed."""
    document = _ready(db, key)
    if document is None:
        return None
    if expired_at is not None:
        expiration = document.get("expiration")
        if expiration is None or expiration > expired_at:
            return None
    return rows.change(db, key, document, documents.request_removal(document, key))


def renew(db: sqlite3.Connection, key: str, expiration: float) -> None:
    """Put off the expiration of a READY record."""
    document = _ready(db, key)
    if document is not None and (document.get("expiration") or 0) < expiration:
        rows.change(db, key, document, Change({"expiration": expiration}))


def set_access(
    db: sqlite3.Connection, systems: Collection[str], image_id: str, change: Change
) -> None:
    """Change who may read an image in all its records whose files are there."""
    for query in (queries.FIND_ID, queries.FIND_EXPIRING):
        for key, text in db.execute(query, (json.dumps(list(systems)), image_id)).fetchall():
            rows.change(db, key, json.loads(text), change)


def blocked(db: sqlite3.Connection, directory: str, image_ids: Collection[str]) -> bool:
    """Say whether one of these ids is kept out of an image directory."""
    ids = json.dumps(list(image_ids))
    return db.execute(queries.BLOCKED, (directory, ids)).fetchone() is not None


def _ready(db: sqlite3.Connection, key: str) -> dict[str, Any] | None:
    document = rows.document_at(db, key)
    if document is None or document.get("status") not in {State.READY, "SUCCESS"}:
        return None
    return document
