"""The file of an image that is composed: bytes are appended, or copied from packs by the kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from threading import Event

from shiftergw.errors import BlobCorrupt
from shiftergw.oci.compression import StopRequested

ALIGNMENT = 4096
"""Bytes of a block of a file system that can share blocks between files (XFS, Btrfs)."""

_CHUNK = 8 << 20
"""Bytes that the kernel copies between two checks of the stop flag."""

_BUFFER = 1 << 20
"""Bytes that are read and written at a time where the kernel does not copy."""


class ImageOutput:
    """An open file that is written from its beginning to its end. All methods block.

    They raise `StopRequested` soon after the stop flag is set, and `OSError`.
    """

    def __init__(self, descriptor: int, position: int, stop: Event) -> None:
        """Write from `position` on into an empty file."""
        self.position = position
        """Where the next bytes are written."""
        self._descriptor = descriptor
        self._stop = stop

    def append(self, data: bytes) -> None:
        """Write bytes at the position, and move it behind them."""
        if self._stop.is_set():
            raise StopRequested
        self.position = _write_at(self._descriptor, data, self.position)

    def write_start(self, data: bytes) -> None:
        """Write the first bytes of the file, which makes it a complete one."""
        _write_at(self._descriptor, data, 0)

    def copy(
        self, source: int, start: int, target: int, length: int, report: Callable[[int], None]
    ) -> None:
        """Copy a range of the file `source` to `target`; the position stays.

        Any thread may call this, also while others write elsewhere. The kernel copies, and lets the
        files share the blocks where the file system can: only whole blocks at the same offset in
        them, so what is before the first whole block is copied for itself. `report` gets the bytes
        of each step. Raises `BlobCorrupt` if the source ends too early.
        """
        step = -start % ALIGNMENT if (start - target) % ALIGNMENT == 0 else 0
        end = start + length
        while start < end:
            if self._stop.is_set():
                raise StopRequested
            count = self._copy_some(source, start, target, min(step or _CHUNK, end - start))
            step = max(step - count, 0)
            start += count
            target += count
            report(count)

    def _copy_some(self, source: int, start: int, target: int, length: int) -> int:
        """Copy at most `length` bytes; return how many."""
        # Its errors depend on the kernel and both file systems, and some file systems return 0:
        # reading and writing works, or says what is wrong.
        with suppress(OSError):
            count = os.copy_file_range(source, self._descriptor, length, start, target)
            if count:
                return count
        data = os.pread(source, min(length, _BUFFER), start)
        if not data:
            raise BlobCorrupt("A pack of a layer is shorter than before.")
        _write_at(self._descriptor, data, target)
        return len(data)


def _write_at(descriptor: int, data: bytes, position: int) -> int:
    """Write all bytes at a position; return the position behind them."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(descriptor, rest, position)
        rest = rest[count:]
        position += count
    return position
