"""Read JSON documents out of responses, and recognize what is sent in their place."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from typing import TYPE_CHECKING

from shiftergw.errors import printable
from shiftergw.oci.content_coding import decode_content
from shiftergw.sources.registry.reader import is_json
from shiftergw.sources.registry.retry import Interruption, InterruptionKind
from shiftergw.sources.registry.transport import Transport, field

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

WEB_PAGE = "a web page"
"""The reason (`Interruption.why`) of a response that is a web page."""

_CODING_ROOM = 4096
"""Bytes by which a compressed document may be longer than the limit on the document."""

_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!--", b"<?xml")
_PAGE_HEAD = 8192
"""Bytes of a web page in which its title is sought."""

_PAGE_REMEDY = (
    "Tell the site's support: a proxy, a log-in page of the network or a CDN answers in its place,"
    " or the address in the gateway's configuration is that of a web site."
)


async def read_document(
    transport: Transport,
    response: IResponse,
    limit: int,
    source: str,
    name: str,
    is_right: Callable[[bytes], bool] = bool,
) -> bytes:
    """Return a JSON document without its content coding; of a longer one `limit` + 1 bytes.

    In errors `source` begins the sentence, and `name` says what kind of document it is. A body that
    ends with its connection, and so may be incomplete, must parse as JSON and be what `is_right`
    accepts. Raises `Interruption` for a web page and for a damaged body, and what `Transport.read`
    raises.
    """
    codings = ",".join(
        value.decode("ascii", "backslashreplace")
        for value in response.headers.getRawHeaders(b"Content-Encoding", [])
    )

    def is_whole(body: bytes) -> bool:
        try:
            content = decode_content(body, codings, limit)
        except ValueError:
            return False
        return is_json(content) and is_right(content)

    room = _CODING_ROOM if codings else 0
    body = await transport.read(response, limit + room, is_whole)
    try:
        content = decode_content(body, codings, limit)
    except ValueError as error:
        raise Interruption(
            f"{source} sent a {name} that {error}.",
            remedy="Tell the site's support: a proxy or the registry changes what it sends.",
            kind=InterruptionKind.LASTING,
        ) from error
    if is_web_page(content):
        raise _page_failure(source, response, content, name)
    return content


def is_web_page(content: bytes) -> bool:
    """Return whether a body is HTML (or XML), in place of JSON."""
    start = content[:_PAGE_HEAD].removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower()
    return start.startswith(_PAGE_STARTS)


def _page_failure(source: str, response: IResponse, content: bytes, name: str) -> Interruption:
    """Return the error for a web page; its title and the server's name tell whose page it is."""
    title = _title(content[:_PAGE_HEAD])
    servers = [field(response, header) for header in ("Server", "Via")]
    server = printable(" ".join(server for server in servers if server), 60)
    words = f" titled {title!r}" if title else ""
    sender = f" (sent by {server!r})" if server else ""
    return Interruption(
        f"{source} sent a web page{words} instead of a {name}{sender}.",
        remedy=_PAGE_REMEDY,
        why=WEB_PAGE,
        kind=InterruptionKind.LASTING,
    )


def _title(head: bytes) -> str:
    """Return the title of a web page on one printable line; "" if it has none."""
    start = head.lower().find(b"<title")
    text = head[start:].partition(b">")[2].partition(b"<")[0] if start >= 0 else b""
    return printable(" ".join(unescape(text.decode("utf-8", "replace")).split()), 80)
