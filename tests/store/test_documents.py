"""What is read from documents that an admin's hand may have touched."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.store.documents import UNFINISHED_STEPS, is_over

CLAIM = {"claim": "alpha/docker/x:1"}


@pytest.mark.parametrize(
    ("document", "over"),
    [
        (None, True),
        ({"attempt": 1}, True),
        ({"attempt": 1, "claim": None}, True),
        ({"attempt": 1, UNFINISHED_STEPS: {}}, False),
        ({"attempt": 1, "runner": "node:1", **CLAIM}, False),
        ({"attempt": 1, **CLAIM}, True),  # it was requeued
        ({"attempt": 2, **CLAIM}, True),
        ({"attempt": 2.0, **CLAIM}, True),
        ({"attempt": 0, **CLAIM}, False),
        (CLAIM, False),
        ({"attempt": None, **CLAIM}, False),
        ({"attempt": "2", **CLAIM}, False),
        ({"attempt": [2], **CLAIM}, False),
    ],
)
def test_whether_the_first_attempt_is_over(document: dict[str, Any] | None, over: bool) -> None:
    """A number that is none proves nothing: the lease ends by itself, and nobody's pull by it."""
    assert is_over(document, 1) is over
