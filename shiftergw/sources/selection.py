"""Choose the image of a platform from the documents that a reference leads to.

The rules are the same for registries, layouts and archives; only the way to read a document
differs (`ImageDocuments`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shiftergw.errors import ImageNotFound, ManifestInvalid, NoMatchingPlatform, PullError
from shiftergw.model.images import Descriptor, Digest, ImageConfig, Platform
from shiftergw.oci.manifest import (
    Index,
    Manifest,
    check_layers,
    check_platform,
    choose,
    parse_config,
    parse_manifest,
)
from shiftergw.oci.schema1 import LAYER_TYPE, Schema1Manifest
from shiftergw.plumbing.gather import gather_or_cancel

INDEX_DEPTH = 4
"""Indexes within indexes, the outermost counted."""


class ImageDocuments(Protocol):
    """The manifests and configurations of one repository, layout or archive."""

    async def manifest(self, reference: str, digest: Digest | None) -> tuple[bytes, str]:
        """Return a manifest or index by tag or digest, and its media type; verify `digest`."""
        ...

    async def config(self, blob: Descriptor) -> bytes:
        """Return the configuration of this digest and size, verified."""
        ...

    async def blob_size(self, digest: Digest) -> int:
        """Return the size of a blob in bytes; Docker schema 1 does not tell it."""
        ...


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """The image of a platform: digest and content of its manifest, and its configuration."""

    digest: Digest
    manifest: Manifest
    config: ImageConfig


async def choose_image(
    documents: ImageDocuments, content: bytes, media_type: str, platform: Platform
) -> ChosenImage:
    """Return the image that a document means for a platform.

    `content` is a manifest, which must be for the platform, or an index: its candidates are tried,
    best first, until one is an image with layers. Of a signed manifest it is the payload. Raises
    `ManifestInvalid`, `NoMatchingPlatform`, and the errors of `documents`.
    """
    document = parse_manifest(content, media_type)
    if isinstance(document, Index):
        return await _choose(documents, document, platform, 1)
    return await _image(documents, content, document, platform)


async def _choose(
    documents: ImageDocuments, index: Index, platform: Platform, depth: int
) -> ChosenImage:
    """Return the first candidate of an index that is an image; raise the error of the first."""
    if depth > INDEX_DEPTH:
        raise ManifestInvalid(f"The image's indexes are nested more than {INDEX_DEPTH} deep.")
    with_platform = {entry.descriptor for entry in index.manifests if entry.platform is not None}
    failure: PullError | None = None
    for candidate in choose(index, platform):
        try:
            content, media_type = await documents.manifest(str(candidate.digest), candidate.digest)
            document = parse_manifest(content, candidate.media_type or media_type)
            if isinstance(document, Index):
                return await _choose(documents, document, platform, depth + 1)
            platform_to_check = None if candidate in with_platform else platform
            return await _image(documents, content, document, platform_to_check)
        except (ImageNotFound, ManifestInvalid, NoMatchingPlatform) as error:
            failure = failure or error
    assert failure is not None, "`choose` gives candidates or raises"
    raise failure


async def _image(
    documents: ImageDocuments,
    content: bytes,
    document: Manifest | Schema1Manifest,
    platform: Platform | None,
) -> ChosenImage:
    """Return an image with its configuration; `platform` is checked if no index has done so."""
    if isinstance(document, Schema1Manifest):
        manifest, config = await _schema_1(documents, document)
    else:
        manifest = document
        if not manifest.layers:
            raise ManifestInvalid("The image has no layers: there is no file system in it.")
        config = parse_config(await documents.config(manifest.config))
    if config.diff_ids:
        check_layers(manifest, config)
    if platform is not None:
        check_platform(config, platform)
    return ChosenImage(Digest.of(content), manifest, config)


async def _schema_1(
    documents: ImageDocuments, document: Schema1Manifest
) -> tuple[Manifest, ImageConfig]:
    """Return what a schema 1 manifest lacks, so that it reads as a later one."""
    if not document.layers:
        raise ManifestInvalid("The image has no layers: there is no file system in it.")
    digests = list(dict.fromkeys(document.layers))
    sizes = dict(
        zip(digests, await gather_or_cancel(map(documents.blob_size, digests)), strict=True)
    )
    layers = tuple(Descriptor(digest, sizes[digest], LAYER_TYPE) for digest in document.layers)
    config_blob = Descriptor(Digest.of(document.config), len(document.config))
    return Manifest(config_blob, layers), parse_config(document.config)
