"""A look at the SQLite file, for who only wants to know what is in it. It blocks."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from shiftergw.store.sqlite.database import BUSY_SECONDS, check_tables, check_version
from shiftergw.store.sqlite.faults import explained
from shiftergw.store.sqlite.integrity import check_integrity
from shiftergw.store.survey import Survey


def survey(path: Path, into: Survey) -> int:
    """Count all records of a file in a survey; return how many rows of look-up metrics it has.

    Nothing is written. Raises `ConfigurationError` for a file that is damaged, not ours, or newer
    than this version, and `Unavailable` if it is locked.
    """
    with explained(path), closing(_connect(path)) as db:
        if not _has_tables(db, path):
            return 0
        for key, text in db.execute("SELECT key, document FROM images"):
            into.add({**json.loads(text), "_id": key})
        rows: int = db.execute("SELECT count(*) FROM lookups").fetchone()[0]
        return rows


def check(path: Path, seconds: float) -> bool:
    """Look for damage; return whether there was time to look everywhere.

    Nothing is written. Raises as `survey`.
    """
    with explained(path), closing(_connect(path)) as db:
        _has_tables(db, path)
        return check_integrity(db, path, seconds)


def _has_tables(db: sqlite3.Connection, path: Path) -> bool:
    """Return whether the gateway has begun to use a file; raise if it could not use it."""
    db.execute("BEGIN")
    try:
        check_version(db, path)
        return check_tables(db, path)
    finally:
        db.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    # Where nobody has the file open, a reader that could write would leave files beside it.
    alone = not path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.absolute().as_uri()}?{'immutable=1' if alone else 'mode=ro'}"
    return sqlite3.connect(uri, timeout=BUSY_SECONDS, uri=True, isolation_level=None)
