"""The superblock: its layout, and what contradicts itself in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shiftergw.errors import SquashfsCorrupt, SquashfsUnsupported
from shiftergw.squashfs.superblock import ABSENT, SIZE, Superblock

BLOCK = Superblock(
    inodes=3,
    created=1_700_000_000,
    block_size=1 << 17,
    fragments=1,
    compressor=6,
    block_log=17,
    flags=0xC0,
    ids=1,
    root=0x60,
    bytes_used=2000,
    id_table=1900,
    inode_table=1000,
    directory_table=1200,
    fragment_table=1600,
    export_table=1700,
)
FILE_SIZE = 4096


def test_the_layout() -> None:
    """The bytes are those of the kernel's structure."""
    assert len(BLOCK.pack()) == SIZE == 96
    assert BLOCK.pack() == bytes.fromhex(
        "68737173 03000000 00f15365 00000200 01000000 0600 1100 c000 0100 0400 0000"
        "6000000000000000 d007000000000000 6c07000000000000 ffffffffffffffff"
        "e803000000000000 b004000000000000 4006000000000000 a406000000000000"
    )
    assert Superblock.unpack(BLOCK.pack() + b"data") == BLOCK
    BLOCK.check(FILE_SIZE)


@pytest.mark.parametrize("head", [b"", BLOCK.pack()[:95], b"sqsh" + BLOCK.pack()[4:]])
def test_what_is_no_superblock_is_refused(head: bytes) -> None:
    """Too few bytes, and another magic number, are no squashfs file."""
    with pytest.raises(SquashfsCorrupt, match="no squashfs file system"):
        Superblock.unpack(head)


@pytest.mark.parametrize("version", [(3, 1), (4, 1), (5, 0)])
def test_other_versions_are_refused(version: tuple[int, int]) -> None:
    """The error names the version."""
    block = replace(BLOCK, major=version[0], minor=version[1])
    with pytest.raises(SquashfsUnsupported, match=rf"version {version[0]}\.{version[1]}"):
        block.check(FILE_SIZE)


@pytest.mark.parametrize(
    "block",
    [
        replace(BLOCK, bytes_used=FILE_SIZE + 1),
        replace(BLOCK, bytes_used=96),
        replace(BLOCK, block_log=11, block_size=1 << 11),
        replace(BLOCK, block_log=21, block_size=1 << 21),
        replace(BLOCK, block_log=63),
        replace(BLOCK, block_size=1 << 16),
        replace(BLOCK, inodes=0),
        replace(BLOCK, ids=0),
        replace(BLOCK, root=0x2000),
        replace(BLOCK, root=1 << 48),
        replace(BLOCK, inode_table=95),
        replace(BLOCK, directory_table=1000),
        replace(BLOCK, fragment_table=1100),
        replace(BLOCK, fragment_table=ABSENT),
        replace(BLOCK, export_table=1500),
        replace(BLOCK, id_table=2000),
        replace(BLOCK, xattr_table=1800),
        replace(BLOCK, xattr_table=2001),
    ],
)
def test_fields_that_contradict_one_another(block: Superblock) -> None:
    """Sizes and positions are compared with one another and with the file."""
    with pytest.raises(SquashfsCorrupt, match="damaged superblock"):
        block.check(FILE_SIZE)


def test_tables_that_are_absent_have_no_order() -> None:
    """A file without fragments may have any position of their table."""
    replace(BLOCK, fragments=0, fragment_table=ABSENT, export_table=ABSENT).check(FILE_SIZE)
