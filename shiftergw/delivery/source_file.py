"""A converted file of this machine during its delivery: read in threads, and a little ahead."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.hashing import hash_file
from shiftergw.plumbing.timing import shield

if TYPE_CHECKING:
    from pathlib import Path

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

    @contextmanager
    def blocks(self, offset: int) -> Iterator[AsyncIterator[bytes]]:
        """Yield an iterator over the content from `offset`, `BLOCK` bytes at a time.

        It reads one block ahead, until the `with` statement ends.
        """
        blocks = _Blocks(self._descriptor, offset, self._threads)
        try:
            yield blocks
        finally:
            blocks.close()


class _Blocks:
    """Iterate over the content of a file from `offset`, one block ahead of the caller."""

    def __init__(self, descriptor: int, offset: int, threads: Threads) -> None:
        # A duplicate, so that an abandoned read never touches another file of the same number.
        self._descriptor = os.dup(descriptor)
        self._offset = offset
        self._threads = threads
        self._next_block = self._begin()

    def _begin(self) -> Deferred[bytes]:
        return self._threads.begin(os.pread, self._descriptor, BLOCK, self._offset)

    def __aiter__(self) -> _Blocks:
        return self

    async def __anext__(self) -> bytes:
        block = await shield(self._next_block)
        if not block:
            raise StopAsyncIteration
        self._offset += len(block)
        self._next_block = self._begin()
        return block

    def close(self) -> None:
        """Close the duplicate once the read that is running has ended."""
        self._next_block.addBoth(
            lambda _: Deferred.fromCoroutine(self._threads.release(os.close, self._descriptor))
        )


@contextmanager
def source_errors() -> Iterator[None]:
    """Turn errors of reading the converted file into `DeliveryFailed`."""
    try:
        yield
    except OSError as error:
        raise DeliveryFailed(
            f"The converted file cannot be read: {error.strerror}.", detail=str(error)
        ) from error
