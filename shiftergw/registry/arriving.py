"""A blob that is read while it is being written: its layer is indexed on the way.

The bytes are not proven before the last one is there. Whoever reads them early gets no end until
then, and `BlobCorrupt` where it comes to nothing; what they have made of them is worth nothing
without that end.
"""

from __future__ import annotations

import io
from pathlib import Path
from threading import Condition, Event
from typing import Any

from shiftergw.errors import BlobCorrupt
from shiftergw.oci.compression import Stopped

_LOOK_SECONDS = 0.1
"""Seconds after which a reader that waits for bytes looks whether it is to stop."""


class Arriving:
    """How much of a file is there. One thread writes it, others may `open` and read it."""

    def __init__(self, path: Path) -> None:
        """Begin with nothing of the file at `path`."""
        self._path = path
        self._changed = Condition()
        self._size = 0
        self._is_whole = False
        self._is_lost = False

    def grown(self, size: int) -> None:
        """Let readers have what is there up to `size` bytes."""
        with self._changed:
            self._size = size
            self._changed.notify_all()

    def complete(self) -> None:
        """Let readers have the end: all is there and is what it should be."""
        with self._changed:
            self._is_whole = True
            self._changed.notify_all()

    def lose(self) -> None:
        """Have readers fail, unless all is there already: what they have read is void."""
        with self._changed:
            self._is_lost = not self._is_whole
            self._changed.notify_all()

    def open(self, stop: Event) -> io.FileIO:
        """Return a reader; see `Opening`."""
        try:
            return _Reader(self._path, self, stop)
        except FileNotFoundError:
            # It has its final name by now, or is gone.
            raise BlobCorrupt("A layer is no longer on its way.") from None

    def readable(self, position: int, stop: Event) -> int:
        """Return how many bytes may be read there once there are some; 0 at the end."""
        with self._changed:
            while self._size <= position and not self._is_whole:
                if self._is_lost:
                    break
                if stop.is_set():
                    raise Stopped
                self._changed.wait(_LOOK_SECONDS)
            if self._is_lost:
                raise BlobCorrupt("The download of a layer began anew or came to nothing.")
            return max(0, self._size - position)


class _Reader(io.FileIO):
    """The file, as far as it is there."""

    def __init__(self, path: Path, arriving: Arriving, stop: Event) -> None:
        super().__init__(path, "rb")
        self._arriving = arriving
        self._stop = stop

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._arriving.readable(self.tell(), self._stop))
        return super().readinto(view[:size])

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size >= 0, "the whole of it is not there"
        return super().read(min(size, self._arriving.readable(self.tell(), self._stop)))
