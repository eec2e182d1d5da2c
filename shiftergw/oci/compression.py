"""The uncompressed bytes of a layer blob: gzip (RFC 1952), zstd (RFC 8878), or plain.

The media type of a layer may lie; its first bytes do not. A blob is read to its last byte: several
gzip members, zeros after them, several zstd frames, and skippable frames (zstd:chunked keeps its
table of contents in one) are one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import BoundedSemaphore, Event
from typing import IO, BinaryIO, Self, cast

import zstandard
from isal import igzip_lib

from shiftergw.errors import BlobCorrupt, LayerInvalid, printable
from shiftergw.image import Opening
from shiftergw.oci.zstd_frames import WINDOW_LIMIT, FrameReader, is_frame

PIECE = 1 << 18
"""Bytes of one piece: small enough for the processor's cache, large enough to cost no calls."""

_MAGIC = 4
_GZIP_MAGIC = b"\x1f\x8b"
_READ = 1 << 17
"""Compressed bytes that are read at once."""

_FIRST_READ = 1 << 10
"""Compressed bytes that a gzip member gets first: few are copied again after a short member."""


LARGE_WINDOW = 1 << 23
"""Bytes of a zstd window (that of `zstd -19`) above which only two streams are read at a time."""

_LARGE_WINDOWS = BoundedSemaphore(2)
_LOOK_SECONDS = 0.1


class StopRequested(Exception):
    """The caller's flag ended the work; the caller sees its own cancellation instead."""


def opening_of(path: Path) -> Opening:
    """Return how a blob is opened that lies there.

    Opening raises `BlobCorrupt` where it is gone: another pull has found it damaged.
    """

    def opened(_: Event) -> BinaryIO:
        try:
            return path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise BlobCorrupt("A layer is no longer in the cache.", detail=str(error)) from error

    return opened


def decompress(
    opening: Opening, stop: Event, report: Callable[[int], None] | None = None
) -> Generator[bytes, None, None]:
    """Yield the whole uncompressed stream of a blob in pieces of at most about 256 KiB.

    Blocks: run it in a thread, and close it if you stop early. Calls `report` with the compressed
    bytes read so far. Raises `LayerInvalid` if the blob is damaged, ends too early, has bytes
    after its end or needs too much memory, and `StopRequested` soon after `stop` is set, even while
    the blob yields no output.
    """
    with opening(stop) as blob, _damage_told():
        source = _Source(blob, stop)
        for piece in _pieces(source):
            if stop.is_set():
                raise StopRequested
            if report is not None:
                report(source.position)
            yield piece


class _Source:
    """The compressed bytes, read forward; each read checks the caller's flag."""

    def __init__(self, blob: BinaryIO, stop: Event) -> None:
        self._blob = blob
        self._stop = stop
        self._next = b""
        self.position = 0
        """Bytes that have been read."""

    def check_stop(self) -> None:
        """Raise `StopRequested` if the caller's flag is set."""
        if self._stop.is_set():
            raise StopRequested

    def begins_with(self) -> bytes:
        """Return the first bytes, which the next read returns again."""
        while len(self._next) < _MAGIC and (more := self._blob.read(_MAGIC - len(self._next))):
            self._next += more
        return self._next

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end only."""
        self.check_stop()
        data, self._next = self._next or self._blob.read(size), b""
        self.position += len(data)
        return data


class _Window:
    """The memory for the window of one zstd stream; two streams at a time may have a large one."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._is_large = False

    def claim(self, size: int) -> None:
        """Wait until a window of this size is allowed; raise `StopRequested` if the flag is set."""
        if size <= LARGE_WINDOW or self._is_large:
            return
        while not _LARGE_WINDOWS.acquire(timeout=_LOOK_SECONDS):
            self._source.check_stop()
        self._is_large = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_large:
            _LARGE_WINDOWS.release()
            self._is_large = False


@contextmanager
def _damage_told() -> Generator[None, None, None]:
    """Translate what the decompressors raise."""
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


def _pieces(source: _Source) -> Iterator[bytes]:
    magic = source.begins_with()
    if magic.startswith(_GZIP_MAGIC):
        return _gunzipped(source)
    if is_frame(magic):
        return _unzstd(source)
    return iter(lambda: source.read(PIECE), b"")


def _gunzipped(source: _Source) -> Iterator[bytes]:
    """Yield the content of all members of a gzip file; zeros may follow the last member."""
    data = source.read(_READ)
    while data:
        if len(data) < len(_GZIP_MAGIC):
            data += source.read(_READ)
        if data == _GZIP_MAGIC[:1]:
            raise _cut()
        if not data.startswith(_GZIP_MAGIC):
            _check_zeros(data, source)
            return
        data = yield from _member(data, source)


def _member(data: bytes, source: _Source) -> Generator[bytes, None, bytes]:
    """Yield the content of the gzip member that begins with `data`; return the bytes behind it."""
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    ahead, at, step = memoryview(data), 0, _FIRST_READ
    while not member.eof:
        given = b""
        if member.needs_input:
            if at >= len(ahead):
                ahead, at = memoryview(source.read(_READ)), 0
                if not ahead:
                    raise _cut()
            given = bytes(ahead[at : at + step])
            at += len(given)
            step = _READ
        if piece := member.decompress(given, PIECE):
            yield piece
    rest = member.unused_data + bytes(ahead[at:])
    return rest or source.read(_READ)


def _cut() -> LayerInvalid:
    return LayerInvalid("A layer's gzip data ends too early.")


def _check_zeros(data: bytes, source: _Source) -> None:
    while data:
        if data.count(0) < len(data):
            raise LayerInvalid("A layer's gzip data has bytes after its end.")
        data = source.read(_READ)


def _unzstd(source: _Source) -> Iterator[bytes]:
    """Yield the content of all frames of a zstd file."""
    window = _Window(source)
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
