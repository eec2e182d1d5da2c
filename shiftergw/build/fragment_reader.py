"""Read the tails of contents from the fragment blocks of their packs."""

from __future__ import annotations

import os

from shiftergw.build.pack_contents import OpenPack, pack_error
from shiftergw.errors import SquashfsCorrupt
from shiftergw.squashfs.columns import FileColumns
from shiftergw.squashfs.compressors import Compression, decompress_with
from shiftergw.squashfs.inodes import STORED_BLOCK


class FragmentReader:
    """Reads tails, and keeps the block that was unpacked last: neighbors mostly share it."""

    def __init__(self, columns: FileColumns, compression: Compression) -> None:
        """Read the tails of the files in `columns`, whose fragments are those of their packs."""
        self._columns = columns
        self._decompress = decompress_with(compression.compressor)
        self._block: tuple[OpenPack, int] | None = None
        self._content = memoryview(b"")

    def tail(self, pack: OpenPack, place: int) -> memoryview:
        """Return the tail of the content at a place, which is in a fragment block of `pack`.

        Blocks. Raises `BlobCorrupt` for a damaged pack, and `OSError`.
        """
        columns = self._columns
        fragment, offset = columns.fragments[place], columns.offsets[place]
        if self._block is None or self._block[1] != fragment or self._block[0] is not pack:
            self._content = self._read(pack, fragment)
            self._block = pack, fragment
        size = columns.sizes[place] % columns.block_size
        tail = self._content[offset : offset + size]
        if len(tail) != size:
            raise pack_error(f"fragment block {fragment} has {len(self._content)} bytes")
        return tail

    def _read(self, pack: OpenPack, fragment: int) -> memoryview:
        """Return the content of a fragment block."""
        start, size = pack.fragments[fragment]
        block = os.pread(pack.descriptor, size & ~STORED_BLOCK, start)
        if len(block) != size & ~STORED_BLOCK:
            raise pack_error(f"it ends within the fragment block at {start}")
        if size & STORED_BLOCK:
            return memoryview(block)
        try:
            return memoryview(self._decompress(block, self._columns.block_size))
        except SquashfsCorrupt as error:
            raise pack_error(error.detail) from error
