"""The `ImageSource` over images in files and directories."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from shiftergw.errors import BlobCorrupt, ImageNotFound, ManifestInvalid, NoMatchingPlatform
from shiftergw.image import Descriptor, Digest, ImageConfig, Platform, ResolvedImage
from shiftergw.oci.manifest import MAX_CONFIG, MAX_MANIFEST
from shiftergw.oci.schema1 import payload_of
from shiftergw.sources.local.extents import BlobReader, Extent
from shiftergw.sources.selection import choose_image

if TYPE_CHECKING:
    from shiftergw.model import ImageReference, RegistryLogin
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import BlobSink, Say

MOST_MANIFESTS = 32
"""Manifests that are read for one reference."""


@dataclass(frozen=True, slots=True)
class NamedDocument:
    """The manifest or index that a name means; `media_type` is empty if it is not known."""

    content: bytes
    media_type: str = ""


class ImageFiles(Protocol):
    """The documents and blobs of images on a disk. All methods block.

    They raise `ImageNotFound`, `ManifestInvalid`, `BlobCorrupt` and `SourceUnreadable`.
    """

    def root(self, digest: Digest | None) -> NamedDocument:
        """Return the document of this digest, or else the one that the source's name means."""
        ...

    def extent(self, digest: Digest) -> Extent:
        """Return where the blob of a digest is."""
        ...

    def document(self, digest: Digest, limit: int) -> bytes:
        """Return a manifest or configuration of at most `limit` bytes, not verified."""
        ...


@dataclass(frozen=True, slots=True)
class SingleImage:
    """An image whose manifest the gateway has made; it implements `ImageFiles`."""

    manifest: bytes
    config: bytes
    layers: Mapping[Digest, Extent]

    def root(self, digest: Digest | None) -> NamedDocument:
        """Return the manifest."""
        if digest not in {None, Digest.of(self.manifest)}:
            raise ImageNotFound(
                f"The file has no image {digest}.",
                remedy="Leave the digest out to take the image that is there.",
            )
        return NamedDocument(self.manifest)

    def extent(self, digest: Digest) -> Extent:
        """Return where a layer is."""
        try:
            return self.layers[digest]
        except KeyError:
            raise ImageNotFound(f"The file has no layer {digest}.") from None

    def document(self, digest: Digest, limit: int) -> bytes:
        """Return the configuration or the manifest."""
        for content in (self.config, self.manifest):
            if Digest.of(content) == digest and len(content) <= limit:
                return content
        raise ImageNotFound(f"The file has no document {digest}.")


class LocalImageSource:
    """One file or directory as a source.

    The name in a reference does not matter, since the source has one name; its digest does.
    """

    def __init__(
        self,
        files: ImageFiles,
        threads: Threads,
        kind: str,
        location: str = "",
        repository: str = "",
        *,
        is_saved_by_user: bool = True,
    ) -> None:
        """Read `files` in `threads`; images are recorded under the other names.

        `is_saved_by_user` is whether a user has saved the image from a machine of their own.
        """
        self._files = files
        self._threads = threads
        self._kind = kind
        self._location = location
        self._repository = repository
        self._is_saved_by_user = is_saved_by_user

    async def head(
        self,
        reference: ImageReference,
        login: RegistryLogin | None,  # noqa: ARG002 - files need none
        say: Say,  # noqa: ARG002 - nothing here waits
    ) -> Digest:
        """Return the digest of the document that the source's name means now."""
        return Digest.of((await self._root(reference)).content)

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,  # noqa: ARG002 - files need none
        say: Say,  # noqa: ARG002 - nothing here waits
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return the image that the source has for this platform, and its configuration."""
        root = await self._root(reference)
        documents = _Documents(self._files, self._threads)
        try:
            image = await choose_image(documents, root.content, root.media_type, platform)
        except NoMatchingPlatform as error:
            if not self._is_saved_by_user:
                raise
            raise NoMatchingPlatform(
                error.what,
                remedy="It was probably saved on a machine with another processor, such as an"
                f" arm64 laptop: build or pull it there with `--platform linux/{platform}`, and"
                " save it again.",
            ) from error
        resolved_image = ResolvedImage(
            digest=image.digest,
            source_digest=Digest.of(root.content),
            config_blob=image.manifest.config,
            layers=image.manifest.layers,
            location=self._location,
            repository=self._repository,
            source_kind=self._kind,
        )
        return resolved_image, image.config

    async def prove(
        self,
        image: ResolvedImage,
        login: RegistryLogin | None,  # noqa: ARG002 - files need none
        say: Say,  # noqa: ARG002 - nothing here waits
    ) -> None:
        """Return if every layer is there, with its size."""
        for layer in dict.fromkeys(image.layers):
            await self._threads.run(self._extent, layer)

    async def blob(
        self,
        image: ResolvedImage,  # noqa: ARG002 - all images of a source share its blobs
        blob: Descriptor,
        login: RegistryLogin | None,  # noqa: ARG002 - files need none
        say: Say,  # noqa: ARG002 - nothing here waits
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Stream a blob into `sink`; its digest is the sink's to check."""
        reader = await self._threads.acquire(partial(self._open, blob, offset), BlobReader.close)
        flow = _Flow()
        position = offset
        try:
            sink.begin(offset)
            sink.registerProducer(flow, True)
            try:
                while data := await self._threads.run_until(reader.stop, reader.read):
                    sink.write(data)
                    position += len(data)
                    await flow.wait()
            finally:
                sink.unregisterProducer()
        finally:
            await self._threads.release(reader.close)
        if position < blob.size:
            raise BlobCorrupt(
                f"A layer of the image has {position} bytes; its manifest says {blob.size}."
            )

    async def _root(self, reference: ImageReference) -> NamedDocument:
        root = await self._threads.run(self._files.root, reference.digest)
        return replace(root, content=payload_of(root.content))

    def _open(self, blob: Descriptor, offset: int) -> BlobReader:
        return BlobReader(self._extent(blob), offset)

    def _extent(self, blob: Descriptor) -> Extent:
        """Return where a blob is; raise `BlobCorrupt` if it has another size."""
        extent = self._files.extent(blob.digest)
        if not extent.is_packed and extent.size != blob.size:
            raise BlobCorrupt(
                f"A layer of the image has {extent.size} bytes; its manifest says {blob.size}.",
                remedy="Copy or save the image once more: the file may be incomplete.",
                detail=str(blob.digest),
            )
        return extent


class _Documents:
    """The `ImageDocuments` of a source, each verified."""

    def __init__(self, files: ImageFiles, threads: Threads) -> None:
        self._files = files
        self._threads = threads
        self._manifests = 0

    async def manifest(self, reference: str, digest: Digest | None) -> tuple[bytes, str]:
        self._manifests += 1
        if self._manifests > MOST_MANIFESTS:
            raise ManifestInvalid(
                f"The image's indexes lead to more than {MOST_MANIFESTS} manifests."
            )
        digest = digest or Digest.parse(reference)
        content = await self._threads.run(self._files.document, digest, MAX_MANIFEST)
        content = payload_of(content)
        verify_document(content, digest, "manifest")
        return content, ""

    async def config(self, blob: Descriptor) -> bytes:
        content = await self._threads.run(self._files.document, blob.digest, MAX_CONFIG)
        verify_document(content, blob, "configuration")
        return content

    async def blob_size(self, digest: Digest) -> int:
        return (await self._threads.run(self._files.extent, digest)).size


def verify_document(content: bytes, expected: Digest | Descriptor, kind: str) -> None:
    """Raise `BlobCorrupt` unless a document has the expected digest, and size."""
    digest = expected.digest if isinstance(expected, Descriptor) else expected
    has_size = not isinstance(expected, Descriptor) or len(content) == expected.size
    if not has_size or hashlib.new(digest.algorithm, content).hexdigest() != digest.hex:
        raise BlobCorrupt(
            f"The {kind} of the image is not {digest}.",
            remedy="Copy or save the image once more: the file is damaged or incomplete.",
        )


@implementer(IPushProducer)
class _Flow:
    """Holds a stream back while its sink is full."""

    def __init__(self) -> None:
        self._resumption: Deferred[None] | None = None

    async def wait(self) -> None:
        """Return once the sink takes more."""
        while self._resumption is not None:
            await self._resumption

    def pauseProducing(self) -> None:
        if self._resumption is None:
            self._resumption = Deferred()

    def resumeProducing(self) -> None:
        resumption, self._resumption = self._resumption, None
        if resumption is not None and not resumption.called:
            resumption.callback(None)

    def stopProducing(self) -> None:
        """Do nothing: a sink that fails raises from `write`, or its cache cancels the stream."""
