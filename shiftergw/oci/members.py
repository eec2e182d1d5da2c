"""JSON from strangers, member by member: each is checked for its type before use.

Members that appear twice: the last one counts. Absent and null are the same. Whatever is wrong ends
in `ManifestInvalid`, never in a traceback.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar, cast

from shiftergw.errors import ManifestInvalid, printable

T = TypeVar("T")


def read_object(content: bytes, limit: int, what: str) -> dict[str, Any]:
    """Return the JSON object that `content` is, of at most `limit` bytes; `what` is its name."""
    if len(content) > limit:
        invalid(f"its {what} is larger than {limit >> 20} MiB")
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"The {what} of the image is not JSON.") from error
    if not isinstance(document, dict):
        invalid(f"its {what} is not a JSON object")
    return document


def member(holder: dict[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    """Return a member of exactly this JSON type; absent and null give the default."""
    value = holder.get(name)
    if value is None:
        return kind() if default is None else default
    if type(value) is not kind:  # an int is wanted: True is none
        invalid(f"`{printable(name, 60)}` has the wrong type")
    return clean(value)


def members(holder: dict[str, Any], name: str, kind: type[T]) -> tuple[T, ...]:
    """Return a member that is a list of this JSON type."""
    values = member(holder, name, list)
    if not set(map(type, values)) <= {kind}:
        invalid(f"`{name}` holds a value of the wrong type")
    return tuple(map(clean, values))


def words(holder: dict[str, Any], name: str) -> tuple[str, ...]:
    """Return a list of strings; one string is a list of itself."""
    if isinstance(holder.get(name), str):
        word = member(holder, name, str)
        return (word,) if word else ()
    return members(holder, name, str)


def texts(holder: dict[str, Any], name: str) -> dict[str, str]:
    """Return a member that is an object of strings; null counts as the empty one."""
    values = member(holder, name, dict)
    for key, value in values.items():
        if not isinstance(value, str | None):
            invalid(f"`{printable(key, 60)}` has the wrong type")
    return {clean(key): clean(value or "") for key, value in values.items()}


def clean(value: T) -> T:
    """Replace lone surrogates, which JSON can escape and UTF-8 cannot hold, as Go does."""
    if not isinstance(value, str) or value.isascii():
        return value
    return cast("T", re.sub("[\ud800-\udfff]", "\ufffd", value))


def invalid(why: str) -> NoReturn:
    """Raise `ManifestInvalid` with the reason, which continues the sentence."""
    raise ManifestInvalid(f"The image is not as the OCI specification wants it: {why}.")
