"""Parse the path, credential, query and body of a request; raise `BadRequest` for bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

from shiftergw.errors import BadRequest, NotAuthenticated, NotFound, printable
from shiftergw.model.names import ACL_LIMIT, HIGHEST_ID, is_image_id

MOST_ROWS = 10_000
"""Rows of metrics in one answer."""

_LIMIT = re.compile("-?[0-9]{1,9}", re.ASCII)
_NUMBER = re.compile(r"\s*([0-9]{1,10})\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class RequestPath:
    """A parsed path: `/page` or `/api/page/system[/itype/image]`; parts that it lacks are "".

    In `/api/page/system/image` the image is an image id.
    """

    page: str = ""
    system: str = ""
    itype: str = ""
    image: str = ""

    @classmethod
    def parse(cls, path: bytes) -> RequestPath:
        """Parse a path; raise `NotFound` if it cannot name anything.

        The whole path is percent-decoded once and then split: `%2F` and `/` are the same within the
        name of an image. A trailing slash is allowed. A name may begin with `//`, since
        `shifterimg` sends `docker://ubuntu` as type `docker` and name `//ubuntu`.
        """
        if path.lower().startswith((b"http://", b"https://")):  # RFC 9112 section 3.2.2
            path = b"/" + path.split(b"/", 3)[3] if path.count(b"/") > 2 else b"/"  # noqa: PLR2004
        try:
            text = unquote_to_bytes(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest("The path is not UTF-8.") from error
        if not text.startswith("/"):
            raise path_not_found(path)
        segments = text.removesuffix("/").split("/", 5)[1:]
        if not all(segments) or text.endswith("//"):
            raise path_not_found(path)
        if not segments or segments[0] != "api":
            if len(segments) > 1:
                raise path_not_found(path)
            return cls(f"/{''.join(segments)}")
        name = segments[-1].removeprefix("//") if len(segments) == 5 else segments[-1]  # noqa: PLR2004
        if len(segments) not in {3, 4, 5} or name.startswith("/"):
            raise path_not_found(path)
        if len(segments) == 4:  # noqa: PLR2004 - without a type
            return cls(segments[1], segments[2], image=segments[3])
        return cls(*segments[1:])


def path_not_found(path: bytes) -> NotFound:
    """Return the error for a path that names nothing."""
    return NotFound(
        f"There is nothing at {printable(path)!r}.",
        remedy="Paths are /api/list/SYSTEM/, /api/lookup/SYSTEM/TYPE/IMAGE/ and their like.",
    )


def credential(values: Sequence[bytes]) -> str:
    """Return the only value of the `authentication` header; raise `NotAuthenticated`."""
    remedy = "Send one header `authentication` with a fresh munge credential."
    if len(values) != 1 or not values[0]:
        number = "more than one credential" if len(values) > 1 else "no credential"
        raise NotAuthenticated(f"The request has {number}.", remedy=remedy)
    try:
        return values[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotAuthenticated("The credential is not text.", remedy=remedy) from error


def image_id(text: str) -> str:
    """Check an image id, which has 64 hexadecimal digits in lower case, and return it."""
    if not is_image_id(text):
        raise BadRequest(
            f"{printable(text, 80)!r} is not an image id.",
            remedy="An image id is 64 hexadecimal digits in lower case, as a look-up gives it.",
        )
    return text


def limit(query: bytes) -> int:
    """Return the `limit` of a query string; the default, 10, is that of the original gateway."""
    try:
        values = parse_qs(query.decode("ascii"), max_num_fields=20).get("limit", ["10"])
        number = int(values[-1]) if _LIMIT.fullmatch(values[-1]) else None
    except ValueError:
        number = None
    if number is None:
        raise BadRequest("`limit` is not a number of rows.", remedy="Write `?limit=100`.")
    return min(number, MOST_ROWS)


def members(body: bytes) -> dict[str, Any]:
    """Return the members of a JSON object; an empty body and `null` have none."""
    if not body.strip():
        return {}
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique_members)
    except (ValueError, RecursionError) as error:
        raise BadRequest("The body is not JSON.") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object.")
    return document


def _unique_members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise BadRequest(f"The body has the member {printable(name, 40)!r} twice.")
        document[name] = value
    return document


def access_lists(document: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the uids and the gids that may read a new image, besides its owner."""
    return acl(document, "allowed_uids"), acl(document, "allowed_gids")


def acl(document: dict[str, Any], name: str) -> tuple[int, ...]:
    """Return the ids of a member such as `allowed_uids`: text `"1,2"` or an array of integers."""
    value = document.get(name, [])
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise _bad_ids(name)
    ids = tuple(dict.fromkeys(_id(item, name) for item in items))
    if len(ids) > ACL_LIMIT:
        raise BadRequest(
            f"{name} has {len(ids)} ids; {ACL_LIMIT} is the limit.",
            remedy="Name a group instead of its members.",
        )
    return ids


def _id(item: Any, name: str) -> int:
    if isinstance(item, str):
        match = _NUMBER.fullmatch(item)
        item = int(match[1]) if match else None
    if type(item) is not int or not 0 <= item <= HIGHEST_ID:
        raise _bad_ids(name)
    return item


def _bad_ids(name: str) -> BadRequest:
    return BadRequest(
        f"{name} is not a list of ids.",
        remedy=f'Write numbers from 0 to {HIGHEST_ID} as text, "1000,1001", or as an array.',
    )
