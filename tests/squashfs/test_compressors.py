"""Single blocks of each compressor, and their options."""

from __future__ import annotations

import lzma
import os
import tracemalloc
import zlib
from struct import pack

import pytest
import zstandard

from shiftergw.errors import SquashfsCorrupt, SquashfsUnsupported
from shiftergw.squashfs import compressors
from shiftergw.squashfs.compressors import (
    Compression,
    Compressor,
    blocks_compressor,
    data_compressor,
    decompress_with,
    metadata_compressor,
)
from tests.squashfs.parts import GZIP, XZ, ZSTD

LIMIT = 8192
CONTENT = b"inodes and listings " * 400
BOMB = bytes(64 << 20)

each_compressor = pytest.mark.parametrize(
    "compression", [GZIP, ZSTD, XZ], ids=["gzip", "zstd", "xz"]
)


def packed_bomb(compressor: Compressor) -> bytes:
    """Return a small block that unpacks to 64 MiB."""
    match compressor:
        case Compressor.GZIP:
            return zlib.compress(BOMB)
        case Compressor.XZ:
            return lzma.compress(BOMB, preset=0)
        case _:
            return zstandard.compress(BOMB)


@each_compressor
@pytest.mark.parametrize("content", [b"x", CONTENT, bytes(LIMIT)])
def test_a_block_comes_back(compression: Compression, content: bytes) -> None:
    """What was compressed is unpacked, up to the limit itself."""
    block = metadata_compressor(compression)(content)
    assert decompress_with(compression.compressor)(block, len(content)) == content


@each_compressor
@pytest.mark.parametrize("block_size", [4096, 1 << 20])
def test_a_block_of_data_comes_back(compression: Compression, block_size: int) -> None:
    """Data blocks have up to the block size, and the level of the file."""
    content = (CONTENT * 140)[:block_size]
    block = data_compressor(compression, block_size)(content)
    assert decompress_with(compression.compressor)(block, block_size) == content


@each_compressor
@pytest.mark.parametrize("has_batches", [True, False])
def test_blocks_are_compressed_as_each_of_them(
    compression: Compression, has_batches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call for several blocks gives the same bytes, whatever the library has."""
    monkeypatch.setattr(compressors, "_HAS_BATCHES", has_batches)
    blocks = [b"x", CONTENT, bytes(LIMIT), CONTENT * 40]
    compress = data_compressor(compression, LIMIT)
    assert blocks_compressor(compression, LIMIT)(blocks) == list(map(compress, blocks))


def test_the_level_of_data_is_that_of_the_file() -> None:
    """Metadata has a lower level; a file without a level has the default of `mksquashfs`."""
    content = b"".join(b"%d %d\n" % (number, number**3 % 1000) for number in range(9000))
    for compressor, levels in ((Compressor.GZIP, (1, 5, 9)), (Compressor.ZSTD, (1, 7, 15))):
        sizes = [
            len(data_compressor(Compression(compressor, level), 1 << 17)(content))
            for level in levels
        ]
        assert len(set(sizes)) == len(sizes)
        assert max(sizes) == sizes[0]
        default = data_compressor(Compression(compressor), 1 << 17)(content)
        assert len(default) == sizes[-1]


@each_compressor
def test_a_block_that_unpacks_to_more_is_refused(compression: Compression) -> None:
    """A byte more than the limit is an error, and 64 MiB more take no memory."""
    unpack = decompress_with(compression.compressor)
    with pytest.raises(SquashfsCorrupt):
        unpack(metadata_compressor(compression)(CONTENT), len(CONTENT) - 1)
    bomb = packed_bomb(compression.compressor)
    tracemalloc.start()
    try:
        with pytest.raises(SquashfsCorrupt):
            unpack(bomb, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@each_compressor
def test_damaged_blocks_are_refused(compression: Compression) -> None:
    """A block that is cut short, has bytes behind it, or is another thing, is damaged."""
    unpack = decompress_with(compression.compressor)
    block = metadata_compressor(compression)(CONTENT)
    for length in range(len(block)):
        with pytest.raises(SquashfsCorrupt):
            unpack(block[:length], LIMIT)
    for bad_block in (block + b"\0", block + block, os.urandom(40), b"\0" * 40):
        with pytest.raises(SquashfsCorrupt):
            unpack(bad_block, LIMIT)


def test_a_frame_without_its_size_is_bounded() -> None:
    """A zstd frame need not promise a size; then the limit alone counts."""
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(BOMB)
    with pytest.raises(SquashfsCorrupt):
        decompress_with(Compressor.ZSTD)(frame, LIMIT)


def test_the_parameters_that_the_kernel_takes() -> None:
    """Frames of zstd name their size; xz has CRC32 and a dictionary of 8 KiB."""
    assert zstandard.frame_content_size(metadata_compressor(ZSTD)(CONTENT)) == len(CONTENT)
    stream = metadata_compressor(XZ)(CONTENT)
    assert stream[:8] == b"\xfd7zXZ\0\0\1"  # the last two: no flags, CRC32
    assert stream[12:17] == b"\x02\x00\x21\x01\x02"  # LZMA2, whose dictionary has 2**(2/2 + 12)


@pytest.mark.parametrize(
    ("compression", "options"),
    [
        (Compression(Compressor.GZIP, 9), b""),
        (Compression(Compressor.GZIP, 5), pack("<IHH", 5, 15, 0)),
        (Compression(Compressor.GZIP, 9, 10, 3), pack("<IHH", 9, 10, 3)),
        (Compression(Compressor.ZSTD, 15), b""),
        (Compression(Compressor.ZSTD, 3), pack("<I", 3)),
        (Compression(Compressor.XZ), b""),
        (Compression(Compressor.XZ, dictionary=65_536, filters=1), pack("<II", 65_536, 1)),
        (Compression(Compressor.XZ, dictionary=98_304), pack("<II", 98_304, 0)),
    ],
)
def test_options(compression: Compression, options: bytes) -> None:
    """Options have the layout of `mksquashfs`, and the defaults none at all."""
    assert compression.pack() == options
    assert Compression.unpack(compression.compressor, options) == compression


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (1, b"\0"),
        (1, pack("<IHH", 10, 15, 0)),
        (1, pack("<IHH", 9, 16, 0)),
        (1, pack("<IHHI", 9, 15, 0, 0)),
        (4, pack("<II", 65_537, 0)),
        (4, pack("<II", 1 << 30, 0)),
        (6, pack("<I", 23)),
        (6, pack("<I", 0)),
        (0, b""),
        (7, b""),
    ],
)
def test_damaged_options_are_refused(number: int, options: bytes) -> None:
    """Options that the kernel would refuse, and unknown compressors, are damage."""
    with pytest.raises(SquashfsCorrupt):
        Compression.unpack(number, options)


@pytest.mark.parametrize(("number", "name"), [(2, "lzma"), (3, "lzo"), (5, "lz4")])
def test_unsupported_compressors_are_named(number: int, name: str) -> None:
    """The error says which compressor is not supported, and which are."""
    with pytest.raises(SquashfsUnsupported, match=f"with {name}, .*gzip, zstd and xz"):
        Compression.unpack(number, b"")
