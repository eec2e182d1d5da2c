"""Compare answers with the description of the interface."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from shiftergw.errors import NotFound
from shiftergw.web import openapi
from shiftergw.web.pages import PAGES
from shiftergw.web.parameters import RequestPath
from shiftergw.web.routes import ROUTES


def operation_of(method: str, path: str) -> str | None:
    """Return the method and path of a request as the description names them, or None."""
    method = "GET" if method == "HEAD" else method
    try:
        address = RequestPath.parse(path.partition("?")[0].encode())
    except NotFound:
        return None
    if address.page in PAGES:
        return f"{method} {address.page}"
    routes = ROUTES.get(address.page)
    route = None if routes is None else routes.choose(address, method)
    if route is None or method not in route.methods:
        return None
    return f"{method} {openapi.path_of(address.page, route)}"


def problems_of(method: str, path: str, status: int, media_type: str, document: Any) -> list[str]:
    """Return what an answer has that its description does not, and the reverse.

    `document` is its JSON. Members that the schema lacks are problems, too: clients of a later
    version must ignore them, but this version has to describe them.
    """
    name = operation_of(method, path) if status == 200 else None
    contents = _contents(name)
    if media_type not in contents:
        return [f"{name}: {media_type} is not described"]
    if media_type != "application/json":
        return []
    return [
        f"{name}: {error.json_path}: {error.message}"
        for error in contents[media_type].iter_errors(document)
    ]


@cache
def _contents(name: str | None) -> Mapping[str, Draft202012Validator]:
    """Return a validator for each media type of a route's answers; None stands for all errors."""
    document = _strict(openapi.document())
    response = document["components"]["responses"]["PageError"]
    if name is not None:
        method, _, path = name.partition(" ")
        response = document["paths"][path][method.lower()]["responses"]["200"]
    return {
        media_type: Draft202012Validator({**document, **content.get("schema", {})})
        for media_type, content in response["content"].items()
    }


def _strict(value: Any) -> Any:
    """Return a document in which no object may have members that its schema does not name."""
    if isinstance(value, Mapping):
        strict = {name: _strict(part) for name, part in value.items()}
        return strict | {"additionalProperties": False} if "properties" in value else strict
    return [_strict(part) for part in value] if isinstance(value, list | tuple) else value
