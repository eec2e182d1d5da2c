"""Who has used an image and who has pinned it, and what users may therefore do with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftergw.errors import TooMany
from shiftergw.model.records import ImageRecord, document_of
from shiftergw.states import State
from shiftergw.store.documents import Change
from shiftergw.store.legacy_documents import is_ready

_RIGHTS = (
    "tags", "owners", "upload", "requested_by", "private", "user_acl", "group_acl", "only_user",
    "pinned_by",
)  # fmt: skip
"""Attributes on which it depends who may remove a READY image or one of its tags."""

RIGHTS = tuple(document_of(dict.fromkeys(_RIGHTS)))
"""The names of these attributes in documents."""


def is_usable(document: Mapping[str, Any]) -> bool:
    """Return whether a record is READY, or a pull in flight; a removal is neither."""
    is_work = document.get("claim") is not None and document.get("status") != State.EXPIRING
    return is_work or is_ready(document)


def has_rights_of(document: Mapping[str, Any], expected: ImageRecord | None) -> bool:
    """Return whether a record gives users the rights of the `expected` one, if there is one."""
    if expected is None:
        return True
    record = ImageRecord.from_document(document)
    return all(getattr(record, name) == getattr(expected, name) for name in _RIGHTS)


def note_use(document: Mapping[str, Any], uid: int) -> Change | None:
    """Return the change after a user has asked for an image or for its pull; None for no change."""
    return None if document.get("only_user") in {None, uid} else Change({}, ("only_user",))


def pin(uid: int) -> Change:
    """Return the change that pins an image."""
    return Change({"pinned_by": uid})


def unpin() -> Change:
    """Return the change after which an image is not pinned."""
    return Change({}, ("pinned_by",))


def check_pins(count: int, limit: int | None) -> None:
    """Raise `TooMany` if a user who has pinned `count` images may pin no more."""
    if limit is not None and count >= limit:
        raise TooMany(
            f"You have pinned {count} images, and may pin {limit}.",
            remedy="Unpin one of them, or ask the site's support to raise PinLimit.",
        )
