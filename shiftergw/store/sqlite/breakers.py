"""Circuit breakers in SQLite; each function runs inside one transaction."""

from __future__ import annotations

import sqlite3
from typing import Any

from shiftergw.model.postponement import Breaker
from shiftergw.store.sqlite import queries
from shiftergw.store.waits import (
    BREAKER_LIFE,
    MOST_BREAKERS,
    breaker_from,
    is_due,
    is_plausible,
    trip_entry,
)

_MEMBERS = ("until", "why", "trips", "probed")


def _entry(db: sqlite3.Connection, key: str) -> dict[str, Any] | None:
    row = db.execute(queries.BREAKER, (key,)).fetchone()
    return None if row is None else dict(zip(_MEMBERS, row, strict=True))


def find(db: sqlite3.Connection, key: str, now: float) -> tuple[Breaker | None, bool]:
    """Return a breaker and whether a probe is due; change nothing."""
    entry = _entry(db, key)
    if entry is None or not is_plausible(entry, now):
        return None, False
    return breaker_from(key, entry, now), is_due(entry, now)


def list_open(db: sqlite3.Connection, now: float) -> list[Breaker]:
    """Return the breakers whose time has not come."""
    rows = db.execute(queries.OPEN_BREAKERS, (now, MOST_BREAKERS)).fetchall()
    entries = [(key, dict(zip(_MEMBERS, members, strict=True))) for key, *members in rows]
    return [breaker_from(key, entry, now) for key, entry in entries if is_plausible(entry, now)]


def check(db: sqlite3.Connection, key: str, now: float, seconds: float) -> Breaker | None:
    """Return a breaker; if a probe is due, the caller has to make it within `seconds`."""
    breaker, is_probe_due = find(db, key, now)
    if is_probe_due:
        db.execute(queries.PROBE_BREAKER, (now + seconds, key))
    return breaker


def trip(db: sqlite3.Connection, key: str, until: float, why: str, now: float) -> None:
    """Hold requests back until a time, and remove expired entries."""
    entry = {"key": key, **trip_entry(_entry(db, key), until, why, now)}
    db.execute(queries.FORGET_BREAKERS, (now - BREAKER_LIFE,))
    db.execute(queries.TRIP_BREAKER, entry)


def close(db: sqlite3.Connection, key: str, now: float) -> None:
    """Remove a breaker whose time has come."""
    db.execute(queries.CLOSE_BREAKER, (key, now))


def end_probe(db: sqlite3.Connection, key: str, end: float, at: float) -> None:
    """Allow the next probe from the time `at` on, if the current probe is the one until `end`."""
    db.execute(queries.END_PROBE, (at, key, end))
