"""Read the payload of a simple signature: containers-signature(5), strictly.

Two readers of one payload must not see different values, so repeated members are refused, and
`critical` has no other members than the known ones.
"""

from __future__ import annotations

import json
from typing import Any

from shiftergw.errors import BadRequest
from shiftergw.model.images import Digest

_TYPE = "atomic container signature"


def read_payload(content: bytes) -> tuple[str, str]:
    """Return the docker reference and the manifest digest that a payload names.

    Raises `ValueError`, with a clause for messages, for an invalid payload.
    """
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_unique_members)
    except (ValueError, RecursionError) as error:
        raise ValueError("its payload is not valid JSON") from error
    top = _object(document, {"critical", "optional"})
    critical = _object(top["critical"], {"type", "image", "identity"})
    if critical["type"] != _TYPE:
        raise ValueError("its payload is not that of an image's signature")
    digest = _object(critical["image"], {"docker-manifest-digest"})["docker-manifest-digest"]
    reference = _object(critical["identity"], {"docker-reference"})["docker-reference"]
    if not isinstance(top["optional"], dict) or not isinstance(reference, str) or not reference:
        raise ValueError("a member of its payload has the wrong type")
    try:
        return reference, str(Digest.parse(digest))
    except BadRequest as error:
        raise ValueError("its payload names no digest") from error


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is repeated")
    return members


def _object(value: object, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        raise ValueError("its payload has other members than such a signature has")
    return value
