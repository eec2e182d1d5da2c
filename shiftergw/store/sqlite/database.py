"""Open the SQLite file; create or upgrade it if necessary.

All functions block: call them in a thread.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.files import sync_directory
from shiftergw.store.sqlite.faults import explain_errors, translate_errors

BUSY_SECONDS = 2.0
"""Seconds that a statement waits for another process's transaction.

A request may arrive while an earlier turn waits so long, and then wait again in its own turn. So it
is answered within 5 s.
"""

OPEN_SECONDS = 10.0
"""Seconds that a start waits for another process's transaction."""

ALONE_SECONDS = 1.0
"""Seconds that `open_alone` waits for other processes to close the file."""

SCHEMA = ("schema.sql", *(f"schema-{number}.sql" for number in range(2, 7)))
"""The scripts that upgrade an empty file to the current schema, in order.

`user_version` of a file is the number of scripts applied to it. A released script is never edited,
because files exist that were made by it.
"""

OLDEST_SQLITE = (3, 31)
"""The first version of SQLite with generated columns."""


def open_database(path: Path) -> sqlite3.Connection:
    """Return a connection that may write; create or upgrade the file if necessary.

    Raises `ConfigurationError` for a file of another program or of a newer version, and
    `Unavailable` if another process has locked it.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise ConfigurationError(
            f"SQLite {sqlite3.sqlite_version} is too old.",
            remedy=f"Run the gateway with SQLite {OLDEST_SQLITE[0]}.{OLDEST_SQLITE[1]} or newer.",
        )
    with explain_errors(path):
        if not path.exists():
            _create(path)
        connection = _upgrade_or_close(_connect(path, OPEN_SECONDS), path)
        connection.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_SECONDS)}")
        return connection


def open_alone(path: Path) -> sqlite3.Connection:
    """Return a connection to a file that no other process has open, or can open meanwhile.

    Raises as `open_database`, and does not create the file.
    """
    with explain_errors(path):
        if not path.exists():
            raise ConfigurationError(
                f"There is no database {path}.",
                remedy="Check StateDirectory: the file lies in it.",
            )
        connection = _connect(path, ALONE_SECONDS)
        try:
            # In WAL mode every process that has the file open holds a lock that conflicts with
            # this one.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return _upgrade_or_close(connection, path)


def _upgrade_or_close(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    try:
        _upgrade(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that cannot write, to a file that is open already."""
    with translate_errors():
        connection = _connect(path, BUSY_SECONDS)
        connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: Path, seconds: float) -> sqlite3.Connection:
    # Each connection serves one thread at a time, but not always the thread that opens it.
    return sqlite3.connect(path, timeout=seconds, isolation_level=None, check_same_thread=False)


def _create(path: Path) -> None:
    """Create the complete and private file, unless another process is quicker."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        connection = _connect(Path(name), OPEN_SECONDS)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            _upgrade(connection, path)
        finally:
            connection.close()
        os.fsync(descriptor)
        # A link fails if another process has just created the file; a rename would replace it.
        with suppress(FileExistsError):
            Path(path).hardlink_to(name)
            sync_directory(path.parent)
    finally:
        os.close(descriptor)
        for suffix in ("", "-wal", "-shm"):
            Path(name + suffix).unlink(missing_ok=True)


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the missing scripts in one transaction."""
    if check_version(connection, path) == len(SCHEMA):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        check_tables(connection, path)
        for script in SCHEMA[_version(connection) :]:
            text = files("shiftergw.store.sqlite").joinpath(script).read_text(encoding="utf-8")
            for statement in _statements(text):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(SCHEMA)}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def check_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the number of scripts that were applied to a file.

    Raises `ConfigurationError` if a newer version of the gateway has written the file.
    """
    version = _version(connection)
    if version > len(SCHEMA):
        raise ConfigurationError(
            f"The database {path} was written by a newer version of the gateway.",
            remedy="Run that version, or restore the backup made before its first start.",
        )
    return version


def check_tables(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether a file has this gateway's tables; an empty file has none yet.

    Must be called in a transaction, because another process may be applying the scripts. Raises
    `ConfigurationError` for the database of another program.
    """
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    is_ours = {"images", "leases", "lookups"} <= tables if _version(connection) else not tables
    if not is_ours:
        raise ConfigurationError(
            f"The database {path} belongs to another program.",
            remedy="Set StateDirectory to another directory.",
        )
    return bool(tables)


def rewrite_version(connection: sqlite3.Connection) -> None:
    """Write the version that the file has; this fails if nothing can be written."""
    connection.execute(f"PRAGMA user_version = {_version(connection)}")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements; `executescript` would commit the current transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
