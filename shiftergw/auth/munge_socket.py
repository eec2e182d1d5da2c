"""Find out why a munge daemon cannot be used: libmunge itself reports only SOCKET."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from shiftergw.auth.libmunge import Status

DEFAULT_SOCKET = Path("/run/munge/munge.socket.2")
"""The socket of munge's packages."""

_LONGEST_PATH = 107
"""Bytes of the longest path in sockaddr_un (unix(7))."""

_CHECK = "or correct the path of the socket (mungeSocketPath)."


class Trouble(NamedTuple):
    """What is wrong with a daemon, and what to do about it."""

    what: str
    remedy: str


def trouble_of(path: Path | None, status: Status) -> Trouble:
    """Return the cause of a failure of libmunge or of a daemon. Blocks for a moment.

    Examines the socket at `path`, since most failures have their cause there, and relies on
    libmunge's `status` for the others.
    """
    path = path or DEFAULT_SOCKET
    if status == Status.TIMEOUT:
        return _hangs(path)
    if status != Status.SOCKET:
        return Trouble(f"{path}: munge failed ({status.name}).", "See munged's log.")
    return _trouble_of_socket(path)


def _trouble_of_socket(path: Path) -> Trouble:
    directory = _closed_directory(path)
    if directory is not None:
        return Trouble(
            f"{path}: permission denied: {directory} is closed to this user.",
            f"Let every user enter it: chmod a+x {directory}.",
        )
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = error.strerror or "it cannot be looked at"
        return Trouble(
            f"{path}: there is no such socket ({reason}).",
            f"Start the munged that has the system's key, {_CHECK}",
        )
    if not stat.S_ISSOCK(mode):
        return Trouble(f"{path}: it is not a socket.", "Correct mungeSocketPath.")
    if len(bytes(path)) > _LONGEST_PATH:
        return Trouble(
            f"{path}: the path of a socket has {_LONGEST_PATH} bytes at most.",
            "Have munged listen at a shorter path.",
        )
    return _trouble_of_connection(path)


def _closed_directory(path: Path) -> Path | None:
    """Return the topmost parent directory of a path that this user may not enter."""
    for directory in reversed(path.parents):
        if not os.path.exists(directory):  # noqa: PTH110 - pathlib's raises without permission
            return None
        if not os.access(directory, os.X_OK):
            return directory
    return None


def _trouble_of_connection(path: Path) -> Trouble:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return Trouble(
                    f"{path}: no munged listens at this socket any more.",
                    "Start munged again; its log says why it ended.",
                )
            if error.errno in {errno.EACCES, errno.EPERM}:
                return Trouble(
                    f"{path}: permission denied: this user may not write to the socket.",
                    "munged makes it for all users (mode 0777): restart it, or chmod the socket.",
                )
            if error.errno == errno.EAGAIN:
                return _hangs(path)
            return Trouble(f"{path}: {error.strerror}.", f"Start munged, {_CHECK}")
    return Trouble(
        f"{path}: what listens there does not speak munge, or has just started.",
        f"See munged's log, {_CHECK}",
    )


def _hangs(path: Path) -> Trouble:
    return Trouble(
        f"{path}: munged takes connections, and does not answer: it hangs or is overloaded.",
        "Restart it; its log may say more.",
    )
