"""The compressors of squashfs: their numbers, their options, and single blocks in and out.

The parameters are those that the kernel's decompressors take, which are stricter than the libraries
of the tools: xz needs CRC32 and a dictionary of at most the size of a block, zstd one frame that
names its content size.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

import zstandard

from shiftergw.errors import SquashfsCorrupt, SquashfsUnsupported, printable
from shiftergw.squashfs.superblock import METADATA_SIZE

Compress = Callable[[bytes], bytes]
CompressBlocks = Callable[[list[bytes]], list[bytes]]
"""Compress blocks, each for itself. A result may have more bytes: such a block is stored."""

Decompress = Callable[[bytes, int], bytes]
"""Unpack a block, with the largest size of its content in bytes.

It raises `SquashfsCorrupt` if the block is damaged or its content is larger.
"""


class Compressor(IntEnum):
    """The numbers of the compressors in a superblock."""

    GZIP = 1
    LZMA = 2
    LZO = 3
    XZ = 4
    LZ4 = 5
    ZSTD = 6


DEFAULT_LEVELS = {Compressor.GZIP: 9, Compressor.ZSTD: 15}
"""The levels of a file without compressor options."""

METADATA_LEVELS = {Compressor.GZIP: 6, Compressor.ZSTD: 7}
"""The highest levels of metadata.

The metadata of 143,000 files of a Debian system (8.9 MB) becomes 0.2 % smaller with gzip 9, in 1.8
times the time, and 5 % smaller with zstd 15, in 6 times the time. It is 0.2 % of the image.
"""

_XZ_PRESET = 3
"""As above: the preset 6 makes it 4 % smaller, in 3.8 times the time."""

_XZ_DATA_PRESET = 6
"""The preset of `mksquashfs` (LZMA_PRESET_DEFAULT)."""

_GZIP_OPTIONS = Struct("<IHH")  # level, window bits, strategies
_GZIP_WINDOW = 15
_ZSTD_OPTIONS = Struct("<I")  # level
_XZ_OPTIONS = Struct("<II")  # bytes of the dictionary, filters
_XZ_MEMORY = 32 << 20
"""Bytes that unpacking a block of xz may need: enough for a dictionary of 16 MiB."""

_ZSTD_WINDOW = 1 << 23
_HAS_BATCHES = "multi_compress_to_buffer" in zstandard.backend_features
"""Whether the library compresses several blocks in one call; its backend for PyPy does not."""

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Compression:
    """A compressor and its options.

    `level` is None for xz. `dictionary` is the bytes of the dictionary of xz if it differs from the
    size of a block, else 0. `filters` are the bits of its filters, `strategies` those of gzip.
    """

    compressor: Compressor
    level: int | None = None
    window: int = _GZIP_WINDOW
    strategies: int = 0
    dictionary: int = 0
    filters: int = 0

    def pack(self) -> bytes:
        """Return the compressor options, empty if all of them are the defaults."""
        if self.level == DEFAULT_LEVELS.get(self.compressor) and self == Compression(
            self.compressor, self.level
        ):
            return b""
        match self.compressor:
            case Compressor.GZIP:
                return _GZIP_OPTIONS.pack(self.level or 0, self.window, self.strategies)
            case Compressor.ZSTD:
                return _ZSTD_OPTIONS.pack(self.level or 0)
            case _:
                return _XZ_OPTIONS.pack(self.dictionary, self.filters)

    @classmethod
    def unpack(cls, number: int, options: bytes) -> Compression:
        """Return the compression of a file from its compressor's number and options.

        Options are empty if the file has none. Raises `SquashfsUnsupported` for a compressor that
        cannot be read, and `SquashfsCorrupt`.
        """
        compressor = supported_compressor(number)
        try:
            match compressor:
                case _ if not options:
                    compression = cls(compressor, DEFAULT_LEVELS.get(compressor))
                case Compressor.GZIP:
                    compression = cls(compressor, *_GZIP_OPTIONS.unpack(options))
                case Compressor.ZSTD:
                    compression = cls(compressor, *_ZSTD_OPTIONS.unpack(options))
                case _:
                    dictionary, filters = _XZ_OPTIONS.unpack(options)
                    compression = cls(compressor, None, dictionary=dictionary, filters=filters)
        except struct.error as error:
            raise _options_error(options) from error
        if not compression.is_valid:
            raise _options_error(options)
        return compression

    @property
    def is_valid(self) -> bool:
        """Return whether the options are such as the compressor and the kernel take."""
        match self.compressor:
            case Compressor.GZIP:
                return 1 <= (self.level or 0) <= 9 and 8 <= self.window <= 15  # noqa: PLR2004 - zlib
            case Compressor.ZSTD:
                return 1 <= (self.level or 0) <= zstandard.MAX_COMPRESSION_LEVEL
            case Compressor.XZ:
                return self.level is None and _is_xz_dictionary(self.dictionary)
            case _:
                return False


def supported_compressor(number: int) -> Compressor:
    """Return the compressor with this number in a superblock.

    Raises `SquashfsUnsupported` for lzo, lz4 and lzma, and `SquashfsCorrupt` for other numbers.
    """
    try:
        compressor = Compressor(number)
    except ValueError as error:
        raise SquashfsCorrupt(
            "A squashfs file has a damaged superblock.", detail=f"compressor {number}"
        ) from error
    if compressor not in _DECOMPRESSORS:
        raise SquashfsUnsupported(
            f"The squashfs file is compressed with {compressor.name.lower()}, which is not"
            " supported: gzip, zstd and xz are."
        )
    return compressor


def _is_xz_dictionary(size: int) -> bool:
    """Return whether the kernel takes a dictionary of this size: 2**n or 3 * 2**n bytes, or 0."""
    if not size:
        return True
    lowest_bit = size & -size
    return METADATA_SIZE <= size <= _MIB and size in {lowest_bit, 3 * lowest_bit}


def _options_error(options: bytes) -> SquashfsCorrupt:
    return SquashfsCorrupt("A squashfs file has damaged compressor options.", detail=options.hex())


def metadata_compressor(compression: Compression) -> Compress:
    """Return the function that compresses a metadata block; threads must not share it.

    Its level is at most that of `METADATA_LEVELS`, whatever the level of the data.
    """
    level = METADATA_LEVELS.get(compression.compressor, _XZ_PRESET)
    if compression.level is not None:
        level = min(compression.level, level)
    return _compress_with(compression, level, METADATA_SIZE)


def data_compressor(compression: Compression, block_size: int) -> Compress:
    """Return the function that compresses a block of data as `mksquashfs` does.

    Threads must not share it. It may return more bytes than it gets: such a block is stored.
    """
    dictionary = compression.dictionary or block_size
    return _compress_with(compression, _data_level(compression), dictionary)


def _data_level(compression: Compression) -> int:
    if compression.level is not None:
        return compression.level
    return DEFAULT_LEVELS.get(compression.compressor, _XZ_DATA_PRESET)


def blocks_compressor(compression: Compression, block_size: int) -> CompressBlocks:
    """Return the function that compresses blocks of data as `data_compressor` does.

    Threads must not share it. zstd compresses all blocks in one call, so that other threads have
    the interpreter meanwhile.
    """
    if compression.compressor == Compressor.ZSTD and _HAS_BATCHES:
        return _zstd_batches(_data_level(compression))
    return each_block(data_compressor(compression, block_size))


def each_block(compress: Compress) -> CompressBlocks:
    """Return the function that compresses one block after the other."""
    return lambda blocks: list(map(compress, blocks))


def _zstd_batches(level: int) -> CompressBlocks:
    compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)

    def compress(blocks: list[bytes]) -> list[bytes]:
        frames = compressor.multi_compress_to_buffer([*blocks])
        return [frames[number].tobytes() for number in range(len(frames))]

    return compress


def _compress_with(compression: Compression, level: int, dictionary: int) -> Compress:
    """Return the function that compresses with this level, or preset and dictionary of xz."""
    match compression.compressor:
        case Compressor.GZIP:
            window = compression.window

            def deflate(block: bytes) -> bytes:
                packer = zlib.compressobj(level, zlib.DEFLATED, window)
                return packer.compress(block) + packer.flush()

            return deflate
        case Compressor.ZSTD:
            return zstandard.ZstdCompressor(level=level, write_content_size=True).compress
        case Compressor.XZ:
            lzma2 = {"id": lzma.FILTER_LZMA2, "preset": level, "dict_size": dictionary}
            return lambda block: lzma.compress(
                block, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=[lzma2]
            )
        case _:
            raise AssertionError(compression.compressor)


def decompress_with(compressor: Compressor) -> Decompress:
    """Return the function that unpacks a block; threads must not share it."""
    return _DECOMPRESSORS[compressor]()


def _inflate_with() -> Decompress:
    def inflate(block: bytes, limit: int) -> bytes:
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(block, limit + 1)
        except zlib.error as error:
            raise _block_error(str(error)) from error
        return _check_content(content, limit, unpacker.eof, unpacker.unused_data)

    return inflate


def _unxz_with() -> Decompress:
    def unxz(block: bytes, limit: int) -> bytes:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        try:
            content = unpacker.decompress(block, limit + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise _block_error(str(error)) from error
        return _check_content(content, limit, unpacker.eof, unpacker.unused_data)

    return unxz


def _unzstd_with() -> Decompress:
    unpack = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompress

    def unzstd(block: bytes, limit: int) -> bytes:
        # The library allocates what the frame promises, whatever its caller allows.
        try:
            size = zstandard.frame_content_size(block)
            if size > limit:
                raise _block_error(f"it unpacks to {size} bytes")
            if not size:
                return b""
            return unpack(block, max_output_size=limit, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise _block_error(str(error)) from error

    return unzstd


_DECOMPRESSORS = {
    Compressor.GZIP: _inflate_with,
    Compressor.XZ: _unxz_with,
    Compressor.ZSTD: _unzstd_with,
}


def _check_content(content: bytes, limit: int, is_complete: bool, rest: bytes) -> bytes:
    if len(content) > limit:
        raise _block_error(f"it unpacks to more than {limit} bytes")
    if not is_complete:
        raise _block_error("it ends too early")
    if rest:
        raise _block_error(f"it has {len(rest)} bytes after its end")
    return content


def _block_error(detail: str) -> SquashfsCorrupt:
    return SquashfsCorrupt("A squashfs file has a damaged block.", detail=printable(detail))
