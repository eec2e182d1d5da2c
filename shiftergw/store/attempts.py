"""Which attempt may change a record, start, or hold a lease.

The rules look at documents only, so they are the same for every kind of store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftergw.errors import Superseded
from shiftergw.store.legacy_documents import read_number, read_time

UNFINISHED_STEPS = "finishing"
"""Member of a record that became READY while some steps of its `finish` are still to be done."""

CLOCK_TOLERANCE = 5.0
"""Seconds by which the clocks of two machines may differ."""


def check_owner(document: Mapping[str, Any] | None, attempt: int) -> dict[str, Any]:
    """Return a copy of the document if this attempt may change it; raise `Superseded` if not."""
    if document is None or document.get("claim") is None:
        raise Superseded("This work has ended.")
    if document.get("attempt") != attempt:
        raise Superseded(f"Attempt {attempt} was superseded by {document.get('attempt')}.")
    if is_requeued(document):
        raise Superseded(f"Attempt {attempt} has ended without a result.")
    return dict(document)


def is_requeued(document: Mapping[str, Any]) -> bool:
    """Return whether the last attempt at work in flight has ended without a result."""
    has_attempts = (read_number(document.get("attempt")) or 0) > 0
    is_in_flight = document.get("claim") is not None
    return has_attempts and is_in_flight and document.get("runner") is None


def may_begin(document: Mapping[str, Any], now: float, limit: float) -> bool:
    """Return whether the next attempt may start at work in flight.

    It may if the work is not postponed beyond `now` and the heartbeat of the attempt before, if
    there is one, is `limit` seconds old or missing.
    """
    if read_time(document, "not_before") > now + CLOCK_TOLERANCE:
        return False
    heartbeat = document.get("last_heartbeat")
    return not document.get("attempt") or heartbeat is None or now - heartbeat >= limit


def is_attempt_over(document: Mapping[str, Any] | None, attempt: int) -> bool:
    """Return whether an attempt at a record has ended, so that its lease is free.

    `document` is the record as it is now, or None if it was removed. An attempt checks its number
    before it begins to write a file, so one that has ended begins no further file. If its process
    was suspended while it wrote a file, it may still install that file, but no metadata after it.
    """
    if document is None or is_requeued(document):
        return True
    is_working = document.get("claim") is not None or UNFINISHED_STEPS in document
    return not is_working or (read_number(document.get("attempt")) or 0) > attempt


def parse_holder(holder: str) -> tuple[str, int]:
    """Return the record's key and the attempt's number of a lease holder, `key/attempt`."""
    key, _, attempt = holder.rpartition("/")
    return key, int(attempt)


def may_take_over(holder: str, current_holder: str) -> bool:
    """Return whether a holder is the current one, or a later attempt at the same record."""
    key, attempt = parse_holder(holder)
    current_key, current_attempt = parse_holder(current_holder)
    return key == current_key and attempt >= current_attempt
