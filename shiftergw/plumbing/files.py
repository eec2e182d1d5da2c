"""Atomic writes of files, and facts about file systems. Blocks: call it in a thread."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LARGEST = 16 << 20
"""Bytes of the largest file that is read as a whole: configurations, keys, certificates."""

_NULL = os.makedev(1, 3)
"""The device number of `/dev/null` on Linux, which counts as an empty file, as in OpenSSH."""


def read_whole(path: Path, limit: int = LARGEST) -> tuple[bytes, os.stat_result]:
    """Return the content of a regular file and its status at that time.

    Raises `OSError` for a file of more than `limit` bytes, and for a named pipe or a device, which
    may block forever or have no end.
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
    """Create the directory and its parents, and make it private to this user (0700)."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest directory above it that exists."""
    # Unlike in pathlib, everything below a directory that we may not enter counts as absent.
    while not os.path.exists(path):  # noqa: PTH110
        path = path.parent
    return path


def broken_link(path: Path) -> Path | None:
    """Return the dangling symbolic link that prevents the creation of `path`, if there is one."""
    for step in (path, *path.parents):
        if os.path.islink(step) and not os.path.exists(step):  # noqa: PTH110, PTH114 - never raise
            return step
    return None


def is_read_only(path: Path) -> bool:
    """Return whether the file system that holds `path` is mounted read-only."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def free_space(path: Path) -> int:
    """Return the free bytes for unprivileged users on the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def total_space(path: Path) -> int:
    """Return the size in bytes of the file system of `path`."""
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize


def sync_directory(path: Path) -> None:
    """Make renames in this directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(temporary: Path, final: Path) -> None:
    """Rename a file that is already synced, and sync its directory."""
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
    """Write a file atomically and durably, with mode 0600 or the group and mode of `like`."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with removed_on_error(Path(name)), os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if like is not None:
            if like.st_gid != os.fstat(descriptor).st_gid:
                os.fchown(descriptor, -1, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
        os.fsync(descriptor)
        replace_durably(Path(name), path)


def file_system_of(path: Path) -> str:
    """Return the type of the file system of `path`, which need not exist."""
    return mount_of(path)[0]


def mount_of(path: Path) -> tuple[str, frozenset[str]]:
    """Return the type and the options of the file system of `path`, which need not exist."""
    existing = nearest_existing(path).resolve()
    best, kind, options = Path("/"), "unknown", ""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        mount_fields, _, file_system_fields = line.partition(b" - ")
        # Blanks and some other characters are octal escapes (proc_pid_mountinfo(5)).
        raw = mount_fields.split()[4].decode("unicode_escape").encode("latin-1")
        mounted_on = Path(os.fsdecode(raw))
        if existing.is_relative_to(mounted_on) and len(mounted_on.parts) >= len(best.parts):
            best, kind = mounted_on, file_system_fields.split()[0].decode()
            options = file_system_fields.split()[-1].decode(errors="replace")
    return kind, frozenset(options.split(","))
