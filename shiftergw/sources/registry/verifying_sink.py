"""Verify a blob on its way into a sink, so that another place can be asked for it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from shiftergw.errors import BlobCorrupt
from shiftergw.model.images import Descriptor

if TYPE_CHECKING:
    from shiftergw.ports import BlobSink


class VerifyingSink:
    """Passes bytes to a sink, and hashes those of a blob that began at its first byte."""

    def __init__(self, sink: BlobSink, blob: Descriptor) -> None:
        """Pass bytes on to `sink`."""
        self._sink = sink
        self._blob = blob
        self._cursor = 0
        self._hash: Any = None

    @property
    def position(self) -> int:
        """Return how many bytes the sink has."""
        return self._sink.position

    def begin(self, offset: int) -> None:
        """Expect the bytes from `offset` on."""
        self._sink.begin(offset)
        if offset == 0:
            self._hash = hashlib.new(self._blob.digest.algorithm)
        elif offset != self._cursor:
            self._hash = None
        self._cursor = offset

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let the sink pause the producer."""
        self._sink.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Let the sink forget the producer."""
        self._sink.unregisterProducer()

    def write(self, data: bytes) -> None:
        """Pass the next bytes on; raise `BlobCorrupt` for too many, which would end the sink."""
        if self._cursor + len(data) > self._blob.size:
            raise BlobCorrupt(
                "A layer arrived with more bytes than its manifest says.",
                detail=str(self._blob.digest),
            )
        self._sink.write(data)
        self._cursor += len(data)
        if self._hash is not None:
            self._hash.update(data)

    def check(self) -> None:
        """Raise `BlobCorrupt` if the blob was hashed from its first byte and is another one."""
        if self._hash is not None and self._hash.hexdigest() != self._blob.digest.hex:
            raise BlobCorrupt(
                "A layer arrived with other bytes than its digest says.",
                detail=str(self._blob.digest),
            )
