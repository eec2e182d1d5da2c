"""What `shifterimg` puts into a credential: the user's logins, by location.

Nothing, or `{"authorized_locations": {"LOCATION": "user:password", …}}`. The client escapes few
control characters and knows no encodings, so both are read as they come. What is wrong is never
repeated, not even as the cause of an error: it may hold a password.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from shiftergw.errors import BadRequest
from shiftergw.model import RegistryLogin


def logins(payload: bytes) -> Mapping[str, RegistryLogin]:
    """Return the logins of a payload; other members are ignored. Raises `BadRequest`."""
    if not payload.strip():
        return {}
    found = _logins(_document(payload))
    if found is None:
        raise BadRequest(
            "The logins in the credential are not as `shifterimg` writes them.",
            remedy="Remove ~/.udiRoot/.cred and log in again (`shifterimg login`).",
        )
    return found


def _document(payload: bytes) -> object:
    """Return the JSON value of a payload; None for what is none (which is no object either)."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        text = payload.decode("latin-1")  # a terminal of old; each byte is a character
    try:
        value: object = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value


def _logins(document: object) -> dict[str, RegistryLogin] | None:
    """Return the logins of a document, or None if it has another shape."""
    locations = document.get("authorized_locations", {}) if isinstance(document, dict) else None
    if not isinstance(locations, dict):
        return None
    if not all(_is_login(place, text) for place, text in locations.items()):
        return None
    return {place: RegistryLogin.parse(text) for place, text in locations.items()}


def _is_login(place: object, text: object) -> bool:
    """Say whether these are text that can be sent on, with a user before the first colon."""
    return (
        isinstance(place, str)
        and isinstance(text, str)
        and ":" in text
        and _is_unicode(place)
        and _is_unicode(text)
    )


def _is_unicode(text: str) -> bool:
    """Say whether it can be encoded: JSON can spell halves of surrogate pairs."""
    return not any("\ud800" <= one <= "\udfff" for one in text)
