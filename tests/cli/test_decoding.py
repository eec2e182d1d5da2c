"""Values from a gateway are built with all types checked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shiftergw.cli.answers import InvalidAnswer
from shiftergw.cli.decoding import LONGEST_TEXT, MOST_ITEMS, decode
from shiftergw.model.explanations import Explanation
from tests.cli.test_explain import EXPLANATION, SMALL

LAYER = {"digest": "d", "size": 1, "cached_size": 1}


def test_an_explanation() -> None:
    """An explanation survives encoding; unknown members are ignored, absent have defaults."""
    document = json.loads(json.dumps(EXPLANATION.to_document()))
    assert decode(Explanation, {**document, "news": [1]}) == EXPLANATION
    assert decode(Explanation, SMALL) == Explanation("a", "s", "x", "d", "build")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {**SMALL, "image": None},
        {**SMALL, "action": "dance"},
        {**SMALL, "size": "1"},
        {**SMALL, "size": True},
        {**SMALL, "size": -1},
        {**SMALL, "image": "a" * (LONGEST_TEXT + 1)},
        {**SMALL, "layers": [LAYER] * (MOST_ITEMS + 1)},
        {**SMALL, "private": 1},
        {**SMALL, "layers": LAYER},
        {**SMALL, "layers": [{**LAYER, "size": 1.5}]},
        {**SMALL, "policy": {"is_accepted": True}},
        {**SMALL, "delivered_image": {"id": "a", "tags": "t", "private": True}},
        {**SMALL, "delivered_image": {"id": "a", "tags": [], "private": True, "seconds": [1]}},
        {
            **SMALL,
            "delivered_image": {"id": "a", "tags": [], "private": True, "seconds": {"a": "b"}},
        },
    ],
)
def test_other_forms(value: Any) -> None:
    """A value of another form is refused as a whole."""
    with pytest.raises(InvalidAnswer):
        decode(Explanation, value)
