"""The compressed layers of this machine, as files named by their digests (`registry.blobs`).

A blob that lies there is trusted by its size: its digest was checked before it got its name, and
hashing all blobs again would cost every pull as much as the index of the layers does. That index
checks each layer's `diff_id` anyway; who finds a layer wrong there calls `discard`, which looks
whether the blob is damaged: an image may be wrong by itself, and its layers may be others', too.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from shiftergw.errors import BlobCorrupt, NoSpace, amount
from shiftergw.image import Descriptor, Digest, Opening, ResolvedImage
from shiftergw.plumbing.files import free_space, nearest, private_directory
from shiftergw.plumbing.locks import POLL_SECONDS, unlock
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobCache, Download
from shiftergw.registry import blobs
from shiftergw.registry.blobs import BlobPaths
from shiftergw.registry.partial import BlobWriter, PartialBlob, disk_errors

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class BlobCaches:
    """All caches of this machine: that of what everybody may read, and of each private repository.

    Blobs of a private repository lie apart: naming a digest in a manifest of one's own must not be
    a way to somebody else's content.
    """

    def __init__(self, directory: Path, threads: Threads, clock: IReactorTime) -> None:
        """Keep all below `directory`, which is made, and closed to others, when first used."""
        self._directory = directory
        self._threads = threads
        self._clock = clock
        self._caches: dict[Path, BlobFiles] = {}

    def of(self, image: ResolvedImage) -> BlobCache:
        """Return the cache that an image's blobs belong in."""
        place = self._directory
        if image.private:
            origin = f"{image.location}\n{image.repository}".encode()
            place = place / blobs.PRIVATE / hashlib.sha256(origin).hexdigest()[:32]
        new = BlobFiles(place, self._threads, self._clock, self._directory)
        return self._caches.setdefault(place, new)

    async def sweep(self, before: float) -> int:
        """Remove blobs that were last used before this time, and are not now; return how many."""
        return await self._threads.run(blobs.sweep, self._directory, before)


class BlobFiles:
    """The `BlobCache` of this machine; any number of processes may share the directory."""

    def __init__(
        self, directory: Path, threads: Threads, clock: IReactorTime, root: Path | None = None
    ) -> None:
        """Keep blobs below `directory`, which is made, and closed to others, when first used.

        Where there is no room, unused blobs below `root` make way, be they of other caches.
        """
        self._directory = directory
        self._threads = threads
        self._clock = clock
        self._root = root or directory

    @asynccontextmanager
    async def get(
        self,
        blob: Descriptor,
        download: Download,
        report: Callable[[int], None],
        begun: Callable[[Opening], None],
    ) -> AsyncIterator[Path]:
        """Give the file of a blob, downloading what of it is missing."""
        paths = BlobPaths.of(self._directory, blob.digest)
        held = blobs.hold(paths.whole, blob.size)
        if held is None:
            await self._threads.run(self._make_directory, paths.whole.parent)
            held = await self._get_locked(blob, paths, download, report, begun)
        try:
            report(blob.size)
            yield paths.whole
        finally:
            os.close(held)

    async def check_space(self, wanted: Sequence[Descriptor]) -> None:
        """Refuse blobs that surely do not fit, even if all that is unused made way for them."""
        missing, room = await self._threads.run(self._space, wanted)
        if missing > room:
            raise NoSpace(
                f"The image's layers need {amount(missing)} and the gateway's cache has"
                f" {amount(room)} for them."
            )

    def _space(self, wanted: Sequence[Descriptor]) -> tuple[int, int]:
        """Return the bytes of these blobs that do not lie here yet, and those they may have.

        Removes nothing: the sizes are what a manifest claims, and it may claim anything.
        """
        missing = 0
        distinct = {BlobPaths.of(self._directory, one.digest): one.size for one in wanted}
        for blob, size in distinct.items():
            if not blobs.is_whole(blob.whole, size):
                missing += max(0, size - blobs.size_of(blob.partial))
        room = free_space(nearest(self._root))
        if missing > room:
            room += blobs.removable(self._root, {blob.whole for blob in distinct})
        return missing, room

    def _make_room(self, paths: BlobPaths, size: int, is_full: bool) -> bool:
        return blobs.make_room_for_growth(self._root, size, {paths.whole}, is_full=is_full)

    async def discard(self, digest: Digest) -> None:
        """Forget a blob if its content proves damaged; it need not be there."""
        stop, blob = Event(), BlobPaths.of(self._directory, digest)
        await self._threads.run_until(stop.set, blobs.discard, blob, digest, stop)

    async def give_up(self, digest: Digest) -> None:
        """Remove what a broken download left, unless somebody is at it now."""
        await self._threads.run(blobs.give_up, BlobPaths.of(self._directory, digest))

    def _make_directory(self, directory: Path) -> None:
        with disk_errors():
            private_directory(self._directory)
            private_directory(directory)

    async def _get_locked(
        self,
        blob: Descriptor,
        paths: BlobPaths,
        download: Download,
        report: Callable[[int], None],
        begun: Callable[[Opening], None],
    ) -> int:
        """Download under the blob's lock, unless another does so first; hold what is there then."""
        while (locked := blobs.lock(paths)) is None:
            report(min(blobs.size_of(paths.partial), blob.size))
            await pause(POLL_SECONDS, self._clock)
        try:
            held = blobs.hold(paths.whole, blob.size)
            if held is not None:
                return held
            kept, resumed = await self._fetch(blob, paths, download, report, begun)
            if not kept and resumed:
                # What an earlier download left was damaged; this one need not suffer for it.
                kept, _ = await self._fetch(blob, paths, download, report, begun)
            held = blobs.hold(paths.whole, blob.size) if kept else None
        finally:
            unlock(paths.lock, locked)
        if held is None:
            raise BlobCorrupt(
                "A layer arrived with other bytes than its digest says.", detail=str(blob.digest)
            )
        return held

    async def _fetch(
        self,
        blob: Descriptor,
        paths: BlobPaths,
        download: Download,
        report: Callable[[int], None],
        begun: Callable[[Opening], None],
    ) -> tuple[bool, bool]:
        """Download what is missing; say whether the digest was right, and whether it resumed."""
        partial = PartialBlob(paths.partial, blob, functools.partial(self._make_room, paths))
        try:
            await self._threads.run_until(partial.interrupt, partial.open)
            report(partial.start)
            begun(partial.arriving.open)
            resumed = partial.start > 0
            if partial.start < blob.size:
                resumed = await self._stream(partial, blob, download, report)
            return await self._threads.run(partial.keep, paths.whole), resumed
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
