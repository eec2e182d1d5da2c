"""Stream a download into a partial blob: hashed and written in threads, with back-pressure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.cache.partial import PartialBlob
from shiftergw.errors import BlobCorrupt
from shiftergw.model.images import Descriptor
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import shield

MOST_WAITING = 4 << 20
"""Bytes that wait for the disk before the producer is paused; it goes on below half of it."""


@dataclass(slots=True, eq=False)
class _Stream:
    """The bytes that a source sends without interruption.

    `is_abandoned` means that it has ended before it sent any byte that the file did not have.
    """

    start: int
    is_abandoned: bool = False


@dataclass(slots=True)
class _Batch:
    """Bytes of one stream that wait for the disk; `offset` is that of the first of them."""

    stream: _Stream
    offset: int
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0

    @property
    def end(self) -> int:
        """Return the offset behind the last byte."""
        return self.offset + self.size


class BlobWriter:
    """The `BlobSink` over a `PartialBlob`.

    It takes bytes on the reactor's thread, writes them in order, batch after batch, in threads, and
    pauses the producer while the disk is slower than the network. Once it has failed (`failure`),
    it takes nothing more, and has called `on_failure`.

    A source that cannot resume sends the blob from its first byte. Bytes that the file has are then
    compared and not written. If they are the same, the file keeps all that it has, also if the
    source breaks off once more. From the first batch that differs on, the new bytes replace those
    of the file, because nobody knows which are right.
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
        self._stream = _Stream(partial.start)
        self._cursor = self._position = self._written_size = partial.start
        self._batches: list[_Batch] = []
        self._waiting_size = 0
        """Bytes that have arrived, and are neither written nor compared yet."""
        self._is_discarded = False
        """Whether the next batch is to be written to an empty file."""
        self._writing: Deferred[None] | None = None
        self._producer: Any = None
        self._streaming = True
        self._is_paused = False
        self.is_resumed = partial.start > 0
        """Whether the blob begins with bytes of an earlier download."""
        self.failure: Exception | None = None

    # What the source calls.

    @property
    def position(self) -> int:
        """See the port; bytes that wait for the disk count."""
        return self._position

    def begin(self, offset: int) -> None:
        """Take the bytes from `offset`: 0 or the position."""
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
        if offset not in {0, self._position}:
            raise self._fail(_corrupt(self._blob, "The source sent a part that was not asked for"))
        if self._cursor < self._position:
            self._abandon()
        elif offset == 0 and self._cursor == self._blob.size:
            self._discard()
        self._stream = _Stream(offset)
        self._cursor = offset

    def _abandon(self) -> None:
        """Keep what the file has: the stream has ended before it reached the end of that."""
        self._stream.is_abandoned = True
        self._drop(self._stream)

    def _discard(self) -> None:
        """Keep nothing: who starts again after the last byte has found that bytes are wrong."""
        self._drop()
        self._position = 0
        self._is_discarded = True

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """As `IConsumer`; a producer that is to be asked for each piece works too."""
        self._producer, self._streaming, self._is_paused = producer, streaming, False
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
        if self._cursor + len(data) > self._blob.size:
            raise self._fail(_corrupt(self._blob, "The source sent more than the manifest says"))
        if not self._batches or self._batches[-1].stream is not self._stream:
            self._batches.append(_Batch(self._stream, self._cursor))
        batch = self._batches[-1]
        batch.pieces.append(data)
        batch.size += len(data)
        self._waiting_size += len(data)
        self._cursor += len(data)
        self._position = max(self._position, self._cursor)
        if self._stream.start == 0 and self._cursor >= self._partial.start:
            self.is_resumed = False
        self._pause_if_full()
        self._write_on()

    # What the cache calls.

    async def finish(self) -> None:
        """Return when everything is written; raise `BlobCorrupt` if that is not all of it."""
        await self.flush()
        if self.failure is not None:
            raise self.failure
        if self._cursor < self._blob.size:
            raise _corrupt(self._blob, "The download of a layer ended early")

    async def flush(self) -> None:
        """Return when all bytes that have arrived are written, or writing has failed."""
        while self._writing is not None:
            await shield(self._writing)

    async def settle(self) -> None:
        """Drop the bytes that wait; return when no thread writes any more, even if cancelled."""
        self._drop()
        cancellation: CancelledError | None = None
        while self._writing is not None:
            try:
                await shield(self._writing)
            except CancelledError as error:
                cancellation = error
        if cancellation is not None:
            raise cancellation

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
            while self._batches:
                batch = self._batches.pop(0)
                await self._write_batch(batch)
                self._waiting_size -= batch.size
                self._report(self._written_size)
                self._resume_if_room()
        except Exception as error:  # noqa: BLE001 - `finish` raises it
            self._fail(error)

    async def _write_batch(self, batch: _Batch) -> None:
        """Compare the bytes that the file has, and write those that it does not have."""
        if self._is_discarded:
            self._is_discarded = False
            await self._threads.run(self._partial.truncate, 0)
            self._written_size = 0
        data = memoryview(b"".join(batch.pieces))
        repeated_size = min(self._written_size - batch.offset, len(data))
        if repeated_size > 0:
            repetition = data[:repeated_size]
            if await self._threads.run(self._partial.repeats, batch.offset, repetition):
                data = data[repeated_size:]
            elif batch.stream.is_abandoned:
                return
            else:
                self._position = max(waiting.end for waiting in (batch, *self._batches))
                await self._threads.run(self._partial.truncate, batch.offset)
                self._written_size = batch.offset
        if data:
            await self._threads.run(self._partial.append, data)
            self._written_size += len(data)

    def _fail(self, error: Exception) -> Exception:
        """Take nothing more; return the first failure, since later ones are its consequences."""
        if self.failure is None:
            self.failure = error
            self._drop()
            self._on_failure()
        return self.failure

    def _drop(self, stream: _Stream | None = None) -> None:
        """Forget the bytes of a stream, or of all, that wait for the disk."""
        remaining = [b for b in self._batches if stream not in {None, b.stream}]
        self._waiting_size -= sum(b.size for b in self._batches) - sum(b.size for b in remaining)
        self._batches[:] = remaining

    def _pause_if_full(self) -> None:
        full = self._waiting_size > MOST_WAITING
        if full and self._streaming and not self._is_paused and self._producer is not None:
            self._is_paused = True
            self._producer.pauseProducing()

    def _resume_if_room(self) -> None:
        room = self._waiting_size < MOST_WAITING // 2
        if room and self._producer is not None and (self._is_paused or not self._streaming):
            self._is_paused = False
            self._producer.resumeProducing()


def _corrupt(blob: Descriptor, what: str) -> BlobCorrupt:
    return BlobCorrupt(f"{what}.", detail=str(blob.digest))
