"""Tests of the plumbing."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred


def ends_of(operation: Deferred[Any]) -> list[str]:
    """Return a list that gets an item when `operation` has ended, all its waits included.

    (`called` says less: it is true of a coroutine that still waits.)
    """
    ends: list[str] = []

    def note(result: Any) -> Any:
        ends.append("ended")
        return result

    operation.addBoth(note)
    return ends
