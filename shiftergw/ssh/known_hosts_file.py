"""Add keys to a file of known hosts, atomically and without changing its other lines. Blocks."""

from __future__ import annotations

import base64
import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.files import nearest_existing, read_whole, write_private
from shiftergw.plumbing.locks import POLL_SECONDS, try_lock, unlock
from shiftergw.ssh.known_hosts import name_of, type_of

LOCK_SECONDS = 10.0
"""Seconds to wait for another change of the file."""

_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")


def check_host(host: str) -> None:
    """Raise `ConfigurationError` for a host name with characters that the file treats specially."""
    if not _HOST.fullmatch(host):
        raise ConfigurationError(f"{host!r} is not a name or address of a host.")


def line_of(host: str, port: int, blob: bytes) -> str:
    """Return the line for a key of a host, without the newline."""
    return f"{name_of(host, port)} {type_of(blob).decode()} {base64.b64encode(blob).decode()}"


def check_addable(path: Path) -> None:
    """Raise `ConfigurationError` if this user may not change the file."""
    with _os_errors(path):
        _check_owner(Path(os.path.realpath(path)))


def add(path: Path, lines: Sequence[str]) -> None:
    """Append the lines that the file lacks; follow `path` if it is a symbolic link.

    Creates the file (0600) and its directory (0700) if absent. Raises `ConfigurationError`, in
    which case nothing has changed.
    """
    with _os_errors(path):
        real = Path(os.path.realpath(path))
        _check_owner(real)
        with suppress(FileExistsError):
            real.parent.mkdir(mode=0o700)
        with _lock(real):
            status = _check_owner(real)
            content = b"" if status is None else read_whole(real)[0]
            present = content.splitlines()
            new_lines = [line.encode() for line in lines if line.encode() not in present]
            if content and not content.endswith(b"\n"):
                content += b"\n"
            if new_lines:
                content += b"".join(line + b"\n" for line in new_lines)
                write_private(real, content, status)


def _check_owner(real: Path) -> os.stat_result | None:
    """Return the status of the file, None if absent; raise if this user may not change it."""
    directory = nearest_existing(real.parent)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        status = real.stat()
    except FileNotFoundError:
        # Root would create a file that the owner of the directory cannot read.
        if os.geteuid() == 0 and directory.stat().st_uid != 0:
            raise _foreign(directory) from None
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{real} is not a file.", remedy="Set knownHosts to another one.")
    if status.st_uid != os.geteuid():
        raise _foreign(real)
    return status


def _foreign(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} belongs to another user.", remedy="Run this as that user, such as with sudo -H -u."
    )


@contextmanager
def _lock(real: Path) -> Iterator[None]:
    lock = real.with_name(f".{real.name}.lock")
    deadline = time.monotonic() + LOCK_SECONDS
    while (descriptor := try_lock(lock)) is None:
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"Another change of {real} has not ended within {LOCK_SECONDS:.0f} s.",
                remedy="End it, and try again.",
            )
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        unlock(lock, descriptor)


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be changed: {error.strerror}.",
            remedy="Run this as the gateway's user, or set knownHosts to a file of that user.",
        ) from error
