"""Inspect the SQLite file without a change.

The functions block: call them in a thread.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from shiftergw.store.sqlite.database import BUSY_SECONDS, check_tables, check_version
from shiftergw.store.sqlite.faults import explain_errors
from shiftergw.store.sqlite.integrity import check_integrity
from shiftergw.store.survey import Survey


def survey(path: Path, into: Survey) -> int:
    """Count all records of a file in a survey; return the number of its look-up rows.

    Writes nothing. Raises `ConfigurationError` for a file that is damaged, belongs to another
    program, or was written by a newer version, and `Unavailable` if it is locked.
    """
    with explain_errors(path), closing(_connect(path)) as db:
        if not _has_tables(db, path):
            return 0
        for key, text in db.execute("SELECT key, document FROM images"):
            into.add({**json.loads(text), "_id": key})
        rows: int = db.execute("SELECT count(*) FROM lookups").fetchone()[0]
        return rows


def check(path: Path, seconds: float) -> bool:
    """Search a file for damage; return whether `seconds` were enough to check all of it.

    Writes nothing. Raises as `survey`.
    """
    with explain_errors(path), closing(_connect(path)) as db:
        _has_tables(db, path)
        return check_integrity(db, path, seconds)


def _has_tables(db: sqlite3.Connection, path: Path) -> bool:
    """Return whether a file has the gateway's tables; raise if the gateway could not use it."""
    db.execute("BEGIN")
    try:
        check_version(db, path)
        return check_tables(db, path)
    finally:
        db.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    # Without a WAL no process has the file open. Then even mode=ro would leave files beside it.
    is_closed = not path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.absolute().as_uri()}?{'immutable=1' if is_closed else 'mode=ro'}"
    return sqlite3.connect(uri, timeout=BUSY_SECONDS, uri=True, isolation_level=None)
