"""Bytes that are put together before they are sent, however many they become."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from tempfile import SpooledTemporaryFile
from typing import IO

from shiftergw.errors import Unavailable

InThread = Callable[[Callable[[bytes], int], bytes], Awaitable[int]]
"""Calls a function that may block in a thread."""

MOST_IN_MEMORY = 1 << 20
"""Bytes that are kept in memory; more go to a file that has no name."""


class Spool:
    """Grows at its end, and is read once from its beginning."""

    def __init__(self, in_thread: InThread, most_in_memory: int = MOST_IN_MEMORY) -> None:
        """Begin empty; what goes to a file is written `in_thread`."""
        self._in_thread = in_thread
        self._most = most_in_memory
        self._file = SpooledTemporaryFile[bytes](most_in_memory)
        self._size = 0

    def __len__(self) -> int:
        """Return how many bytes there are."""
        return self._size

    async def write(self, data: bytes) -> None:
        """Add bytes; raise `Unavailable` where the disk has no room for them."""
        self._size += len(data)
        if self.in_memory:
            self._file.write(data)
            return
        try:
            await self._in_thread(self._to_disk, data)
        except OSError as error:
            raise Unavailable(
                "The gateway has no room to put an answer together.",
                remedy="Tell the site's support: is the directory for temporary files full?",
                detail=str(error),
            ) from error

    def _to_disk(self, data: bytes) -> int:
        """Write all of it: what stayed in a buffer would fail when the answer is on its way."""
        written = self._file.write(data)
        self._file.flush()
        return written

    @property
    def in_memory(self) -> bool:
        """Say whether reading it cannot block."""
        return self._size <= self._most

    def open(self) -> IO[bytes]:
        """Return the file, at its beginning."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Forget everything."""
        self._file.close()
