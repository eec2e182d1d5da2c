"""Let one process at a time download a blob from each place.

The process that holds the lock of a download writes into it from where the blob comes. Pulls from
the same place wait for it. A pull from another place waits for a while, and then downloads the blob
on its own: a registry that sends a layer slowly, or never ends, may hold up its own pulls only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from shiftergw.cache import blobs
from shiftergw.cache.blobs import BlobPaths
from shiftergw.cache.partial import disk_errors
from shiftergw.errors import RegistryUnavailable, RetryLater
from shiftergw.model.images import Descriptor
from shiftergw.plumbing.locks import POLL_SECONDS, try_lock, unlock
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

DOWNLOAD_WAIT = 12 * 3600.0
"""Seconds that one pull may wait altogether for downloads of other pulls."""

_MARK_BYTES = 64
"""Bytes of a lock file that are read; a mark has 16."""


def mark_of(place: str) -> str:
    """Return the text that stands for a place, such as the name of a location, in file names."""
    return hashlib.sha256(place.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class DownloadLocks:
    """The locks of downloads from one place; `mark` is its `mark_of`."""

    threads: Threads
    clock: IReactorTime
    mark: str

    @asynccontextmanager
    async def hold(
        self,
        blob: Descriptor,
        paths: BlobPaths,
        report: Callable[[int], None],
        patience: float,
    ) -> AsyncIterator[BlobPaths | None]:
        """Hold the lock of a download; yield the paths of its files.

        Yields None, without a lock, if the blob has arrived meanwhile. Until then `report` hears
        how much the other process has. Raises `RetryLater` after `patience` seconds of waiting for
        a download from this place, since the wait holds a worker.
        """
        end = self.clock.seconds() + patience
        while (descriptor := await self._acquire(paths)) is None:
            if await self.threads.run(blobs.is_whole, paths.whole, blob.size):
                break
            if self.clock.seconds() >= end:
                if paths.mark or await self.threads.run(_mark_in, paths) in {"", self.mark}:
                    raise _downloaded_elsewhere(self.clock.seconds() + patience)
                paths, end = replace(paths, mark=self.mark), end + patience
                continue
            report(min(await self.threads.run(blobs.size_of, paths.partial), blob.size))
            await pause(POLL_SECONDS, self.clock)
        try:
            yield None if descriptor is None else paths
        finally:
            await self.threads.release(partial(unlock, paths.lock), descriptor)

    async def _acquire(self, paths: BlobPaths) -> int | None:
        lock = partial(_lock, paths, self.mark)
        return await self.threads.acquire(lock, partial(unlock, paths.lock))


def _lock(paths: BlobPaths, mark: str) -> int | None:
    """Lock a download, and write the mark of its place into the lock; None if it is locked.

    A full disk takes no mark. Other pulls then wait as for a download from their own place.
    """
    with disk_errors():
        descriptor = try_lock(paths.lock)
    if descriptor is not None:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, mark.encode("ascii"), 0)
    return descriptor


def _mark_in(paths: BlobPaths) -> str:
    """Return the mark in the lock of a download; "" if there is none."""
    try:
        with paths.lock.open("rb") as file:
            return file.read(_MARK_BYTES).decode("ascii", "replace")
    except OSError:
        return ""


def _downloaded_elsewhere(at: float) -> RetryLater:
    failure = RegistryUnavailable("Another pull that downloads the same layer did not end.")
    why = "another pull that downloads the same layer"
    return RetryLater(at, why, failure, limit=DOWNLOAD_WAIT)
