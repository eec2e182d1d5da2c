"""Manifests and configurations of one repository, each whole and checked before it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred

from shiftergw.errors import BadRequest, BlobCorrupt, ManifestInvalid, RegistryUnavailable
from shiftergw.image import Descriptor, Digest
from shiftergw.oci.manifest import ACCEPT, MAX_CONFIG, MAX_MANIFEST
from shiftergw.oci.schema1 import payload_of
from shiftergw.plumbing.timing import within
from shiftergw.sources.registry.repository import Repository
from shiftergw.sources.registry.transport import Transport, field

T = TypeVar("T")

MOST_MANIFESTS = 32
"""Manifests that are read for one reference."""

_SIZE_DIGITS = 18
_HEADERS = {"Accept": ", ".join(ACCEPT)}
_NO_HEAD = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})


class Retries(Protocol):
    """Runs an attempt until it succeeds or patience ends."""

    def __call__(self, attempt: Callable[[], Awaitable[T]], /) -> Awaitable[T]:
        """Return what the attempt returns."""
        ...


class Documents:
    """The small things of an image: at most 4 MiB for a manifest, 8 MiB for a configuration.

    All of one reference together may take `Limits.documents`, waits between tries not counted.
    """

    def __init__(self, transport: Transport, repository: Repository, retries: Retries) -> None:
        """Keep what the requests need."""
        self.repository = repository
        self._transport = transport
        self._retries = retries
        self._manifests = 0
        self._seconds = transport.limits.documents

    async def _try(self, attempt: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
        """Run an attempt, with retries, within the time that remains for all documents."""

        async def timed() -> T:
            began = self._transport.clock.seconds()
            try:
                return await within(self._seconds, self._transport.clock, attempt(), self._too_long)
            finally:
                self._seconds = max(0.0, self._seconds - (self._transport.clock.seconds() - began))

        return await self._retries(timed)

    def _too_long(self) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"{self._transport.who} took more than {self._transport.limits.documents:.0f} s for the"
            " manifests and the configuration of one image."
        )

    async def head(self, reference: str) -> Digest | None:
        """Return the digest that the registry names for a tag or digest, None if it does not."""

        async def attempt() -> Digest | None:
            response = await self.repository.ask(
                "HEAD", f"manifests/{reference}", _HEADERS, _NO_HEAD
            )
            self._transport.discard(response)
            return _digest(field(response, "Docker-Content-Digest"))

        return await self._try(attempt)

    async def manifest(
        self, reference: str, expected: Digest | Descriptor | None
    ) -> tuple[bytes, str]:
        """Return a manifest or index by tag or digest, and its media type.

        It must be what is `expected`, or what the registry itself says it is: `BlobCorrupt`.
        """
        self._manifests += 1
        if self._manifests > MOST_MANIFESTS:
            raise ManifestInvalid(
                f"The image's indexes lead to more than {MOST_MANIFESTS} manifests."
            )
        path = f"manifests/{reference}"

        async def attempt() -> tuple[bytes, str, Digest | None]:
            response = await self.repository.ask("GET", path, _HEADERS)
            content = await self._transport.read(response, MAX_MANIFEST)
            media_type = field(response, "Content-Type") or ""
            return content, media_type, _digest(field(response, "Docker-Content-Digest"))

        content, media_type, told = await self._try(attempt)
        if len(content) > MAX_MANIFEST:
            raise ManifestInvalid("The image's manifest is larger than 4 MiB.")
        content = payload_of(content)
        _check(content, expected or told, "manifest")
        return content, media_type

    async def prove(self, blob: Descriptor) -> None:
        """Return if the blob may be read here, without reading it; raise the refusal."""

        async def attempt() -> None:
            response = await self.repository.ask("HEAD", f"blobs/{blob.digest}", {"Accept": "*/*"})
            self._transport.discard(response)

        await self._retries(attempt)

    async def blob_size(self, digest: Digest) -> int:
        """Return the size of a blob, which Docker schema 1 does not tell, in one request."""

        async def attempt() -> str:
            response = await self.repository.ask("HEAD", f"blobs/{digest}", {"Accept": "*/*"})
            self._transport.discard(response)
            return field(response, "Content-Length") or ""

        size = await self._try(attempt)
        if not (size.isascii() and size.isdigit() and len(size) <= _SIZE_DIGITS):
            raise RegistryUnavailable(
                f"{self._transport.who} does not tell the size of a layer, which the old format of"
                " this image requires.",
                remedy="Pull the image with a current tool and push it again.",
            )
        return int(size)

    async def config(self, blob: Descriptor) -> bytes:
        """Return the configuration that a manifest names."""
        if blob.size > MAX_CONFIG:
            raise ManifestInvalid("The image's configuration is larger than 8 MiB.")

        async def attempt() -> bytes:
            response = await self.repository.ask("GET", f"blobs/{blob.digest}", {"Accept": "*/*"})
            return await self._transport.read(response, blob.size)

        content = await self._try(attempt)
        _check(content, blob, "configuration")
        return content


def _digest(text: str | None) -> Digest | None:
    try:
        return None if text is None else Digest.parse(text)
    except BadRequest:
        return None


def _check(content: bytes, expected: Digest | Descriptor | None, what: str) -> None:
    if expected is None:
        return
    digest = expected.digest if isinstance(expected, Descriptor) else expected
    right_size = not isinstance(expected, Descriptor) or len(content) == expected.size
    if not right_size or hashlib.new(digest.algorithm, content).hexdigest() != digest.hex:
        raise BlobCorrupt(f"The {what} that the registry sent is not {digest}.")
