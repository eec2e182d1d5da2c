"""Docker schema 1 manifests, signed or not, which old registries and tools have written.

Docker Registry HTTP API V2, "Image Manifest Version 2, Schema 1". Such a manifest lists layers and
their v1 documents, the newest first. It has neither the sizes of the layers nor their `diff_ids`,
and no configuration of its own.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from shiftergw.errors import BadRequest, ManifestInvalid
from shiftergw.model.images import Digest
from shiftergw.oci.members import invalid, member, members, read_object
from shiftergw.oci.v1_images import image_config, is_empty_layer

MOST_LAYERS = 500
"""Layers of one manifest; Docker itself wrote at most 127."""

LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"

_HISTORY_LIMIT = 8 << 20


@dataclass(frozen=True, slots=True)
class Schema1Manifest:
    """The layers of an image, the lowest first, and the configuration that its history makes."""

    layers: tuple[Digest, ...]
    config: bytes


def payload_of(content: bytes) -> bytes:
    """Return the part of a signed manifest that its digest covers; other documents unchanged.

    A signed manifest is a JSON web signature in libtrust's form: the signatures are the last member
    of the document itself, and each of them says which bytes were signed. The signatures are made
    by keys that nobody knows, so they are not verified. Raises `ManifestInvalid`.
    """
    if b'"signatures"' not in content or b'"fsLayers"' not in content:
        return content
    try:
        document = json.loads(content.decode("utf-8"))
        signatures = document["signatures"]
        if not isinstance(signatures, list) or not signatures:
            return content
        # Length and end of each, since a payload of each of very many would fill the memory.
        parts = {_signed_part(signature["protected"], len(content)) for signature in signatures}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ManifestInvalid("The signatures of the image's manifest are damaged.") from error
    if len(parts) != 1:
        raise ManifestInvalid("The signatures of the image's manifest contradict each other.")
    length, tail = parts.pop()
    return content[:length] + tail


def _signed_part(header: str, size: int) -> tuple[int, bytes]:
    """Return how many bytes of a document of `size` bytes were signed, and the end behind them."""
    fields = json.loads(_decode(header))
    length, tail = fields["formatLength"], _decode(fields["formatTail"])
    if type(length) is not int or not 0 < length <= size:
        raise ValueError("the length is outside the document")
    return length, tail


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def parse_schema_1(document: dict[str, Any]) -> Schema1Manifest:
    """Parse the payload of a manifest; raise `ManifestInvalid`.

    Layers without files (`throwaway`) are left out, and so is a layer that an old version of Docker
    has repeated by mistake: it has the id of the layer before it.
    """
    blobs = [_digest(layer) for layer in members(document, "fsLayers", dict)]
    history = [_history(entry) for entry in members(document, "history", dict)]
    if len(blobs) != len(history):
        invalid(f"it has {len(blobs)} layers and the history of {len(history)}")
    if len(blobs) > MOST_LAYERS:
        invalid(f"it has more than {MOST_LAYERS} layers")
    if not blobs:
        raise ManifestInvalid("The image has no layers: there is no file system in it.")
    layers: list[tuple[Digest, dict[str, Any]]] = []
    for blob, v1_document in zip(reversed(blobs), reversed(history), strict=True):
        if layers and _is_repeated(layers[-1], (blob, v1_document)):
            continue
        layers.append((blob, v1_document))
    documents = [v1_document for _, v1_document in layers]
    architecture = member(document, "architecture", str)
    if architecture and not documents[-1].get("architecture"):
        documents[-1]["architecture"] = architecture
    return Schema1Manifest(
        tuple(blob for blob, v1_document in layers if not is_empty_layer(v1_document)),
        image_config(documents, None),
    )


def _is_repeated(
    lower: tuple[Digest, dict[str, Any]], upper: tuple[Digest, dict[str, Any]]
) -> bool:
    v1_id = member(upper[1], "id", str)
    return lower[0] == upper[0] and v1_id != "" and member(lower[1], "id", str) == v1_id


def _digest(layer: dict[str, Any]) -> Digest:
    try:
        return Digest.parse(member(layer, "blobSum", str))
    except BadRequest as error:
        raise ManifestInvalid(f"The image names a blob wrongly: {error.what}") from error


def _history(entry: dict[str, Any]) -> dict[str, Any]:
    content = member(entry, "v1Compatibility", str).encode()
    return read_object(content, _HISTORY_LIMIT, "history")
