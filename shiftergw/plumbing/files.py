"""Files that appear whole or not at all. These functions block: call them in a thread."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LARGEST = 16 << 20
"""Bytes of the largest file that is read at once: configurations, keys, certificates."""


_NULL = os.makedev(1, 3)
"""The number of `/dev/null` on Linux: it counts as an empty file, as with OpenSSH."""


def read_whole(path: Path, limit: int = LARGEST) -> tuple[bytes, os.stat_result]:
    """Return the content of a regular file, and its state when it was read.

    Raises `OSError` for a file of more than `limit` bytes, and for a named pipe or a device, which
    may block for ever or have no end.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) and state.st_rdev != _NULL:
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"More than {limit} bytes", str(path))
    return content, state


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for the writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def private_directory(path: Path) -> None:
    """Make the directory, parents included, and close it to everybody else (0700)."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def nearest(path: Path) -> Path:
    """Return `path`, or the nearest directory above it that exists: where it would be made."""
    # What lies behind a directory that we may not enter counts as absent, other than with pathlib.
    while not os.path.exists(path):  # noqa: PTH110
        path = path.parent
    return path


def broken_link(path: Path) -> Path | None:
    """Return the symbolic link that keeps `path` from being made: one that leads nowhere."""
    for step in (path, *path.parents):
        if os.path.islink(step) and not os.path.exists(step):  # noqa: PTH110, PTH114 - never raise
            return step
    return None


def is_read_only(path: Path) -> bool:
    """Return whether the file system that holds `path` is mounted read-only."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def free_space(path: Path) -> int:
    """Return the bytes that an unprivileged user may still write where `path` is."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def total_space(path: Path) -> int:
    """Return the size in bytes of the file system that holds `path`."""
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize


def sync_directory(path: Path) -> None:
    """Make a rename in this directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, final: Path) -> None:
    """Rename a file that was synced, and sync its directory."""
    temporary.replace(final)
    sync_directory(final.parent)


@contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Remove `path` if the block raises."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


@contextmanager
def closed_on_error(descriptor: int) -> Iterator[None]:
    """Close a descriptor if the block raises."""
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


def write_private(path: Path, content: bytes, like: os.stat_result | None = None) -> None:
    """Write a file of mode 0600, or with group and mode of another, by fsync and rename."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with removed_on_error(Path(name)), os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if like is not None:
            if like.st_gid != os.fstat(descriptor).st_gid:
                os.fchown(descriptor, -1, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
        os.fsync(descriptor)
        put_in_place(Path(name), path)


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds `path` (or would, once it is made)."""
    return mount_of(path)[0]


def mount_of(path: Path) -> tuple[str, frozenset[str]]:
    """Return the type of the file system that holds `path`, or would, and its own options."""
    wanted = nearest(path).resolve()
    best, kind, options = Path("/"), "unknown", ""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        left, _, right = line.partition(b" - ")
        # Blanks and the like are written as octal escapes (proc_pid_mountinfo(5)).
        raw = left.split()[4].decode("unicode_escape").encode("latin-1")
        mounted_on = Path(os.fsdecode(raw))
        if wanted.is_relative_to(mounted_on) and len(mounted_on.parts) >= len(best.parts):
            best, kind = mounted_on, right.split()[0].decode()
            options = right.split()[-1].decode(errors="replace")
    return kind, frozenset(options.split(","))
