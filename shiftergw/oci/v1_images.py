"""Images of Docker's first format: each layer has a JSON document with its history.

Docker image specification v1. The documents are in schema 1 manifests (`v1Compatibility`) and in
archives of `docker save` before Docker 1.10. That of the newest layer has the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shiftergw.model.images import Digest
from shiftergw.oci.canonical import canonical_json
from shiftergw.oci.members import member, words

_CONFIG_MEMBERS = (
    "architecture", "author", "config", "container_config", "created", "docker_version", "os",
    "variant",
)  # fmt: skip


def is_empty_layer(document: dict[str, Any]) -> bool:
    """Return whether a document says that its layer has no files (`throwaway`)."""
    return document.get("throwaway") is True


def image_config(documents: Sequence[dict[str, Any]], diff_ids: Sequence[Digest] | None) -> bytes:
    """Return an image configuration (image-spec, config.md) of v1 documents, the oldest first.

    `diff_ids` are those of the layers that are not empty; None leaves `rootfs` out. Raises
    `ManifestInvalid` for a history of the wrong types.
    """
    newest = documents[-1]
    config: dict[str, Any] = {name: newest[name] for name in _CONFIG_MEMBERS if name in newest}
    config["history"] = [_history(document) for document in documents]
    if diff_ids is not None:
        config["rootfs"] = {"type": "layers", "diff_ids": [str(digest) for digest in diff_ids]}
    return canonical_json(config)


def _history(document: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "created": member(document, "created", str),
        "author": member(document, "author", str),
        "comment": member(document, "comment", str),
        "created_by": " ".join(words(member(document, "container_config", dict), "Cmd")),
        "empty_layer": is_empty_layer(document),
    }
    return {name: value for name, value in entry.items() if value}
