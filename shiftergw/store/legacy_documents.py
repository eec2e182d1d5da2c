"""Documents that another program, or an admin's hand, has written: what in them can be read.

A member of a form that it cannot have counts as absent, so that one odd document harms no other.
Only with readers it is not so: an image whose readers cannot be made out is nobody's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from shiftergw.names import HIGHEST_ID, is_image_id

INVALID_UID = HIGHEST_ID + 1
"""A uid, and a gid, that no process can have."""

_ORIGIN = ("location", "repository", "source_digest")


def read_number(value: object) -> float | None:
    """Return a finite number, else None; one that MongoDB keeps as a decimal is as good as any."""
    if isinstance(value, bool):
        return None
    if not isinstance(value, int | float):
        # bson's decimals, whose package only sites with MongoDB need.
        decimal = getattr(value, "to_decimal", None)
        if decimal is None or not decimal().is_finite():
            return None
        value = float(decimal())
    return value if math.isfinite(value) else None


def is_text(value: object) -> bool:
    """Return whether a value is text.

    JavaScript of a database (`bson.Code`) is a `str` for Python, but no query for text matches it,
    and it cannot be hashed.
    """
    return isinstance(value, str) and isinstance(value, Hashable)


def read_time(document: Mapping[str, Any], name: str) -> float:
    """Return the time that a member of a document says; 0 if it says none."""
    return read_number(document.get(name)) or 0


def read_tags(document: Mapping[str, Any]) -> list[str]:
    """Return the tags of a document; the original has both a list and a bare string."""
    return _texts(document.get("tag")) or []


def read_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document without what in it cannot be read."""
    read: dict[str, Any] = {}
    for name, value in document.items():
        form = _FORMS.get(name)
        fit = value if form is None or value is None else form(value)
        if fit is not None:
            read[name] = fit
    return read


def unreadable_members(document: Mapping[str, Any]) -> list[str]:
    """Return the names of members that cannot be read, or not wholly."""
    return [
        name
        for name, value in document.items()
        if value is not None and (form := _FORMS.get(name)) is not None and not _is(form, value)
    ]


def _is(form: Callable[[Any], Any], value: Any) -> bool:
    fit = form(value)
    is_single = is_text(value) and fit == [value]
    if isinstance(fit, list) and isinstance(value, list) and len(fit) == len(value):
        return all(map(_is_same, fit, value))
    return is_single or _is_same(fit, value)


def _is_same(fit: object, value: object) -> bool:
    return (type(fit) is type(value) and fit == value) or _same_number(fit, value)


def _same_number(fit: object, value: object) -> bool:
    return read_number(fit) is not None and fit == read_number(value)


def _text(value: Any) -> str | None:
    return value if is_text(value) else None


def _id(value: Any) -> str | None:
    """Read an image id, if it is one that files can have."""
    return value if is_text(value) and is_image_id(value) else None


def _word(value: object) -> str | None:
    """Read what is text here, and may be a number there."""
    return str(value) if read_number(value) is not None else _text(value)


def _status(value: Any) -> str:
    return value if is_text(value) else "?"


def _texts(value: Any) -> list[str] | None:
    if is_text(value):
        return [value]
    if not isinstance(value, list):
        return None
    return [text for text in value if is_text(text)]


def _labels(value: object) -> dict[str, str] | None:
    if not isinstance(value, dict):
        return None
    return {name: text for name, text in value.items() if is_text(text)}


def _whole(value: object) -> int | None:
    number = read_number(value)
    return int(number) if number is not None and number == int(number) else None


def _flag(value: object) -> bool | None:
    return bool(value) if isinstance(value, bool | int | float) else None


def _private(value: object) -> bool:
    return _flag(value) is not False


def _readers(value: object) -> list[int]:
    """Return who is named; if that cannot be made out, nobody who exists."""
    named = value if isinstance(value, list) else [None]
    known = [one for one in map(_whole, named) if one is not None and 0 <= one < INVALID_UID]
    return known if known or not named else [INVALID_UID]


def _origin(value: object) -> dict[str, Any] | None:
    if not isinstance(value, dict) or not all(is_text(value.get(n)) for n in _ORIGIN):
        return None
    return {**value, "private": _private(value.get("private", False))}


def _object(value: object) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


_FORMS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("system", "itype", "pulltag", "status_message", "WORKDIR", "format", "arch", "os",
         "location", "remotetype", "claim", "kind", "runner", "sha256", "options", "stage",
         "cause", "remedy", "request_id", "requester", "sealed", "waits_for"),
        _text,
    ),
    **dict.fromkeys(("ostcount", "replication"), _word),
    **dict.fromkeys(("tag", "ENV", "ENTRY", "CMD"), _texts),
    **dict.fromkeys(
        ("last_pull", "expiration", "last_heartbeat", "not_before", "waited",
         "waited_for_pulls", "waited_for_system"), read_number
    ),
    **dict.fromkeys(
        ("attempt", "deaths", "requested_by", "size", "modified", "done", "total"), _whole
    ),
    **dict.fromkeys(("by_admin", "retryable", "own_failure", "with_login"), _flag),
    **dict.fromkeys(("userACL", "groupACL"), _readers),
    "id": _id,
    "status": _status,
    "private": _private,
    "LABELS": _labels,
    "origin": _origin,
    "report": _object,
}  # fmt: skip
"""Of each member that we read, how."""
