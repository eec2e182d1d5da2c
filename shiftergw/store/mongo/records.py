"""Records as documents of MongoDB, and changes that apply only to a document as it was read.

The key of a record is the hexadecimal form of its ObjectId. The store uses no transactions, so that
a single server is enough. Instead, a change names as *pins* all members of the document that the
decision to change it depends on. If the value of a pin has changed since, nothing happens, and the
caller reads the document and decides again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bson.objectid import ObjectId

from shiftergw.errors import Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.mongo.database import Database, Document, Query
from shiftergw.states import State
from shiftergw.store.attempts import check_owner
from shiftergw.store.documents import Change
from shiftergw.store.legacy_documents import is_ready, is_text, read_document

IMAGES = "images"

OWNER = ("claim", "attempt", "status", "runner")
"""Members of a record that decide whether an attempt may still change it."""

TRIES = 30
"""How often a step is tried, if other processes change its documents in between.

In each round one of the processes succeeds.
"""

_SURROGATES = re.compile("[\ud800-\udfff]")


def id_of(key: str) -> ObjectId | None:
    """Return the ObjectId of a key, or None for a key that no record can have."""
    return ObjectId(key) if ObjectId.is_valid(key) else None


def key_of(document: Mapping[str, Any]) -> str:
    """Return the key of a document."""
    return str(document["_id"])


def record_of(document: Mapping[str, Any]) -> ImageRecord:
    """Return the record of a document, read leniently because another program may have written it.

    Nobody can use a READY record without an image id or a system, so it reads as a FAILURE.
    """
    members = read_document(document)
    if is_ready(members) and not {"id", "system"} <= members.keys():
        members["status"] = State.FAILURE
    image_id: Any = document.get("id")
    unusable_id = image_id if is_text(image_id) and "id" not in members else ""
    return replace(ImageRecord.from_document(members), unusable_id=unusable_id)


def records_of(documents: Iterable[Mapping[str, Any]]) -> list[ImageRecord]:
    """Return the records of documents."""
    return [record_of(document) for document in documents]


async def document_at(db: Database, key: str) -> Document | None:
    """Return the document with this key."""
    number = id_of(key)
    return None if number is None else await db.first(Query(IMAGES, {"_id": number}))


async def owned_document(db: Database, key: str, attempt: int) -> Document:
    """Return the document if this attempt may change it; raise `Superseded` if not."""
    return check_owner(await document_at(db, key), attempt)


def pin_filter(document: Mapping[str, Any], *names: str) -> Document:
    """Return the filter that matches a document as long as these members are as they were read."""
    pins: Document = {"_id": document["_id"]}
    for name in names:
        value = document.get(name)
        pins[name] = value  # None matches null as well as a missing member
        if isinstance(value, str) and name == "tag":
            pins["tag.0"] = {"$exists": False}  # otherwise a list with this tag would match
    return pins


def update_of(change: Change) -> Document:
    """Return a change in MongoDB's operators; members that it does not name stay as they are."""
    without = [name for name in change.without if name not in change.members]
    update: Document = {}
    if change.members:
        update["$set"] = storable(change.members)
    if without:
        update["$unset"] = dict.fromkeys(without, "")
    return update


async def change(
    db: Database,
    document: Mapping[str, Any],
    pins: Iterable[str],
    change: Change,
    *,
    durable: bool = True,
) -> Document | None:
    """Change a document if its pins still match; return the new document, or None if not."""
    update = update_of(change)
    new_document, is_repeated = await db.modify(
        IMAGES, pin_filter(document, *pins), update, durable=durable
    )
    if new_document is None and is_repeated:
        # The command was sent twice. The first one may have changed the document already.
        current = await document_at(db, key_of(document))
        if current is not None and _is_applied(current, update):
            return current
    return new_document


def _is_applied(document: Mapping[str, Any], update: Mapping[str, Any]) -> bool:
    missing = object()
    return all(
        document.get(name, missing) == value for name, value in update.get("$set", {}).items()
    ) and document.keys().isdisjoint(update.get("$unset", ()))


def storable(value: Any) -> Any:
    """Return a value that BSON can hold, in a form that every version of MongoDB accepts.

    Text has to be UTF-8. Some names of members come from images (labels): none may look like an
    operator of MongoDB, or contain a zero byte, which ends a name.
    """
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_storable_name(name): storable(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [storable(element) for element in value]
    return value


def _storable_name(name: str) -> str:
    plain = _SURROGATES.sub("\ufffd", name).replace("\0", "\ufffd")
    return f"\uff04{plain[1:]}" if plain.startswith("$") else plain


def too_busy() -> Unavailable:
    """Return the error for a step whose documents other processes changed at each try."""
    return Unavailable("The gateway's database is too busy.")
