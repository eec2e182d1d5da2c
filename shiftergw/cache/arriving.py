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
from shiftergw.oci.compression import StopRequested

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
        """Let readers have the end, unless they are lost: all is there and is what it should be."""
        with self._changed:
            self._is_whole = not self._is_lost
            self._changed.notify_all()

    def lose(self) -> None:
        """Have readers fail for good, unless all is there: what they have read is void."""
        with self._changed:
            self._is_lost = not self._is_whole
            self._changed.notify_all()

    def open(self, stop: Event) -> io.FileIO:
        """Return a reader; see `Opening`."""
        late = BlobCorrupt("A layer is no longer on its way.")
        try:
            reader = _Reader(self._path, self, stop)
        except FileNotFoundError:
            raise late from None
        if self._is_whole:  # and has its final name: what has this one now may be another's
            reader.close()
            raise late
        return reader

    def readable(self, position: int, stop: Event) -> int:
        """Return how many bytes may be read there once there are some; 0 at the end."""
        with self._changed:
            while self._size <= position and not self._is_whole:
                if self._is_lost:
                    break
                if stop.is_set():
                    raise StopRequested
                self._changed.wait(_LOOK_SECONDS)
            if self._is_lost:
                raise _lost()
            return max(0, self._size - position)


def _lost() -> BlobCorrupt:
    return BlobCorrupt("The download of a layer began anew or came to nothing.")


class _Reader(io.FileIO):
    """The file, as far as it is there.

    Its writer may cut it short just before a read: that is not its end.
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
            raise _lost()
        return read

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size >= 0, "the whole of it is not there"
        size = min(size, self._arriving.readable(self.tell(), self._stop))
        data = super().read(size)
        if size and not data:
            raise _lost()
        return data
