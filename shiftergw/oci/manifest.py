"""Manifests, indexes and image configurations: OCI image-spec v1.1 and Docker schema 2.

A registry answers a reference with a *manifest* (one image: a configuration and layers) or with an
*index* (several manifests, each for a platform, perhaps further indexes). What a stranger wrote
wrongly ends in `ManifestInvalid`, never in a traceback.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from operator import itemgetter
from typing import Any, NoReturn

from shiftergw.errors import BadRequest, ManifestInvalid, printable
from shiftergw.image import Descriptor, Digest, ImageConfig, Platform
from shiftergw.oci.members import invalid, member, members, read_object, texts, words
from shiftergw.oci.platforms import architecture_named, implied_variant, no_match, rank

MAX_MANIFEST = 4 << 20
"""Bytes of a manifest or index: what registries promise to take (distribution-spec)."""

MAX_CONFIG = 8 << 20
"""Bytes of an image configuration."""

_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
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
"""Every media type that a request for a manifest names; schema 1 for the sake of a clear error."""

_CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        # What old Docker clients and registries wrote by mistake (distribution#1621).
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
    """One image: its configuration blob and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of an index; `image` is False for attestations, signatures and other artifacts."""

    descriptor: Descriptor
    platform: Platform | None = None
    image: bool = True


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests, or further indexes, in the order of the document."""

    manifests: tuple[IndexEntry, ...]


def parse_manifest(content: bytes, media_type: str) -> Index | Manifest:
    """Read what a registry answered, with the `Content-Type` it named.

    The kind is that of the header and of the document's `mediaType`, which must agree on it; where
    neither tells, it is taken from the members. A document that can be read as both an index and a
    manifest is refused (CVE-2021-41190), so is one with layers that are no file system.
    Raises `ManifestInvalid`.
    """
    document = read_object(content, MAX_MANIFEST, "manifest")
    kinds = {"index": document.get("manifests"), "manifest": document.get("layers")}
    present = {kind for kind, value in kinds.items() if value is not None}
    named = {_kind(media_type.partition(";")[0].strip()), _kind(member(document, "mediaType", str))}
    if document.get("fsLayers") is not None or document.get("schemaVersion") == 1:
        named.add("schema 1")
    named.discard(None)
    if "schema 1" in named and not present:
        raise ManifestInvalid(
            "The image has the old Docker schema 1 format.",
            remedy="Pull it with a current tool and push it again.",
        )
    if "artifact" in named:
        _not_an_image(member(document, "mediaType", str) or media_type)
    if member(document, "schemaVersion", int, 2) != 2:  # noqa: PLR2004
        invalid("its `schemaVersion` is not 2")
    if len(present | named) != 1:
        invalid("it is not clearly either an index or a manifest")
    return _index(document) if "index" in present | named else _manifest(document)


def choose(index: Index, platform: Platform) -> tuple[Descriptor, ...]:
    """Return what of an index may run on a system of this platform, best first.

    A further index among the candidates is to be read and chosen from in turn; candidates that name
    no platform come last. Raises `NoMatchingPlatform`, or `ManifestInvalid` if nothing in the index
    is an image.
    """
    images = [entry for entry in index.manifests if entry.image]
    if not images:
        raise ManifestInvalid(
            "The reference is not a container image: its index holds only attestations or"
            " artifacts, or nothing.",
            remedy="Check the name and the tag of the image.",
        )
    ranked = []
    for entry in images:
        place = (1,) if entry.platform is None else rank(entry.platform, platform)
        if place is not None:
            ranked.append((place, entry.descriptor))
    if not ranked:
        no_match(platform, (entry.platform for entry in images if entry.platform))
    ranked.sort(key=itemgetter(0))
    return tuple(dict.fromkeys(descriptor for _, descriptor in ranked))


def parse_config(content: bytes) -> ImageConfig:
    """Read an image configuration (image-spec, config.md); raise `ManifestInvalid`.

    `Entrypoint` and `Cmd` may be a list, a string or null; a date that cannot be read is 0.
    """
    document = read_object(content, MAX_CONFIG, "configuration")
    runtime = member(document, "config", dict)
    rootfs = member(document, "rootfs", dict)
    if member(rootfs, "type", str, "layers") != "layers":
        invalid("the `type` of its `rootfs` is not `layers`")
    return ImageConfig(
        architecture=architecture_named(member(document, "architecture", str)),
        os=member(document, "os", str).lower(),
        created=_epoch(document.get("created")),
        env=words(runtime, "Env"),
        entrypoint=words(runtime, "Entrypoint"),
        cmd=words(runtime, "Cmd"),
        workdir=member(runtime, "WorkingDir", str),
        labels=texts(runtime, "Labels"),
        diff_ids=tuple(_digest(text) for text in members(rootfs, "diff_ids", str)),
    )


def check_layers(manifest: Manifest, config: ImageConfig) -> None:
    """Raise `ManifestInvalid` unless the configuration has one `diff_id` for each layer."""
    if len(config.diff_ids) != len(manifest.layers):
        invalid(
            f"it has {len(manifest.layers)} layers and its configuration"
            f" {len(config.diff_ids)} `diff_ids`"
        )


def check_platform(config: ImageConfig, platform: Platform) -> None:
    """Raise `NoMatchingPlatform` if the configuration says that it is for another platform.

    For images that no index has vouched for; what the configuration does not say is not checked.
    """
    offered = Platform(config.architecture or platform.architecture, "", config.os or "linux")
    if (offered.architecture, offered.os) != (platform.architecture, "linux"):
        no_match(platform, [offered])


# Manifests and indexes.


def _manifest(document: dict[str, Any]) -> Manifest:
    config = _descriptor(member(document, "config", dict))
    if config.media_type not in _CONFIG_TYPES:
        _not_an_image(config.media_type)
    return Manifest(config, tuple(_layer(one) for one in members(document, "layers", dict)))


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


def _index(document: dict[str, Any]) -> Index:
    return Index(tuple(_entry(one) for one in members(document, "manifests", dict)))


def _entry(holder: dict[str, Any]) -> IndexEntry:
    descriptor = _descriptor(holder)
    place = member(holder, "platform", dict)
    architecture = member(place, "architecture", str)
    platform = Platform(
        architecture_named(architecture),
        member(place, "variant", str).lower() or implied_variant(architecture),
        member(place, "os", str).lower() or "linux",
    )
    image = (
        descriptor.media_type in _INDEX_TYPES + _MANIFEST_TYPES
        and member(holder, "artifactType", str) in _CONFIG_TYPES
        and "vnd.docker.reference.type" not in member(holder, "annotations", dict)
        and "unknown" not in {platform.os, platform.architecture}
    )
    return IndexEntry(descriptor, platform if architecture else None, image)


def _descriptor(holder: dict[str, Any]) -> Descriptor:
    size = member(holder, "size", int, -1)
    if not 0 <= size <= _LARGEST_SIZE:
        invalid("a `size` is absent, negative or too large")
    return Descriptor(
        _digest(member(holder, "digest", str)), size, member(holder, "mediaType", str).lower()
    )


def _kind(media_type: str) -> str | None:
    """Return what a media type says of a document, None if it says nothing."""
    media_type = media_type.lower()
    if media_type in _INDEX_TYPES:
        return "index"
    if media_type in _MANIFEST_TYPES:
        return "manifest"
    if media_type in _SCHEMA_1_TYPES:
        return "schema 1"
    # Static file servers and proxies name general types: they say nothing.
    return "artifact" if media_type.startswith("application/vnd.") else None


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except BadRequest as error:
        raise ManifestInvalid(f"The image names a blob wrongly: {error.what}") from error


def _epoch(created: object) -> int:
    """Return an RFC 3339 date in seconds since 1970; 0 for anything odd."""
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
