"""A pack that is written by this process: its data and fragment blocks, and its metadata.

Theory of operation. Contents are cut into blocks, and their tails are collected in fragment blocks,
as `mksquashfs` does. Threads compress the blocks; they are written in the order in which they were
cut, so the blocks of a content are behind one another, and the same contents give the same bytes
whatever the threads do. The number of blocks in memory is limited; at the limit the oldest block is
awaited and written. The position of a content and the sizes of its blocks are noted when its blocks
are written. The superblock is written last: an incomplete file has none.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from struct import pack

from shiftergw.build.block_compressor import BlockCompressor
from shiftergw.build.image_output import ImageOutput
from shiftergw.build.pack_feed import PER_DIRECTORY, content_name, directory_count
from shiftergw.squashfs.compressors import Compress
from shiftergw.squashfs.inodes import NO_FRAGMENT, STORED_BLOCK
from shiftergw.squashfs.nodes import DirectoryNode, FileData, FileNode, FragmentBlock, Node
from shiftergw.squashfs.writer import SquashfsOptions, write_metadata

_FRAGMENT = -1
"""Marks a pending block as a fragment block, which has the tails of several contents."""


class DirectPack:
    """Writes contents into the file of a pack; see `ContentSink`."""

    def __init__(
        self, output: ImageOutput, options: SquashfsOptions, compressor: BlockCompressor
    ) -> None:
        """Write behind `options.data_start()`, where `output` is."""
        self._output = output
        self._options = options
        self._compressor = compressor
        self._zeros = bytes(options.block_size)
        self._contents = _ContentTable(options.block_size)
        self._pending: deque[tuple[int, int]] = deque()
        """The content of each block that is being compressed, and the place of its size."""
        self._block = bytearray()
        """The beginning of the next block of the content."""
        self._tails = bytearray()
        """The beginning of the next fragment block."""
        self._fragments: list[FragmentBlock] = []
        self._fragment_count = 0
        """Fragment blocks, including those that are being compressed."""

    def add_content(self, number: int, content: bytes) -> None:
        """Add a whole content."""
        self.begin(number, len(content))
        block_size = self._options.block_size
        end = len(content) - len(content) % block_size
        for start in range(0, end, block_size):
            self._add_block(content[start : start + block_size])
        self._add_tail(content[end:] if end else content)

    def begin(self, number: int, size: int) -> None:
        """Begin a content."""
        assert number == len(self._contents)
        self._contents.append(size)

    def add(self, part: bytes | memoryview) -> None:
        """Add the next bytes of a content."""
        block_size = self._options.block_size
        view = memoryview(part)
        while view:
            if not self._block and len(view) >= block_size:
                self._add_block(bytes(view[:block_size]))
                view = view[block_size:]
                continue
            space = block_size - len(self._block)
            self._block += view[:space]
            view = view[space:]
            if len(self._block) == block_size:
                self._add_block(bytes(self._block))
                self._block.clear()

    def end(self) -> None:
        """End a content."""
        self._add_tail(self._block)
        self._block.clear()

    def finish(self, compress: Compress) -> None:
        """Write what remains; `compress` compresses the metadata."""
        self._flush_tails()
        while not self._compressor.is_empty:
            self._write_blocks()
        superblock = write_metadata(
            DirectoryNode(self._contents.directories()),
            self._fragments,
            self._options,
            self._output.position,
            self._output.append,
            compress,
        )
        self._output.write_start(superblock.pack() + self._options.options_block())

    def _add_block(self, block: bytes) -> None:
        """Compress a data block of the last content; a block of zeros is a hole."""
        if block == self._zeros:
            self._contents.add_hole()
        else:
            self._compress(block, len(self._contents) - 1, self._contents.add_block())

    def _add_tail(self, tail: bytes | bytearray) -> None:
        """Add the tail of the last content, if it has any, to a fragment block."""
        if not tail:
            return
        if len(self._tails) + len(tail) > self._options.block_size:
            self._flush_tails()
        self._contents.set_tail(self._fragment_count, len(self._tails))
        self._tails += tail

    def _flush_tails(self) -> None:
        if self._tails:
            self._compress(bytes(self._tails), _FRAGMENT, self._fragment_count)
            self._fragment_count += 1
            self._tails.clear()

    def _compress(self, block: bytes, content: int, place: int) -> None:
        compressor = self._compressor
        while compressor.is_full or compressor.is_ready:
            self._write_blocks()
        compressor.add(block)
        self._pending.append((content, place))

    def _write_blocks(self) -> None:
        """Wait for the oldest blocks, and write them."""
        parts: list[bytes] = []
        position = self._output.position
        for original, result in self._compressor.next_blocks():
            content, place = self._pending.popleft()
            block, size = result, len(result)
            if size >= len(original):
                block, size = original, len(original) | STORED_BLOCK
            if content == _FRAGMENT:
                self._fragments.append(FragmentBlock(position, size))
            else:
                self._contents.set_block(content, place, position, size)
            parts.append(block)
            position += len(block)
        self._output.append(b"".join(parts))


class _ContentTable:
    """Where the contents of a pack are, by their numbers: 36 bytes each, and 4 for each block."""

    def __init__(self, block_size: int) -> None:
        """Start without contents."""
        self._block_size = block_size
        self._sizes = array("Q")
        self._starts = array("Q")
        self._fragments = array("I")
        self._offsets = array("I")
        self._first_blocks = array("Q")
        self._hole_counts: dict[int, int] = {}
        self._blocks = array("I")
        """The sizes of all blocks as inodes have them, in the order of the contents."""

    def __len__(self) -> int:
        return len(self._sizes)

    def append(self, size: int) -> None:
        """Append a content without its data."""
        self._sizes.append(size)
        self._starts.append(0)
        self._fragments.append(NO_FRAGMENT)
        self._offsets.append(0)
        self._first_blocks.append(len(self._blocks))

    def add_block(self) -> int:
        """Add a block to the last content; return the place of its size."""
        self._blocks.append(0)
        return len(self._blocks) - 1

    def add_hole(self) -> None:
        """Add a block of zeros to the last content."""
        self._blocks.append(0)
        number = len(self) - 1
        self._hole_counts[number] = self._hole_counts.get(number, 0) + 1

    def set_tail(self, fragment: int, offset: int) -> None:
        """Set where the tail of the last content is."""
        self._fragments[-1] = fragment
        self._offsets[-1] = offset

    def set_block(self, number: int, place: int, position: int, size: int) -> None:
        """Set where a block of a content is, and its size; the first one is set first."""
        if not self._starts[number]:
            self._starts[number] = position
        self._blocks[place] = size

    def directories(self) -> Iterator[tuple[bytes, Node]]:
        """Yield the directories of the pack by their names."""
        for index in range(directory_count(len(self))):
            name, _ = content_name(index * PER_DIRECTORY)
            yield name, DirectoryNode(self._files(index * PER_DIRECTORY))

    def _files(self, first: int) -> Iterator[tuple[bytes, Node]]:
        for number in range(first, min(first + PER_DIRECTORY, len(self))):
            _, name = content_name(number)
            yield name, FileNode(self._data_of(number))

    def _data_of(self, number: int) -> FileData:
        size, first = self._sizes[number], self._first_blocks[number]
        blocks = self._blocks[first : first + size // self._block_size]
        holes = self._hole_counts.get(number, 0) * self._block_size
        return FileData(
            size,
            self._starts[number],
            self._fragments[number],
            self._offsets[number],
            min(holes, size - 1),
            pack(f"<{len(blocks)}I", *blocks),
        )
