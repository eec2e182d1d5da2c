"""Read blobs that are files, or parts of files. All functions block: call them in a thread."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

from shiftergw.errors import BlobCorrupt, ImageNotFound, ManifestInvalid, SourceUnreadable
from shiftergw.oci.compression import StopRequested, decompress
from shiftergw.plumbing.files import closed_on_error

PIECE_BYTES = 1 << 20
"""Bytes that are read at once."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Part of a file: `size` bytes from `offset`.

    If it `is_packed`, the blob is what these bytes unpack to (gzip or zstd).
    """

    path: Path
    offset: int
    size: int
    is_packed: bool = False


@contextmanager
def file_errors(description: str) -> Iterator[None]:
    """Translate errors of the operating system; `description` names what is read.

    A missing file or directory raises `ImageNotFound`, anything else `SourceUnreadable`.
    """
    try:
        yield
    except OSError as error:
        # `strerror` is ours for what is not a regular file, and else the same text.
        reason = error.strerror or "unknown error"
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise ImageNotFound(
                f"The {description} does not exist.",
                remedy="Check the path, and whether the image was copied completely.",
                detail=str(error),
            ) from error
        raise SourceUnreadable(
            f"The {description} cannot be read: {reason}.", detail=str(error)
        ) from error


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return the descriptor; raise `OSError` for others.

    A named pipe or a device could block for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with closed_on_error(descriptor):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return descriptor


def whole_file(path: Path, description: str) -> Extent:
    """Return a whole regular file as an extent; raise `ImageNotFound` or `SourceUnreadable`."""
    with file_errors(description):
        descriptor = open_regular(path)
        try:
            return Extent(path, 0, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)


def read_extent(extent: Extent, limit: int, description: str) -> bytes:
    """Return a small extent; raise `ManifestInvalid` if it has more than `limit` bytes."""
    if extent.size > limit:
        raise ManifestInvalid(f"The {description} is larger than {limit >> 20} MiB.")
    with file_errors(description), ExtentFile(extent) as file:
        content = file.read(extent.size)
    if len(content) < extent.size:
        raise BlobCorrupt(f"The {description} has become shorter meanwhile.")
    return content


class ExtentFile(io.FileIO):
    """An extent as a file that is read from its start to its end, without unpacking it."""

    def __init__(self, extent: Extent) -> None:
        """Open the file; raise `OSError`."""
        super().__init__(open_regular(extent.path), "rb")
        self._end = extent.offset + extent.size
        self.seek(extent.offset)

    def readinto(self, buffer: Any) -> int:
        """Read into the buffer; return the number of bytes, 0 at the end."""
        view = memoryview(buffer).cast("B")
        return super().readinto(view[: max(0, self._end - self.tell())])

    def read(self, size: int | None = -1) -> bytes:
        """Return at most `size` bytes; none at the end."""
        remaining = max(0, self._end - self.tell())
        return super().read(remaining if size is None or size < 0 else min(size, remaining))


class BlobReader:
    """Reads a blob from an offset to its end, unpacked if its extent is packed."""

    def __init__(self, extent: Extent, offset: int) -> None:
        """Open the file; raise `ImageNotFound` or `SourceUnreadable`."""
        self._stop = Event()
        self._lock = Lock()
        with file_errors("file of a layer"):
            self._file = ExtentFile(extent)
        self._pieces: Generator[bytes, None, None] | None = None
        self._skip = 0
        if extent.is_packed:
            self._pieces, self._skip = decompress(lambda _: self._file, self._stop), offset
        else:
            self._file.seek(extent.offset + offset)

    def read(self) -> bytes:
        """Return the next bytes; none at the end. Raises `StopRequested` soon after `stop`."""
        with self._lock:
            if self._stop.is_set():
                raise StopRequested
            if self._pieces is None:
                with file_errors("file of a layer"):
                    return self._file.read(PIECE_BYTES)
            for piece in self._pieces:
                if len(piece) > self._skip:
                    data, self._skip = piece[self._skip :], 0
                    return data
                self._skip -= len(piece)
            return b""

    def stop(self) -> None:
        """Make a running `read` end soon; it may be called from another thread."""
        self._stop.set()

    def close(self) -> None:
        """Close the file, after the end of a `read` in another thread."""
        self._stop.set()
        with self._lock:
            if self._pieces is not None:
                self._pieces.close()
            self._file.close()
