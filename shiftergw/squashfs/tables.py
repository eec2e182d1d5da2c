"""Read the tables of a squashfs file, compared with one another and with the file."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass

from shiftergw.squashfs import inodes, superblock
from shiftergw.squashfs.blocks import (
    MetadataTable,
    ReadAt,
    Source,
    corrupt,
    read_indexed_table,
    read_options,
    read_table,
)
from shiftergw.squashfs.compressors import Compression, Decompress, decompress_with
from shiftergw.squashfs.inodes import STORED_BLOCK
from shiftergw.squashfs.nodes import FragmentBlock
from shiftergw.squashfs.superblock import Superblock

_MINIMAL_INODE = inodes.COMMON.size + inodes.PIPE.size


@dataclass(frozen=True, slots=True)
class SquashfsTables:
    """The tables of a file; positions are bytes from its beginning.

    `data_start` is where its data blocks may begin. `exports` has the reference of each inode by
    its number - 1, and is empty if the file has no export table. `xattr_sets` is the number of
    different sets of xattrs.
    """

    superblock: Superblock
    compression: Compression
    data_start: int
    inodes: MetadataTable
    directories: MetadataTable
    fragments: list[FragmentBlock]
    exports: array[int]
    ids: array[int]
    xattr_sets: int


def read_tables(read_at: ReadAt, file_size: int) -> SquashfsTables:
    """Read all tables of a squashfs file. Blocks, as `read_at` does.

    Memory is bounded by `blocks.MEMORY_LIMIT` for each table. Raises `SquashfsCorrupt` and
    `SquashfsUnsupported`.
    """
    head = Source(read_at, min(file_size, superblock.SIZE)).read(0, min(file_size, superblock.SIZE))
    block = Superblock.unpack(head)
    block.check(file_size)
    source = Source(read_at, block.bytes_used)
    options, data_start = b"", superblock.SIZE
    if block.has_compressor_options:
        options, data_start = read_options(source, data_start)
        if data_start > block.inode_table:
            raise corrupt("the compressor options reach into the inode table")
    compression = Compression.unpack(block.compressor, options)
    decompress = decompress_with(compression.compressor)

    # From the last table to the first: each must end where the one behind it begins.
    end = block.bytes_used
    xattr_sets = 0
    if block.xattr_table != superblock.ABSENT:
        xattr_sets, end = _read_xattr_ids(source, block.xattr_table, end, decompress)
    raw, end = read_indexed_table(
        source, block.id_table, end, inodes.ID_SIZE * block.ids, decompress
    )
    ids = integers("I", raw)
    exports = array("Q")
    if block.export_table != superblock.ABSENT:
        size = inodes.REFERENCE_SIZE * block.inodes
        raw, end = read_indexed_table(source, block.export_table, end, size, decompress)
        exports = integers("Q", raw)
    fragments: list[FragmentBlock] = []
    if block.fragments:
        size = inodes.FRAGMENT.size * block.fragments
        raw, end = read_indexed_table(source, block.fragment_table, end, size, decompress)
        fragments = [
            _checked_fragment(start, size, block, data_start)
            for start, size, _ in inodes.FRAGMENT.iter_unpack(raw)
        ]
    if block.directory_table > end:
        raise corrupt(f"the directory table begins at {block.directory_table}, behind {end}")
    directories = read_table(source, block.directory_table, end, decompress)
    inode_table = read_table(source, block.inode_table, block.directory_table, decompress)
    if block.inodes * _MINIMAL_INODE > len(inode_table.data):
        raise corrupt(f"{block.inodes} inodes in {len(inode_table.data)} bytes")
    return SquashfsTables(
        block, compression, data_start, inode_table, directories, fragments, exports, ids,
        xattr_sets,
    )  # fmt: skip


def integers(typecode: str, raw: bytes) -> array[int]:
    """Return little-endian integers of 32 (`I`) or 64 bits (`Q`) as an array."""
    numbers = array(typecode, raw)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def integer_bytes(numbers: array[int]) -> bytes:
    """Return the bytes of integers as `integers` takes them."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _checked_fragment(start: int, size: int, block: Superblock, data_start: int) -> FragmentBlock:
    stored_size = size & ~STORED_BLOCK
    if not 0 < stored_size <= block.block_size:
        raise corrupt(f"a fragment block of {stored_size} bytes")
    if not data_start <= start <= block.inode_table - stored_size:
        raise corrupt(f"a fragment block at {start}")
    return FragmentBlock(start, size)


def _read_xattr_ids(
    source: Source, position: int, end: int, decompress: Decompress
) -> tuple[int, int]:
    """Return the number of sets of xattrs, and where their values begin."""
    header = inodes.XATTR_HEADER
    values, count, _ = header.unpack(source.read(position, header.size))
    if not count:
        raise corrupt("a table of no xattrs")
    size = inodes.XATTR_SIZE * count
    raw, ids = read_indexed_table(
        source, position + header.size, end, size, decompress, header.size
    )
    if values >= ids:
        raise corrupt(f"the values of xattrs begin at {values}, behind {ids}")
    table = read_table(source, values, ids, decompress)
    for reference, _, _ in inodes.XATTR_HEADER.iter_unpack(raw):
        table.resolve(reference >> 16, reference & 0xFFFF)
    return count, values
