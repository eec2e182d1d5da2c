"""Which blobs of an OCI layout a tag needs, so that no other image of the layout is uploaded.

This is no check: the gateway reads and verifies the manifests itself. Everything here blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

DOCUMENT_LIMIT = 4 << 20
"""Bytes of the longest index or manifest; a longer blob is a layer."""

_TAG_ANNOTATIONS = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
_DIGEST = re.compile("([a-z0-9+._-]+):([0-9a-f]+)")
_LIMIT = 10_000
"""Blobs of the largest image, with all of its platforms."""


def blobs_of_tag(layout: Path, tag: str) -> set[str] | None:
    """Return the names below `layout` of the blobs that a tag needs, for every platform.

    Returns None if they cannot be determined: for a tag that is not in the index, for instance.
    """
    index = _read(layout / "index.json")
    entries = [entry for entry in _objects(index, "manifests") if _has_tag(entry, tag)]
    names: set[str] = set()
    pending = [name for entry in entries for name in _names(entry)]
    while pending:
        name = pending.pop()
        if name in names:
            continue
        names.add(name)
        if len(names) > _LIMIT:
            return None
        document = _read(layout / name)
        for member in ("manifests", "layers", "config"):
            pending += [blob for entry in _objects(document, member) for blob in _names(entry)]
    return names or None


def _has_tag(entry: Mapping[str, Any], tag: str) -> bool:
    annotations = entry.get("annotations")
    return isinstance(annotations, dict) and any(
        annotations.get(key) == tag for key in _TAG_ANNOTATIONS
    )


def _objects(document: Mapping[str, Any], member: str) -> Iterator[Mapping[str, Any]]:
    """Yield the descriptors in a member of a document, which is a list or a single one."""
    value = document.get(member)
    yield from (
        entry
        for entry in (value if isinstance(value, list) else [value])
        if isinstance(entry, dict)
    )


def _names(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the name of the blob that a descriptor names, if it is one."""
    match = _DIGEST.fullmatch(str(entry.get("digest")))
    if match is not None:
        yield f"blobs/{match[1]}/{match[2]}"


def _read(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; an empty one for any other content, or none."""
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= DOCUMENT_LIMIT and path.is_file():
            document = json.loads(path.read_bytes())
            if isinstance(document, dict):
                return document
    return {}
