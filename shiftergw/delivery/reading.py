"""Files of this machine on their way elsewhere, read in threads and a little ahead."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.plumbing.hashing import hash_file
from shiftergw.plumbing.timing import shielded

if TYPE_CHECKING:
    from pathlib import Path

    from shiftergw.plumbing.threads import Threads

BLOCK = 4 << 20


class SourceFile:
    """An open file: its size in bytes, and its content. Methods raise `OSError`."""

    def __init__(self, descriptor: int, size: int, threads: Threads) -> None:
        """Read from a descriptor, which stays the caller's."""
        self.size = size
        self._descriptor = descriptor
        self._threads = threads

    async def piece(self, offset: int, length: int) -> bytes:
        """Return `length` bytes; fewer only at the file's end."""
        return await self._threads.run(os.pread, self._descriptor, length, offset)

    async def sha256(self, length: int) -> str:
        """Return the digest of the first `length` bytes, in hexadecimal."""
        stop = Event()
        _, digest = await self._threads.run_until(
            stop.set, hash_file, self._descriptor, length=length, should_stop=stop.is_set
        )
        return digest

    @contextmanager
    def blocks(self, offset: int) -> Iterator[AsyncIterator[bytes]]:
        """Give the content from `offset` in blocks, of which one is read ahead."""
        blocks = _Blocks(self._descriptor, offset, self._threads)
        try:
            yield blocks
        finally:
            blocks.close()


class _Blocks:
    def __init__(self, descriptor: int, offset: int, threads: Threads) -> None:
        # Its own, so that a read that nobody waits for any more never meets another file.
        self._descriptor = os.dup(descriptor)
        self._offset = offset
        self._threads = threads
        self._ahead = self._begin()

    def _begin(self) -> Deferred[bytes]:
        return self._threads.begin(os.pread, self._descriptor, BLOCK, self._offset)

    def __aiter__(self) -> _Blocks:
        return self

    async def __anext__(self) -> bytes:
        block = await shielded(self._ahead)
        if not block:
            raise StopAsyncIteration
        self._offset += len(block)
        self._ahead = self._begin()
        return block

    def close(self) -> None:
        self._ahead.addBoth(
            lambda _: Deferred.fromCoroutine(self._threads.release(os.close, self._descriptor))
        )


@asynccontextmanager
async def closed_at_end(descriptor: int, threads: Threads) -> AsyncIterator[None]:
    """Close a descriptor, in a thread, when the block ends."""
    try:
        yield
    finally:
        await threads.release(os.close, descriptor)


def open_source(path: Path) -> tuple[int, int]:
    """Return a descriptor to read from and the file's size. Blocks: call it in a thread."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return descriptor, os.fstat(descriptor).st_size


def close_source(opened: tuple[int, int]) -> None:
    """Close what `open_source` has opened."""
    os.close(opened[0])
