"""Search the SQLite file for damage, which a disk or a power cut may have caused.

The functions block: call them in a thread.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from twisted.logger import Logger

from shiftergw.store.sqlite.database import open_database
from shiftergw.store.sqlite.faults import damage_error, explain_errors

CHECK_SECONDS = 10.0
"""Seconds for the check at the start; a fast disk delivers about 1 GB in this time."""

_STEPS = 10_000
"""Instructions of SQLite's virtual machine after which the time is checked."""


_log = Logger()


def open_checked(path: Path, seconds: float | None) -> sqlite3.Connection:
    """Open the file as `open_database` does, and search it for damage within `seconds`.

    None means no search. Raises `ConfigurationError` for a damaged file.
    """
    connection = open_database(path)
    if seconds is None:
        return connection
    try:
        with explain_errors(path):
            is_complete = check_integrity(connection, path, seconds)
    except BaseException:
        connection.close()
        raise
    if not is_complete:
        _log.warn(
            "{path} is too large to look for damage in all of it within {seconds:.0f} s",
            path=str(path),
            seconds=seconds,
        )
    return connection


def check_integrity(
    connection: sqlite3.Connection, path: Path, seconds: float = CHECK_SECONDS
) -> bool:
    """Check the structure of all tables and indexes; return whether `seconds` were enough.

    Raises `ConfigurationError` for a damaged file, and SQLite's errors.
    """
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    try:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return False
        raise
    finally:
        connection.set_progress_handler(None, 0)
    if verdict != "ok":
        raise damage_error(path, verdict)
    return True
