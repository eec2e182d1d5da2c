"""Define the types of the values that name a MongoDB database: its URI and its name."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_MONGODB_HOST = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+(?:%25\w+)?\])(?::([0-9]{1,5}))?"
    r"|[A-Za-z0-9%._~-]+\.sock"
)
_MONGODB = re.compile(r"mongodb://(?:[^@/?#]*@)?([^@/?#]+)(?:/[^?#]*)?(?:\?[^#]*)?")
_HIGHEST_PORT = 65535


def _mongodb_uri(value: str) -> str:
    """Check the form of a URI; the errors do not quote it, since it may contain a password."""
    match = _MONGODB.fullmatch(value if "://" in value else f"mongodb://{value}")
    authority = value.rpartition("://")[2].partition("/")[0]
    if value.isprintable() and authority.count("@") > 1:
        raise ValueError("must be written with %40 instead of an @ in the user's name or password")
    hosts = [_MONGODB_HOST.fullmatch(host) for host in match[1].split(",")] if match else [None]
    if not value.isprintable() or any(
        host is None or int(host[1] or 1) > _HIGHEST_PORT for host in hosts
    ):
        raise ValueError(
            "must be mongodb://[USER:PASSWORD@]HOST[:PORT][,HOST…][/DATABASE][?OPTIONS], with"
            " percent-encoded special characters in user and password"
        )
    return value


MongoUri = Annotated[str, AfterValidator(_mongodb_uri)]
"""The URI of a MongoDB server or replica set. It may contain a password: never quote or log it."""


def _database(value: str) -> str:
    if re.fullmatch(r"[^/\\. \"$*<>:|?\x00-\x1f\x7f]+", value) is None or len(value.encode()) > 63:  # noqa: PLR2004
        raise ValueError(
            'must be a name of at most 63 bytes, without / \\ . " $ * < > : | ? or blanks'
        )
    if value in {"admin", "config", "local"}:
        raise ValueError("must not be a database of the server itself")
    return value


DatabaseName = Annotated[str, AfterValidator(_database)]
"""A valid name of a MongoDB database."""
