"""Decide what a pull needs: another access list, the delivered file, a proof, or a conversion.

The decision takes two steps, so that an up-to-date image costs one request at the registry and a
change of readers none: first from what the tag means (`decide_from_tag`), then from the manifest
(`decide_from_manifest`). Both are pure; the worker carries the decision out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shiftergw.model.images import ResolvedImage
from shiftergw.model.records import ImageRecord
from shiftergw.rules import access


@dataclass(frozen=True, slots=True)
class Readers:
    """Change who may read the image of `ready`, without the registry."""

    ready: ImageRecord


@dataclass(frozen=True, slots=True)
class Reuse:
    """Keep the delivered file of `ready`, and write its metadata only if that changes."""

    ready: ImageRecord


@dataclass(frozen=True, slots=True)
class Prove:
    """Prove that the user may read every blob, then reuse the delivered file of `ready`."""

    ready: ImageRecord


@dataclass(frozen=True, slots=True)
class Build:
    """Download and convert the image."""


def should_ask_digest(
    request: ImageRecord, current: ImageRecord | None, *, stores_labels: bool
) -> bool:
    """Return whether the tag's digest at the registry can show that `current` is up to date.

    `request` is the record of the pull, `current` the READY record of its tag. The digest is not
    enough for

    * a private image and a user who is not among its readers: a manifest that exists proves too
      little,
    * an image that was pulled while the site did not store labels, if it stores them now. Records
      of the original gateway, which have no origin, stay as they are: their ids tell too little of
      the image.
    """
    if current is None or access.changes_only_readers(request, current):
        return False
    if stores_labels and current.origin is not None and current.labels is None:
        return False
    return not current.is_private or access.is_reader(request, current)


def decide_from_tag(
    request: ImageRecord, current: ImageRecord | None, digest: str | None
) -> Readers | Reuse | None:
    """Decide without the manifest, or return None if the manifest must be read.

    `digest` is what the tag means at the registry now; None if that is unknown. The original
    gateway stored the digest of the index as the image id, and no origin.
    """
    if current is None:
        return None
    if access.changes_only_readers(request, current):
        return Readers(current)
    delivered_digest = current.origin.source_digest if current.origin else f"sha256:{current.id}"
    return Reuse(current) if digest == delivered_digest else None


def decide_from_manifest(
    request: ImageRecord,
    image: ResolvedImage,
    ready: Sequence[ImageRecord],
    missing_id: str | None = None,
) -> Reuse | Prove | Build:
    """Decide once the user has read the manifest of `image`.

    `ready` are the READY records of the image's files in the image directory; `missing_id` is the
    id of an image whose file has just turned out not to be there as recorded.
    """
    if image.id == missing_id:
        return Build()
    for record in ready:
        if access.may_skip_download(request, record, image, proven=False):
            return Reuse(record)
    for record in ready:
        if access.may_skip_download(request, record, image, proven=True):
            return Prove(record)
    return Build()
