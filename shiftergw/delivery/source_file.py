"""A converted file of this machine during its delivery: read in threads, and a little ahead."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.hashing import hash_file
from shiftergw.plumbing.timing import shield
from shiftergw.sftp.outgoing_file import CopiedRange

if TYPE_CHECKING:
    from pathlib import Path

    from shiftergw.delivery.delta import Segment
    from shiftergw.plumbing.threads import Threads

BLOCK = 4 << 20
"""Bytes that are read at once."""


class SourceFile:
    """An open file of `size` bytes. Its methods raise `OSError`."""

    def __init__(self, descriptor: int, size: int, threads: Threads) -> None:
        """Read from a descriptor in these threads."""
        self.size = size
        self._descriptor = descriptor
        self._threads = threads

    @classmethod
    async def open(cls, path: Path, threads: Threads) -> SourceFile:
        """Open a file; close it with `closed_at_end`."""

        def open_and_measure() -> tuple[int, int]:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return descriptor, os.fstat(descriptor).st_size

        descriptor, size = await threads.acquire(
            open_and_measure, lambda result: os.close(result[0])
        )
        return cls(descriptor, size, threads)

    @asynccontextmanager
    async def closed_at_end(self) -> AsyncIterator[None]:
        """Close the descriptor, in a thread, when the block ends."""
        try:
            yield
        finally:
            await self._threads.release(os.close, self._descriptor)

    async def piece(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end of the file."""
        return await self._threads.run(os.pread, self._descriptor, length, offset)

    async def sha256(self, length: int) -> str:
        """Return the digest of the first `length` bytes, in hexadecimal."""
        stop = Event()
        _, digest = await self._threads.run_until(
            stop.set, hash_file, self._descriptor, length=length, should_stop=stop.is_set
        )
        return digest

    def blocks(self, offset: int) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Return a context with an iterator over the content from `offset`, a block at a time.

        It reads one block of at most `BLOCK` bytes ahead, until the `with` statement ends.
        """
        return self._reading([(offset, max(0, self.size - offset))])

    @contextmanager
    def _reading(self, extents: Iterable[tuple[int, int]]) -> Iterator[_Blocks]:
        blocks = _Blocks(self._descriptor, extents, self._threads)
        try:
            yield blocks
        finally:
            blocks.close()

    def extents(self, extents: Sequence[tuple[int, int]]) -> SourceExtents:
        """Return the content of some extents, each an offset and a length, one after another."""
        return SourceExtents(self._reading, extents)

    @contextmanager
    def assembly(self, segments: Sequence[Segment]) -> Iterator[AsyncIterator[bytes | CopiedRange]]:
        """Yield an iterator over segments: ranges to be copied, and blocks as those of `blocks`."""
        with self._reading(_unshared_extents(segments)) as blocks:
            yield _assembly(segments, blocks)


class SourceExtents:
    """Extents of a source file, one after another, as the content of a file of `size` bytes."""

    def __init__(
        self,
        reading: Callable[
            [Iterable[tuple[int, int]]], AbstractContextManager[AsyncIterator[bytes]]
        ],
        extents: Sequence[tuple[int, int]],
    ) -> None:
        """Read the extents, each an offset and a length, with `reading`."""
        self.size = sum(length for _, length in extents)
        self._reading = reading
        self._extents = extents

    def blocks(self, offset: int) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Return a context as `SourceFile.blocks` does."""
        return self._reading(self._extents_from(offset))

    def _extents_from(self, offset: int) -> Iterator[tuple[int, int]]:
        for begin, length in self._extents:
            skip = min(offset, length)
            offset -= skip
            if skip < length:
                yield begin + skip, length - skip


class _Blocks:
    """Iterate over extents of a file, one block ahead of the caller."""

    def __init__(
        self, descriptor: int, extents: Iterable[tuple[int, int]], threads: Threads
    ) -> None:
        # A duplicate, so that an abandoned read never touches another file of the same number.
        self._descriptor = os.dup(descriptor)
        self._extents = iter(extents)
        self._offset = self._length = 0
        self._threads = threads
        self._next_block = self._begin()

    def _begin(self) -> Deferred[bytes]:
        while not self._length:
            extent = next(self._extents, None)
            if extent is None:
                return succeed(b"")
            self._offset, self._length = extent
        length = min(BLOCK, self._length)
        return self._threads.begin(os.pread, self._descriptor, length, self._offset)

    def __aiter__(self) -> _Blocks:
        return self

    async def __anext__(self) -> bytes:
        block = await shield(self._next_block)
        if not block:
            raise StopAsyncIteration
        self._offset += len(block)
        self._length -= len(block)
        self._next_block = self._begin()
        return block

    def close(self) -> None:
        """Close the duplicate once the read that is running has ended."""
        self._next_block.addBoth(
            lambda _: Deferred.fromCoroutine(self._threads.release(os.close, self._descriptor))
        )


def _unshared_extents(segments: Iterable[Segment]) -> Iterator[tuple[int, int]]:
    """Yield the extents that must be sent."""
    for segment in segments:
        if segment.source_offset is None:
            yield segment.offset, segment.length


async def _assembly(
    segments: Iterable[Segment], blocks: AsyncIterator[bytes]
) -> AsyncIterator[bytes | CopiedRange]:
    """Yield shared segments as ranges, and others as blocks. Raises `OSError` for a short file."""
    for segment in segments:
        if segment.source_offset is not None:
            yield CopiedRange(segment.source_offset, segment.length)
            continue
        missing_bytes = segment.length
        while missing_bytes:
            block = await anext(blocks, b"")
            if not block:
                raise OSError(errno.EIO, f"it ended before byte {segment.end}")
            missing_bytes -= len(block)
            yield block


@contextmanager
def source_errors() -> Iterator[None]:
    """Turn errors of reading the converted file into `DeliveryFailed`."""
    try:
        yield
    except OSError as error:
        raise DeliveryFailed(
            f"The converted file cannot be read: {error.strerror}.", detail=str(error)
        ) from error
