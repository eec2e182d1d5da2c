"""The throughput of the last days in SQLite, a row for each period."""

from __future__ import annotations

import sqlite3
from dataclasses import astuple, replace

from shiftergw.model.throughput import KEEP_SECONDS, Throughput, period_of
from shiftergw.store.sqlite import queries


def add(db: sqlite3.Connection, work: Throughput) -> None:
    """Add work to its period, and remove old periods, in the current transaction."""
    entry = replace(work, since=period_of(work.since))
    db.execute(queries.ADD_THROUGHPUT, astuple(entry))
    db.execute(queries.FORGET_THROUGHPUT, (work.since - KEEP_SECONDS,))


def list_since(db: sqlite3.Connection, since: float) -> list[Throughput]:
    """Return the periods that began at or after a time."""
    return [Throughput(*row) for row in db.execute(queries.THROUGHPUT, (since,))]
