"""Parse the payload of a credential: the user's logins at registries, by location.

The payload is empty, or `{"authorized_locations": {"LOCATION": "user:password", …}}`. `shifterimg`
does not escape all control characters and does not convert encodings, so both are accepted. An
invalid payload is never quoted, not even as the cause of an error, since it may hold a password.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from shiftergw.errors import BadRequest
from shiftergw.model.requests import RegistryLogin


def logins(payload: bytes) -> Mapping[str, RegistryLogin]:
    """Return the logins in a payload, ignoring other members; raise `BadRequest`."""
    if not payload.strip():
        return {}
    logins_by_location = _logins(_document(payload))
    if logins_by_location is None:
        raise BadRequest(
            "The logins in the credential are not as `shifterimg` writes them.",
            remedy="Remove ~/.udiRoot/.cred and log in again (`shifterimg login`).",
        )
    return logins_by_location


def _document(payload: bytes) -> object:
    """Return the JSON value of a payload; None if it is not JSON."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        text = payload.decode("latin-1")  # an old terminal; each byte is a character
    try:
        value: object = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value


def _logins(document: object) -> dict[str, RegistryLogin] | None:
    """Return the logins in a document; None if it does not have the form above."""
    locations = document.get("authorized_locations", {}) if isinstance(document, dict) else None
    if not isinstance(locations, dict):
        return None
    if not all(_is_login(location, login) for location, login in locations.items()):
        return None
    return {location: RegistryLogin.parse(login) for location, login in locations.items()}


def _is_login(location: object, login: object) -> bool:
    """Return whether both are text that can be encoded, and the login has a colon."""
    return (
        isinstance(location, str)
        and isinstance(login, str)
        and ":" in login
        and _is_unicode(location)
        and _is_unicode(login)
    )


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON can contain halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
