"""OCI image layouts (image-spec, image-layout.md), in directories and archives."""

from __future__ import annotations

from typing import Any

from shiftergw.errors import BadRequest, ImageNotFound, ManifestInvalid, printable
from shiftergw.model.images import Digest
from shiftergw.oci.canonical import canonical_json
from shiftergw.oci.manifest import INDEX_TYPE, MAX_MANIFEST
from shiftergw.oci.members import member, members, read_object
from shiftergw.sources.local.extents import Extent, read_extent
from shiftergw.sources.local.image_files import NamedDocument, verify_document
from shiftergw.sources.local.selectors import CHOICE, list_images, number_of
from shiftergw.sources.local.trees import FileTree

INDEX = "index.json"
_REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"
"""Where Docker and containerd put the whole name; `_REF_NAME` then has its tag alone."""


class LayoutFiles:
    """The `ImageFiles` of a layout; `selector` is a tag, `@INDEX`, `@DIGEST` or empty."""

    def __init__(self, tree: FileTree, selector: str = "", remedy: str = CHOICE) -> None:
        """Open nothing; `remedy` is that of the error that lists the images."""
        self._tree = tree
        self._remedy = remedy
        self._selector = selector

    def root(self, digest: Digest | None) -> NamedDocument:
        """Return the document of a digest, or that of the selector.

        A tag is the annotation `org.opencontainers.image.ref.name` of an entry of `index.json`.
        Several entries of one name, or all entries if none has a name, are an index of their own,
        from which the platform chooses.
        """
        if digest is None and self._selector.startswith("@sha"):
            try:
                digest = Digest.parse(self._selector[1:])
            except BadRequest as error:
                raise ImageNotFound(error.what, remedy=error.remedy) from error
        if digest is not None:
            content = self.document(digest, MAX_MANIFEST)
            verify_document(content, digest, "manifest")
            return NamedDocument(content)
        entries = self._choose(members(self._index(), "manifests", dict))
        if len(entries) > 1:
            index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
            return NamedDocument(canonical_json(index), INDEX_TYPE)
        entry = entries[0]
        try:
            digest = Digest.parse(member(entry, "digest", str))
        except BadRequest as error:
            raise ManifestInvalid(f"The layout's index names a blob wrongly: {error.what}") from (
                error
            )
        content = self.document(digest, MAX_MANIFEST)
        verify_document(content, digest, "manifest")
        return NamedDocument(content, member(entry, "mediaType", str))

    def extent(self, digest: Digest) -> Extent:
        """Return where a blob is."""
        extent = self._tree.extent(f"blobs/{digest.algorithm}/{digest.hex}")
        if extent is None:
            raise ImageNotFound(
                f"The layout lacks the blob {digest}.",
                remedy="Copy the image once more, all its layers with it.",
            )
        return extent

    def document(self, digest: Digest, limit: int) -> bytes:
        """Return a manifest or configuration."""
        return read_extent(self.extent(digest), limit, "manifest or configuration of the image")

    def _index(self) -> dict[str, Any]:
        extent = self._tree.extent(INDEX)
        if extent is None:
            raise ManifestInvalid(
                f"The {self._tree.description} is not an OCI layout: it has no {INDEX}.",
                remedy="Check the path and its prefix: `oci:` for a directory with an OCI layout,"
                " `dir:` for one of `skopeo copy … dir:`, `docker-archive:` for `docker save`.",
            )
        self._check_version()
        content = read_extent(extent, MAX_MANIFEST, f"{INDEX} of the layout")
        return read_object(content, MAX_MANIFEST, INDEX)

    def _check_version(self) -> None:
        """Raise `ManifestInvalid` for another version; some tools write no `oci-layout`."""
        extent = self._tree.extent("oci-layout")
        if extent is None:
            return
        content = read_extent(extent, MAX_MANIFEST, "file oci-layout")
        version = member(
            read_object(content, MAX_MANIFEST, "file oci-layout"), "imageLayoutVersion", str
        )
        if not version.startswith("1."):
            raise ManifestInvalid(
                f"The OCI layout has the version {printable(version, 40)!r}; 1.x is supported."
            )

    def _choose(self, entries: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
        """Return the entries that the selector means: at least one."""
        annotations = [member(entry, "annotations", dict) for entry in entries]
        names = [member(values, _REF_NAME, str) for values in annotations]
        selector = self._selector
        if selector.startswith("@"):
            number = number_of(selector, len(entries))
            if number is not None:
                return [entries[number]]
        elif selector:
            for key in (_REF_NAME, _CONTAINERD_NAME):
                pairs = zip(entries, annotations, strict=True)
                matches = [entry for entry, values in pairs if values.get(key) == selector]
                if matches:
                    return matches
        elif entries and len(set(names)) == 1:
            return list(entries)
        images = [name or f"@{number}" for number, name in enumerate(names)]
        raise list_images("OCI layout", selector, images, self._remedy)
