"""The layers of a pull that are being downloaded, each with its bytes."""

from __future__ import annotations

from typing import NamedTuple

from shiftergw.model.names import is_count

MOST_LAYERS = 8
"""Layers that a record names: a worker downloads fewer at a time."""

SHORT_DIGEST = 12
"""Hexadecimal digits of a digest, as other tools show them."""


class LayerProgress(NamedTuple):
    """A layer in flight: the start of its digest, and how many of its `total` bytes are there."""

    digest: str
    done: int
    total: int


def parse_layers(value: object) -> list[LayerProgress]:
    """Return the layers in a document or an answer, as arrays or objects of these three members.

    Leaves out what is no such layer, and those beyond `MOST_LAYERS`.
    """
    layers = []
    for item in value[:MOST_LAYERS] if isinstance(value, list | tuple) else ():
        members = [item.get(n) for n in LayerProgress._fields] if isinstance(item, dict) else item
        match members:
            case [str(digest), done, total] if is_count(done) and is_count(total):
                layers.append(LayerProgress(digest[:SHORT_DIGEST], done, total))
    return layers
