"""The inodes and directory listings of squashfs: their layouts, for reader and writer.

Every inode begins with type, mode, indexes of owner and group, time and number. A basic inode has
the common fields alone; an extended one also has links, holes, xattrs or an index.
"""

from __future__ import annotations

import os
from enum import IntEnum
from struct import Struct
from typing import Final


class InodeKind(IntEnum):
    """The kinds of inodes, by the numbers of the basic ones and of directory entries."""

    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3
    BLOCK_DEVICE = 4
    CHARACTER_DEVICE = 5
    FIFO = 6
    SOCKET = 7


EXTENDED: Final = 7
"""The difference between the number of an extended inode and that of the basic one."""

NO_FRAGMENT: Final = 2**32 - 1
NO_XATTRS: Final = 2**32 - 1

STORED_BLOCK: Final = 1 << 24
"""The bit of a data block's size that says that the block is not compressed."""

LISTING_EXTRA: Final = 3
"""What the size of a directory is larger than its listing, as if `.` and `..` were in it."""

NAME_LIMIT: Final = 255
"""Bytes of a name that the kernel looks up (NAME_MAX)."""

TARGET_LIMIT: Final = 4095
"""Bytes of the target of a symlink (PATH_MAX without the end)."""

HEADER_ENTRIES: Final = 256
"""Entries below one header of a listing."""

COMMON = Struct("<HHHHII")  # type, mode, owner, group, time, number

# What follows the common fields.
DIRECTORY = Struct("<IIHHI")  # block, links, size, offset, parent
LONG_DIRECTORY = Struct("<IIIIHHI")  # links, size, block, parent, index entries, offset, xattrs
FILE = Struct("<IIII")  # start, fragment, offset, size
LONG_FILE = Struct("<QQQIIII")  # start, size, sparse bytes, links, fragment, offset, xattrs
SYMLINK = Struct("<II")  # links, bytes of the target
DEVICE = Struct("<II")  # links, device
LONG_DEVICE = Struct("<III")  # links, device, xattrs
PIPE = Struct("<I")  # links
LONG_PIPE = Struct("<II")  # links, xattrs

LISTING_HEADER = Struct("<III")  # entries - 1, block of the inodes, number of the first inode
LISTING_ENTRY = Struct("<HhHH")  # offset of the inode, number - first, kind, bytes of the name - 1
INDEX_ENTRY = Struct("<III")  # offset in the listing, block of the header, bytes of the name - 1

FRAGMENT = Struct("<QII")  # position, size, 0
ID_SIZE = 4
REFERENCE_SIZE = 8
XATTR_SIZE = 16
XATTR_HEADER = Struct("<QII")  # position of the values, number of sets, 0


def encode_device(device: int) -> int:
    """Return the number of a device as inodes have it (`new_encode_dev` of the kernel)."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device(number: int) -> int:
    """Return the device, as `os.makedev` makes it, from its number in an inode."""
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)


def block_count(size: int, block_size: int, fragment: int) -> int:
    """Return how many data blocks a file of `size` bytes has besides its fragment."""
    if fragment == NO_FRAGMENT:
        return -(-size // block_size)
    return size // block_size


def is_valid_name(name: bytes) -> bool:
    """Return whether a directory may have an entry of this name."""
    return (
        0 < len(name) <= NAME_LIMIT
        and b"/" not in name
        and b"\0" not in name
        and name not in {b".", b".."}
    )


def are_valid_names(names: list[bytes]) -> bool:
    """Return whether a directory may have entries of these names, which are not too long."""
    text = b"/".join(names)
    return (
        b"" not in names
        and text.count(b"/") == len(names) - 1
        and b"\0" not in text
        and b"." not in names
        and b".." not in names
    )
