"""The compressed layers of this machine, as files named by their digests.

`<directory>/<algorithm>/<hex>` is a whole blob, `<hex>.partial` what a download got so far, and
`<hex>.lock` is locked by whoever downloads, in this process or in another.

A blob that lies there is trusted by its size: its digest was checked before it got its name, and
hashing all blobs again would cost every pull as much as the index of the layers does. That index
checks each layer's `diff_id` anyway; who finds a blob damaged there calls `discard`.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from shiftergw.errors import BlobCorrupt, NoSpace
from shiftergw.image import Descriptor, Digest
from shiftergw.plumbing.files import free_space, nearest, private_directory
from shiftergw.plumbing.locks import POLL_SECONDS, try_lock, unlock
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Download
from shiftergw.registry.partial import BlobWriter, PartialBlob, disk_errors

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class BlobFiles:
    """The `BlobCache` of this machine; any number of processes may share the directory."""

    def __init__(self, directory: Path, threads: Threads, clock: IReactorTime) -> None:
        """Keep blobs below `directory`, which is made, and closed to others, when first used."""
        self._directory = directory
        self._threads = threads
        self._clock = clock

    async def get(
        self, blob: Descriptor, download: Download, report: Callable[[int], None]
    ) -> Path:
        """Return the file of a blob, downloading what of it is missing."""
        path = self._path(blob.digest)
        if not _is_whole(path, blob.size):
            await self._threads.run(self._make_directory, path.parent)
            await self._get_locked(blob, path, download, report)
        report(blob.size)
        return path

    async def check_space(self, blobs: Sequence[Descriptor]) -> None:
        """Refuse blobs that surely do not fit."""
        missing = await self._threads.run(self._missing, blobs)
        free = await self._threads.run(lambda: free_space(nearest(self._directory)))
        if missing > free:
            raise NoSpace(
                f"The image's layers need {missing} bytes and the gateway's cache has {free} left."
            )

    def _missing(self, blobs: Sequence[Descriptor]) -> int:
        """Return the bytes of these blobs that do not lie here yet."""
        missing = 0
        for blob in {blob.digest: blob for blob in blobs}.values():
            path = self._path(blob.digest)
            if not _is_whole(path, blob.size):
                missing += max(0, blob.size - _size(_partial_of(path)))
        return missing

    async def discard(self, digest: Digest) -> None:
        """Forget a blob whose content proved damaged; it need not be there."""
        await self._threads.run(_remove, self._path(digest))

    async def give_up(self, digest: Digest) -> None:
        """Remove what a broken download left, unless somebody is at it now."""
        await self._threads.run(_give_up, self._path(digest))

    def _path(self, digest: Digest) -> Path:
        return self._directory / digest.algorithm / digest.hex

    def _make_directory(self, directory: Path) -> None:
        with disk_errors():
            private_directory(self._directory)
            private_directory(directory)

    async def _get_locked(
        self, blob: Descriptor, path: Path, download: Download, report: Callable[[int], None]
    ) -> None:
        """Download under the blob's lock, unless another does so first."""
        lock, partial = _lock_of(path), _partial_of(path)
        while (descriptor := _try_lock(lock)) is None:
            report(min(_size(partial), blob.size))
            await pause(POLL_SECONDS, self._clock)
        try:
            if _is_whole(path, blob.size):
                return
            kept, resumed = await self._fetch(blob, partial, path, download, report)
            if not kept and resumed:
                # What an earlier download left was damaged; this one need not suffer for it.
                kept, _ = await self._fetch(blob, partial, path, download, report)
        finally:
            unlock(lock, descriptor)
        if not kept:
            raise BlobCorrupt(
                "A layer arrived with other bytes than its digest says.", detail=str(blob.digest)
            )

    async def _fetch(
        self,
        blob: Descriptor,
        partial_path: Path,
        path: Path,
        download: Download,
        report: Callable[[int], None],
    ) -> tuple[bool, bool]:
        """Download what is missing; say whether the digest was right, and whether it resumed."""
        partial = PartialBlob(partial_path, blob)
        try:
            await self._threads.run_until(partial.interrupt, partial.open)
            report(partial.start)
            resumed = partial.start > 0
            if partial.start < blob.size:
                resumed = await self._stream(partial, blob, download, report)
            return await self._threads.run(partial.keep, path), resumed
        finally:
            partial.close()

    async def _stream(
        self,
        partial: PartialBlob,
        blob: Descriptor,
        download: Download,
        report: Callable[[int], None],
    ) -> bool:
        """Run the download into the file; say whether it went on from what was there."""
        call: Any = None

        def stop() -> None:
            # Not at once: the writer may be called by the very download that is to be cancelled.
            nonlocal call
            call = self._clock.callLater(0, lambda: running.cancel())  # noqa: PLW0108 - not yet made

        writer = BlobWriter(partial, blob, self._threads, report, stop)
        running = Deferred.fromCoroutine(_run(download(partial.start, writer)))
        try:
            await running
            await writer.finish()
        except Exception as error:
            if writer.failure is not None and writer.failure is not error:
                raise writer.failure from error
            raise
        finally:
            if call is not None and call.active():
                call.cancel()
            await writer.settle()
        return writer.resumed


async def _run(download: Awaitable[None]) -> None:
    await download


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _partial_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _give_up(path: Path) -> None:
    partial, lock = _partial_of(path), _lock_of(path)
    if not partial.exists():
        return
    descriptor = _try_lock(lock)
    if descriptor is not None:
        _remove(partial)
        unlock(lock, descriptor)


def _try_lock(path: Path) -> int | None:
    with disk_errors():
        return try_lock(path)


def _is_whole(path: Path, size: int) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _remove(path: Path) -> None:
    with disk_errors():
        path.unlink(missing_ok=True)
