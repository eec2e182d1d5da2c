"""Pages for people and for monitoring, which need no credential."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from shiftergw.errors import Unavailable
from shiftergw.service.gateway import Gateway
from shiftergw.web import render
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


PAGES: dict[str, Callable[[Gateway], Awaitable[Answer]]] = {
    "/": _front,
    "/livez": _alive,
    "/readyz": _ready,
}
"""The pages that need no credential, by path."""
