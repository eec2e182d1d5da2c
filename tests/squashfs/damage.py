"""Small files that tests damage, and what may come of reading them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from struct import pack, unpack_from

from shiftergw.errors import SquashfsCorrupt, SquashfsUnsupported
from shiftergw.squashfs.compressors import Compress, Compression
from shiftergw.squashfs.inodes import STORED_BLOCK, InodeKind
from shiftergw.squashfs.nodes import (
    DirectoryNode,
    FileData,
    FileNode,
    FragmentBlock,
    SpecialNode,
    SymlinkNode,
)
from shiftergw.squashfs.reader import ListedEntry
from shiftergw.squashfs.superblock import Superblock
from shiftergw.squashfs.writer import SquashfsOptions
from tests.squashfs.parts import TIME, files_named, read_bytes, write_image

DATA = bytes(range(250)) * 2
MEMORY = 8 << 20
"""Bytes that reading a damaged small file may take at most."""


def small_tree() -> DirectoryNode:
    """Return a tree with every kind of inode, basic and extended."""
    block = pack("<I", 300)
    file = FileData(4000, 150, blocks=block)
    return DirectoryNode(
        [
            (b"device", SpecialNode(InodeKind.CHARACTER_DEVICE, 0x105)),
            (
                b"directory",
                DirectoryNode(
                    [
                        (b"below", DirectoryNode([(b"file", FileNode(file, mtime=TIME))])),
                        (b"linked", FileNode(file, links=2, link=1)),
                    ]
                ),
            ),
            (b"empty", DirectoryNode()),
            (b"linked", FileNode(file, links=2, link=1)),
            (b"names", DirectoryNode(files_named(8, b"many names compress well, too: %d"))),
            (b"pipe", SpecialNode(InodeKind.FIFO)),
            (b"sparse", FileNode(FileData(4096 + 20, 0, 0, 30, 4096, pack("<I", 0)))),
            (b"symlink", SymlinkNode(b"target")),
        ],
        uid=1000,
    )


def small_image(compression: Compression) -> bytes:
    """Return the file of `small_tree`, without padding."""
    image = write_image(
        small_tree(), SquashfsOptions(compression, 4096), DATA, [FragmentBlock(110, 200)]
    )
    return image[: Superblock.unpack(image).bytes_used]


def store(_: Compression) -> Compress:
    """Return a function that compresses nothing, so that all blocks are stored."""
    return lambda block: block


def listing(image: bytes | bytearray) -> list[ListedEntry] | None:
    """Return the entries of a file, or None if it is refused; check what it may contain."""
    try:
        reader = read_bytes(image)
        entries = list(reader.entries())
        columns = reader.files()
    except (SquashfsCorrupt, SquashfsUnsupported):
        return None
    block = reader.tables.superblock
    assert len(entries) <= len(reader.tables.directories.data) // 9 + 1
    assert len({entry.number for entry in entries}) == block.inodes
    assert len(columns) == sum(entry.kind == InodeKind.FILE for entry in entries)
    for entry in entries:
        words = unpack_from(f"<{len(entry.data.blocks) // 4}I", entry.data.blocks)
        stored_size = sum(word & ~STORED_BLOCK for word in words)
        assert not stored_size or 96 <= entry.data.start <= block.inode_table - stored_size
    return entries


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail if the block takes much memory at any time."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY
