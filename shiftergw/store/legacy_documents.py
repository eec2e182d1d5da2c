"""Lenient reading of documents written by other programs.

The original gateway, or an admin's editor, may have written a member in an invalid form. Such a
member counts as absent, so that one odd document harms no other. Access lists are the exception: if
they cannot be read, nobody may read the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields
from typing import Any

from shiftergw.model.names import HIGHEST_ID, is_image_id
from shiftergw.model.requests import ANONYMOUS
from shiftergw.model.uploads import ImageFile
from shiftergw.states import State

READY_WORDS = (str(State.READY), "SUCCESS")
"""The words of a `status` for a READY record; the second is an old one of the original."""

INVALID_UID = HIGHEST_ID + 1
"""A uid, and a gid, that no process can have: (uid_t) -1."""

_ORIGIN = ("location", "repository", "source_digest")


def read_number(value: object) -> float | None:
    """Return a finite number, or None if the value is not one.

    A decimal of BSON is a number as well.
    """
    if isinstance(value, bool):
        return None
    if not isinstance(value, int | float):
        # No import of bson: only sites with MongoDB have that package.
        decimal = getattr(value, "to_decimal", None)
        if decimal is None or not decimal().is_finite():
            return None
        value = float(decimal())
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def is_text(value: object) -> bool:
    """Return whether a value is text.

    JavaScript code in a database (`bson.Code`) is a `str` for Python, but no query for text matches
    it, and it cannot be hashed.
    """
    return isinstance(value, str) and isinstance(value, Hashable)


def read_time(document: Mapping[str, Any], name: str) -> float:
    """Return the time in a member of a document, or 0 if it has none."""
    return read_number(document.get(name)) or 0


def read_tags(document: Mapping[str, Any]) -> list[str]:
    """Return the tags of a document; the original writes a list or a single string."""
    return _read_texts(document.get("tag")) or []


def is_ready(document: Mapping[str, Any]) -> bool:
    """Return whether a document is a READY record."""
    return document.get("status") in READY_WORDS


def read_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with its readable members only, each in its proper form."""
    members: dict[str, Any] = {}
    for name, value in document.items():
        reader = _READERS.get(name)
        member = value if reader is None or value is None else reader(value)
        if member is not None:
            members[name] = member
    return members


def unreadable_members(document: Mapping[str, Any]) -> list[str]:
    """Return the names of members that cannot be read, or only in part."""
    return [
        name
        for name, value in document.items()
        if value is not None
        and (reader := _READERS.get(name)) is not None
        and not _is_equivalent(reader(value), value)
    ]


def _is_equivalent(member: object, value: object) -> bool:
    """Return whether nothing of a value was lost when `member` was read from it."""
    if is_text(value) and member == [value]:
        return True
    if isinstance(member, list) and isinstance(value, list) and len(member) == len(value):
        return all(map(_is_same, member, value))
    return _is_same(member, value)


def _is_same(member: object, value: object) -> bool:
    is_same_number = read_number(member) is not None and member == read_number(value)
    return is_same_number or (type(member) is type(value) and member == value)


def _read_text(value: Any) -> str | None:
    return value if is_text(value) else None


def _read_id(value: Any) -> str | None:
    """Return an image id, if files can have it in their names."""
    return value if is_text(value) and is_image_id(value) else None


def _read_word(value: object) -> str | None:
    """Return the text of a value that other programs may write as a number."""
    return str(value) if read_number(value) is not None else _read_text(value)


def _read_status(value: Any) -> str:
    return value if is_text(value) else "?"


def _read_texts(value: Any) -> list[str] | None:
    if is_text(value):
        return [value]
    if not isinstance(value, list):
        return None
    return [text for text in value if is_text(text)]


def _read_labels(value: object) -> dict[str, str] | None:
    if not isinstance(value, dict):
        return None
    return {name: text for name, text in value.items() if is_text(text)}


def _read_integer(value: object) -> int | None:
    number = read_number(value)
    return int(number) if number is not None and number == int(number) else None


def _read_flag(value: object) -> bool | None:
    return bool(value) if isinstance(value, bool | int | float) else None


def _read_private(value: object) -> bool:
    return _read_flag(value) is not False


def _read_uids(value: object) -> list[int]:
    """Return the uids or gids of an access list.

    If none of its entries can be read, return `INVALID_UID`, so that nobody may read the image.
    """
    entries = value if isinstance(value, list) else [None]
    uids = [uid for uid in map(_read_integer, entries) if uid is not None]
    valid_uids = [uid for uid in uids if 0 <= uid < INVALID_UID]
    return valid_uids if valid_uids or not entries else [INVALID_UID]


def _read_origin(value: object) -> dict[str, Any] | None:
    if not isinstance(value, dict) or not all(is_text(value.get(name)) for name in _ORIGIN):
        return None
    return {**value, "private": _read_private(value.get("private", False))}


def _read_upload(value: object) -> dict[str, Any] | None:
    """Return the members of an `ImageFile` that have the types of its attributes."""
    if not isinstance(value, dict):
        return None
    types = {field.name: type(field.default) for field in fields(ImageFile)}
    return {
        name: member
        for name, member in value.items()
        if name not in types or type(member) is types[name]
    }


def _read_owners(value: object) -> dict[str, int] | None:
    """Return the owners of tags; a tag whose owner cannot be read belongs to admins alone."""
    if not isinstance(value, dict):
        return None
    owners = {tag: _read_integer(uid) for tag, uid in value.items()}
    return {tag: ANONYMOUS if uid is None else uid for tag, uid in owners.items()}


def _read_object(value: object) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _read_list(value: object) -> list[Any] | None:
    return value if isinstance(value, list) else None


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("system", "itype", "pulltag", "status_message", "WORKDIR", "format", "arch", "os",
         "location", "remotetype", "claim", "kind", "runner", "sha256", "options", "stage",
         "cause", "remedy", "request_id", "requester", "sealed", "waits_for"),
        _read_text,
    ),
    **dict.fromkeys(("ostcount", "replication"), _read_word),
    **dict.fromkeys(("tag", "ENV", "ENTRY", "CMD"), _read_texts),
    **dict.fromkeys(
        ("last_pull", "expiration", "last_heartbeat", "not_before", "waited",
         "waited_for_pulls", "waited_for_system", "time_left"), read_number
    ),
    **dict.fromkeys(
        ("attempt", "deaths", "requested_by", "size", "modified", "done", "total",
         "rate", "only_user", "pinned_by"), _read_integer
    ),
    **dict.fromkeys(("by_admin", "retryable", "own_failure", "with_login"), _read_flag),
    **dict.fromkeys(("userACL", "groupACL"), _read_uids),
    "layers_in_flight": _read_list,
    "id": _read_id,
    "status": _read_status,
    "private": _read_private,
    "LABELS": _read_labels,
    "origin": _read_origin,
    "report": _read_object,
    "verdict": _read_object,
    "upload": _read_upload,
    "owners": _read_owners,
}  # fmt: skip
"""The reader of each known member: it returns None for a value that it cannot read."""
