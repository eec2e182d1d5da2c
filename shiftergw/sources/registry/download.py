"""One blob on its way into a sink (distribution-spec, "Pulling blobs"), resumed by `Range`."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from shiftergw.image import Descriptor
from shiftergw.oci.challenge import parse_content_range
from shiftergw.sources.registry.repository import Repository
from shiftergw.sources.registry.retry import Interrupted
from shiftergw.sources.registry.transport import Transport, field

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

    from shiftergw.ports import BlobSink

_RANGES = frozenset({HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE})

WRONG_PARTS = 2
"""Wrong answers to a `Range` after which the blob is requested from its beginning.

Behind one name there may be several servers, of which one is wrong; the bytes on disk are good.
"""


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
        self._position = offset
        self._sink = sink
        self._wrong_parts = 0

    async def attempt(self) -> None:
        """Stream the rest of the blob; raise `Interrupted` if bytes are missing afterwards."""
        response = await self._open()
        try:
            self._sink.begin(self._position)
        except BaseException:
            self._transport.discard(response)
            raise
        try:
            await self._transport.stream(response, self._take, self._sink)
        except Interrupted:
            # Without a length HTTP cannot tell the end from an interruption. The size can, and the
            # cache checks the digest.
            if self._position != self._blob.size:
                raise
        if self._position < self._blob.size:
            raise Interrupted(
                f"{self._transport.who} sent {self._position} bytes of a layer of"
                f" {self._blob.size} bytes.",
                lasting=True,
            )

    async def _open(self) -> IResponse:
        """Return the response to a request from the position, which becomes 0 without ranges."""
        if self._position:
            response = await self._request({"Range": f"bytes={self._position}-"})
            if response.code == HTTPStatus.PARTIAL_CONTENT:
                self._check_range(response)
                return response
            self._position = 0
            if response.code == HTTPStatus.OK:
                return response
            self._transport.discard(response)
        response = await self._request({})
        if response.code == HTTPStatus.OK:
            return response
        raise self._refuse_part(response)

    async def _request(self, headers: dict[str, str]) -> IResponse:
        path = f"blobs/{self._blob.digest}"
        return await self._repository.ask("GET", path, {"Accept": "*/*", **headers}, _RANGES)

    def _check_range(self, response: IResponse) -> None:
        part = parse_content_range(field(response, "Content-Range") or "")
        if part is None or part[0] != self._position or part[2] not in {None, self._blob.size}:
            raise self._refuse_part(response)

    def _refuse_part(self, response: IResponse) -> Interrupted:
        """Close a response with bytes of another part; return the error."""
        self._transport.discard(response)
        self._wrong_parts += 1
        if self._wrong_parts >= WRONG_PARTS:
            self._position = 0
        return Interrupted(
            f"{self._transport.who} sent another part of a layer than was requested.",
            lasting=True,
        )

    def _take(self, data: bytes) -> None:
        self._sink.write(data)
        self._position += len(data)
        self.progress = max(self.progress, self._position)
