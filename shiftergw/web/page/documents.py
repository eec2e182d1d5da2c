"""Make the documents of the page from its templates, and send the files that belong to them.

The templates, the style and the script are files of this package. Every document has the same
policy for its content: nothing is loaded from elsewhere, nothing inline is executed or applied, and
no other site may frame it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Final

from twisted.web.template import Element, Tag, XMLString, flattenString, renderer, tags

from shiftergw.errors import GatewayError
from shiftergw.web import render
from shiftergw.web.render import Answer

HTML = b"text/html; charset=utf-8"

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The headers of each document."""

_FILE_HEADERS = {
    "Cache-Control": "public, max-age=31536000, immutable",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""The headers of files; their addresses have a digest, so a new version has a new address."""

_DIRECTORY = Path(__file__).parent

_TYPES = {
    "icon.svg": b"image/svg+xml",
    "script.js": b"text/javascript; charset=utf-8",
    "style.css": b"text/css; charset=utf-8",
}

FILES: Mapping[str, Answer] = {
    name: Answer(
        HTTPStatus.OK,
        (_DIRECTORY / name).read_bytes(),
        content_type,
        _FILE_HEADERS,
        quiet=True,
    )
    for name, content_type in _TYPES.items()
}
"""The files that documents refer to, by name; they need no session."""


def template(name: str) -> XMLString:
    """Return a template of this package; the file `name`.xml is read and parsed at once."""
    return XMLString((_DIRECTORY / f"{name}.xml").read_bytes())


_FRAME = template("frame")


def _address(name: str) -> str:
    return f"{name}?{sha256(FILES[name].body).hexdigest()[:12]}"


_ADDRESSES = {name.partition(".")[0]: _address(name) for name in FILES}


class Notice(Element):
    """A short text instead of a document: an error, or where to go on."""

    loader = template("notice")

    def __init__(
        self, title: str, text: str, remedy: str = "", link: tuple[str, str] | None = None
    ) -> None:
        """Show a title, a text and a remedy, and a link: its address and its label."""
        super().__init__()
        self._title = title
        self._text = text
        self._remedy = remedy
        self._link = link

    @renderer
    def notice(self, _: object, tag: Tag) -> Tag:
        """Fill the texts in."""
        return tag.fillSlots(title=self._title, text=self._text, remedy=self._remedy)

    @renderer
    def link(self, _: object, tag: Tag) -> Tag | str:
        """Return the link, if there is one."""
        if self._link is None:
            return ""
        href, label = self._link
        return tag.fillSlots(href=href, label=label)


async def to_html(element: Element | Tag) -> bytes:
    """Return an element as text, which may be part of any number of documents."""
    return await flattenString(None, element)


async def document(
    title: str,
    content: Sequence[Element | bytes],
    navigation: Element | str = "",
    status: int = HTTPStatus.OK,
    *,
    next_address: str = "",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Answer:
    """Return a whole document, whose `content` may be HTML from `to_html`.

    The browser goes on to `next_address` at once, if there is one.
    """
    refresh: Tag | str = ""
    if next_address:
        refresh = tags.meta(content=f"0; url={next_address}", **{"http-equiv": "refresh"})
    (frame,) = (part for part in _FRAME.load() if isinstance(part, Tag))
    whole = frame.clone().fillSlots(
        title=f"{title} · shiftergw",
        refresh=refresh,
        navigation=navigation,
        content="",
        **_ADDRESSES,
    )
    parts = [part if isinstance(part, bytes) else await to_html(part) for part in content]
    head, end, foot = (await flattenString(None, whole)).partition(b"</main>")
    body = b"".join((b"<!DOCTYPE html>\n", head, *parts, end, foot))
    return Answer(status, body, HTML, {**HEADERS, **headers}, quiet=True)


async def refusal(error: GatewayError, headers: Mapping[str, str]) -> Answer:
    """Return an error as a document for people."""
    reason = HTTPStatus(error.http_status).phrase
    wait = render.retry_after(error)
    if wait is not None:
        headers = {**headers, "Retry-After": wait}
    notice = Notice(reason, error.what, error.remedy)
    return await document(reason, [notice], status=error.http_status, headers=headers)
