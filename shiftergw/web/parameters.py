"""Parse the path, credential, query and body of a request; raise `BadRequest` for bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

from shiftergw.errors import BadRequest, NotAuthenticated, NotFound, printable

DEFAULT_ROWS = 10
"""Rows of metrics in one answer without a `limit`, as those of the original gateway."""

MOST_ROWS = 10_000
"""Rows of metrics in one answer."""

_LIMIT = re.compile("-?[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RequestPath:
    """A parsed path: `/api/page/system[/itype/image]`; parts that it lacks are "".

    A path without a system, such as `/livez` and `/api/openapi.json`, is a `page` as a whole.

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
        if len(segments) == (2 if segments[:1] == ["api"] else 1) or not segments:
            return cls(f"/{'/'.join(segments)}")
        if segments[0] != "api":
            raise path_not_found(path)
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


def limit(query: bytes) -> int:
    """Return the `limit` of a query string."""
    try:
        values = parse_qs(query.decode("ascii"), max_num_fields=20).get(
            "limit", [str(DEFAULT_ROWS)]
        )
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
