"""Leases on (image directory, image id) in SQLite."""

from __future__ import annotations

import sqlite3

from shiftergw.store import attempts
from shiftergw.store.sqlite import queries, rows


def take(
    db: sqlite3.Connection, directory: str, image_id: str, holder: str, now: float, seconds: float
) -> bool:
    """Take or renew a lease in the current transaction; return whether the holder has it."""
    db.execute(queries.FORGET_LEASES, (now,))
    lease = db.execute(queries.HOLDER, (directory, image_id)).fetchone()
    if lease is not None and not attempts.may_take_over(holder, lease[0]):
        key, attempt = attempts.parse_holder(lease[0])
        if not attempts.is_attempt_over(rows.document_at(db, key), attempt):
            return False
    db.execute(queries.LEASE, (directory, image_id, holder, now + seconds))
    return True
