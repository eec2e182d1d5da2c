"""Read a blob while it is being written, so that its layer is indexed during the download.

The bytes are verified only after the last one has arrived. A reader gets the end of the file then,
or `BlobCorrupt` if the download fails; without that end it must not use what it has read.
"""

from __future__ import annotations

import io
from pathlib import Path
from threading import Condition, Event
from typing import Any

from shiftergw.errors import BlobCorrupt
from shiftergw.oci.compression import StopRequested

_LOOK_SECONDS = 0.1
"""Seconds after which a reader that waits for bytes checks whether it should stop."""


class Arriving:
    """The size of a growing file. One thread writes it, others may `open` and read it."""

    def __init__(self, path: Path) -> None:
        """Begin with an empty file at `path`."""
        self._path = path
        self._condition = Condition()
        self._size = 0
        self._is_whole = False
        self._is_aborted = False

    def grow(self, size: int) -> None:
        """Let readers read up to `size` bytes."""
        with self._condition:
            self._size = size
            self._condition.notify_all()

    def complete(self, path: Path) -> None:
        """Let readers read to the end: the file is verified, and its name is `path` from now on.

        No effect after `abort`.
        """
        with self._condition:
            self._path = path
            self._is_whole = not self._is_aborted
            self._condition.notify_all()

    def abort(self) -> None:
        """Fail all readers unless the download is complete."""
        with self._condition:
            self._is_aborted = not self._is_whole
            self._condition.notify_all()

    def open(self, stop: Event) -> io.FileIO:
        """Return a reader; see `Opening`."""
        path = self._path
        reader = self._reader(path, stop)
        if reader is None:  # perhaps the file gets its final name just now
            self.readable(self._size, stop)
        elif path == self._path:
            return reader
        else:  # the old name may be that of another download by now
            reader.close()
        reader = self._reader(self._path, stop)
        if reader is None:
            raise BlobCorrupt("A layer is no longer in the cache.")
        return reader

    def _reader(self, path: Path, stop: Event) -> _Reader | None:
        try:
            return _Reader(path, self, stop)
        except FileNotFoundError:
            return None

    def readable(self, position: int, stop: Event) -> int:
        """Return how many bytes may be read there once there are some; 0 at the end."""
        with self._condition:
            while self._size <= position and not self._is_whole:
                if self._is_aborted:
                    break
                if stop.is_set():
                    raise StopRequested
                self._condition.wait(_LOOK_SECONDS)
            if self._is_aborted:
                raise _aborted_download()
            return max(0, self._size - position)


def _aborted_download() -> BlobCorrupt:
    return BlobCorrupt("The download of a layer began anew or came to nothing.")


class _Reader(io.FileIO):
    """Reads the file as far as it has grown.

    Its writer may truncate it just before a read: that is not its end.
    """

    def __init__(self, path: Path, arriving: Arriving, stop: Event) -> None:
        super().__init__(path, "rb")
        self._arriving = arriving
        self._stop = stop

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._arriving.readable(self.tell(), self._stop))
        read = super().readinto(view[:size])
        if size and not read:
            raise _aborted_download()
        return read

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size >= 0, "a growing file has no end to read to"
        size = min(size, self._arriving.readable(self.tell(), self._stop))
        data = super().read(size)
        if size and not data:
            raise _aborted_download()
        return data
