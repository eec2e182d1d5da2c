"""Read the manifests and configurations of a repository, each whole and verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.web.iweb import IResponse

from shiftergw.errors import (
    BadRequest,
    BlobCorrupt,
    ImageNotFound,
    ManifestInvalid,
    RegistryDenied,
    RegistryUnavailable,
)
from shiftergw.model.images import Descriptor, Digest
from shiftergw.oci.challenge import parse_content_range
from shiftergw.oci.manifest import ACCEPT, MAX_CONFIG, MAX_MANIFEST
from shiftergw.oci.schema1 import payload_of
from shiftergw.plumbing.timing import within
from shiftergw.sources.registry.content import read_document
from shiftergw.sources.registry.repository import HeadNotAnswered, Repository
from shiftergw.sources.registry.retry import Interruption, InterruptionKind, RegistryRetries
from shiftergw.sources.registry.shared_manifests import RecentManifest
from shiftergw.sources.registry.transport import Transport, field

T = TypeVar("T")

MOST_MANIFESTS = 32
"""Manifests that are read for one reference."""

_SIZE_DIGITS = 18
_HEADERS = {"Accept": ", ".join(ACCEPT)}
_HEAD_REFUSALS = (ImageNotFound, RegistryDenied, HeadNotAnswered)
_RANGES = frozenset({HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE})


class Documents:
    """Reads the documents of an image: manifests up to 4 MiB, a configuration up to 8 MiB.

    All documents of one reference may take `Limits.documents` together, not counting the waits
    between tries.
    """

    def __init__(
        self, transport: Transport, repository: Repository, retries: RegistryRetries
    ) -> None:
        """Keep what the requests need."""
        self.repository = repository
        self._transport = transport
        self._retries = retries
        self._manifests = 0
        self._seconds = transport.limits.documents

    async def _try(self, attempt: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
        """Run an attempt, with retries, within the time that remains for all documents."""

        async def run() -> T:
            began = self._transport.clock.seconds()
            try:
                return await within(self._seconds, self._transport.clock, attempt(), self._too_long)
            finally:
                self._seconds = max(0.0, self._seconds - (self._transport.clock.seconds() - began))

        return await self._retries.run(run)

    def _too_long(self) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"{self._transport.subject} took more than {self._transport.limits.documents:.0f} s for"
            " the manifests and the configuration of one image."
        )

    async def head(self, reference: str) -> Digest | None:
        """Return the digest that the registry names for a tag or digest, by HEAD.

        Returns None if it names none. A refusal counts as that, too: the registry may still answer
        GET, whose errors have words. A limit does not: GET costs more than HEAD.
        """

        async def attempt() -> Digest | None:
            try:
                response = await self.repository.ask("HEAD", f"manifests/{reference}", _HEADERS)
            except _HEAD_REFUSALS:
                return None
            self._transport.discard(response)
            return _digest(field(response, "Docker-Content-Digest"))

        return await self._try(attempt)

    async def manifest(self, reference: str, digest: Digest | None) -> tuple[bytes, str]:
        """Return a manifest or index by tag or digest, and its media type.

        Where the registry counts requests, a manifest that was read lately is returned if HEAD
        names its digest. With `digest` the bytes must have it: `BlobCorrupt`. The size in a
        descriptor is only a claim beside it. Without, the digest in the header decides for a body
        of unknown length alone: some registries name the digest of another document
        (distribution#2395).
        """
        self._manifests += 1
        if self._manifests > MOST_MANIFESTS:
            raise ManifestInvalid(
                f"The image's indexes lead to more than {MOST_MANIFESTS} manifests."
            )

        recent = await self._recent(reference)
        if recent is not None:
            return recent.content, recent.media_type

        async def attempt() -> tuple[bytes, str]:
            response = await self.repository.ask("GET", f"manifests/{reference}", _HEADERS)
            header = _digest(field(response, "Docker-Content-Digest"))
            content = await self._read(
                response,
                MAX_MANIFEST,
                "manifest",
                lambda body: _matches(payload_of(body), digest or header),
            )
            if len(content) > MAX_MANIFEST:
                raise ManifestInvalid("The image's manifest is larger than 4 MiB.")
            content = payload_of(content)
            if not _matches(content, digest):
                raise _WrongBytesError(self._transport.subject, "manifest", str(digest))
            return content, field(response, "Content-Type") or ""

        content, media_type = await self._try_for_bytes(attempt)
        manifest = RecentManifest(digest or Digest.of(content), content, media_type)
        self.repository.quotas.remember(self.repository.name, reference, manifest)
        if not self.repository.private:
            await self.repository.quotas.share(manifest)
        return content, media_type

    async def _recent(self, reference: str) -> RecentManifest | None:
        """Return what a reference means if it was read lately, as HEAD proves for this user."""
        quotas, name = self.repository.quotas, self.repository.name
        recent = quotas.recent(name, reference)
        has_shared = await quotas.has_shared()
        if recent is None and not has_shared:
            return None
        digest = await self.head(reference)
        if digest is None:
            return None
        if recent is None or recent.digest != digest:
            recent = await quotas.read_file(digest)
            if recent is not None:
                quotas.remember(name, reference, recent)
        return recent

    async def prove(self, blob: Descriptor) -> None:
        """Return if the blob may be read here, without reading it; raise the refusal."""

        async def attempt() -> None:
            await self._blob_head(blob.digest)

        await self._retries.run(attempt)

    async def blob_size(self, digest: Digest) -> int:
        """Return the size of a blob, which Docker schema 1 does not tell."""

        async def attempt() -> int | None:
            return _size_of_blob(await self._blob_head(digest))

        size = await self._try(attempt)
        if size is None:
            raise RegistryUnavailable(
                f"{self._transport.subject} does not tell the size of a layer, which the old format"
                " of this image requires.",
                remedy="Pull the image with a current tool and push it again.",
            )
        return size

    async def _blob_head(self, digest: Digest) -> IResponse:
        """Return the response to a request for a blob, without its body.

        If the registry does not answer HEAD, GET decides: a store behind it may accept only the
        method for which the registry has signed a URL.
        """
        path = f"blobs/{digest}"
        try:
            response = await self.repository.ask("HEAD", path, {"Accept": "*/*"})
        except _HEAD_REFUSALS:
            fields = {"Accept": "*/*", "Range": "bytes=0-0"}
            response = await self.repository.ask("GET", path, fields, _RANGES)
        self._transport.discard(response)
        return response

    async def config(self, blob: Descriptor) -> bytes:
        """Return the configuration that a manifest names."""
        if blob.size > MAX_CONFIG:
            raise ManifestInvalid("The image's configuration is larger than 8 MiB.")

        def is_right(content: bytes) -> bool:
            return len(content) == blob.size and _matches(content, blob.digest)

        async def attempt() -> bytes:
            response = await self.repository.ask("GET", f"blobs/{blob.digest}", {"Accept": "*/*"})
            content = await self._read(response, blob.size, "configuration", is_right)
            if not is_right(content):
                raise _WrongBytesError(self._transport.subject, "configuration", str(blob.digest))
            return content

        return await self._try_for_bytes(attempt)

    async def _read(
        self, response: IResponse, limit: int, name: str, is_right: Callable[[bytes], bool]
    ) -> bytes:
        return await read_document(
            self._transport, response, limit, self._transport.subject, name, is_right
        )

    async def _try_for_bytes(self, attempt: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
        """Run an attempt as `_try`; raise `BlobCorrupt` if all tries get the wrong bytes."""
        try:
            return await self._try(attempt)
        except _WrongBytesError as error:
            raise BlobCorrupt(error.what) from error


class _WrongBytesError(Interruption):
    """A document does not have the digest or size under which it was requested."""

    def __init__(self, source: str, name: str, digest: str) -> None:
        what = f"{source} sent a {name} that is not {digest}."
        super().__init__(what, kind=InterruptionKind.LASTING)


def _size_of_blob(response: IResponse) -> int | None:
    """Return the size of a blob by the response to HEAD, or to GET for all of it or a part.

    Twisted has `Content-Length` in the header of a response to HEAD alone.
    """
    if response.code == HTTPStatus.PARTIAL_CONTENT:
        content_range = parse_content_range(field(response, "Content-Range") or "")
        return None if content_range is None else content_range[2]
    is_get = response.request.method == b"GET"
    length = str(response.length) if is_get else field(response, "Content-Length") or ""
    is_size = length.isascii() and length.isdigit() and len(length) <= _SIZE_DIGITS
    return int(length) if is_size else None


def _digest(text: str | None) -> Digest | None:
    try:
        return None if text is None else Digest.parse(text)
    except BadRequest:
        return None


def _matches(content: bytes, digest: Digest | None) -> bool:
    """Return whether bytes have a digest; without one they do."""
    return digest is None or hashlib.new(digest.algorithm, content).hexdigest() == digest.hex
