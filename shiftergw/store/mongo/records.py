"""Records as documents of MongoDB, and changes that happen only to what was read.

The key of a record is the hexadecimal form of its ObjectId. There are no transactions, so that a
single server will do: whoever changes a document names, by *pins*, all of its members that he has
decided upon. If one of them is another by now, nothing happens, and he reads and decides again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bson.objectid import ObjectId

from shiftergw.errors import Unavailable
from shiftergw.model import ImageRecord
from shiftergw.mongo.database import Database, Document, Query
from shiftergw.states import State
from shiftergw.store import attempts
from shiftergw.store.documents import Change
from shiftergw.store.legacy_documents import is_text, read_document

IMAGES = "images"

OWN = ("claim", "attempt", "status", "runner")
"""Members of a record that decide whether an attempt may still change it."""

TRIES = 30
"""How often a step decides again when others are quicker; somebody gets ahead each time."""

READY = (str(State.READY), "SUCCESS")
"""The words for what is READY; the second is an old one of the original."""

_SURROGATES = re.compile("[\ud800-\udfff]")


def id_of(key: str) -> ObjectId | None:
    """Return the ObjectId of a key; a key that is none belongs to no record."""
    return ObjectId(key) if ObjectId.is_valid(key) else None


def key_of(document: Mapping[str, Any]) -> str:
    """Return the key of a document."""
    return str(document["_id"])


def record_of(document: Mapping[str, Any]) -> ImageRecord:
    """Return the record of a document; what others wrote in it may be no record's.

    What is READY without an image id, or a system, is nothing that anybody could use: it reads as
    a FAILURE.
    """
    read = read_document(document)
    if is_ready(read) and not {"id", "system"} <= read.keys():
        read["status"] = State.FAILURE
    stored: Any = document.get("id")
    unusable_id = stored if is_text(stored) and "id" not in read else ""
    return replace(ImageRecord.from_document(read), unusable_id=unusable_id)


def records_of(found: Iterable[Mapping[str, Any]]) -> list[ImageRecord]:
    """Return the records of documents."""
    return [record_of(document) for document in found]


def is_ready(document: Mapping[str, Any]) -> bool:
    """Say whether a document is an image that is there."""
    return document.get("status") in READY


async def document_at(db: Database, key: str) -> Document | None:
    """Return the document with this key."""
    number = id_of(key)
    return None if number is None else await db.first(Query(IMAGES, {"_id": number}))


async def owned(db: Database, key: str, attempt: int) -> Document:
    """Return the document if it is in flight and this attempt's; raise `Superseded` if not."""
    return attempts.check_owner(await document_at(db, key), attempt)


def pinned(document: Mapping[str, Any], *names: str) -> Document:
    """Return what finds a document as long as these members are as they were read."""
    wanted: Document = {"_id": document["_id"]}
    for name in names:
        value = document.get(name)
        wanted[name] = value  # None finds both null and nothing
        if isinstance(value, str) and name == "tag":
            wanted["tag.0"] = {"$exists": False}  # else a list that holds it would do
    return wanted


def update_of(change: Change) -> Document:
    """Return a change as MongoDB's operators; members that nobody named stay as they are."""
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
    """Change a document if its pins still hold; return it as it is then, or None."""
    update = update_of(change)
    found, again = await db.modify(IMAGES, pinned(document, *pins), update, durable=durable)
    if found is None and again:
        # Done the first time, perhaps, and the answer was lost.
        now = await document_at(db, key_of(document))
        if now is not None and _is_done(now, update):
            return now
    return found


def _is_done(document: Mapping[str, Any], update: Mapping[str, Any]) -> bool:
    missing = object()
    return all(
        document.get(name, missing) == value for name, value in update.get("$set", {}).items()
    ) and document.keys().isdisjoint(update.get("$unset", ()))


def storable(value: Any) -> Any:
    """Return a value as BSON can hold it, in documents that every version of MongoDB takes.

    Text is UTF-8. Names of members come from images, too (labels): none of them may be an operator
    of MongoDB, or end before its end.
    """
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_name(name): storable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [storable(inner) for inner in value]
    return value


def _name(name: str) -> str:
    plain = _SURROGATES.sub("\ufffd", name).replace("\0", "\ufffd")
    return f"\uff04{plain[1:]}" if plain.startswith("$") else plain


def too_busy() -> Unavailable:
    """Return what to say when others were quicker again and again."""
    return Unavailable("The gateway's database is too busy.")
