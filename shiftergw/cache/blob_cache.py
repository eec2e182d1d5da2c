"""The compressed layers of this machine, as files named by their digests (`cache.blobs`).

A blob in the cache is only checked for its size: its digest was verified before it got its name,
and hashing all blobs again would cost every pull as much as the index of the layers. The index
verifies each layer's `diff_id` anyway. If that fails, `discard` finds out whether the blob is
damaged or the image itself is wrong, whose layers may belong to other images too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred

from shiftergw.cache import blobs
from shiftergw.cache.blob_writer import BlobWriter
from shiftergw.cache.blobs import BlobPaths, CachedBlobs
from shiftergw.cache.download_locks import DownloadLocks, mark_of
from shiftergw.cache.partial import PartialBlob, disk_errors
from shiftergw.errors import BlobCorrupt, NoSpace, amount
from shiftergw.model.images import Descriptor, Digest, Opening, ResolvedImage
from shiftergw.plumbing.disk_budget import DiskBudget
from shiftergw.plumbing.files import private_directory
from shiftergw.plumbing.locks import POLL_SECONDS
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobCache, Download

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


PATIENCE = 20.0
"""Seconds for which a pull occupies a worker while another pull downloads the same layer."""

WRONG_DOWNLOADS = 2
"""Downloads with wrong bytes after which a pull fails."""


class BlobCaches:
    """All caches of this machine: one for public content, and one for each private repository.

    Blobs of private repositories are kept apart, so that a user who names a digest in a manifest of
    their own does not get another user's content.
    """

    def __init__(
        self,
        directory: Path,
        threads: Threads,
        clock: IReactorTime,
        budget: DiskBudget | None = None,
    ) -> None:
        """Keep all below `directory`, which is made, and closed to others, when first used.

        The files of `budget` make room for blobs; without one, unused blobs do.
        """
        self._directory = directory
        self._blobs = CachedBlobs(directory)
        self._budget = budget or DiskBudget((self._blobs,))
        self._threads = threads
        self._clock = clock
        self._caches = WeakValueDictionary[tuple[Path, str], BlobFiles]()

    def of(self, image: ResolvedImage) -> BlobCache:
        """Return the cache that an image's blobs belong in."""
        place, source = blobs.place_of(self._directory, image), image.location
        new = BlobFiles(place, self._threads, self._clock, self._budget, source)
        return self._caches.setdefault((place, source), new)

    async def sizes_of(self, image: ResolvedImage) -> list[int]:
        """Return how many bytes of each layer are here, in the image's order; change nothing."""
        place = blobs.place_of(self._directory, image)
        return await self._threads.run(blobs.present_sizes, place, image.layers)

    async def sweep(self, before: float) -> int:
        """Remove blobs that were last used before this time, and are not now; return how many."""
        return await self._threads.run(self._blobs.sweep, before)


class BlobFiles:
    """The `BlobCache` of this machine; any number of processes may share the directory."""

    def __init__(
        self,
        directory: Path,
        threads: Threads,
        clock: IReactorTime,
        budget: DiskBudget | None = None,
        source: str = "",
    ) -> None:
        """Keep blobs below `directory`, which is made, and closed to others, when first used.

        Where there is no room, unused files of `budget` are removed; without one, unused blobs
        below `directory`. `source` names where the blobs come from, such as a location.
        """
        self.pack_directory = directory / blobs.PACKS
        self._directory = directory
        self._threads = threads
        self._clock = clock
        self._budget = budget or DiskBudget((CachedBlobs(directory),))
        self._locks = DownloadLocks(threads, clock, mark_of(source))
        self._inodes: dict[Path, list[int]] = {}
        """The inodes of the blobs in use: another process may remove and replace a damaged file."""

    @asynccontextmanager
    async def get(
        self,
        blob: Descriptor,
        download: Download,
        report: Callable[[int], None],
        on_start: Callable[[Opening], None],
    ) -> AsyncIterator[Path]:
        """Yield the file of a blob after downloading the bytes that are missing."""
        paths = BlobPaths.of(self._directory, blob.digest)
        async with AsyncExitStack() as use:
            while not await self._hold(use, paths, blob.size):
                await self._threads.run(self._make_directory, paths.whole.parent)
                async with self._locks.hold(blob, paths, report, PATIENCE) as files:
                    if files is not None and not await self._hold(use, paths, blob.size):
                        await self._download(use, blob, files, download, report, on_start)
                    if files is not None:
                        break
                await pause(POLL_SECONDS, self._clock)
            report(blob.size)
            yield paths.whole

    async def _hold(self, use: AsyncExitStack, paths: BlobPaths, size: int) -> bool:
        """Mark a blob as in use until `use` ends; return whether it is there."""
        descriptor = await self._threads.acquire(partial(blobs.hold, paths.whole, size), _close)
        if descriptor is not None:
            use.push_async_callback(self._threads.release, _close, descriptor)
            inode = (await self._threads.run(os.fstat, descriptor)).st_ino
            inodes = self._inodes.setdefault(paths.whole, [])
            inodes.append(inode)
            use.callback(self._forget_inode, paths.whole, inode)
        return descriptor is not None

    def _forget_inode(self, path: Path, inode: int) -> None:
        self._inodes[path].remove(inode)
        if not self._inodes[path]:
            del self._inodes[path]

    async def check_space(
        self, descriptors: Sequence[Descriptor], *, with_packs: bool = False
    ) -> None:
        """Refuse blobs that cannot fit, even if all unused files were removed."""
        size, room = await self._threads.run(self._space, descriptors, with_packs)
        if size > room:
            packs = " and the converted layers that are made of them" if with_packs else ""
            raise NoSpace(
                f"The image's layers{packs} need at least {amount(size)}, and the gateway's cache"
                f" has {amount(room)} for them."
            )

    def _space(self, descriptors: Sequence[Descriptor], with_packs: bool) -> tuple[int, int]:
        """Return the bytes that these blobs still need, and the bytes of room for them.

        Removes nothing: the sizes are what a manifest claims, and it may claim anything.
        """
        size = blobs.needed_size(self._directory, descriptors, with_packs=with_packs)
        blob_files = {BlobPaths.of(self._directory, blob.digest).whole for blob in descriptors}
        with disk_errors():
            return size, self._budget.room(self._directory, blob_files, enough=size)

    def _make_room(self, paths: BlobPaths, size: int, is_full: bool) -> bool:
        with disk_errors():
            return self._budget.make_room_for_growth(
                self._directory, size, {paths.whole}, is_full=is_full
            )

    async def discard(self, digest: Digest) -> bool:
        """See the port. Waits for other processes that work on the blob, `PATIENCE` at most."""
        stop, blob = Event(), BlobPaths.of(self._directory, digest)
        end = self._clock.seconds() + PATIENCE
        while True:
            inodes = set(self._inodes.get(blob.whole, ()))
            is_gone = await self._threads.run_until(
                stop.set, blobs.discard, blob, digest, stop, inodes
            )
            if is_gone is not None or self._clock.seconds() >= end:
                return bool(is_gone)
            await pause(POLL_SECONDS, self._clock)

    async def give_up(self, digest: Digest) -> None:
        """Remove the bytes of an interrupted download, unless another process is resuming it."""
        first = BlobPaths.of(self._directory, digest)
        for paths in (first, replace(first, mark=self._locks.mark)):
            await self._threads.run(blobs.give_up, paths)

    def _make_directory(self, directory: Path) -> None:
        with disk_errors():
            private_directory(self._directory)
            private_directory(directory)

    async def _download(
        self,
        use: AsyncExitStack,
        blob: Descriptor,
        paths: BlobPaths,
        download: Download,
        report: Callable[[int], None],
        on_start: Callable[[Opening], None],
    ) -> None:
        """Download the blob, whose lock we hold, and mark it as in use until `use` ends.

        Wrong bytes are downloaded once more, since a proxy or one of several servers may have
        damaged them. If they began with bytes of an earlier download, those may be the wrong ones,
        and this download does not count.
        """
        wrong_downloads = 0
        while wrong_downloads < WRONG_DOWNLOADS:
            is_right, is_resumed = await self._fetch(blob, paths, download, report, on_start)
            if is_right and await self._hold(use, paths, blob.size):
                return
            wrong_downloads += not is_resumed
        raise BlobCorrupt(
            f"A layer arrived {WRONG_DOWNLOADS} times with other bytes than its digest says:"
            " its registry, a proxy on the way, or the file that has it, is at fault.",
            remedy="Try again; if it lasts, push or copy the image once more.",
            detail=str(blob.digest),
        )

    async def _fetch(
        self,
        blob: Descriptor,
        paths: BlobPaths,
        download: Download,
        report: Callable[[int], None],
        on_start: Callable[[Opening], None],
    ) -> tuple[bool, bool]:
        """Download what is missing.

        Returns whether the digest was right, and whether the download resumed an earlier one. Bytes
        that prove wrong are removed; those of any other failure stay for the next download.
        """
        partial_blob = PartialBlob(paths.partial, blob, partial(self._make_room, paths))
        try:
            await self._threads.run_until(partial_blob.interrupt, partial_blob.open)
            report(partial_blob.start)
            on_start(partial_blob.arriving.open)
            is_resumed = partial_blob.start > 0
            if partial_blob.start < blob.size:
                is_resumed = await self._stream(partial_blob, blob, download, report)
            return await self._threads.run(partial_blob.keep, paths.whole), is_resumed
        finally:
            await self._threads.release(partial_blob.close)

    async def _stream(
        self,
        partial_blob: PartialBlob,
        blob: Descriptor,
        download: Download,
        report: Callable[[int], None],
    ) -> bool:
        """Run the download into the file; return whether it resumed what was there."""
        call: Any = None

        def stop() -> None:
            # Not at once: the writer may be called by the very download that is to be cancelled.
            nonlocal call
            call = self._clock.callLater(0, lambda: running.cancel())  # noqa: PLW0108 - not yet made

        writer = BlobWriter(partial_blob, blob, self._threads, report, stop)
        running = Deferred.fromCoroutine(_run(download(partial_blob.start, writer)))
        try:
            await running
            await writer.finish()
        except Exception as error:
            if writer.failure is not None and writer.failure is not error:
                raise writer.failure from error
            await writer.flush()  # the next download resumes behind all that has arrived
            raise
        finally:
            if call is not None and call.active():
                call.cancel()
            await writer.settle()
            if isinstance(writer.failure, BlobCorrupt):
                await self._threads.release(partial_blob.remove)
        return writer.is_resumed


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


async def _run(download: Awaitable[None]) -> None:
    await download
