"""Check the file of `AuditLog`, which the gateway opens when there is something to write."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shiftergw.app.checkup.finding import Finding, Level
from shiftergw.app.checkup.secrets import readable_by_all
from shiftergw.config import Config

KEY = "AuditLog"


def audit_log(config: Config) -> Iterator[Finding]:
    """Yield the finding about the file, if there is to be one."""
    if config.audit_log is not None:
        yield _finding(config.audit_log)


def _finding(path: Path) -> Finding:
    try:
        status = path.lstat()
    except OSError:
        return _absent_file(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        return Finding(KEY, Level.FAILURE, f"{path} is {kind}", "Name another file.")
    if not os.access(path, os.W_OK):
        text = f"{path}: you may not write to it"
        return Finding(KEY, Level.FAILURE, text, "Give it to the gateway's user.")
    if status.st_mode & stat.S_IWOTH or readable_by_all(path):
        text = f"{path}: every user of this machine can read it, or even change it"
        return Finding(KEY, Level.WARNING, text, f"chmod 640 {path}")
    return _of_directory(path, str(path))


def _absent_file(path: Path) -> Finding:
    directory = path.parent
    if not directory.is_dir():
        text = f"{directory}: no such directory, or you may not enter it"
        return Finding(KEY, Level.FAILURE, text, "Make it, for the gateway's user.")
    if not os.access(directory, os.W_OK | os.X_OK):
        text = f"{directory}: you may not write to it"
        return Finding(KEY, Level.FAILURE, text, "Give it to the gateway's user.")
    return _of_directory(path, f"{path} will be made")


def _of_directory(path: Path, text: str) -> Finding:
    """Return whether other users can replace the file in its directory."""
    mode = path.parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        text = f"{path}: every user of this machine can replace it"
        return Finding(KEY, Level.WARNING, text, f"chmod o-w {path.parent}")
    return Finding(KEY, Level.OK, text)
