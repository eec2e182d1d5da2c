"""Pages for people and programs that need no credential."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cache
from http import HTTPStatus

from shiftergw.errors import Unavailable
from shiftergw.service.gateway import Gateway
from shiftergw.web import openapi, render
from shiftergw.web.render import Answer


async def _front(_: Gateway) -> Answer:
    return render.text("{lookup,pull,expire,list}")


async def _alive(_: Gateway) -> Answer:
    return render.text("alive")


async def _ready(gateway: Gateway) -> Answer:
    try:
        await gateway.ready()
    except Unavailable as error:
        wait = render.retry_after(error) or ""
        return replace(render.text(error.code, error.http_status), headers={"Retry-After": wait})
    return render.text("ready")


@cache
def _description() -> Answer:
    """Return the description of the interface, which is made for the first request."""
    body = render.to_json(openapi.document())
    tag = hashlib.sha256(body).hexdigest()[:32]
    return Answer(HTTPStatus.OK, body, headers={"ETag": f'"{tag}"'})


async def _describe(_: Gateway) -> Answer:
    return _description()


PAGES: dict[str, Callable[[Gateway], Awaitable[Answer]]] = {
    "/": _front,
    "/livez": _alive,
    "/readyz": _ready,
    "/api/openapi.json": _describe,
}
"""The pages that need no credential, by path."""
