"""Read members of untrusted JSON documents, and check their types.

A missing member counts as null. Of a member that appears twice the last one counts. All errors are
`ManifestInvalid`.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar, cast

from shiftergw.errors import ManifestInvalid, printable

T = TypeVar("T")


def read_object(content: bytes, limit: int, document_name: str) -> dict[str, Any]:
    """Parse a JSON object of at most `limit` bytes; errors call it `document_name`."""
    if len(content) > limit:
        invalid(f"its {document_name} is larger than {limit >> 20} MiB")
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"The {document_name} of the image is not JSON.") from error
    if not isinstance(document, dict):
        invalid(f"its {document_name} is not a JSON object")
    return document


def member(holder: dict[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    """Return a member of exactly this JSON type, or the default if it is missing or null."""
    value = holder.get(name)
    if value is None:
        return kind() if default is None else default
    if type(value) is not kind:  # True is not an integer
        invalid(f"`{printable(name, 60)}` has the wrong type")
    return clean(value)


def members(holder: dict[str, Any], name: str, kind: type[T]) -> tuple[T, ...]:
    """Return a member that is a list of values of this JSON type."""
    values = member(holder, name, list)
    if not set(map(type, values)) <= {kind}:
        invalid(f"`{name}` holds a value of the wrong type")
    return tuple(map(clean, values))


def words(holder: dict[str, Any], name: str) -> tuple[str, ...]:
    """Return a member that is a list of strings; a single string counts as a list.

    Null counts as an empty string in a list, as for Go.
    """
    if isinstance(holder.get(name), str):
        word = member(holder, name, str)
        return (word,) if word else ()
    values = member(holder, name, list)
    if not set(map(type, values)) <= {str, type(None)}:
        invalid(f"`{name}` holds a value of the wrong type")
    return tuple(clean(value or "") for value in values)


def texts(holder: dict[str, Any], name: str) -> dict[str, str]:
    """Return a member that is an object of strings.

    Null counts as an empty string. Some builders write numbers and booleans, which count as their
    JSON text.
    """
    values = member(holder, name, dict)
    return {clean(key): _text(key, value) for key, value in values.items()}


def _text(key: str, value: object) -> str:
    if not isinstance(value, str | int | float | None):  # a boolean is an integer, too
        invalid(f"`{printable(key, 60)}` has the wrong type")
    return json.dumps(value) if isinstance(value, int | float) else clean(value or "")


def clean(value: T) -> T:
    """Replace lone surrogates as Go does: JSON can escape them, but UTF-8 cannot encode them."""
    if not isinstance(value, str) or value.isascii():
        return value
    return cast("T", re.sub("[\ud800-\udfff]", "\ufffd", value))


def invalid(why: str) -> NoReturn:
    """Raise `ManifestInvalid`; `why` continues the sentence of the error."""
    raise ManifestInvalid(f"The image is not as the OCI specification wants it: {why}.")
