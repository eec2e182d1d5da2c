"""Decompress layer blobs: gzip (RFC 1952), zstd (RFC 8878), or plain.

The first bytes of a blob decide on its format, because media types are often wrong. A blob is read
to its last byte: several gzip members, zeros after them, several zstd frames, and skippable frames
(zstd:chunked stores its table of contents in one) form one stream.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from threading import BoundedSemaphore, Event
from typing import IO, BinaryIO, Self, cast

import zstandard
from isal import igzip_lib

from shiftergw.errors import BlobCorrupt, LayerInvalid, printable
from shiftergw.model.images import Opening
from shiftergw.oci.zstd_frames import WINDOW_LIMIT, FrameReader, is_frame

PIECE = 1 << 18
"""Bytes of one piece: it fits into the processor's cache, and needs few calls."""

_MAGIC = 4
_GZIP_MAGIC = b"\x1f\x8b"
_READ_SIZE = 1 << 17
"""Compressed bytes of one read."""

_FIRST_SIZE = 1 << 10
"""Compressed bytes that a gzip member gets first, so that little is copied after a short member."""

_DROP_SIZE = 1 << 25
"""Compressed bytes that are read between two calls that free their page cache."""

LARGE_WINDOW = 1 << 23
"""Bytes of a zstd window (that of `zstd -19`) above which two streams at most run at a time."""

LARGE_WINDOWS = BoundedSemaphore(2)
"""The large windows of this process. A caller that holds one passes `LargeWindow.OWN`."""

_POLL_SECONDS = 0.1


class StopRequested(Exception):
    """The caller's stop flag ended the work. The caller sees its own cancellation instead."""


class WindowRefused(Exception):
    """A blob needs a large zstd window, and the caller passed `LargeWindow.REFUSE`."""


class LargeWindow(Enum):
    """What a reader does when a zstd window is larger than `LARGE_WINDOW` bytes."""

    WAIT = auto()
    """It waits until few other streams have such a window."""
    REFUSE = auto()
    """It raises `WindowRefused`."""
    OWN = auto()
    """It reads on, because its caller holds one of `LARGE_WINDOWS`."""


def is_packed(magic: bytes) -> bool:
    """Return whether a file that begins with these four bytes is packed with gzip or zstd."""
    return magic.startswith(_GZIP_MAGIC) or is_frame(magic)


def opening_of(path: Path) -> Opening:
    """Return an `Opening` of a complete blob.

    It raises `BlobCorrupt` if the file is missing, because another pull has found it damaged.
    """

    def open_file(_: Event) -> BinaryIO:
        try:
            return path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise BlobCorrupt("A layer is no longer in the cache.", detail=str(error)) from error

    return open_file


def decompress(
    opening: Opening,
    stop: Event,
    report: Callable[[int], None] | None = None,
    *,
    is_last_reading: bool = False,
    large_window: LargeWindow = LargeWindow.WAIT,
) -> Generator[bytes, None, None]:
    """Yield the whole uncompressed stream of a blob in pieces of at most about 256 KiB.

    Blocks: run it in a thread, and close it if you stop early. Calls `report` with the compressed
    bytes read so far. Raises `LayerInvalid` if the blob is damaged, ends too early, has bytes
    after its end or needs too much memory, `WindowRefused` if `large_window` says so, and
    `StopRequested` soon after `stop` is set, even while the blob yields no output.

    If it `is_last_reading`, the page cache is told to forget what was read, as far as it is on the
    disk: its memory is free for the files that are made of it.
    """
    with opening(stop) as blob, _translate_errors():
        source = _ForgettingSource(blob, stop) if is_last_reading else _Source(blob, stop)
        for piece in _pieces(source, large_window):
            if stop.is_set():
                raise StopRequested
            if report is not None:
                report(source.position)
            yield piece


class _Source:
    """The compressed bytes, read forward; each read checks the stop flag."""

    def __init__(self, blob: BinaryIO, stop: Event) -> None:
        self._blob = blob
        self._stop = stop
        self._buffer = b""
        self.position = 0
        """The number of bytes read so far."""

    def check_stop(self) -> None:
        """Raise `StopRequested` if the stop flag is set."""
        if self._stop.is_set():
            raise StopRequested

    def peek(self) -> bytes:
        """Return the first bytes; the next read returns them again."""
        while len(self._buffer) < _MAGIC and (data := self._blob.read(_MAGIC - len(self._buffer))):
            self._buffer += data
        return self._buffer

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none only at the end."""
        self.check_stop()
        data, self._buffer = self._buffer or self._blob.read(size), b""
        self.position += len(data)
        return data


class _ForgettingSource(_Source):
    """A source whose bytes leave the page cache behind the reader."""

    def __init__(self, blob: BinaryIO, stop: Event) -> None:
        super().__init__(blob, stop)
        self._next_drop = _DROP_SIZE

    def read(self, size: int) -> bytes:
        """See `_Source`."""
        data = super().read(size)
        if self.position >= self._next_drop or not data:
            self._next_drop = self.position + _DROP_SIZE
            # Bytes that are still arriving are not on the disk yet: they begin to be written, and
            # leave the cache later.
            with suppress(OSError):  # not a file
                os.posix_fadvise(self._blob.fileno(), 0, self.position, os.POSIX_FADV_DONTNEED)
        return data


class _Window:
    """The memory for the window of one zstd stream; at most two streams have a large window."""

    def __init__(self, source: _Source, large_window: LargeWindow) -> None:
        self._source = source
        self._large_window = large_window
        self._is_large = False

    def claim(self, size: int) -> None:
        """Wait until a window of this size is allowed; raise `StopRequested` if the flag is set.

        Raises `WindowRefused` at once if the caller takes no large window.
        """
        self._source.check_stop()  # one read may return the whole of thousands of small frames
        if size <= LARGE_WINDOW or self._is_large or self._large_window is LargeWindow.OWN:
            return
        if self._large_window is LargeWindow.REFUSE:
            raise WindowRefused
        while not LARGE_WINDOWS.acquire(timeout=_POLL_SECONDS):
            self._source.check_stop()
        self._is_large = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_large:
            LARGE_WINDOWS.release()
            self._is_large = False


@contextmanager
def _translate_errors() -> Generator[None, None, None]:
    """Translate the errors of the decompressors."""
    try:
        yield
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # stub: instance
        raise LayerInvalid("A layer's gzip data is damaged.", detail=printable(str(error))) from (
            error
        )
    except zstandard.ZstdError as error:
        raise LayerInvalid("A layer's zstd data is damaged.", detail=printable(str(error))) from (
            error
        )


def _pieces(source: _Source, large_window: LargeWindow) -> Iterator[bytes]:
    magic = source.peek()
    if magic.startswith(_GZIP_MAGIC):
        return _gunzip(source)
    if is_frame(magic):
        return _unzstd(source, large_window)
    return iter(lambda: source.read(PIECE), b"")


def _gunzip(source: _Source) -> Iterator[bytes]:
    """Yield the content of all members of a gzip file; zeros may follow the last member."""
    data = source.read(_READ_SIZE)
    while data:
        if len(data) < len(_GZIP_MAGIC):
            data += source.read(_READ_SIZE)
        if data == _GZIP_MAGIC[:1]:
            raise _truncation_error()
        if not data.startswith(_GZIP_MAGIC):
            _check_zeros(data, source)
            return
        data = yield from _member(data, source)


def _member(data: bytes, source: _Source) -> Generator[bytes, None, bytes]:
    """Yield the content of the gzip member that starts with `data`; return the bytes after it."""
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    buffer, position, step = memoryview(data), 0, _FIRST_SIZE
    while not member.eof:
        chunk = b""
        if member.needs_input:
            if position >= len(buffer):
                buffer, position = memoryview(source.read(_READ_SIZE)), 0
                if not buffer:
                    raise _truncation_error()
            chunk = bytes(buffer[position : position + step])
            position += len(chunk)
            step = _READ_SIZE
        if piece := member.decompress(chunk, PIECE):
            yield piece
    rest = member.unused_data + bytes(buffer[position:])
    return rest or source.read(_READ_SIZE)


def _truncation_error() -> LayerInvalid:
    return LayerInvalid("A layer's gzip data ends too early.")


def _check_zeros(data: bytes, source: _Source) -> None:
    while data:
        if data.count(0) < len(data):
            raise LayerInvalid("A layer's gzip data has bytes after its end.")
        data = source.read(_READ_SIZE)


def _unzstd(source: _Source, large_window: LargeWindow) -> Iterator[bytes]:
    """Yield the content of all frames of a zstd file."""
    window = _Window(source, large_window)
    frames = FrameReader(source.read, window.claim)
    unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT)
    with (
        window,
        unpacker.stream_reader(
            cast("IO[bytes]", frames), read_across_frames=True, closefd=False
        ) as stream,
    ):
        yield from iter(lambda: stream.read(PIECE), b"")
    frames.check_end()
