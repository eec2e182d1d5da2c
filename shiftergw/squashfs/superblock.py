"""The superblock of squashfs 4.0: the first 96 bytes of a file, little-endian.

The layout is that of `struct squashfs_super_block` in the kernel's fs/squashfs/squashfs_fs.h. It is
defined here and nowhere else in the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntFlag
from struct import Struct
from typing import Final, Self

from shiftergw.errors import SquashfsCorrupt, SquashfsUnsupported

MAGIC = b"hsqs"
"""The first bytes of a squashfs file."""

VERSION = (4, 0)
"""Major and minor version of the format."""

ABSENT = 2**64 - 1
"""The position of a table that a file does not have."""

LOWEST_BLOCK_LOG = 12
HIGHEST_BLOCK_LOG = 20

_LAYOUT = Struct("<4sIIIIHHHHHHQQQQQQQQ")

SIZE = _LAYOUT.size
"""Bytes of the superblock."""

METADATA_SIZE: Final = 8192
"""Bytes of a metadata block before compression; only the last one of a table has fewer."""


class SuperblockFlags(IntFlag):
    """The flags of a superblock; all but `EXPORTABLE` and `COMPRESSOR_OPTIONS` only inform."""

    STORED_INODES = 0x1
    STORED_DATA = 0x2
    STORED_FRAGMENTS = 0x8
    NO_FRAGMENTS = 0x10
    ALWAYS_FRAGMENTS = 0x20
    DUPLICATES_REMOVED = 0x40
    EXPORTABLE = 0x80
    STORED_XATTRS = 0x100
    NO_XATTRS = 0x200
    COMPRESSOR_OPTIONS = 0x400
    STORED_IDS = 0x800


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """The fields of a superblock, in the order of the file.

    Positions are bytes from the beginning of the file. `root` is the reference of the root's inode:
    the position of its metadata block in the inode table, shifted by 16 bits, and the offset in
    that block. `bytes_used` is the length of the file system, which the file may exceed by padding.
    """

    magic: bytes = MAGIC
    inodes: int
    created: int
    block_size: int
    fragments: int
    compressor: int
    block_log: int
    flags: int
    ids: int
    major: int = VERSION[0]
    minor: int = VERSION[1]
    root: int
    bytes_used: int
    id_table: int
    xattr_table: int = ABSENT
    inode_table: int
    directory_table: int
    fragment_table: int
    export_table: int

    @classmethod
    def unpack(cls, head: bytes | bytearray) -> Self:
        """Return the superblock at the beginning of `head`; check only its magic and its length.

        Raises `SquashfsCorrupt`.
        """
        if len(head) < SIZE or not head.startswith(MAGIC):
            raise SquashfsCorrupt("The file has no squashfs file system.")
        names = cls.__slots__
        return cls(**dict(zip(names, _LAYOUT.unpack_from(head), strict=True)))

    def pack(self) -> bytes:
        """Return the superblock as 96 bytes."""
        return _LAYOUT.pack(*astuple(self))

    @property
    def version(self) -> tuple[int, int]:
        """Return the major and minor version of the format."""
        return self.major, self.minor

    @property
    def has_compressor_options(self) -> bool:
        """Return whether a metadata block with the compressor's options follows the superblock."""
        return bool(self.flags & SuperblockFlags.COMPRESSOR_OPTIONS)

    def check(self, file_size: int) -> None:
        """Check every field against the others and against the bytes of the file.

        Raises `SquashfsUnsupported` for another version, and `SquashfsCorrupt`.
        """
        if self.version != VERSION:
            raise SquashfsUnsupported(
                f"The file system has the squashfs version {self.major}.{self.minor}; 4.0 is"
                " supported."
            )
        for problem in self._problems(file_size):
            raise SquashfsCorrupt("A squashfs file has a damaged superblock.", detail=problem)

    def _problems(self, file_size: int) -> Iterator[str]:
        if not SIZE < self.bytes_used <= file_size:
            yield f"{self.bytes_used} bytes are used and the file has {file_size}"
        if not LOWEST_BLOCK_LOG <= self.block_log <= HIGHEST_BLOCK_LOG:
            yield f"blocks of 2**{self.block_log} bytes"
        if self.block_size != 1 << self.block_log:
            yield f"blocks of {self.block_size} bytes and of 2**{self.block_log} bytes"
        if not self.inodes or not self.ids:
            yield f"{self.inodes} inodes and {self.ids} ids"
        if self.root & 0xFFFF >= METADATA_SIZE or self.root >> 48:
            yield f"the root is at {self.root:#x}"
        positions = [self.inode_table, self.directory_table]
        if self.fragments:
            positions.append(self.fragment_table)
        if self.export_table != ABSENT:
            positions.append(self.export_table)
        positions.append(self.id_table)
        if self.xattr_table != ABSENT:
            positions.append(self.xattr_table)
        limits = [SIZE, *positions, self.bytes_used]
        if sorted(set(limits[1:])) != limits[1:] or limits[0] > limits[1]:
            yield f"tables are at {', '.join(map(str, positions))}"
