"""The nodes of a tree that is to be written, and where the data of its files is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from shiftergw.squashfs.inodes import NO_FRAGMENT, InodeKind


class FragmentBlock(NamedTuple):
    """A block of tails of files: its position, and its size with the bit `STORED_BLOCK`."""

    start: int
    size: int


class FileData(NamedTuple):
    """Where the content of a file is.

    `start` is the position of its first data block. `blocks` has the sizes of its data blocks as
    the inode has them: 32 bits each, little-endian, with the bit `STORED_BLOCK`; 0 is a hole.
    `sparse` is the bytes of its holes, at most `size - 1`. Its tail is at `offset` of the unpacked
    fragment number `fragment`.
    """

    size: int = 0
    start: int = 0
    fragment: int = NO_FRAGMENT
    offset: int = 0
    sparse: int = 0
    blocks: bytes = b""

    def shift(self, distance: int, fragments: int) -> FileData:
        """Return the same data, `distance` bytes and `fragments` fragment blocks further on."""
        size, start, fragment, offset, sparse, blocks = self
        return FileData(
            size,
            start + distance if blocks else 0,
            fragment if fragment == NO_FRAGMENT else fragment + fragments,
            offset,
            sparse,
            blocks,
        )


NO_DATA = FileData()
"""The data of an empty file."""


class FileNode(NamedTuple):
    """A regular file.

    `mode` is the permission bits, `mtime` seconds since 1970. Leaves that share an inode have the
    same `link`, which is None for the others, and the same `links`, the number of their names.
    """

    data: FileData = NO_DATA
    mode: int = 0o644
    mtime: int = 0
    uid: int = 0
    gid: int = 0
    links: int = 1
    link: Hashable | None = None


class SymlinkNode(NamedTuple):
    """A symlink; the other fields are those of `FileNode`."""

    target: bytes
    mode: int = 0o777
    mtime: int = 0
    uid: int = 0
    gid: int = 0
    links: int = 1
    link: Hashable | None = None


class SpecialNode(NamedTuple):
    """A device node, FIFO or socket; `device` is what `os.makedev` returns, 0 for the latter two.

    The other fields are those of `FileNode`.
    """

    kind: InodeKind
    device: int = 0
    mode: int = 0o644
    mtime: int = 0
    uid: int = 0
    gid: int = 0
    links: int = 1
    link: Hashable | None = None


class DirectoryNode(NamedTuple):
    """A directory.

    `children` yields its entries in the bytewise order of their names. It is iterated once, when
    the directory is written, so it may make the nodes at that time.
    """

    children: Iterable[tuple[bytes, Node]] = ()
    mode: int = 0o755
    mtime: int = 0
    uid: int = 0
    gid: int = 0


LeafNode = FileNode | SymlinkNode | SpecialNode
Node = DirectoryNode | FileNode | SymlinkNode | SpecialNode
