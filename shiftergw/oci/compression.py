"""The uncompressed bytes of a layer blob: gzip (RFC 1952), zstd (RFC 8878), or plain.

The media type of a layer may lie; its first bytes do not. A blob is read to its last byte: several
gzip members, zeros after them, several zstd frames, and skippable frames (zstd:chunked keeps its
table of contents in one) are one stream.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import BinaryIO, Protocol, cast

import zstandard
from isal import igzip, isal_zlib

from shiftergw.errors import ImageTooLarge, LayerInvalid, amount, printable
from shiftergw.image import Opening

PIECE = 1 << 18
"""Bytes of one piece: small enough for the processor's cache, large enough to cost no calls."""

_MAGIC = 4
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGIC = 0x184D2A50  # the last four bits are the writer's
_SKIPPABLE_MASK = 0xFFFFFFF0


class Stopped(Exception):
    """The caller's flag ended the work; a cancelled caller gets its own cancellation instead."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def whole(path: Path) -> Opening:
    """Return how a blob is opened that lies there."""
    return lambda _: path.open("rb", buffering=0)


def unpacked(
    opening: Opening,
    limit: int | None,
    stop: Event,
    report: Callable[[int], None] | None = None,
) -> Generator[bytes, None, None]:
    """Yield the whole uncompressed stream of a blob in pieces of some 256 KiB.

    Blocks: run it in a thread, close it when done early. `report` is told the compressed bytes
    read so far. Raises `LayerInvalid` for a blob that is damaged, cut short or followed by other
    bytes, `ImageTooLarge` beyond `limit` uncompressed bytes, and `Stopped` soon after `stop` is
    set.
    """
    total = 0
    with opening(stop) as blob, _damage_told():
        stream, look_at_end = _opened(blob)
        while piece := stream.read(PIECE):
            if stop.is_set():
                raise Stopped
            total += len(piece)
            if limit is not None and total > limit:
                raise ImageTooLarge(f"A layer unpacks to more than {amount(limit)}.")
            if report is not None:
                report(blob.tell())
            yield piece
        look_at_end(blob)


@contextmanager
def _damage_told() -> Generator[None, None, None]:
    """Translate what the decompressors raise."""
    try:
        yield
    except EOFError as error:
        raise LayerInvalid("A layer's gzip data ends too early.") from error
    except (gzip.BadGzipFile, isal_zlib.IsalError, OverflowError) as error:  # type: ignore[misc]  # stub: instance
        raise LayerInvalid("A layer's gzip data is damaged.", detail=printable(str(error))) from (
            error
        )
    except zstandard.ZstdError as error:
        raise LayerInvalid("A layer's zstd data is damaged.", detail=printable(str(error))) from (
            error
        )


def _opened(blob: BinaryIO) -> tuple[_Readable, Callable[[BinaryIO], None]]:
    """Return the uncompressed stream, and what looks at the blob once that has ended."""
    magic = b""
    while len(magic) < _MAGIC and (more := blob.read(_MAGIC - len(magic))):
        magic += more
    blob.seek(0)
    if magic.startswith(_GZIP_MAGIC):
        # Told of every cut and all garbage by its own checks.
        return cast("_Readable", igzip.IGzipFile(fileobj=blob, mode="rb")), _nothing
    if _is_zstd(int.from_bytes(magic, "little")):
        unpacker = zstandard.ZstdDecompressor()
        return unpacker.stream_reader(blob, read_across_frames=True, closefd=False), _whole_frames
    return blob, _nothing


def _nothing(_: BinaryIO) -> None:
    """Look at nothing more."""


def _is_zstd(magic: int) -> bool:
    return magic == _ZSTD_MAGIC or magic & _SKIPPABLE_MASK == _SKIPPABLE_MAGIC


def _whole_frames(blob: BinaryIO) -> None:
    """Raise `LayerInvalid` unless the last frame is whole: the library takes a cut for the end.

    Steps from block to block (RFC 8878, section 3.1.1), which is some 10,000 steps for a GB.
    """
    size = blob.seek(0, 2)
    at = 0

    def number(offset: int, length: int) -> int:
        blob.seek(offset)
        return int.from_bytes(blob.read(length), "little")

    while at < size:
        if number(at, 4) != _ZSTD_MAGIC:  # the library has refused all but skippable frames
            at += 8 + number(at + 4, 4)
            continue
        descriptor = number(at + 4, 1)
        single_segment = descriptor >> 5 & 1
        content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
        at += 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3] + content_size
        last = 0
        while not last and at < size:
            block = number(at, 3)
            last = block & 1
            is_repeated_byte = block >> 1 & 3 == 1
            at += 3 + (1 if is_repeated_byte else block >> 3)
        at += 4 * (descriptor >> 2 & 1)  # checksum
        if not last:
            break
    else:
        if at == size:
            return
    raise LayerInvalid("A layer's zstd data ends too early.")
