"""Parse single inodes of an unpacked inode table, and check what one inode alone can show."""

from __future__ import annotations

from typing import NamedTuple

from shiftergw.squashfs import inodes
from shiftergw.squashfs.blocks import corrupt
from shiftergw.squashfs.inodes import EXTENDED, NO_FRAGMENT, NO_XATTRS, STORED_BLOCK, InodeKind
from shiftergw.squashfs.nodes import NO_DATA, FileData
from shiftergw.squashfs.tables import SquashfsTables, integers

_AFTER_COMMON = inodes.COMMON.size
_FILE = int(InodeKind.FILE)


class Inode(NamedTuple):
    """What follows the common fields of an inode, and `end`, its end in the table.

    `device` is what `os.makedev` returns. The last fields are those of directories: where their
    listing begins (block and offset) and its size, the number of the parent, and how many entries
    the index has, which begins at `end`.
    """

    end: int
    links: int = 1
    xattrs: int = NO_XATTRS
    data: FileData = NO_DATA
    target: bytes = b""
    device: int = 0
    block: int = 0
    offset: int = 0
    listing: int = 0
    parent: int = 0
    index_entries: int = 0


class InodeReader:
    """Parses the inodes of a file.

    Its methods raise `SquashfsCorrupt`, and `struct.error` where the table ends too early.
    """

    def __init__(self, tables: SquashfsTables) -> None:
        """Parse inodes of these tables."""
        self._tables = tables
        self._table = tables.inodes.data
        self._block_size = tables.superblock.block_size
        self._data_end = tables.superblock.inode_table
        self._fragments = tables.fragments

    def read(self, number: int, position: int) -> Inode:
        """Return the inode at `position`, whose type has this number."""
        position += _AFTER_COMMON
        is_long = number > EXTENDED
        kind = number - EXTENDED if is_long else number
        if kind == _FILE:
            return self._file(position, is_long)
        match kind:
            case InodeKind.DIRECTORY:
                return self._directory(position, is_long)
            case InodeKind.SYMLINK:
                return self._symlink(position, is_long)
            case InodeKind.BLOCK_DEVICE | InodeKind.CHARACTER_DEVICE:
                layout = inodes.LONG_DEVICE if is_long else inodes.DEVICE
                links, device, *rest = layout.unpack_from(self._table, position)
                device = inodes.decode_device(device)
            case _:
                layout = inodes.LONG_PIPE if is_long else inodes.PIPE
                links, *rest = layout.unpack_from(self._table, position)
                device = 0
        xattrs = self._checked_xattrs(*rest) if rest else NO_XATTRS
        return Inode(position + layout.size, links, xattrs, device=device)

    def _file(self, position: int, is_long: bool) -> Inode:
        table, block_size = self._table, self._block_size
        links, xattrs, sparse = 1, NO_XATTRS, 0
        if is_long:
            start, size, sparse, links, fragment, offset, xattrs = inodes.LONG_FILE.unpack_from(
                self._table, position
            )
            if xattrs != NO_XATTRS:
                self._checked_xattrs(xattrs)
            position += inodes.LONG_FILE.size
        else:
            start, fragment, offset, size = inodes.FILE.unpack_from(self._table, position)
            position += inodes.FILE.size
        end = position
        blocks = b""
        if size >= block_size or fragment == NO_FRAGMENT:
            end += 4 * inodes.block_count(size, block_size, fragment)
            if end > len(table):
                raise corrupt(f"a file of {size} bytes has more blocks than the table")
            blocks = table[position:end]
            self._check_blocks(start, size, blocks)
        if fragment != NO_FRAGMENT:
            self._check_tail(fragment, offset, size % block_size)
        if sparse and sparse >= size:
            raise corrupt(f"a file of {size} bytes with holes of {sparse}")
        return Inode(end, links, xattrs, FileData(size, start, fragment, offset, sparse, blocks))

    def _check_blocks(self, start: int, size: int, blocks: bytes) -> None:
        total = 0
        block_size = self._block_size
        rest = size
        for word in integers("I", blocks) if blocks else ():
            stored_size = word & ~STORED_BLOCK
            if word:
                if word > STORED_BLOCK:
                    if stored_size != min(rest, block_size):
                        raise corrupt(f"a stored block of {stored_size} bytes")
                elif not stored_size or stored_size > block_size:
                    raise corrupt(f"a block of {stored_size} bytes")
                total += stored_size
            rest -= block_size
        if total and not self._tables.data_start <= start <= self._data_end - total:
            raise corrupt(f"{total} bytes of a file at {start}")

    def _check_tail(self, fragment: int, offset: int, tail: int) -> None:
        if fragment >= len(self._fragments):
            raise corrupt(f"fragment {fragment} of {len(self._fragments)}")
        size = self._fragments[fragment].size
        limit = size & ~STORED_BLOCK if size & STORED_BLOCK else self._block_size
        if not tail or offset + tail > limit:
            raise corrupt(f"a tail of {tail} bytes at {offset} of a fragment block")

    def _directory(self, position: int, is_long: bool) -> Inode:
        xattrs = NO_XATTRS
        index = 0
        if is_long:
            links, size, block, parent, index, offset, xattrs = inodes.LONG_DIRECTORY.unpack_from(
                self._table, position
            )
            self._checked_xattrs(xattrs)
            position += inodes.LONG_DIRECTORY.size
        else:
            block, links, size, offset, parent = inodes.DIRECTORY.unpack_from(self._table, position)
            position += inodes.DIRECTORY.size
        listing = size - inodes.LISTING_EXTRA
        if listing < 0 or (index and not listing):
            raise corrupt(f"a directory of {size} bytes with {index} entries in its index")
        return Inode(
            position, links, xattrs, block=block, offset=offset, listing=listing, parent=parent,
            index_entries=index,
        )  # fmt: skip

    def _symlink(self, position: int, is_long: bool) -> Inode:
        links, size = inodes.SYMLINK.unpack_from(self._table, position)
        position += inodes.SYMLINK.size
        end = position + size
        target = self._table[position:end]
        if not 0 < size <= inodes.TARGET_LIMIT or len(target) < size or b"\0" in target:
            raise corrupt(f"a symlink of {size} bytes")
        if not is_long:
            return Inode(end, links, target=target)
        xattrs = int.from_bytes(self._table[end : end + 4], "little")
        return Inode(end + 4, links, self._checked_xattrs(xattrs), target=target)

    def _checked_xattrs(self, xattrs: int) -> int:
        if xattrs != NO_XATTRS and xattrs >= self._tables.xattr_sets:
            raise corrupt(f"set {xattrs} of xattrs of {self._tables.xattr_sets}")
        return xattrs
