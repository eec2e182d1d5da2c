"""Only documents of verdicts are read as verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.model.signatures import PolicyVerdict

VERDICT = PolicyVerdict(True, "signedBy (default)", "key", "It is signed.", "sha256:0", "a.b/c:1")


def test_round_trip() -> None:
    """The document of a verdict is read as the same verdict, whatever else it has."""
    assert PolicyVerdict.from_document(VERDICT.to_document()) == VERDICT
    assert PolicyVerdict.from_document({**VERDICT.to_document(), "more": 1}) == VERDICT


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {**VERDICT.to_document(), "is_accepted": None},
        {**VERDICT.to_document(), "is_accepted": 2},
        {**VERDICT.to_document(), "policy": None},
        {k: v for k, v in VERDICT.to_document().items() if k != "image"},
    ],
)
def test_anything_else(document: dict[str, Any] | None) -> None:
    """A document that is incomplete counts as no verdict, so the image is judged anew."""
    assert PolicyVerdict.from_document(document) is None
