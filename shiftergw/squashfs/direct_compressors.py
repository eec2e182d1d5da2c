"""The compressors of packs that this process makes itself: faster ones where there are such.

libdeflate (the package `deflate`, an extra) compresses gzip in half of the time of zlib. At the
same level most images take 0.5 to 3 % fewer bytes; sources and header files alone may take 0.5 %
more. zstd has no faster library than its own.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import zstandard

from shiftergw.errors import SquashfsUnsupported
from shiftergw.squashfs.compressors import (
    DEFAULT_LEVELS,
    METADATA_LEVELS,
    Compress,
    CompressBlocks,
    Compression,
    Compressor,
    blocks_compressor,
    data_compressor,
    each_block,
    metadata_compressor,
)

_GZIP_WINDOW = 15


def direct_compressor(compression: Compression, block_size: int) -> Compress:
    """Return the function that compresses a block of data; threads must not share it.

    It may return more bytes than it gets: such a block is stored. Raises `ImportError` without the
    library.
    """
    if compression.compressor == Compressor.GZIP:
        return _deflate_with(compression, _level_of(compression))
    return data_compressor(compression, block_size)


def direct_blocks_compressor(compression: Compression, block_size: int) -> CompressBlocks:
    """Return the function that compresses blocks as `direct_compressor` does a single one."""
    if compression.compressor == Compressor.GZIP:
        return each_block(direct_compressor(compression, block_size))
    return blocks_compressor(compression, block_size)


def direct_metadata_compressor(compression: Compression) -> Compress:
    """Return the function that compresses a metadata block; see `direct_compressor`."""
    if compression.compressor == Compressor.GZIP:
        level = min(_level_of(compression), METADATA_LEVELS[Compressor.GZIP])
        return _deflate_with(compression, level)
    return metadata_compressor(compression)


def compressing_library(compressor: Compressor) -> tuple[str, Path]:
    """Return the version of the library that compresses, as far as it is known, and its file.

    Raises `ImportError` without the library, and `SquashfsUnsupported` for other compressors than
    gzip and zstd.
    """
    match compressor:
        case Compressor.GZIP:
            from deflate import __version__  # noqa: PLC0415 - an extra

            return __version__, _file_of("deflate._deflate")
        case Compressor.ZSTD:
            version = ".".join(map(str, zstandard.ZSTD_VERSION))
            return version, _file_of(f"zstandard.{_ZSTD_MODULES[zstandard.backend]}")
        case _:
            raise SquashfsUnsupported(
                f"Layers are compressed with {compressor.name.lower()} by mksquashfs alone."
            )


_ZSTD_MODULES = {"cext": "backend_c", "rust": "backend_rust", "cffi": "_cffi"}
"""The module with the library, by the way in which the package was built."""


def _file_of(name: str) -> Path:
    """Return the file of a module."""
    file = import_module(name).__file__
    if file is None:
        raise ImportError(f"the module {name} has no file")
    return Path(file)


def _level_of(compression: Compression) -> int:
    return compression.level or DEFAULT_LEVELS[compression.compressor]


def _deflate_with(compression: Compression, level: int) -> Compress:
    from deflate import zlib_compress  # noqa: PLC0415 - an extra

    if compression.window != _GZIP_WINDOW:
        raise SquashfsUnsupported("libdeflate compresses with a window of 15 bits alone.")
    return lambda block: bytes(zlib_compress(block, level))
