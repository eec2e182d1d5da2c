"""Rules of postponed work and of circuit breakers, the same for every kind of store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from shiftergw.errors import TooMany
from shiftergw.model.postponement import Breaker, PostponeLimits
from shiftergw.states import WaitCause

BREAKER_LIFE = 3600.0
"""Seconds for which a breaker remembers its trips after it may be probed."""

MOST_BREAKERS = 200
"""Breakers in a list of those that hold requests back."""

LONGEST_HOLD = 2 * 86400.0
LONGEST_PROBE = 3600.0
"""Seconds until the time of a breaker, and until the end of a probe, at most.

Registries hold requests back for a day at most. A later time was written by a clock that was ahead.
"""

_SECONDS_SHOWN = 120.0
"""Waits up to this length, in seconds, are shown with seconds."""

_DATE_SHOWN = 12 * 3600.0
"""Waits from this length on, in seconds, are shown with the date."""


def waiting_message(not_before: float, why: str, now: float) -> str:
    """Return the status message of postponed work, in the local time of this machine.

    The time has seconds for short waits, and the date for long ones.
    """
    wait = not_before - now
    time_format = "%H:%M:%S" if wait < _SECONDS_SHOWN else "%H:%M"
    if wait > _DATE_SHOWN:
        time_format = "%Y-%m-%d %H:%M"
    return f"Waits until {time.strftime(time_format, time.localtime(not_before))} for {why}"


def check_postponed(
    postponed_count: int, user_count: int, limits: PostponeLimits, cause: WaitCause = "registry"
) -> None:
    """Raise `TooMany` if one pull more must not be postponed.

    `postponed_count` pulls wait for the same registry or system already, `user_count` of them for
    the same user.
    """
    place = "system" if cause == "system" else "registry"
    if user_count >= limits.user:
        raise TooMany(f"{user_count} of your pulls wait for this {place} already.")
    if postponed_count >= limits.total:
        raise TooMany(f"{postponed_count} pulls wait for this {place} already.")


def is_plausible(entry: Mapping[str, Any], now: float) -> bool:
    """Return whether the times of a breaker's entry are within `LONGEST_HOLD` and `LONGEST_PROBE`.

    Later times were written by a clock that was ahead, and would hold requests back too long.
    """
    is_within: bool = (
        entry["until"] <= now + LONGEST_HOLD and entry["probed"] <= now + LONGEST_PROBE
    )
    return is_within


def breaker_from(key: str, entry: Mapping[str, Any], now: float) -> Breaker:
    """Return the breaker of an entry, as it is for a caller that does not probe it."""
    is_open = entry["until"] > now
    until = entry["until"] if is_open else entry["probed"]
    is_probed = not is_open and until > now
    return Breaker(key, until, entry["why"], entry["trips"], is_probed)


def is_due(entry: Mapping[str, Any], now: float) -> bool:
    """Return whether a breaker's time has come and no probe is under way."""
    return max(float(entry["until"]), float(entry["probed"])) <= now


def trip_entry(
    entry: Mapping[str, Any] | None, until: float, why: str, now: float
) -> dict[str, Any]:
    """Return the entry of a breaker after a request has failed.

    Failures while the breaker is open belong to the same outage, so `trips` stays. An entry starts
    anew if it has been due for `BREAKER_LIFE`, or if a wrong clock wrote it.
    """
    if entry is None or entry["until"] <= now - BREAKER_LIFE or not is_plausible(entry, now):
        return {"until": until, "why": why, "trips": 1, "probed": 0.0}
    trips = entry["trips"] + (entry["until"] <= now)
    return {"until": max(until, entry["until"]), "why": why, "trips": trips, "probed": 0.0}
