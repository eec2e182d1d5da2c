"""A blob on its way to the disk: hashed and written in threads, never on the reactor's.

`PartialBlob` is the file, and blocks. `BlobWriter` is what a download streams into: it takes bytes
on the reactor's thread, has them written in order, batch after batch, and pauses the producer while
the disk is slower than the network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.cache.arriving import Arriving
from shiftergw.errors import BlobCorrupt, PullError
from shiftergw.image import Descriptor
from shiftergw.plumbing.disk_errors import DISK_FULL, translated_disk_errors
from shiftergw.plumbing.files import replace_durably
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import shield

MOST_WAITING = 4 << 20
"""Bytes that wait for the disk before the producer is paused; it goes on below half of it."""

MakeRoom = Callable[[int, bool], bool]
"""Frees so many bytes by removing other blobs; True if the disk has just refused a write.

Returns whether anything was removed. Blocks.
"""

_PIECE = 1 << 20


def disk_errors() -> AbstractContextManager[None]:
    """Turn errors of the cache's disk into `NoSpace` or `PullError`."""
    return translated_disk_errors(
        "The gateway's disk for layers is full.",
        lambda _: PullError("The gateway cannot read or write its cache of layers."),
    )


class PartialBlob:
    """The bytes of a blob that are there so far, and their hash. All methods block."""

    def __init__(
        self, path: Path, blob: Descriptor, make_room: MakeRoom = lambda _, __: False
    ) -> None:
        """Prepare for the file at `path`; nothing is opened.

        `make_room` is called before bytes are written that have arrived: what a manifest claims
        costs nobody any room.
        """
        self._path = path
        self._blob = blob
        self._make_room = make_room
        self._hash = self._hash_at_start = hashlib.new(blob.digest.algorithm)
        self._descriptor = -1
        self._closing = False
        self._size = 0
        self.arriving = Arriving(path)
        """For those who read it on its way; lost, and for good, where the download starts anew."""
        self.start = 0
        """Bytes that were there when the file was opened."""

    def open(self) -> None:
        """Open or make the file and hash what it holds; more than the blob's size is dropped."""
        with disk_errors():
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o600)
            if os.fstat(self._descriptor).st_size > self._blob.size:
                os.ftruncate(self._descriptor, 0)
            while not self._closing and (piece := os.read(self._descriptor, _PIECE)):
                self._hash.update(piece)
                self.start += len(piece)
        self._hash_at_start = self._hash.copy()
        self._grow(self.start)

    def rewind(self, offset: int) -> None:
        """Go back to the beginning, or to where the file was when it was opened."""
        self.arriving.lose()
        with disk_errors():
            os.ftruncate(self._descriptor, offset)
            os.lseek(self._descriptor, offset, os.SEEK_SET)
        # Copied, because the source may start from there once more.
        fresh = hashlib.new(self._blob.digest.algorithm)
        self._hash = self._hash_at_start.copy() if offset else fresh

    def append(self, pieces: list[bytes]) -> None:
        """Hash and write the next bytes."""
        data = memoryview(b"".join(pieces))
        size = len(data)
        self._hash.update(data)
        self._make_room(size, False)
        with disk_errors():
            while data:
                data = data[self._written(data) :]
        self._grow(size)

    def _written(self, data: memoryview) -> int:
        """Write some bytes; retry on a full disk as long as other blobs can be removed."""
        while True:
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                if error.errno not in DISK_FULL or not self._make_room(len(data), True):
                    raise

    def _grow(self, size: int) -> None:
        self._size += size
        self.arriving.grown(self._size)

    def has_digest(self) -> bool:
        """Return whether the bytes so far are the whole blob, whatever size a manifest claims."""
        return self._hash.hexdigest() == self._blob.digest.hex

    def keep(self, final: Path) -> bool:
        """Put the whole blob in place under its own name; False if its digest is another."""
        with disk_errors():
            if self._hash.hexdigest() != self._blob.digest.hex:
                self._path.unlink()
                return False
            os.fsync(self._descriptor)
            replace_durably(self._path, final)
        self.arriving.complete()
        return True

    def remove(self) -> None:
        """Remove the file: its bytes are wrong, and no download may resume from them."""
        self.arriving.lose()
        with disk_errors():
            self._path.unlink(missing_ok=True)

    def interrupt(self) -> None:
        """Make a running `open` end soon; it may be called from another thread."""
        self._closing = True

    def close(self) -> None:
        """Close the file; its bytes stay for the next download, and an empty file is removed."""
        self.arriving.lose()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                with disk_errors():
                    if not os.fstat(descriptor).st_size:
                        self._path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


class BlobWriter:
    """The `BlobSink` over a `PartialBlob`.

    Once it has failed (`failure`), it takes nothing more, and has called `on_failure`.
    """

    def __init__(
        self,
        partial: PartialBlob,
        blob: Descriptor,
        threads: Threads,
        report: Callable[[int], None],
        on_failure: Callable[[], object],
    ) -> None:
        """Write behind what `partial`, which is open, holds."""
        self._partial = partial
        self._blob = blob
        self._threads = threads
        self._report = report
        self._on_failure = on_failure
        self._position = self._written = partial.start
        self._waiting: list[bytes] = []
        self._rewind: int | None = None
        self._writing: Deferred[None] | None = None
        self._producer: Any = None
        self._streaming = True
        self._paused = False
        self.resumed = partial.start > 0
        """Whether the blob begins with bytes of an earlier download."""
        self.failure: Exception | None = None

    # What the source calls.

    def begin(self, offset: int) -> None:
        """Take the bytes from `offset`: 0, where the download began, or where it is now."""
        if self.failure is not None:
            raise self.failure
        if 0 < self._position < self._blob.size and self._is_proven():
            raise self._fail(
                BlobCorrupt(
                    f"The image's manifest says that a layer has {self._blob.size} bytes; it has"
                    f" {self._position}.",
                    remedy="Push the image once more with a current tool.",
                    detail=str(self._blob.digest),
                )
            )
        if offset == self._position:
            return
        if offset not in {0, self._partial.start}:
            raise self._fail(_corrupt(self._blob, "The source sent a part that was not asked for"))
        self.resumed = self.resumed and offset > 0
        self._drop()
        self._rewind = self._position = offset
        self._write_on()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """As `IConsumer`; a producer that is to be asked for each piece works too."""
        self._producer, self._streaming, self._paused = producer, streaming, False
        if not streaming:
            producer.resumeProducing()
        else:
            self._pause_if_full()

    def unregisterProducer(self) -> None:
        """As `IConsumer`."""
        self._producer = None

    def write(self, data: bytes) -> None:
        """Take the next bytes; raise `BlobCorrupt` on more than the descriptor's size."""
        if self.failure is not None:
            raise self.failure
        if self._position + len(data) > self._blob.size:
            raise self._fail(_corrupt(self._blob, "The source sent more than the manifest says"))
        self._waiting.append(data)
        self._position += len(data)
        self._pause_if_full()
        self._write_on()

    # What the cache calls.

    async def finish(self) -> None:
        """Return when everything is written; raise `BlobCorrupt` if that is not all of it."""
        while self._writing is not None:
            await shield(self._writing)
        if self.failure is not None:
            raise self.failure
        if self._position < self._blob.size:
            raise _corrupt(self._blob, "The download of a layer ended early")

    async def settle(self) -> None:
        """Drop what waits and return when no thread writes any more, whoever cancels."""
        self._drop()
        cancelled: CancelledError | None = None
        while self._writing is not None:
            try:
                await shield(self._writing)
            except CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    # How it works.

    def _is_proven(self) -> bool:
        """Return whether all bytes so far are written, and are the blob of this digest."""
        return self._writing is None and self._partial.has_digest()

    def _write_on(self) -> None:
        if self._writing is None:
            self._writing = Deferred.fromCoroutine(self._write_batches())
            self._writing.addBoth(self._wrote)

    def _wrote(self, _: object) -> None:
        self._writing = None

    async def _write_batches(self) -> None:
        """Write until nothing waits; one batch at a time keeps the order."""
        try:
            while self._waiting or self._rewind is not None:
                if self._rewind is not None:
                    offset, self._rewind = self._rewind, None
                    await self._threads.run(self._partial.rewind, offset)
                    self._written = offset
                else:
                    batch, self._waiting = self._waiting, []
                    await self._threads.run(self._partial.append, batch)
                    self._written += sum(map(len, batch))
                self._report(self._written)
                self._resume_if_room()
        except Exception as error:  # noqa: BLE001 - `finish` raises it
            self._fail(error)

    def _fail(self, error: Exception) -> Exception:
        """Take nothing more; return the first failure, which is the one that counts."""
        if self.failure is None:
            self.failure = error
            self._drop()
            self._on_failure()
        return self.failure

    def _drop(self) -> None:
        self._waiting.clear()
        self._rewind = None

    def _pause_if_full(self) -> None:
        full = self._position - self._written > MOST_WAITING
        if full and self._streaming and not self._paused and self._producer is not None:
            self._paused = True
            self._producer.pauseProducing()

    def _resume_if_room(self) -> None:
        room = self._position - self._written < MOST_WAITING // 2
        if room and self._producer is not None and (self._paused or not self._streaming):
            self._paused = False
            self._producer.resumeProducing()


def _corrupt(blob: Descriptor, what: str) -> BlobCorrupt:
    return BlobCorrupt(f"{what}.", detail=str(blob.digest))
