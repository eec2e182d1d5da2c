"""Values from a gateway are built with all types checked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from shiftergw.cli.answers import InvalidAnswer
from shiftergw.cli.decoding import LONGEST_TEXT, MOST_ITEMS, decode
from shiftergw.errors import RegistryUnavailable, RetryLater
from shiftergw.job.explain import ImageFacts, explain
from shiftergw.model.explanations import Explanation
from shiftergw.model.images import Descriptor, Digest, Platform, ResolvedImage
from shiftergw.model.names import LARGEST_COUNT
from shiftergw.model.records import ImageRecord
from shiftergw.model.references import ImageReference
from shiftergw.states import State
from tests.cli.test_explain import EXPLANATION, SMALL

LAYER_2 = Descriptor(Digest.of(b"layer"), LARGEST_COUNT)
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


def test_any_explanation_of_a_gateway() -> None:
    """What a gateway explains is understood, whatever a registry or a database claims."""
    huge = Descriptor(Digest.of(b"huge"), LARGEST_COUNT)
    image = ResolvedImage(Digest.of(b"m"), Digest.of(b"m"), huge, (huge, LAYER_2), "reg", "app")
    record = ImageRecord(
        id=image.id, status=State.READY, size=-1, last_pull=1e300, report={"seconds": {"A": 1e300}}
    )
    wait = RetryLater(float("nan"), "reg", RegistryUnavailable("It is down."))
    facts = ImageFacts("s", ImageReference.parse("app:1"), Platform(), "/d", image=image)
    facts = replace(
        facts, layer_sizes=(0, 0), records=(record,), tag_record=record, failures=(wait,)
    )
    explanation = explain(facts)
    document = json.loads(json.dumps(explanation.to_document(), allow_nan=False))
    assert decode(Explanation, document) == explanation
    assert (explanation.size, explanation.missing_size) == (LARGEST_COUNT, LARGEST_COUNT)
