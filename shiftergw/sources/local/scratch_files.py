"""Write files of a source to the scratch directory, within limits. Blocks: call it in a thread."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from threading import Event

from shiftergw.errors import LayerInvalid, ManifestInvalid, SourceUnreadable
from shiftergw.model.build_options import BuildLimits
from shiftergw.oci.budget import Budget, Cost
from shiftergw.oci.compression import StopRequested, decompress
from shiftergw.plumbing.disk_errors import check_room, translated_disk_errors
from shiftergw.sources.local.extents import Extent, ExtentFile, file_errors

ReportBytes = Callable[[int], None]
"""Receives the bytes that have been read so far; called in the thread."""

DISK_RESERVE = 64 << 20
"""Bytes that temporary files leave free: other work needs the disk as well."""

ROOM_STEP = 16 << 20
"""Bytes that are written between two looks at the free space."""

_DISK_IS_FULL = "The disk for temporary files is full."
_PIECE = 1 << 20
_POLL_MS = 100


def unpack(
    archive: Extent, target: Path, limits: BuildLimits, stop: Event, report: ReportBytes
) -> None:
    """Write what a gzip or zstd file unpacks to.

    Raises `ImageTooLarge` beyond the limits, and `LayerInvalid` for a damaged file.
    """
    cost = Budget(limits, stop, archive.size).layer()
    position = size = 0

    def count(read_bytes: int) -> None:
        nonlocal position
        position = read_bytes
        report(read_bytes)

    with file_errors("archive"):
        source = ExtentFile(archive)

    def pieces() -> Iterable[bytes]:
        nonlocal size
        with closing(decompress(lambda _: source, stop, count)) as stream:
            for piece in stream:
                size += len(piece)
                cost.update(Cost(size, 0, 0, position), stop)
                yield piece

    try:
        _write(target, pieces())
    except LayerInvalid as error:
        raise LayerInvalid(
            "The file cannot be unpacked: it is damaged or incomplete.",
            remedy="Save or copy the image once more.",
            detail=error.what,
        ) from error


def copy_extent(extent: Extent, target: Path, stop: Event, report: ReportBytes) -> None:
    """Write an extent to a file of its own, since programs read whole files."""

    def pieces() -> Iterable[bytes]:
        size = 0
        with file_errors("file of the image"), ExtentFile(extent) as source:
            while piece := source.read(_PIECE):
                if stop.is_set():
                    raise StopRequested
                size += len(piece)
                report(size)
                yield piece
        if size < extent.size:
            raise ManifestInvalid("The file has become shorter while it was read.")

    _write(target, pieces())


def spool(descriptor: int, target: Path, stop: Event, on_piece: Callable[[bytes], object]) -> int:
    """Write all bytes of a pipe or file; return their number.

    Waits for the program that writes into the pipe until `stop` is set. Calls `on_piece` with each
    piece before it is written; an error that it raises ends the work.
    """
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    size = 0

    def pieces() -> Iterable[bytes]:
        nonlocal size
        while True:
            if stop.is_set():
                raise StopRequested
            if not poller.poll(_POLL_MS):
                continue
            try:
                piece = os.read(descriptor, _PIECE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise SourceUnreadable(f"The pipe cannot be read: {error.strerror}.") from error
            if not piece:
                return
            size += len(piece)
            on_piece(piece)
            yield piece

    _write(target, pieces())
    return size


def byte_counter(
    limits: BuildLimits, stored_size: int, stop: Event, report: ReportBytes
) -> Callable[[bytes], None]:
    """Return a function that counts pieces; it raises `ImageTooLarge` beyond the limits.

    `stored_size` is the compressed size in bytes of what unpacks to these pieces.
    """
    cost = Budget(limits, stop, stored_size).layer()
    size = 0

    def count(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        cost.update(Cost(size, 0, 0, stored_size), stop)
        report(size)

    return count


def _write(target: Path, pieces: Iterable[bytes]) -> None:
    """Write a file that nobody else may read; raise `NoSpace` before the disk is full."""
    unchecked_size = ROOM_STEP
    with translated_disk_errors(
        _DISK_IS_FULL, lambda _: SourceUnreadable("Temporary files cannot be written.")
    ):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(target, flags, 0o600), "wb", buffering=0) as file:
            for piece in pieces:
                unchecked_size += len(piece)
                if unchecked_size >= ROOM_STEP:
                    check_room(target.parent, ROOM_STEP + DISK_RESERVE, _DISK_IS_FULL)
                    unchecked_size = 0
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
