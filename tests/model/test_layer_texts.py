"""The layers of an image as one text."""

from __future__ import annotations

import pytest

from shiftergw.model.images import Descriptor, Digest
from shiftergw.model.layer_texts import MOST_LAYERS, layers_text, parse_layers_text

LAYERS = [(Digest.of(b"a"), 5), (Digest("sha512", "1" * 128), 0)]


def test_layers_come_back() -> None:
    """A text has the layers in their order, and not more than a record may name."""
    text = layers_text(Descriptor(digest, size) for digest, size in LAYERS)
    assert parse_layers_text(text) == LAYERS
    many_layers = [Descriptor(*LAYERS[0])] * (MOST_LAYERS + 1)
    assert len(parse_layers_text(layers_text(many_layers))) == MOST_LAYERS
    assert len(parse_layers_text(f"{layers_text(many_layers)} {text}")) == MOST_LAYERS


@pytest.mark.parametrize("text", [None, 5, "", "x=5", str(LAYERS[0][0]), f"{LAYERS[0][0]}=-1"])
def test_anything_else_has_no_layers(text: object) -> None:
    """Other programs write into databases: what is no such text is ignored as a whole."""
    assert parse_layers_text(text) == []
