"""Fetch the signatures that a registry stores beside an image.

cosign stores them in two ways. An *attachment* is a manifest under the tag `sha256-HEX.sig`, whose
layers are the signed payloads and whose annotations are the signatures. A *bundle* is the layer of
a manifest that refers to the image; the referrers API lists such manifests (distribution-spec 1.1,
"Listing Referrers"), or for registries without it an index under the tag `sha256-HEX`.

Nothing is verified here but digests. Everything that a registry sends has a bound, and all
signatures of an image together may take `Limits.documents` seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import DeferredSemaphore

from shiftergw.errors import (
    ImageNotFound,
    ManifestInvalid,
    RegistryDenied,
    RegistryUnavailable,
    RegistryUntrusted,
)
from shiftergw.model.images import Digest
from shiftergw.model.signatures import (
    SIGNATURE_SIZE_LIMIT,
    SIGNATURES_LIMIT,
    SignatureBlob,
    SignatureKind,
)
from shiftergw.oci.attachments import (
    AttachedLayer,
    next_page_query,
    read_layers,
    read_referrers,
    signing_referrers,
)
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import within
from shiftergw.sources.registry.content import WEB_PAGE, read_document
from shiftergw.sources.registry.reader import is_json
from shiftergw.sources.registry.retry import Interruption, InterruptionKind, RegistryRetries
from shiftergw.sources.registry.transport import field

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

    from shiftergw.sources.registry.repository import Repository
    from shiftergw.sources.registry.transport import Transport

MOST_PAGES = 4
"""Pages of a list of referrers that are read."""

PARALLEL_REQUESTS = 4

_MANIFEST = (
    "application/vnd.oci.image.manifest.v1+json,"
    " application/vnd.docker.distribution.manifest.v2+json"
)
_INDEX = "application/vnd.oci.image.index.v1+json"
_NO_REFERRERS = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.NOT_ACCEPTABLE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)
"""Answers of registries that do not know the referrers API, besides 404."""


class Attachments:
    """The signatures of images in one repository of a registry."""

    def __init__(
        self, transport: Transport, repository: Repository, retries: RegistryRetries
    ) -> None:
        """Keep what the requests need."""
        self._transport = transport
        self._repository = repository
        self._retries = retries
        self._slots = DeferredSemaphore(PARALLEL_REQUESTS)

    async def fetch(
        self, digests: Iterable[Digest], kinds: frozenset[SignatureKind]
    ) -> list[SignatureBlob]:
        """Return the signatures for these manifests, of at most `SIGNATURES_LIMIT` layers.

        Raises the errors of an `ImageSource` if the registry does not tell which there are.
        """
        transport = self._transport
        work = self._fetch(tuple(digests), kinds & {"cosign", "bundle"})
        return await within(transport.limits.documents, transport.clock, work, self._too_long)

    def _too_long(self) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"{self._transport.subject} took more than {self._transport.limits.documents:.0f} s for"
            " the signatures of one image."
        )

    async def _fetch(
        self, digests: tuple[Digest, ...], kinds: frozenset[SignatureKind]
    ) -> list[SignatureBlob]:
        layers: list[AttachedLayer] = []
        for digest in digests if kinds else ():
            if "cosign" in kinds:
                layers += await self._attachment_layers(digest)
            layers += await self._referring_layers(digest)
        layers = [layer for layer in layers if layer.kind in kinds][:SIGNATURES_LIMIT]
        # Several keys often sign one payload.
        distinct = list(dict.fromkeys(layer.digest for layer in layers))
        contents = await gather_or_cancel(self._blob(digest) for digest in distinct)
        payloads = dict(zip(distinct, contents, strict=True))
        return [
            layer.with_payload(payload)
            for layer in layers
            if (payload := payloads[layer.digest]) is not None
        ]

    async def _attachment_layers(self, digest: Digest) -> list[AttachedLayer]:
        """Return the layers under the tag of the image's attachment."""
        tag = f"{digest.algorithm}-{digest.hex}.sig"
        try:
            content = await self._document(f"manifests/{tag}", _MANIFEST)
            return list(read_layers(content, f"the tag {tag}"))
        except ImageNotFound:
            return []
        except ManifestInvalid as error:
            raise self._unreadable(tag, error) from error

    def _unreadable(self, tag: str, error: ManifestInvalid) -> ManifestInvalid:
        return ManifestInvalid(
            f"{self._transport.subject} has unreadable signatures for the image, under the tag"
            f" {tag}.",
            remedy="Sign the image once more, or ask its owner to do so.",
            detail=error.what,
        )

    async def _referring_layers(self, digest: Digest) -> list[AttachedLayer]:
        """Return the layers of the manifests that refer to the image and hold signatures."""
        referrers = signing_referrers(await self._referrers(digest))[:SIGNATURES_LIMIT]
        manifests = await gather_or_cancel(map(self._referrer_layers, referrers))
        return [layer for layers in manifests for layer in layers]

    async def _referrer_layers(self, digest: Digest) -> list[AttachedLayer]:
        """Return the layers of one manifest; none if it is missing or no manifest of signatures."""
        try:
            content = await self._document(f"manifests/{digest}", _MANIFEST, digest)
            return list(read_layers(content, f"the referrer {digest}"))
        except (ImageNotFound, ManifestInvalid):
            return []

    async def _referrers(self, digest: Digest) -> list[dict[str, Any]]:
        """Return the descriptors of the manifests that refer to an image.

        Registries without the API may send anything, even pages for people and refusals. Then the
        index under the fallback tag counts; a refusal is raised only if that is missing, too.
        """
        refusal: RegistryDenied | None = None
        try:
            return await self._listed_referrers(digest)
        except RegistryDenied as error:
            refusal = error
        except (ImageNotFound, ManifestInvalid, RegistryUntrusted):
            pass
        tag = f"{digest.algorithm}-{digest.hex}"
        try:
            return read_referrers(await self._document(f"manifests/{tag}", _INDEX))
        except ImageNotFound:
            if refusal is not None:
                raise refusal from None
            return []
        except ManifestInvalid as error:
            raise self._unreadable(tag, error) from error

    async def _listed_referrers(self, digest: Digest) -> list[dict[str, Any]]:
        """Return what the referrers API lists; raise `ImageNotFound` if there is no such API."""
        path = f"referrers/{digest}"
        query = ""
        descriptors: list[dict[str, Any]] = []
        for _ in range(MOST_PAGES):
            content, link = await self._retries.run(partial(self._page, path + query))
            descriptors += read_referrers(content)
            query = next_page_query(link)
            if not query:
                break
        return descriptors

    async def _page(self, path: str) -> tuple[bytes, str]:
        response = await self._repository.ask("GET", path, {"Accept": _INDEX}, _NO_REFERRERS)
        if response.code != HTTPStatus.OK:
            self._transport.discard(response)
            raise ImageNotFound(f"{self._transport.subject} does not list referrers.")
        link = field(response, "Link") or ""
        try:
            content = await self._read(response, is_json)
        except Interruption as error:
            if error.why == WEB_PAGE:
                raise ImageNotFound(error.what) from error
            raise
        except ManifestInvalid as error:
            # The list is incomplete: an absent signature might be in the rest of it.
            raise RegistryUnavailable(error.what, remedy=error.remedy) from error
        return content, link

    async def _document(self, path: str, media_type: str, expected: Digest | None = None) -> bytes:
        """Return a document of at most `SIGNATURE_SIZE_LIMIT` bytes, with its expected digest."""

        def is_right(content: bytes) -> bool:
            return is_json(content) if expected is None else _has_digest(content, expected)

        async def attempt() -> bytes:
            response = await self._repository.ask("GET", path, {"Accept": media_type})
            content = await self._read(response, is_right)
            if expected is not None and not _has_digest(content, expected):
                raise Interruption(
                    f"{self._transport.subject} sent something that is not {expected}.",
                    kind=InterruptionKind.LASTING,
                )
            return content

        async with self._slots:
            return await self._retries.run(attempt)

    async def _read(self, response: IResponse, is_right: Callable[[bytes], bool]) -> bytes:
        """Return a body; if it may be incomplete, `is_right` decides by the bytes."""
        source = self._transport.subject
        content = await read_document(
            self._transport, response, SIGNATURE_SIZE_LIMIT, source, "signature", is_right
        )
        if len(content) > SIGNATURE_SIZE_LIMIT:
            raise ManifestInvalid(
                f"{source} has a document of signatures of more than"
                f" {SIGNATURE_SIZE_LIMIT >> 20} MiB."
            )
        return content

    async def _blob(self, digest: Digest) -> bytes | None:
        """Return a blob; None if it is missing or larger than the limit."""
        try:
            return await self._document(f"blobs/{digest}", "*/*", digest)
        except (ImageNotFound, ManifestInvalid):
            return None


def _has_digest(content: bytes, digest: Digest) -> bool:
    return hashlib.new(digest.algorithm, content).hexdigest() == digest.hex
