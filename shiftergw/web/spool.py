"""Buffer an answer of unknown size: in memory while it is short, else in a temporary file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from tempfile import SpooledTemporaryFile
from typing import IO

from shiftergw.errors import Unavailable

InThread = Callable[[Callable[[bytes], int], bytes], Awaitable[int]]
"""Calls a blocking function in a thread and returns its result."""

MOST_IN_MEMORY = 1 << 20
"""Bytes of one spool in memory; a longer one is moved to an unnamed temporary file."""


class SpoolRoom:
    """Bytes of memory and of disk that all spools together may still use."""

    def __init__(self, memory: int = 16 << 20, disk: int = 1 << 30) -> None:
        self.memory = memory
        self.disk = disk


class Spool:
    """A buffer that is appended to, and then read once from its beginning."""

    def __init__(
        self,
        in_thread: InThread,
        most_in_memory: int = MOST_IN_MEMORY,
        room: SpoolRoom | None = None,
    ) -> None:
        """Start empty; write to a file `in_thread`."""
        self._in_thread = in_thread
        self._memory_limit = most_in_memory
        self._room = room or SpoolRoom()
        self._file = SpooledTemporaryFile[bytes](most_in_memory)
        self._size = 0
        self.in_memory = True
        """Whether the content is in memory, so that reading does not block."""

    def __len__(self) -> int:
        """Return the size in bytes."""
        return self._size

    async def write(self, data: bytes) -> None:
        """Append bytes; raise `Unavailable` if there is no room for them."""
        size = len(data)
        if self.in_memory and size <= min(self._room.memory, self._memory_limit - self._size):
            self._room.memory -= size
            self._size += size
            self._file.write(data)
            return
        if self.in_memory:
            self._switch_to_disk()
        self._reserve_disk(size)
        try:
            await self._in_thread(self._to_disk, data)
        except OSError as error:
            raise Unavailable(
                "The gateway has no room to put an answer together.",
                remedy="Tell the site's support: is the directory for temporary files full?",
                detail=str(error),
            ) from error

    def _switch_to_disk(self) -> None:
        size, self._size = self._size, 0
        self._room.memory += size
        self.in_memory = False
        self._reserve_disk(size)

    def _reserve_disk(self, size: int) -> None:
        if size > self._room.disk:
            raise Unavailable("Too many long lists are on their way.", remedy="Try again later.")
        self._room.disk -= size
        self._size += size

    def _to_disk(self, data: bytes) -> int:
        """Write and flush, so that a full disk fails here and not while the answer is sent."""
        self._file.rollover()
        count = self._file.write(data)
        self._file.flush()
        return count

    def open(self) -> IO[bytes]:
        """Return the content as a file, positioned at its beginning."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Drop the content and free its room for other spools."""
        self._file.close()
        if self.in_memory:
            self._room.memory += self._size
        else:
            self._room.disk += self._size
        self._size = 0
