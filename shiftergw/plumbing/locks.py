"""Locks between processes by `flock` on a file."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.plumbing.files import closed_on_error
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.threads import Threads

POLL_SECONDS = 0.1


def try_lock(path: Path) -> int | None:
    """Lock the file and return its descriptor; None if another process holds the lock.

    The file is created if absent, and removed when the lock is released. A lock on a file that is
    no longer at `path` is therefore void, and the attempt is repeated.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with closed_on_error(descriptor):
            free = _flock(descriptor, fcntl.LOCK_EX)
            if free and _is_at(path, descriptor):
                return descriptor
        os.close(descriptor)
        if not free:
            return None


def try_share(path: Path) -> int | None:
    """Mark a file as in use while the returned descriptor is open.

    Returns None if the file is absent or about to be removed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with closed_on_error(descriptor):
        if _flock(descriptor, fcntl.LOCK_SH) and _is_at(path, descriptor):
            return descriptor
    os.close(descriptor)
    return None


def remove_unshared(path: Path) -> bool:
    """Remove a file unless it is marked as in use; return whether it is gone."""
    try:
        # Opened for writing because NFS gives exclusive locks to writers only (flock(2)).
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        free = _flock(descriptor, fcntl.LOCK_EX)
        if free:
            path.unlink(missing_ok=True)
        return free
    finally:
        os.close(descriptor)


def _flock(descriptor: int, operation: int) -> bool:
    """Lock an open file without waiting; return whether that succeeded."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116
    return False


def unlock(path: Path, descriptor: int | None) -> None:
    """Remove the lock file and release the lock; do nothing without a descriptor.

    A file that cannot be removed stays behind, as after a crash; the next owner reuses it.
    """
    if descriptor is None:
        return
    with suppress(OSError):
        # If the file was removed meanwhile, the file there now is the lock of another process.
        if _is_at(path, descriptor):
            path.unlink()
    os.close(descriptor)


@contextmanager
def tried_lock(path: Path) -> Iterator[bool]:
    """Try to lock `path` for the block; yield whether that succeeded."""
    descriptor = try_lock(path)
    try:
        yield descriptor is not None
    finally:
        unlock(path, descriptor)


@asynccontextmanager
async def tried_file_lock(path: Path, threads: Threads) -> AsyncIterator[bool]:
    """Do what `tried_lock` does, in threads, for callers on the reactor's thread."""
    descriptor = await _acquire(path, threads)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            await threads.release(unlock, path, descriptor)


@asynccontextmanager
async def file_lock(
    path: Path,
    threads: Threads,
    clock: IReactorTime,
    waiting: Callable[[], None] | None = None,
    limit: float = math.inf,
    late: Callable[[], Exception] = TimeoutError,
) -> AsyncIterator[None]:
    """Hold the lock on `path` during the block; wait for it for at most `limit` seconds.

    The kernel releases the locks of a dead process. `waiting` is called once before the first wait;
    `late` makes the error that is raised after the limit. The lock is taken and released in
    `threads`. Cancellable.
    """
    descriptor = await _acquire(path, threads)
    if descriptor is None and waiting is not None:
        waiting()
    end = clock.seconds() + limit
    while descriptor is None:
        if clock.seconds() >= end:
            raise late()
        await pause(POLL_SECONDS, clock)
        descriptor = await _acquire(path, threads)
    try:
        yield
    finally:
        await threads.release(unlock, path, descriptor)


async def _acquire(path: Path, threads: Threads) -> int | None:
    return await threads.acquire(partial(try_lock, path), partial(unlock, path))
