"""Translate SQLite's errors into errors of this gateway."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shiftergw.errors import ConfigurationError, DatabaseBusy, DatabaseDamaged, Unavailable

_PRIMARY = 0xFF  # an extended result code has the primary one in its lowest byte
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNUSABLE = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR,
     sqlite3.SQLITE_FULL}
)  # fmt: skip
"""Codes that call for a repair of the file, its directory or its disk; a retry does not help."""

_FILE = (
    "It must be a file of the gateway's user with mode 600, in a directory to which that user may"
    " write."
)


def unavailable(error: Exception) -> Unavailable:
    """Return the error for a call that SQLite could not carry out."""
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
    detail = f"SQLite: {error}"
    if code in _DAMAGE:
        return DatabaseDamaged("The gateway's database is damaged.", detail=detail)
    if code in _BUSY:
        return DatabaseBusy("The gateway's database does not answer.", detail=detail)
    return Unavailable("The gateway's database does not answer.", detail=detail)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn SQLite's errors into `Unavailable`."""
    try:
        yield
    except sqlite3.Error as error:
        raise unavailable(error) from error


@contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn errors while the file at `path` is opened into errors for the operator."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"The database {path} cannot be made: {error.strerror}.",
            remedy="Give the gateway a directory of its own, on a local disk with free space.",
        ) from error
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & _PRIMARY in _UNUSABLE:
            raise _unusable(path, error) from error
        raise unavailable(error) from error
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & _PRIMARY == sqlite3.SQLITE_CORRUPT:
            raise damage_error(path, str(error)) from error
        raise ConfigurationError(
            f"{path} is not a database of this gateway, or its beginning is damaged.",
            remedy=f"{_restore(path)} If it is another program's file, set StateDirectory to"
            " another place.",
            detail=str(error),
        ) from error


def _unusable(path: Path, error: sqlite3.Error) -> ConfigurationError:
    """Return the error for a file that SQLite cannot open, read or write."""
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
    if code == sqlite3.SQLITE_FULL:
        reason, remedy = "the disk is full", "Make room on the file system of StateDirectory."
    elif os.path.lexists(path) and not os.path.isfile(path):  # noqa: PTH113 - as `lexists`
        reason, remedy = "it is not a regular file", _FILE
    elif not os.access(path, os.R_OK | os.W_OK):
        reason, remedy = "this user may not read and write it", _FILE
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        reason, remedy = "this user may not write to its directory", _FILE
    else:
        reason, remedy = str(error), "Check the disk: its free space, its quota, the kernel's log."
    return ConfigurationError(
        f"The database {path} cannot be used: {reason}.", remedy=remedy, detail=f"SQLite: {error}"
    )


def damage_error(path: Path, detail: str) -> ConfigurationError:
    """Return the error for a damaged file at `path`, before the gateway runs."""
    return ConfigurationError(
        f"The database {path} is damaged.", remedy=_restore(path), detail=detail
    )


def _restore(path: Path) -> str:
    return (
        f"Stop the gateway, move {path.name}, {path.name}-wal and {path.name}-shm away, and restore"
        " the backup."
    )
