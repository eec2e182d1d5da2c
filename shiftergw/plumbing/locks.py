"""Locks between processes, by `flock` on a file."""

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
    """Lock the file and return its descriptor, or None if another holds it.

    The file is made if absent and is removed by whoever releases the lock; so a lock that was
    taken on a file which is no longer at `path` is worth nothing, and is tried again.
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
    """Mark a file as in use for as long as the returned descriptor is open.

    None if it is not there, or about to be removed.
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
    """Remove a file unless somebody has marked it as in use; say whether it is gone."""
    try:
        # For writing, though nothing is written: NFS gives exclusive locks to none else (flock(2)).
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
    """Lock an open file; say whether nobody was in the way."""
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
    """Remove the lock's file and release the lock, if there is one.

    A file that cannot be removed stays behind, as after a crash; the next owner reuses it.
    """
    if descriptor is None:
        return
    with suppress(OSError):
        # If somebody removed it meanwhile, the file there now is another's lock.
        if _is_at(path, descriptor):
            path.unlink()
    os.close(descriptor)


@contextmanager
def tried_lock(path: Path) -> Iterator[bool]:
    """Hold the lock on `path` while the context lives, unless another does; say whether."""
    descriptor = try_lock(path)
    try:
        yield descriptor is not None
    finally:
        unlock(path, descriptor)


@asynccontextmanager
async def tried_file_lock(path: Path, threads: Threads) -> AsyncIterator[bool]:
    """As `tried_lock`, for the reactor's thread: the lock is taken and released in `threads`."""
    descriptor = await _acquired(path, threads)
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
    """Hold the lock on `path` while the context lives; wait for it for `limit` seconds.

    The kernel releases the lock of a dead process. `waiting` is called once, if there is a wait,
    and what `late` returns is raised after the limit.
    The lock is taken and released in `threads`. Cancellable.
    """
    descriptor = await _acquired(path, threads)
    if descriptor is None and waiting is not None:
        waiting()
    end = clock.seconds() + limit
    while descriptor is None:
        if clock.seconds() >= end:
            raise late()
        await pause(POLL_SECONDS, clock)
        descriptor = await _acquired(path, threads)
    try:
        yield
    finally:
        await threads.release(unlock, path, descriptor)


async def _acquired(path: Path, threads: Threads) -> int | None:
    return await threads.acquire(partial(try_lock, path), partial(unlock, path))
