"""Layers that are being downloaded, in documents and in answers."""

from __future__ import annotations

import pytest

from shiftergw.model.layer_progress import MOST_LAYERS, LayerProgress, parse_layers

LAYER = LayerProgress("3f4a9c1b2d5e", 5, 9)


@pytest.mark.parametrize("value", [[[*LAYER]], ([*LAYER],), [LAYER._asdict()]])
def test_layers(value: object) -> None:
    """Documents have arrays, and answers objects."""
    assert parse_layers(value) == [LAYER]


@pytest.mark.parametrize(
    "value",
    [
        *(None, "x", {}, [5], [["a", 1]], [["a", 1, -1]], [[1, 2, 3]]),
        *([{"digest": "a", "done": 1}], [{"digest": "a", "done": 1, "total": "9"}]),
    ],
)
def test_what_is_no_layer_is_left_out(value: object) -> None:
    """Other programs and faulty gateways may write anything."""
    assert parse_layers(value) == []


def test_the_bounds() -> None:
    """There are few layers, each with the start of its digest."""
    layers = parse_layers([["a" * 64, 1, 2]] * (MOST_LAYERS + 5))
    assert layers == [LayerProgress("a" * 12, 1, 2)] * MOST_LAYERS
