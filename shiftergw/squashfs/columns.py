"""The data of many files, compact: columns of numbers and one run of block sizes."""

from __future__ import annotations

from array import array
from collections.abc import Hashable

from shiftergw.squashfs.inodes import NO_FRAGMENT, STORED_BLOCK, block_count
from shiftergw.squashfs.nodes import FileData
from shiftergw.squashfs.tables import integers


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
        self._first_blocks = array("Q")
        self._blocks = bytearray()
        self._shared_blocks: dict[Hashable, int] = {}

    def append(self, data: FileData, link: Hashable | None = None) -> None:
        """Append a file; files that share an inode have the same `link`, the others None."""
        size, start, fragment, offset, sparse, blocks = data
        self.sizes.append(size)
        self.starts.append(start)
        self.fragments.append(fragment)
        self.offsets.append(offset)
        self.sparse.append(sparse)
        first = len(self._blocks)
        if link is not None:
            first = self._shared_blocks.setdefault(link, first)
        self._first_blocks.append(first)
        if first == len(self._blocks):
            self._blocks += blocks

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> FileData:
        size, fragment = self.sizes[index], self.fragments[index]
        blocks = b""
        if size >= self.block_size or fragment == NO_FRAGMENT:
            first = self._first_blocks[index]
            end = first + 4 * block_count(size, self.block_size, fragment)
            blocks = bytes(self._blocks[first:end])
        return FileData(
            size, self.starts[index], fragment, self.offsets[index], self.sparse[index], blocks
        )

    def stored_size(self, index: int) -> int:
        """Return the bytes of the data blocks of a file as they are stored, without its tail."""
        size = self.sizes[index]
        if size < self.block_size and self.fragments[index] != NO_FRAGMENT:  # nearly all
            return 0
        return sum(word & ~STORED_BLOCK for word in integers("I", self[index].blocks))
