"""How keys are added to a file of known hosts: whole or not at all, and no line of it changes.

These functions block.
"""

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
"""Time for another change of the file to end."""

_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")


def check_host(host: str) -> None:
    """Raise `ConfigurationError` for a host that would be something else in the file."""
    if not _HOST.fullmatch(host):
        raise ConfigurationError(f"{host!r} is no name or address of a host.")


def line_of(host: str, port: int, blob: bytes) -> str:
    """Return the line that makes a key of a host known, without its end."""
    return f"{name_of(host, port)} {type_of(blob).decode()} {base64.b64encode(blob).decode()}"


def check_addable(path: Path) -> None:
    """Raise `ConfigurationError` if this user must not, or cannot, change the file."""
    with _explained(path):
        _look(Path(os.path.realpath(path)))


def add(path: Path, lines: Sequence[str]) -> None:
    """Append lines to the file at `path`, or where it leads as a link; those it has stay single.

    The file is made if absent (0600), and its directory (0700). Raises `ConfigurationError`, and
    then nothing has changed.
    """
    with _explained(path):
        real = Path(os.path.realpath(path))
        _look(real)
        with suppress(FileExistsError):
            real.parent.mkdir(mode=0o700)
        with _locked(real):
            status = _look(real)
            content = b"" if status is None else read_whole(real)[0]
            present = content.splitlines()
            added = [line.encode() for line in lines if line.encode() not in present]
            if content and not content.endswith(b"\n"):
                content += b"\n"
            if added:
                write_private(real, content + b"".join(line + b"\n" for line in added), status)


def _look(real: Path) -> os.stat_result | None:
    """Return the state of the file, None if it is to be made; raise if it is not ours to change."""
    directory = nearest_existing(real.parent)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        status = real.stat()
    except FileNotFoundError:
        # Root would make in somebody's home what he cannot read.
        if os.geteuid() == 0 and directory.stat().st_uid != 0:
            raise _foreign(directory) from None
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{real} is no file.", remedy="Set knownHosts to another one.")
    if status.st_uid != os.geteuid():
        raise _foreign(real)
    return status


def _foreign(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} belongs to another user.", remedy="Run this as that user, such as with sudo -H -u."
    )


@contextmanager
def _locked(real: Path) -> Iterator[None]:
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
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be changed: {error.strerror}.",
            remedy="Run this as the gateway's user, or set knownHosts to a file of his.",
        ) from error
