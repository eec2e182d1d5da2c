"""Directories of `skopeo copy … dir:`: a manifest, and blobs named by their digests."""

from __future__ import annotations

from shiftergw.errors import ImageNotFound, ManifestInvalid, printable
from shiftergw.model.images import Digest
from shiftergw.oci.manifest import MAX_MANIFEST
from shiftergw.oci.schema1 import payload_of
from shiftergw.sources.local.extents import Extent, read_extent
from shiftergw.sources.local.image_files import NamedDocument, verify_document
from shiftergw.sources.local.trees import FileTree

MANIFEST = "manifest.json"
VERSION = "version"
_VERSION_TEXT = "Directory Transport Version: 1."


class SkopeoDirectory:
    """The `ImageFiles` of a directory that the transport `dir:` has written."""

    def __init__(self, tree: FileTree) -> None:
        """Open nothing."""
        self._tree = tree

    def root(self, digest: Digest | None) -> NamedDocument:
        """Return the manifest or index of the directory."""
        extent = self._tree.extent(MANIFEST)
        if extent is None:
            raise ManifestInvalid(
                f"The directory has no {MANIFEST}: it is not one of `skopeo copy … dir:`.",
                remedy="Check the path and its prefix: `oci:` for an OCI layout.",
            )
        self._check_version()
        root = NamedDocument(read_extent(extent, MAX_MANIFEST, MANIFEST))
        if digest in {None, Digest.of(payload_of(root.content))}:
            return root
        assert digest is not None
        content = self.document(digest, MAX_MANIFEST)
        verify_document(content, digest, "manifest")
        return NamedDocument(content)

    def extent(self, digest: Digest) -> Extent:
        """Return where a blob is."""
        # Version 1.2 of the transport puts other algorithms in front of the hexadecimal digits.
        prefix = "" if digest.algorithm == "sha256" else f"{digest.algorithm}-"
        extent = self._tree.extent(f"{prefix}{digest.hex}")
        if extent is None:
            raise ImageNotFound(
                f"The directory lacks the blob {digest}.",
                remedy="Copy the image once more, all its layers with it.",
            )
        return extent

    def document(self, digest: Digest, limit: int) -> bytes:
        """Return a configuration, or the manifest of one platform of an index."""
        prefix = "" if digest.algorithm == "sha256" else f"{digest.algorithm}-"
        extent = self._tree.extent(f"{prefix}{digest.hex}.{MANIFEST}") or self.extent(digest)
        return read_extent(extent, limit, "manifest or configuration of the image")

    def _check_version(self) -> None:
        extent = self._tree.extent(VERSION)
        if extent is None:
            return
        text = read_extent(extent, 1 << 20, VERSION).decode("utf-8", "replace")
        if not text.startswith(_VERSION_TEXT):
            raise ManifestInvalid(
                "The directory is of a version of skopeo's `dir:` that is not supported:"
                f" {printable(text.strip(), 60)!r}."
            )
