"""The rules of attempts, also for documents that an admin has edited."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.store.attempts import UNFINISHED_STEPS, is_attempt_over

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
def test_an_attempt_is_over_only_if_the_record_proves_it(
    document: dict[str, Any] | None, over: bool
) -> None:
    """An `attempt` that is not a number proves nothing: the lease then ends by its time."""
    assert is_attempt_over(document, 1) is over
