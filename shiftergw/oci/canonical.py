"""Make the manifest of an image that has none, such as one of `docker save`.

The same configuration and the same uncompressed layers always give the same bytes, whatever form
of archive they came in: the digest of this manifest is the image id.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shiftergw.model.images import Descriptor, Digest

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


def canonical_json(document: Any) -> bytes:
    """Return a document as JSON without blanks, its members in the order of their names."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def canonical_manifest(config: bytes, layers: Sequence[tuple[Digest, int]]) -> bytes:
    """Return the manifest of a configuration and of uncompressed layers, the lowest first.

    Each layer is its `diff_id` and its size in bytes.
    """
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _document(Descriptor(Digest.of(config), len(config), _CONFIG_TYPE)),
            "layers": [
                _document(Descriptor(diff_id, size, _LAYER_TYPE)) for diff_id, size in layers
            ],
        }
    )


def _document(blob: Descriptor) -> dict[str, Any]:
    return {"mediaType": blob.media_type, "digest": str(blob.digest), "size": blob.size}
