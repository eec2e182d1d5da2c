"""Manifests, indexes and configurations as JSON values, for tests."""

from __future__ import annotations

import json
from typing import Any

from shiftergw.model.images import Digest, Platform
from shiftergw.oci.manifest import (
    Index,
    Manifest,
    parse_manifest,
)
from shiftergw.oci.schema1 import Schema1Manifest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
AMD64 = Platform("amd64")


def digest(content: str) -> str:
    """Return a digest that is unique to `content`."""
    return str(Digest.of(content.encode()))


def blob(media_type: str, content: str = "x", **changes: Any) -> dict[str, Any]:
    """Return the descriptor of a blob as JSON values."""
    return {"mediaType": media_type, "digest": digest(content), "size": 7, **changes}


def manifest(**changes: Any) -> dict[str, Any]:
    """Return an OCI manifest of one layer, with changes; a change to None removes a member."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob(OCI_CONFIG, "config"),
        "layers": [blob(f"{OCI_LAYER}+gzip", "layer")],
        **changes,
    }
    return {name: value for name, value in document.items() if value is not None}


def entry(name: str, platform: object = None, **changes: Any) -> dict[str, Any]:
    """Return an entry of an index; `platform` is `os/architecture/variant`."""
    line = {**blob(OCI_MANIFEST, name), **changes}
    if isinstance(platform, str):
        os, architecture, variant = (*platform.split("/"), "")[:3]
        line["platform"] = {"os": os, "architecture": architecture, "variant": variant}
    return line


def index(*lines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return an OCI index."""
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(lines), **changes}


def parse(document: object, media_type: str = "") -> Index | Manifest | Schema1Manifest:
    """Parse a document of JSON values."""
    return parse_manifest(json.dumps(document).encode(), media_type)
