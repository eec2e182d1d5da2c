"""Parse manifests, indexes and image configurations: OCI image-spec v1.1, Docker schema 2 and 1.

A reference names a *manifest* (one image: a configuration and layers) or an *index* (several
manifests, each for a platform, and perhaps further indexes). Malformed documents raise
`ManifestInvalid`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from operator import itemgetter
from typing import Any, NoReturn

from shiftergw.errors import BadRequest, ManifestInvalid, printable
from shiftergw.model.images import Descriptor, Digest, ImageConfig, Platform
from shiftergw.oci.members import clean, invalid, member, members, read_object, texts, words
from shiftergw.oci.platforms import go_architecture, implied_variant, no_match, rank
from shiftergw.oci.schema1 import Schema1Manifest, parse_schema_1

MAX_MANIFEST = 4 << 20
"""Most bytes of a manifest or index: the size that registries accept (distribution-spec)."""

MAX_CONFIG = 8 << 20
"""Most bytes of an image configuration."""

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"

_INDEX_TYPES = (
    INDEX_TYPE,
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_SCHEMA_1_TYPES = (
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
)

ACCEPT: tuple[str, ...] = (*_INDEX_TYPES, *_MANIFEST_TYPES, *_SCHEMA_1_TYPES)
"""The media types of a request for a manifest, the preferred ones first."""

_CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        # Old Docker clients and registries wrote these by mistake (distribution#1621).
        "application/octet-stream",
        "application/json",
        "text/html",
        "",
    }
)

_LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar)(?:[.+](?:gzip|zstd))?"
)
_LARGEST_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of one image: its configuration blob and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """An entry of an index.

    `is_image` is False for attestations, signatures and other artifacts.
    """

    descriptor: Descriptor
    platform: Platform | None = None
    is_image: bool = True


@dataclass(frozen=True, slots=True)
class Index:
    """An index: manifests, or further indexes, in the order of the document."""

    manifests: tuple[IndexEntry, ...]


def parse_manifest(content: bytes, media_type: str) -> Index | Manifest | Schema1Manifest:
    """Parse a document of a registry that has this `Content-Type`.

    A document whose `mediaType` and members agree on its kind is of that kind, even if the header
    names another one, as some proxies and static servers do. Otherwise the header, `mediaType` and
    members must agree as far as they are there. Raises `ManifestInvalid` for a document that can be
    read as an index and as a manifest (CVE-2021-41190), for layers that are not file systems, and
    for any other violation of the specification. Of a signed manifest, `content` is the payload
    (`schema1.payload_of`).
    """
    document = read_object(content, MAX_MANIFEST, "manifest")
    kinds = {"index": document.get("manifests"), "manifest": document.get("layers")}
    present = {kind for kind, value in kinds.items() if value is not None}
    header_kind = _kind(media_type.partition(";")[0].strip())
    document_kind = _kind(member(document, "mediaType", str))
    declared_kinds = {document_kind, None if {document_kind} == present else header_kind}
    if document.get("fsLayers") is not None or document.get("schemaVersion") == 1:
        declared_kinds.add("schema 1")
    declared_kinds.discard(None)
    if "schema 1" in declared_kinds and not present:
        return parse_schema_1(document)
    if "artifact" in declared_kinds:
        _not_an_image(member(document, "mediaType", str) or media_type)
    if member(document, "schemaVersion", int, 2) != 2:  # noqa: PLR2004
        invalid("its `schemaVersion` is not 2")
    if len(present | declared_kinds) != 1:
        if len(present) == 1 and document_kind is None and header_kind is not None:
            raise ManifestInvalid(
                f"The registry sends the image's {present.pop()} under the media type of another"
                f" kind of document, {printable(media_type, 100)!r}.",
                remedy="Tell the operators of the registry, or of the proxy in front of it.",
            )
        invalid("it is not clearly either an index or a manifest")
    if "index" in present | declared_kinds:
        return Index(tuple(_entry(entry) for entry in members(document, "manifests", dict)))
    return _manifest(document)


def choose(index: Index, platform: Platform) -> tuple[Descriptor, ...]:
    """Return the entries of an index that a system of this platform can run, best first.

    Candidates without a platform come last. If a candidate is an index itself, the caller reads it
    and chooses from it. Raises `NoMatchingPlatform`, or `ManifestInvalid` if the index has no
    images.
    """
    images = [entry for entry in index.manifests if entry.is_image]
    if not images:
        raise ManifestInvalid(
            "The reference is not a container image: its index holds only attestations or"
            " artifacts, or nothing.",
            remedy="Check the name and the tag of the image.",
        )
    candidates = []
    for entry in images:
        order = (1,) if entry.platform is None else rank(entry.platform, platform)
        if order is not None:
            candidates.append((order, entry.descriptor))
    if not candidates:
        no_match(platform, (entry.platform for entry in images if entry.platform))
    candidates.sort(key=itemgetter(0))
    return tuple(dict.fromkeys(descriptor for _, descriptor in candidates))


def parse_config(content: bytes) -> ImageConfig:
    """Parse an image configuration (image-spec, config.md).

    `Entrypoint` and `Cmd` may be a list, a string or null. An invalid date counts as 0. Raises
    `ManifestInvalid`.
    """
    document = read_object(content, MAX_CONFIG, "configuration")
    runtime = member(document, "config", dict)
    rootfs = member(document, "rootfs", dict)
    if member(rootfs, "type", str, "layers") != "layers":
        invalid("the `type` of its `rootfs` is not `layers`")
    return ImageConfig(
        architecture=go_architecture(member(document, "architecture", str)),
        os=member(document, "os", str).lower(),
        created=_epoch(document.get("created")),
        env=tuple(filter(None, words(runtime, "Env"))),
        entrypoint=words(runtime, "Entrypoint"),
        cmd=words(runtime, "Cmd"),
        workdir=member(runtime, "WorkingDir", str),
        volumes=_volumes(runtime.get("Volumes")),
        labels=texts(runtime, "Labels"),
        diff_ids=tuple(_digest(text) for text in members(rootfs, "diff_ids", str)),
    )


def _volumes(value: object) -> tuple[str, ...]:
    """Return the paths of the volumes; a value of another type, as some images have, has none."""
    return tuple(sorted(map(clean, value))) if isinstance(value, dict) else ()


def check_layers(manifest: Manifest, config: ImageConfig) -> None:
    """Raise `ManifestInvalid` unless the configuration has a `diff_id` for each layer."""
    if len(config.diff_ids) != len(manifest.layers):
        invalid(
            f"it has {len(manifest.layers)} layers and its configuration"
            f" {len(config.diff_ids)} `diff_ids`"
        )


def check_platform(config: ImageConfig, platform: Platform) -> None:
    """Raise `NoMatchingPlatform` if the configuration is for another platform.

    This is for images without an index. Members that the configuration lacks are not checked.
    """
    declared_platform = Platform(
        config.architecture or platform.architecture, "", config.os or "linux"
    )
    if (declared_platform.architecture, declared_platform.os) != (platform.architecture, "linux"):
        no_match(platform, [declared_platform])


# Manifests and indexes.


def _manifest(document: dict[str, Any]) -> Manifest:
    config = _descriptor(member(document, "config", dict))
    if config.media_type not in _CONFIG_TYPES:
        _not_an_image(config.media_type)
    return Manifest(config, tuple(_layer(layer) for layer in members(document, "layers", dict)))


def _layer(holder: dict[str, Any]) -> Descriptor:
    layer = replace(_descriptor(holder), has_urls=bool(holder.get("urls")))
    if layer.media_type.endswith("+encrypted"):
        raise ManifestInvalid(
            "A layer of the image is encrypted; the gateway has no key for it.",
            remedy="Push the image without encryption.",
        )
    if _LAYER_TYPE.fullmatch(layer.media_type) is None:
        _not_an_image(layer.media_type)
    return layer


def _entry(holder: dict[str, Any]) -> IndexEntry:
    descriptor = _descriptor(holder)
    declaration = member(holder, "platform", dict)
    architecture = member(declaration, "architecture", str)
    platform = Platform(
        go_architecture(architecture),
        member(declaration, "variant", str).lower() or implied_variant(architecture),
        member(declaration, "os", str).lower() or "linux",
    )
    is_image = (
        descriptor.media_type in _INDEX_TYPES + _MANIFEST_TYPES
        and member(holder, "artifactType", str) in _CONFIG_TYPES
        and "vnd.docker.reference.type" not in member(holder, "annotations", dict)
        and "unknown" not in {platform.os, platform.architecture}
    )
    return IndexEntry(descriptor, platform if architecture else None, is_image)


def _descriptor(holder: dict[str, Any]) -> Descriptor:
    size = member(holder, "size", int, -1)
    if not 0 <= size <= _LARGEST_SIZE:
        invalid("a `size` is absent, negative or too large")
    return Descriptor(
        _digest(member(holder, "digest", str)), size, member(holder, "mediaType", str).lower()
    )


def _kind(media_type: str) -> str | None:
    """Return the kind of document that a media type declares; None for a general type."""
    media_type = media_type.lower()
    if media_type in _INDEX_TYPES:
        return "index"
    if media_type in _MANIFEST_TYPES:
        return "manifest"
    if media_type in _SCHEMA_1_TYPES:
        return "schema 1"
    # Static file servers and proxies send general types.
    return "artifact" if media_type.startswith("application/vnd.") else None


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except BadRequest as error:
        raise ManifestInvalid(f"The image names a blob wrongly: {error.what}") from error


def _epoch(created: object) -> int:
    """Return an RFC 3339 date in seconds since 1970; 0 for an invalid date."""
    if not isinstance(created, str) or re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:", created) is None:
        return 0
    try:
        moment = datetime.fromisoformat(created.upper())
        return max(0, int(moment.timestamp())) if moment.tzinfo else 0
    except (ValueError, OverflowError):
        return 0


def _not_an_image(media_type: str) -> NoReturn:
    raise ManifestInvalid(
        f"The reference is not a container image: it holds {printable(media_type, 100)!r}.",
        remedy="Check the name and the tag of the image.",
    )
