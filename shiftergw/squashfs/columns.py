"""The data of many files, compact: columns of numbers and one run of block sizes."""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from struct import Struct, error

from shiftergw.squashfs.inodes import NO_FRAGMENT, STORED_BLOCK, block_count
from shiftergw.squashfs.nodes import FileData
from shiftergw.squashfs.tables import integer_bytes, integers

_HEADER = Struct("<IIQ")  # bytes of a block, files, bytes of the block sizes


class FileColumns:
    """The data of files, by their place in the order of names.

    A file takes 40 bytes, and 4 for each data block; files that share an inode share the latter.
    """

    def __init__(self, block_size: int) -> None:
        """Start without files."""
        self.block_size = block_size
        self.sizes = array("Q")
        """Bytes of each file."""
        self.starts = array("Q")
        """Position of the first data block of each file."""
        self.fragments = array("I")
        """Number of the fragment block of each file, or `NO_FRAGMENT`."""
        self.offsets = array("I")
        """Where the tail of each file begins in its fragment block."""
        self.sparse = array("Q")
        """Bytes of holes in each file."""
        self.first_blocks = array("Q")
        """Where the sizes of the data blocks of each file begin in `blocks`."""
        self.blocks = bytearray()
        """The sizes of data blocks, as inodes have them."""
        self._shared_blocks: dict[Hashable, int] = {}

    def append(self, data: FileData, link: Hashable | None = None) -> None:
        """Append a file; files that share an inode have the same `link`, the others None."""
        size, start, fragment, offset, sparse, blocks = data
        self.sizes.append(size)
        self.starts.append(start)
        self.fragments.append(fragment)
        self.offsets.append(offset)
        self.sparse.append(sparse)
        first = len(self.blocks)
        if link is not None:
            first = self._shared_blocks.setdefault(link, first)
        self.first_blocks.append(first)
        if first == len(self.blocks):
            self.blocks += blocks

    def extend(self, files: FileColumns) -> None:
        """Append all files of other columns, whose blocks have the same size."""
        first = len(self.blocks)
        for column, numbers in zip(self._columns(), files._columns(), strict=True):
            column.extend(numbers)
        if first:
            start = len(self.first_blocks) - len(files)
            self.first_blocks[start:] = array("Q", map(first.__add__, files.first_blocks))
        self.blocks += files.blocks

    def encode(self) -> bytes:
        """Return the columns as bytes, 40 for each file."""
        header = _HEADER.pack(self.block_size, len(self), len(self.blocks))
        return b"".join([header, *map(integer_bytes, self._columns()), self.blocks])

    @classmethod
    def decode(cls, data: bytes) -> FileColumns:
        """Return the columns that `encode` encoded; raise `ValueError` for another length."""
        try:
            block_size, count, blocks_size = _HEADER.unpack_from(data)
        except error as cause:
            raise ValueError("not the columns of files") from cause
        files = cls(block_size)
        columns = files._columns()
        size = count * sum(column.itemsize for column in columns) + blocks_size
        position = _HEADER.size
        if len(data) != position + size:
            raise ValueError("the columns of files are too short or too long")
        for column in columns:
            end = position + count * column.itemsize
            column.extend(integers(column.typecode, data[position:end]))
            position = end
        files.blocks += data[position:]
        return files

    def _columns(self) -> tuple[array[int], ...]:
        """Return the columns of numbers, in the order in which they are encoded."""
        return (
            self.sizes, self.starts, self.fragments, self.offsets, self.sparse, self.first_blocks,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> FileData:
        size, fragment = self.sizes[index], self.fragments[index]
        blocks = b""
        if size >= self.block_size or fragment == NO_FRAGMENT:
            first = self.first_blocks[index]
            end = first + 4 * block_count(size, self.block_size, fragment)
            blocks = bytes(self.blocks[first:end])
        return FileData(
            size, self.starts[index], fragment, self.offsets[index], self.sparse[index], blocks
        )

    def stored_size(self, index: int) -> int:
        """Return the bytes of the data blocks of a file as they are stored, without its tail."""
        size = self.sizes[index]
        if size < self.block_size and self.fragments[index] != NO_FRAGMENT:  # nearly all
            return 0
        return sum(word & ~STORED_BLOCK for word in integers("I", self[index].blocks))
