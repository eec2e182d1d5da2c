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


class Download:
    """Knows, from one try to the next, what the sink already has."""

    def __init__(
        self,
        transport: Transport,
        repository: Repository,
        blob: Descriptor,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Begin at `offset`, if the registry can."""
        self.reached = offset
        """The furthest position so far: what is sent once more is no progress."""
        self._transport = transport
        self._repository = repository
        self._blob = blob
        self._position = offset
        self._sink = sink

    async def attempt(self) -> None:
        """Stream the rest of the blob; raise `Interrupted` if that is not all of it."""
        response = await self._open()
        try:
            self._sink.begin(self._position)
        except BaseException:
            self._transport.discard(response)
            raise
        try:
            await self._transport.stream(response, self._take, self._sink)
        except Interrupted:
            # An end that HTTP cannot vouch for is one, if nothing is missing.
            if self._position != self._blob.size:
                raise
        if self._position < self._blob.size:
            raise Interrupted(
                f"{self._transport.who} sent {self._position} bytes of a layer of"
                f" {self._blob.size} bytes.",
                lasting=True,
            )

    async def _open(self) -> IResponse:
        """Return the answer to a request from our position, which is 0 if it cannot begin there."""
        if self._position:
            response = await self._ask({"Range": f"bytes={self._position}-"})
            if response.code == HTTPStatus.PARTIAL_CONTENT:
                self._check_range(response)
                return response
            if response.code == HTTPStatus.OK:
                self._position = 0
                return response
            self._transport.discard(response)
            self._position = 0
        response = await self._ask({})
        if response.code == HTTPStatus.OK:
            return response
        raise self._refuse(response)

    async def _ask(self, headers: dict[str, str]) -> IResponse:
        path = f"blobs/{self._blob.digest}"
        return await self._repository.ask("GET", path, {"Accept": "*/*", **headers}, _RANGES)

    def _check_range(self, response: IResponse) -> None:
        told = parse_content_range(field(response, "Content-Range") or "")
        if told is None or told[0] != self._position or told[2] not in {None, self._blob.size}:
            raise self._refuse(response)

    def _refuse(self, response: IResponse) -> Interrupted:
        """Return the reason to begin anew: bytes in the wrong place are worse than none."""
        self._transport.discard(response)
        self._position = 0
        return Interrupted(
            f"{self._transport.who} sent another part of a layer than was asked for.",
            lasting=True,
        )

    def _take(self, data: bytes) -> None:
        self._sink.write(data)
        self._position += len(data)
        self.reached = max(self.reached, self._position)
