"""Copy a file into an image directory of this machine, and share ranges with an image there.

`copy_file_range` clones ranges (reflinks) where the file system can, and lets the server of a
network file system copy them. What it cannot copy is read from the converted file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING

from shiftergw.delivery.delta import DeltaUnusable, Segment, cloneable_segments, segments_of
from shiftergw.delivery.proof import time_limit
from shiftergw.model.records import Progress
from shiftergw.plumbing.hashing import PIECE_BYTES, hash_file

if TYPE_CHECKING:
    from shiftergw.delivery.disk_calls import DiskCall
    from shiftergw.ports import DeltaSource

_PIECE = 4 << 20
_COPY = 64 << 20
"""Bytes that `copy_file_range` may copy at once; a clone of them costs nothing."""


@dataclass(frozen=True, slots=True)
class DeltaCopy:
    """Copies a file of this digest, and the ranges of `delta` from an image in `directory`.

    `log` gets the reason if the ranges cannot be used. Blocks: run it with `DiskCalls`.
    """

    delta: DeltaSource
    directory: Path
    sha256: str
    log: Callable[[str], None]

    def run(
        self,
        source: IO[bytes],
        copy: IO[bytes],
        path: Path,
        report: Callable[[Progress], None],
        call: DiskCall,
    ) -> bool:
        """Write and sync `copy`, an empty file at `path`; return whether it has the right digest.

        If not, it is empty again. Raises `OSError` for errors of the source and of the copy.
        """
        try:
            self._fill(source.fileno(), copy.fileno(), report, call)
        except DeltaUnusable as error:
            self.log(str(error))
            return False
        call.note_progress(time_limit(os.fstat(copy.fileno()).st_size))
        os.fsync(copy.fileno())
        if self._hash(path, report, call) == self.sha256:
            return True
        self.log("the copy with ranges of another image has another digest")
        os.ftruncate(copy.fileno(), 0)
        return False

    def _hash(self, path: Path, report: Callable[[Progress], None], call: DiskCall) -> str:
        """Return the digest of a file, and report the bytes that were read."""
        size, pieces = path.stat().st_size, count()

        def note_piece() -> None:
            call.note_progress()
            report(Progress("compare", min(next(pieces) * PIECE_BYTES, size), size))

        return hash_file(path, should_stop=note_piece)[1]

    def _fill(
        self, source: int, copy: int, report: Callable[[Progress], None], call: DiskCall
    ) -> None:
        size = os.fstat(source).st_size
        segments = cloneable_segments(segments_of(self.delta, size))
        with self._open_image() as image:
            done = copied_bytes = 0
            for segment in segments:
                for length, is_copied in _copy_segment(source, image, copy, segment, call):
                    done += length
                    copied_bytes += length if is_copied else 0
                    report(Progress("deliver", done, size, copied_bytes))

    @contextmanager
    def _open_image(self) -> Iterator[int]:
        path = self.directory / self.delta.name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DeltaUnusable(f"the other image cannot be opened: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != self.delta.size:
                raise DeltaUnusable("the other image has another size, or is no file")
            yield descriptor
        finally:
            os.close(descriptor)


def _copy_segment(
    source: int, image: int, copy: int, segment: Segment, call: DiskCall
) -> Iterator[tuple[int, bool]]:
    """Copy a segment; yield the length of each piece, and whether it was copied from the image.

    What cannot be copied from the image is copied from the source.
    """
    position = segment.offset
    if segment.source_offset is not None:
        shift = segment.source_offset - segment.offset
        while position < segment.end:
            length = min(_COPY, segment.end - position)
            call.note_progress(time_limit(length))
            count = _copy_range(image, copy, length, position + shift, position)
            if not count:
                break
            position += count
            yield count, True
    while position < segment.end:
        call.note_progress()
        piece = os.pread(source, min(_PIECE, segment.end - position), position)
        if not piece:
            raise OSError(errno.EIO, f"it ended before byte {segment.end}")
        _write_all(copy, piece, position)
        position += len(piece)
        yield len(piece), False


def _copy_range(image: int, copy: int, length: int, source_offset: int, offset: int) -> int:
    """Return how many bytes were copied; 0 if there are none, or for any error."""
    try:
        return os.copy_file_range(image, copy, length, source_offset, offset)
    except OSError:
        return 0


def _write_all(copy: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(copy, view, position)
        view, position = view[count:], position + count
