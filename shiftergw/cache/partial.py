"""The file of a blob that is being downloaded, and its hash. All functions block."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from shiftergw.cache.arriving import Arriving
from shiftergw.errors import PullError
from shiftergw.model.images import Descriptor
from shiftergw.plumbing.disk_errors import DISK_FULL, translated_disk_errors
from shiftergw.plumbing.files import replace_durably

MakeRoom = Callable[[int, bool], bool]
"""Frees a number of bytes by removing other blobs; True if the disk has just refused a write.

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
    """The bytes of a blob that have arrived so far, and their hash. All methods block.

    `arriving` is for readers during the download; they fail for good if bytes are dropped.
    """

    def __init__(
        self, path: Path, blob: Descriptor, make_room: MakeRoom = lambda _, __: False
    ) -> None:
        """Prepare for the file at `path`; nothing is opened.

        `make_room` is called before bytes that have arrived are written, so that a size which a
        manifest merely claims removes no blobs.
        """
        self._path = path
        self._blob = blob
        self._make_room = make_room
        self._hash = self._repeated_hash = hashlib.new(blob.digest.algorithm)
        self._descriptor = -1
        self._closing = False
        self._size = 0
        self.arriving = Arriving(path)
        self.start = 0
        """Bytes that the file had when it was opened."""

    def open(self) -> None:
        """Open or make the file and hash its bytes; truncate it if it is larger than the blob."""
        with disk_errors():
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o600)
            if os.fstat(self._descriptor).st_size > self._blob.size:
                os.ftruncate(self._descriptor, 0)
            while not self._closing and (piece := os.read(self._descriptor, _PIECE)):
                self._hash.update(piece)
                self.start += len(piece)
        self._grow(self.start)

    def repeats(self, offset: int, data: memoryview) -> bool:
        """Return whether the file has these bytes at `offset`: its source sends them once more.

        A source starts at 0 and goes on, so all bytes before `offset` have been compared.
        """
        if offset == 0:
            self._repeated_hash = hashlib.new(self._blob.digest.algorithm)
        with disk_errors():
            if os.pread(self._descriptor, len(data), offset) != data:
                return False
        self._repeated_hash.update(data)
        return True

    def truncate(self, offset: int) -> None:
        """Drop the bytes from `offset`: 0, or where `repeats` has found a difference."""
        self.arriving.abort()
        with disk_errors():
            os.ftruncate(self._descriptor, offset)
            os.lseek(self._descriptor, offset, os.SEEK_SET)
        if offset == 0:
            self._repeated_hash = hashlib.new(self._blob.digest.algorithm)
        self._hash = self._repeated_hash.copy()
        self._size = offset

    def append(self, data: memoryview) -> None:
        """Hash and write the next bytes."""
        size = len(data)
        self._hash.update(data)
        self._make_room(size, False)
        with disk_errors():
            while data:
                data = data[self._write_some(data) :]
        self._grow(size)

    def _write_some(self, data: memoryview) -> int:
        """Write some bytes; retry on a full disk as long as other blobs can be removed."""
        while True:
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                if error.errno not in DISK_FULL or not self._make_room(len(data), True):
                    raise

    def _grow(self, size: int) -> None:
        self._size += size
        self.arriving.grow(self._size)

    def has_digest(self) -> bool:
        """Return whether the bytes so far are the whole blob, whatever size a manifest claims."""
        return self._hash.hexdigest() == self._blob.digest.hex

    def keep(self, final: Path) -> bool:
        """Give the whole blob its final name; return False and remove it if its digest is wrong."""
        with disk_errors():
            if self._hash.hexdigest() != self._blob.digest.hex:
                self._path.unlink()
                return False
            os.fsync(self._descriptor)
            replace_durably(self._path, final)
        self.arriving.complete(final)
        return True

    def remove(self) -> None:
        """Remove the file: its bytes are wrong, and no download may resume from them."""
        self.arriving.abort()
        with disk_errors():
            self._path.unlink(missing_ok=True)

    def interrupt(self) -> None:
        """Make a running `open` end soon; it may be called from another thread."""
        self._closing = True

    def close(self) -> None:
        """Close the file; its bytes stay for the next download, and an empty file is removed."""
        self.arriving.abort()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                with disk_errors():
                    if not os.fstat(descriptor).st_size:
                        self._path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
