"""Pack single inodes, basic where they can be and extended where they must."""

from __future__ import annotations

import os
from struct import Struct

from shiftergw.errors import SquashfsUnsupported
from shiftergw.squashfs import inodes
from shiftergw.squashfs.inodes import EXTENDED, NO_FRAGMENT, NO_XATTRS, InodeKind
from shiftergw.squashfs.nodes import DirectoryNode, FileData, FileNode, LeafNode, SymlinkNode

_LIMIT_32 = 2**32
_LIMIT_64 = 2**63
"""Bytes of a file: the kernel's sizes have a sign."""

_LONGEST_BASIC_LISTING = 2**16 - 1 - inodes.LISTING_EXTRA
_MODE_BITS = 0o7777
_IDS_LIMIT = 2**16 - 1
_INDEX_LIMIT = 2**16 - 1

_pack_common = inodes.COMMON.pack
_pack_file = inodes.FILE.pack
_pack_small_file = Struct(inodes.COMMON.format + inodes.FILE.format[1:]).pack

# Plain numbers: arithmetic with members of an enumeration takes several times as long.
_FILE = int(InodeKind.FILE)
_LONG_FILE = int(InodeKind.FILE) + EXTENDED


def tree_error(what: str) -> SquashfsUnsupported:
    """Return the error of a tree that squashfs cannot hold, or whose entries are invalid."""
    return SquashfsUnsupported(f"A squashfs file cannot be written: {what}.")


class InodePacker:
    """Packs inodes, and collects the ids of their owners.

    Its methods raise `SquashfsUnsupported` for values that the format has no room for.
    """

    def __init__(self, block_size: int, fragments: int, data_end: int) -> None:
        """Take files of such blocks before `data_end`, and tails in `fragments` fragment blocks."""
        self._block_size = block_size
        self._fragments = fragments
        self._data_end = data_end
        self._ids: dict[int, int] = {}

    @property
    def ids(self) -> list[int]:
        """Return the ids in the order of the id table."""
        return list(self._ids)

    def leaf(self, node: LeafNode, number: int) -> tuple[int, bytes]:
        """Return the kind of an inode that is not a directory, and its bytes."""
        if isinstance(node, FileNode):
            return _FILE, self._file(node, number)
        if isinstance(node, SymlinkNode):
            kind = InodeKind.SYMLINK
            if not 0 < len(node.target) <= inodes.TARGET_LIMIT or b"\0" in node.target:
                raise tree_error(f"a symlink has a target of {len(node.target)} bytes")
            rest = inodes.SYMLINK.pack(node.links, len(node.target)) + node.target
        elif node.kind in {InodeKind.BLOCK_DEVICE, InodeKind.CHARACTER_DEVICE}:
            kind = node.kind
            number_of_device = inodes.encode_device(node.device)
            if inodes.decode_device(number_of_device) != node.device:
                major, minor = os.major(node.device), os.minor(node.device)
                raise tree_error(f"a device has the numbers {major} and {minor}")
            rest = inodes.DEVICE.pack(node.links, number_of_device)
        elif node.kind in {InodeKind.FIFO, InodeKind.SOCKET}:
            kind = node.kind
            rest = inodes.PIPE.pack(node.links)
        else:
            raise tree_error(f"a leaf has the kind {node.kind.name}")
        return kind, self._common(kind, node, number) + rest

    def _file(self, node: FileNode, number: int) -> bytes:
        data, mode, mtime, uid, gid, links, _ = node
        size, start, fragment, offset, sparse, blocks = data
        ids = self._ids
        if (  # a tail alone, as most files are; this implies all that `_check_data` checks
            0 < size < self._block_size
            and size <= self._block_size - offset
            and 0 <= fragment < self._fragments
            and links == 1
            and not (start or sparse or blocks)
            and uid in ids
            and gid in ids
        ):
            return _pack_small_file(
                _FILE, mode & _MODE_BITS, ids[uid], ids[gid], mtime, number,
                0, fragment, offset, size,
            )  # fmt: skip
        self._check_data(data)
        if start < _LIMIT_32 and size < _LIMIT_32 and links == 1 and not sparse:
            rest = _pack_file(start, fragment, offset, size)
            return self._common(_FILE, node, number) + rest + blocks
        rest = inodes.LONG_FILE.pack(start, size, sparse, links, fragment, offset, NO_XATTRS)
        return self._common(_LONG_FILE, node, number) + rest + blocks

    def _check_data(self, data: FileData) -> None:
        """Check what a wrong position or a wrong number of blocks can be told by."""
        size, start, fragment, offset, sparse, blocks = data
        count = inodes.block_count(size, self._block_size, fragment)
        tail = size % self._block_size
        if (
            not 0 <= size < _LIMIT_64
            or len(blocks) != 4 * count
            or not 0 <= start <= self._data_end
            or not 0 <= sparse <= max(size - 1, 0)
            or (
                fragment != NO_FRAGMENT
                and not (0 <= fragment < self._fragments and 0 < tail <= self._block_size - offset)
            )
        ):
            raise tree_error(
                f"the data of a file of {size} bytes has {len(blocks) // 4} blocks at {start},"
                f" fragment {fragment} at {offset} and holes of {sparse}"
            )

    def directory(
        self,
        node: DirectoryNode,
        number: int,
        parent: int,
        reference: int,
        listing: int,
        subdirectories: int,
        index: list[bytes],
    ) -> bytes:
        """Return the inode of a directory whose listing of `listing` bytes is at `reference`."""
        links = subdirectories + 2
        size = listing + inodes.LISTING_EXTRA
        block, offset = reference >> 16, reference & 0xFFFF
        if size >= _LIMIT_32 or block >= _LIMIT_32 or len(index) > _INDEX_LIMIT:
            raise tree_error(f"a directory has a listing of {listing} bytes")
        if listing <= _LONGEST_BASIC_LISTING:
            rest = inodes.DIRECTORY.pack(block, links, size, offset, parent)
            return self._common(InodeKind.DIRECTORY, node, number) + rest
        rest = inodes.LONG_DIRECTORY.pack(links, size, block, parent, len(index), offset, NO_XATTRS)
        common = self._common(InodeKind.DIRECTORY + EXTENDED, node, number)
        return common + rest + b"".join(index)

    def _common(self, kind: int, node: LeafNode | DirectoryNode, number: int) -> bytes:
        ids = self._ids
        owner = ids.setdefault(node.uid, len(ids))
        group = ids.setdefault(node.gid, len(ids))
        if len(ids) > _IDS_LIMIT:
            raise tree_error(f"its entries have more than {_IDS_LIMIT} different owners")
        return _pack_common(kind, node.mode & _MODE_BITS, owner, group, node.mtime, number)
