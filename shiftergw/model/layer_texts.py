"""The layers of an image as one text, which records keep.

Every list of images reads all records: an array of ten layers takes two microseconds for each, and
the text of all of them less than one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from shiftergw.errors import BadRequest
from shiftergw.model.images import Descriptor, Digest
from shiftergw.model.names import is_count

MOST_LAYERS = 200
"""Layers that a record names."""


def layers_text(layers: Iterable[Descriptor]) -> str:
    """Return `DIGEST=SIZE` for each of the first layers, separated by blanks."""
    return " ".join(f"{layer.digest}={layer.size}" for layer in islice(layers, MOST_LAYERS))


def parse_layers_text(text: object) -> Sequence[tuple[Digest, int]]:
    """Return digest and size of each layer in a text of `layers_text`; none for anything else."""
    if not isinstance(text, str):
        return []
    layers = []
    for word in text.split(" ", MOST_LAYERS)[:MOST_LAYERS]:
        digest, _, size = word.partition("=")
        try:
            layers.append((Digest.parse(digest), int(size)))
        except (BadRequest, ValueError):
            return []
    return layers if all(is_count(size) for _, size in layers) else []
