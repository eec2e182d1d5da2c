"""One blob on its way into a sink (distribution-spec, "Pulling blobs"), resumed by `Range`."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from shiftergw.model.images import Descriptor
from shiftergw.oci.challenge import parse_content_range
from shiftergw.sources.registry.failures import error_text
from shiftergw.sources.registry.repository import Repository
from shiftergw.sources.registry.retry import Interruption, InterruptionKind
from shiftergw.sources.registry.transport import Transport, field

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

    from shiftergw.ports import BlobSink

_RANGES = frozenset({HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE})

WRONG_PARTS = 2
"""Wrong answers to a `Range` after which the blob is requested from its beginning.

Behind one name there may be several servers, of which one is wrong; the bytes on disk are good.
"""


_PAGE_STARTS = (b"<!doctype html", b"<html")
_PAGE_REMEDY = (
    "Tell the site's support: a proxy, a log-in page of the network or a CDN answers in the"
    " registry's place."
)


class Download:
    """The download of one blob, over several attempts; each resumes where the last one ended."""

    def __init__(
        self,
        transport: Transport,
        repository: Repository,
        blob: Descriptor,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Begin at `offset`, if the registry can."""
        self.progress = offset
        """The furthest position so far; bytes before it that are sent again are no progress."""
        self._transport = transport
        self._repository = repository
        self._blob = blob
        self._sink = sink
        self._first_offset = offset
        self._start = offset
        """Where the bytes of the present response start."""
        self._cursor = offset
        """Where the next byte of the present response belongs."""
        self._wrong_parts = 0
        self._may_be_page = False
        self._has_begun = False
        self._has_sent = False
        """Whether the sink has got bytes, so that its position counts, not the first offset."""

    async def attempt(self) -> None:
        """Stream the rest of the blob; raise `Interruption` if bytes are missing afterwards."""
        response, self._start = await self._open()
        self._cursor = self._start
        media_type = field(response, "Content-Type") or ""
        self._may_be_page = media_type.lower().startswith("text/html")
        self._has_begun = False
        try:
            await self._transport.stream(response, self._take, self._sink)
        except Interruption:
            # Without a length HTTP cannot tell the end from an interruption. The size can, and the
            # cache checks the digest.
            if self._cursor != self._blob.size:
                raise
        if self._cursor < self._blob.size:
            raise Interruption(
                f"{self._transport.subject} sent {self._cursor} bytes of a layer of"
                f" {self._blob.size} bytes.",
                kind=InterruptionKind.LASTING,
            )

    async def _open(self) -> tuple[IResponse, int]:
        """Return a response and where its bytes start: at the position, or at 0 without ranges."""
        # The sink may have dropped bytes since the first offset was read from it.
        offset = self._sink.position if self._has_sent or self._first_offset else 0
        if self._wrong_parts >= WRONG_PARTS:
            self._wrong_parts = offset = 0
        if offset:
            response = await self._request({"Range": f"bytes={offset}-"})
            if response.code == HTTPStatus.PARTIAL_CONTENT:
                self._check_range(response, offset)
                return response, offset
            if response.code == HTTPStatus.OK:
                return response, 0
            self._transport.discard(response)
        response = await self._request({})
        if response.code == HTTPStatus.OK:
            return response, 0
        raise self._refuse_part(response)

    async def _request(self, headers: dict[str, str]) -> IResponse:
        path = f"blobs/{self._blob.digest}"
        return await self._repository.ask("GET", path, {"Accept": "*/*", **headers}, _RANGES)

    def _check_range(self, response: IResponse, offset: int) -> None:
        part = parse_content_range(field(response, "Content-Range") or "")
        if part is None or part[0] != offset or part[2] not in {None, self._blob.size}:
            raise self._refuse_part(response)

    def _refuse_part(self, response: IResponse) -> Interruption:
        """Close a response with bytes of another part; return the error."""
        self._transport.discard(response)
        self._wrong_parts += 1
        return Interruption(
            f"{self._transport.subject} sent another part of a layer than was requested.",
            kind=InterruptionKind.LASTING,
        )

    def _take(self, data: bytes) -> None:
        if not self._has_begun:
            if self._may_be_page and data.lstrip()[:14].lower().startswith(_PAGE_STARTS):
                raise self._page_error(data)  # before the sink drops good bytes
            if self._start and self._start != self._sink.position:
                # Only now the sink has found that bytes which were sent again differ.
                raise Interruption(f"{self._transport.subject} sent a layer with other bytes.")
            self._has_begun = self._has_sent = True
            self._sink.begin(self._start)
        self._sink.write(data)
        self._cursor += len(data)
        self.progress = max(self.progress, self._cursor)

    def _page_error(self, page: bytes) -> Interruption:
        """Return the error for a web page, which captive portals and proxies send with status 200.

        The media type alone proves nothing: some servers name any file `text/html`.
        """
        title = error_text(page)
        return Interruption(
            f"{self._transport.subject} sent a web page instead of a layer"
            f"{f': {title}' if title else '.'}",
            remedy=_PAGE_REMEDY,
            why="a web page",
            kind=InterruptionKind.LASTING,
        )
