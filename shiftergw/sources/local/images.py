"""The `ImageSource` over images in files and directories."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from shiftergw.errors import BlobCorrupt, ManifestInvalid, NoMatchingPlatform
from shiftergw.model.images import Descriptor, Digest, ImageConfig, Platform, ResolvedImage
from shiftergw.oci.manifest import MAX_CONFIG, MAX_MANIFEST
from shiftergw.oci.schema1 import payload_of
from shiftergw.sources.local.extents import BlobReader, Extent
from shiftergw.sources.local.image_files import (
    FileCalls,
    ImageFiles,
    NamedDocument,
    verify_document,
)
from shiftergw.sources.selection import choose_image

if TYPE_CHECKING:
    from shiftergw.model.references import ImageReference
    from shiftergw.model.requests import RegistryLogin
    from shiftergw.ports import BlobSink, Notify

PARALLEL_BLOBS = 4
"""Blobs of one source that are read at once."""

MOST_MANIFESTS = 32
"""Manifests that are read for one reference."""


class LocalImageSource:
    """One file or directory as a source.

    The name in a reference does not matter, since the source has one name; its digest does.
    """

    def __init__(
        self,
        files: ImageFiles,
        calls: FileCalls,
        kind: str,
        location: str = "",
        repository: str = "",
        *,
        parallel_blobs: DeferredSemaphore | None = None,
        is_saved_by_user: bool = True,
    ) -> None:
        """Read `files` by `calls`; images are recorded under the other names.

        Sources of one file system may share `parallel_blobs`. `is_saved_by_user` is whether a user
        has saved the image from a machine of their own.
        """
        self._files = files
        self._calls = calls
        self._blobs = parallel_blobs or DeferredSemaphore(PARALLEL_BLOBS)
        self._kind = kind
        self._location = location
        self._repository = repository
        self._is_saved_by_user = is_saved_by_user

    async def head(
        self,
        reference: ImageReference,
        login: RegistryLogin | None,  # noqa: ARG002 - files need none
        notify: Notify,  # noqa: ARG002 - nothing here waits
    ) -> Digest:
        """Return the digest of the document that the source's name means now."""
        return Digest.of((await self._root(reference)).content)

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,  # noqa: ARG002 - files need none
        notify: Notify,  # noqa: ARG002 - nothing here waits
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return the image that the source has for this platform, and its configuration."""
        root = await self._root(reference)
        documents = _Documents(self._files, self._calls)
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
        notify: Notify,  # noqa: ARG002 - nothing here waits
    ) -> None:
        """Return if every layer is there, with its size."""
        for layer in dict.fromkeys(image.layers):
            await self._calls.run(self._extent, layer)

    async def blob(
        self,
        image: ResolvedImage,  # noqa: ARG002 - all images of a source share its blobs
        blob: Descriptor,
        login: RegistryLogin | None,  # noqa: ARG002 - files need none
        notify: Notify,  # noqa: ARG002 - nothing here waits
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Stream a blob into `sink`; its digest is the sink's to check."""
        async with self._blobs:
            reader = await self._calls.run(self._open, blob, offset)
            try:
                position = await self._stream(reader, offset, sink)
            finally:
                await self._calls.run(reader.close)
        if position < blob.size:
            raise BlobCorrupt(
                f"A layer of the image has {position} bytes; its manifest says {blob.size}."
            )

    async def _stream(self, reader: BlobReader, offset: int, sink: BlobSink) -> int:
        """Write the blob from an offset to its end into `sink`; return the position there."""
        flow = _Flow()
        sink.begin(offset)
        sink.registerProducer(flow, True)
        try:
            while data := await self._calls.run_until(reader.stop, reader.read):
                sink.write(data)
                offset += len(data)
                await flow.wait()
        finally:
            sink.unregisterProducer()
        return offset

    async def _root(self, reference: ImageReference) -> NamedDocument:
        root = await self._calls.run(self._files.root, reference.digest)
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

    def __init__(self, files: ImageFiles, calls: FileCalls) -> None:
        self._files = files
        self._calls = calls
        self._manifests = 0

    async def manifest(self, reference: str, digest: Digest | None) -> tuple[bytes, str]:
        self._manifests += 1
        if self._manifests > MOST_MANIFESTS:
            raise ManifestInvalid(
                f"The image's indexes lead to more than {MOST_MANIFESTS} manifests."
            )
        digest = digest or Digest.parse(reference)
        content = await self._calls.run(self._files.document, digest, MAX_MANIFEST)
        content = payload_of(content)
        verify_document(content, digest, "manifest")
        return content, ""

    async def config(self, blob: Descriptor) -> bytes:
        content = await self._calls.run(self._files.document, blob.digest, MAX_CONFIG)
        verify_document(content, blob, "configuration")
        return content

    async def blob_size(self, digest: Digest) -> int:
        return (await self._calls.run(self._files.extent, digest)).size


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
