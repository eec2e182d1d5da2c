"""Rules of postponed work and of breakers, the same for every kind of store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from shiftergw.errors import TooMany
from shiftergw.postponement import Breaker, PostponeLimits

BREAKER_KEPT = 3600.0
"""Seconds after its time for which a breaker's entry is kept."""

_SECONDS_SHOWN = 120.0
_DATE_SHOWN = 12 * 3600.0


def waiting_message(not_before: float, why: str, now: float) -> str:
    """Return what a user reads of postponed work, in the local time of this machine.

    A short wait is told to the second, a long one with its date.
    """
    wait = not_before - now
    form = "%H:%M:%S" if wait < _SECONDS_SHOWN else "%H:%M"
    if wait > _DATE_SHOWN:
        form = "%Y-%m-%d %H:%M"
    return f"Waits until {time.strftime(form, time.localtime(not_before))} for {why}"


def check_postponed(of_registry: int, of_user: int, limits: PostponeLimits) -> None:
    """Raise `TooMany` if no more work of a registry, or of one user there, may be postponed."""
    if of_user >= limits.user:
        raise TooMany(f"{of_user} of your pulls wait for this registry already.")
    if of_registry >= limits.registry:
        raise TooMany(f"{of_registry} pulls wait for this registry already.")


def breaker_from(key: str, entry: Mapping[str, Any], now: float) -> Breaker:
    """Return a breaker as a caller that is not its probe reads it at a time."""
    is_open = entry["until"] > now
    until = entry["until"] if is_open else entry["probed"]
    probed = not is_open and until > now
    return Breaker(key, until, entry["why"], entry["trips"], probed)


def is_due(entry: Mapping[str, Any], now: float) -> bool:
    """Return whether a breaker's time has come and nobody probes."""
    due: bool = max(entry["until"], entry["probed"]) <= now
    return due


def tripped(entry: Mapping[str, Any] | None, until: float, why: str, now: float) -> dict[str, Any]:
    """Return a breaker's entry once requests have failed.

    Requests that fail while it is open belong to the same outage. An entry that was due long ago
    is forgotten, and counts no more.
    """
    if entry is None or entry["until"] <= now - BREAKER_KEPT:
        return {"until": until, "why": why, "trips": 1, "probed": 0.0}
    trips = entry["trips"] + (entry["until"] <= now)
    return {"until": max(until, entry["until"]), "why": why, "trips": trips, "probed": 0.0}
