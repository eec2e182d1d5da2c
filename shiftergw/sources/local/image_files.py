"""The documents and blobs of images on a disk, and how they are read: what each form implements."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from shiftergw.errors import BlobCorrupt, ImageNotFound
from shiftergw.model.images import Descriptor, Digest
from shiftergw.sources.local.extents import Extent

P = ParamSpec("P")
T = TypeVar("T")


class FileCalls(Protocol):
    """Runs blocking calls in threads, as `plumbing.threads.Threads` does."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of `function`, which takes a short time."""
        ...

    async def run_until(
        self,
        on_cancel: Callable[[], object],
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do the same; on cancellation call `on_cancel`, which makes `function` end soon."""
        ...


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


def verify_document(content: bytes, expected: Digest | Descriptor, kind: str) -> None:
    """Raise `BlobCorrupt` unless a document has the expected digest, and size."""
    digest = expected.digest if isinstance(expected, Descriptor) else expected
    has_size = not isinstance(expected, Descriptor) or len(content) == expected.size
    if not has_size or hashlib.new(digest.algorithm, content).hexdigest() != digest.hex:
        raise BlobCorrupt(
            f"The {kind} of the image is not {digest}.",
            remedy="Copy or save the image once more: the file is damaged or incomplete.",
        )
