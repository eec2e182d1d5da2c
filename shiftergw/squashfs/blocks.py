"""Metadata blocks in: runs of compressed blocks of 8 KiB, and tables that an index points at.

A metadata block begins with 16 bits: its size on disk, and in the highest bit whether it is stored
as it is. Every block but the last of a table unpacks to 8 KiB, which is what makes a reference
(position of the block, offset in it) the same as an offset in the unpacked table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct, unpack
from typing import Final

from shiftergw.errors import SquashfsCorrupt, SquashfsUnsupported, amount
from shiftergw.squashfs.compressors import Decompress
from shiftergw.squashfs.superblock import METADATA_SIZE

STORED_BIT: Final = 0x8000
"""The bit of a block's header that says that the block is not compressed."""

HEADER = Struct("<H")

MEMORY_LIMIT = 1 << 30
"""Bytes that a table may unpack to: more than five million files with long names need."""

ReadAt = Callable[[int, int], bytes]
"""Return `length` bytes at `offset` of a file, fewer only at its end; it may block.

The arguments are (length, offset), so that `partial(os.pread, descriptor)` is such a function.
"""


class Source:
    """The bytes of a file that belong to the file system."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        """Read the first `size` bytes of a file."""
        self._read_at = read_at
        self.size = size

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes at `start`; raise `SquashfsCorrupt` if the file ends."""
        if start < 0 or length < 0 or start + length > self.size:
            raise corrupt(f"{length} bytes at {start} of a file of {self.size}")
        data = self._read_at(length, start)
        while len(data) < length:  # a read of more than 2 GiB, or of some network file systems
            rest = self._read_at(length - len(data), start + len(data))
            if not rest:
                raise corrupt(f"the file ends at {start + len(data)} of {self.size}")
            data += rest
        return data


def corrupt(detail: str) -> SquashfsCorrupt:
    """Return the error of metadata that contradicts itself."""
    return SquashfsCorrupt("A squashfs file has damaged metadata.", detail=detail)


@dataclass(frozen=True, slots=True)
class MetadataTable:
    """An unpacked table: `offsets` has for the position of each block its offset in `data`.

    Positions count from the beginning of the table on disk.
    """

    data: bytes
    offsets: dict[int, int]

    def resolve(self, block: int, offset: int) -> int:
        """Return where in `data` a reference points; it may be the end of `data`."""
        start = self.offsets.get(block)
        if start is None or offset >= METADATA_SIZE or start + offset > len(self.data):
            raise corrupt(f"a reference to block {block}, offset {offset}")
        return start + offset


def read_table(source: Source, start: int, end: int, decompress: Decompress) -> MetadataTable:
    """Read the metadata blocks that fill the file from `start` to `end`.

    Raises `SquashfsCorrupt`, and `SquashfsUnsupported` if the table unpacks to more than
    `MEMORY_LIMIT` bytes.
    """
    if end - start > MEMORY_LIMIT:
        raise _too_large()
    raw = source.read(start, end - start)
    blocks: list[bytes] = []
    offsets: dict[int, int] = {}
    position = total = 0
    while position < len(raw):
        if total % METADATA_SIZE:
            raise corrupt("a metadata block is too short")
        offsets[position] = total
        block, position = _block_at(raw, position, decompress)
        blocks.append(block)
        total += len(block)
        if total > MEMORY_LIMIT:
            raise _too_large()
    return MetadataTable(b"".join(blocks), offsets)


def _block_at(raw: bytes, position: int, decompress: Decompress) -> tuple[bytes, int]:
    """Return the unpacked block at a position, and the position after it."""
    start = position + HEADER.size
    if start > len(raw):
        raise corrupt("a metadata block has no header")
    (header,) = HEADER.unpack_from(raw, position)
    end = start + (header & ~STORED_BIT)
    if not start < end <= min(len(raw), start + METADATA_SIZE):
        raise corrupt(f"a metadata block of {header & ~STORED_BIT} bytes")
    block = raw[start:end]
    if not header & STORED_BIT:
        block = decompress(block, METADATA_SIZE)
        if not block:
            raise corrupt("a metadata block is empty")
    return block, end


def read_options(source: Source, start: int) -> tuple[bytes, int]:
    """Return the compressor options, which are a stored block at `start`, and the end of it."""
    (header,) = HEADER.unpack(source.read(start, HEADER.size))
    if not header & STORED_BIT:
        raise corrupt("the compressor options are compressed")
    start += HEADER.size
    size = header & ~STORED_BIT
    if not 0 < size <= METADATA_SIZE:
        raise corrupt(f"{size} bytes of compressor options")
    return source.read(start, size), start + size


def read_indexed_table(
    source: Source, index: int, end: int, size: int, decompress: Decompress, header: int = 0
) -> tuple[bytes, int]:
    """Return the `size` bytes of an indexed table, and where its first block begins.

    `index` is the position of the index, which lasts until `end`; `header` bytes are between the
    blocks and their index.
    """
    count = -(-size // METADATA_SIZE)
    if not count or index + 8 * count != end:
        raise corrupt(f"an index of {count} blocks from {index} to {end}")
    pointers = unpack(f"<{count}Q", source.read(index, 8 * count))
    start = pointers[0]
    if start >= index - header:
        raise corrupt(f"an index at {index} points at {start}")
    table = read_table(source, start, index - header, decompress)
    if len(table.data) != size or [pointer - start for pointer in pointers] != [*table.offsets]:
        raise corrupt(f"an index at {index} does not fit its table")
    return table.data, start


def _too_large() -> SquashfsUnsupported:
    return SquashfsUnsupported(
        f"A squashfs file has more than {amount(MEMORY_LIMIT)} of metadata in one table.",
        remedy="Make the image smaller.",
    )
