"""Each contradiction in a file ends in an error that names it, in bounded time and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from struct import pack_into, unpack_from
from typing import Any

import pytest

from shiftergw.errors import SquashfsCorrupt, SquashfsUnsupported
from shiftergw.squashfs import blocks, inodes, writer
from shiftergw.squashfs.nodes import DirectoryNode
from shiftergw.squashfs.reader import ListedEntry
from shiftergw.squashfs.superblock import Superblock
from shiftergw.squashfs.writer import SquashfsOptions
from tests.squashfs.damage import bounded_memory, store
from tests.squashfs.parts import GZIP, ZSTD, files_named, read_bytes, write_image


def inode_place(image: bytes | bytearray, path: bytes) -> int:
    """Return where in a stored image the inode of a path begins."""
    reader = read_bytes(image)
    (number,) = {entry.number for entry in reader.entries() if entry.path == path}
    reference = reader.tables.exports[number - 1]
    block = Superblock.unpack(image)
    return block.inode_table + (reference >> 16) + 2 + (reference & 0xFFFF)


def entry_place(image: bytes | bytearray, name: bytes) -> int:
    """Return where in a stored image the directory entry of a name begins."""
    table = Superblock.unpack(image).directory_table
    return image.index(name, table) - inodes.LISTING_ENTRY.size


def change(layout: str, path: bytes, offset: int, value: int) -> Callable[[bytearray], None]:
    """Return a change of a number in the inode of a path."""
    return lambda image: pack_into(layout, image, inode_place(image, path) + offset, value)


def change_entry(layout: str, name: bytes, offset: int, value: int) -> Callable[[bytearray], None]:
    """Return a change of a number in the directory entry of a name."""
    return lambda image: pack_into(layout, image, entry_place(image, name) + offset, value)


def change_superblock(**values: Any) -> Callable[[bytearray], None]:
    """Return a change of fields of the superblock."""

    def apply(image: bytearray) -> None:
        image[:96] = replace(Superblock.unpack(image), **values).pack()

    return apply


def make_circle(image: bytearray) -> None:
    """Make the entry `below` lead to its own directory."""
    own = unpack_from("<H", image, entry_place(image, b"directory"))[0]
    number = unpack_from("<I", image, inode_place(image, b"directory") + 12)[0]
    first = unpack_from("<I", image, entry_place(image, b"below") - 4)[0]
    pack_into("<Hh", image, entry_place(image, b"below"), own, number - first)


def share_listing(image: bytearray) -> None:
    """Make the empty directory have the listing of another one."""
    below, empty = (inode_place(image, path) for path in (b"directory/below", b"empty"))
    image[empty + 16 : empty + 28] = image[below + 16 : below + 28]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (make_circle, "is in several places"),
        (share_listing, "a listing of|is in several places"),
        (change_superblock(inodes=2**32 - 1), "index of 4194304 blocks"),
        (change_superblock(inodes=9), "index|inode"),
        (change_superblock(fragments=2**32 - 1), "index of 8388608 blocks"),
        (change_superblock(ids=2**16 - 1), "index of 32 blocks"),
        (change_superblock(root=0x1FFF), "reference to block 0"),
        (change_superblock(root=0), "is not what its entry says"),
        (change("<H", b"", 0, 9), "is not what its entry says"),
        (change("<H", b"pipe", 0, 14), "is not what its entry says"),
        (change("<H", b"pipe", 2, 0o10644), "mode 10644"),
        (change("<H", b"pipe", 4, 2), "owner 2"),
        (change("<H", b"pipe", 6, 9), "group 9"),
        (change("<I", b"pipe", 12, 99), "is not what its entry says"),
        (change("<I", b"symlink", 20, 2**31), "symlink of 2147483648"),
        (change("<I", b"symlink", 20, 0), "symlink of 0"),
        (change("<I", b"directory", 16, 77), "a reference to block 77"),
        (change("<H", b"directory", 24, 8000), "a listing of 7997 bytes"),
        (change("<H", b"directory", 24, 2), "a directory of 2 bytes"),
        (change("<H", b"directory", 26, 8191), "a reference to block 0, offset 8191"),
        (change("<I", b"directory/below", 28, 1), "names another parent"),
        (change("<I", b"directory/below/file", 16, 2**31), "300 bytes of a file"),
        (change("<I", b"directory/below/file", 16, 90), "300 bytes of a file"),
        (change("<I", b"directory/below/file", 20, 0), "inodes|tail"),
        (change("<I", b"directory/below/file", 28, 2**32 - 1), "has more blocks"),
        (change("<I", b"directory/below/file", 32, 1 << 25), "a stored block of 33554432 bytes"),
        (change("<I", b"directory/below/file", 32, 4097), "a block of 4097 bytes"),
        (change("<I", b"directory/below/file", 32, 1 << 24 | 300), "stored block of 300 bytes"),
        (change("<Q", b"linked", 24, 2**63), "has more blocks"),
        (change("<I", b"linked", 40, 1), "is in several places"),
        (change("<I", b"linked", 52, 0), "set 0 of xattrs of 0"),
        (change("<Q", b"sparse", 32, 5000), "holes of 5000"),
        (change("<I", b"sparse", 44, 1), "fragment 1 of 1"),
        (change("<I", b"sparse", 48, 4090), "a tail of 20 bytes at 4090"),
        (change_entry("<H", b"pipe", 0, 8192), "offset 8192"),
        (change_entry("<H", b"pipe", 0, 8191), "ends within an entry"),
        (change_entry("<h", b"pipe", 2, -30_000), "is not what its entry says"),
        (change_entry("<H", b"pipe", 4, 0), "an entry of kind 0"),
        (change_entry("<H", b"pipe", 4, 2), "is not what its entry says"),
        (change_entry("<H", b"pipe", 6, 255), "invalid name"),
        (change_entry("<B", b"pipe", 8, 0), "out of order"),
        (change_entry("<B", b"pipe", 9, ord("/")), "invalid name"),
        (change_entry("<B", b"pipe", 9, 0), "invalid name"),
        (change_entry("<I", b"device", -12, 256), "257 entries"),
        (change_entry("<I", b"device", -12, 5), "entries of block|listing|out of order"),
        (change_entry("<I", b"device", -8, 3), "of block 3"),
    ],
)
def test_what_contradicts_itself_is_refused(
    stored_image: bytearray, damage: Callable[[bytearray], None], words: str
) -> None:
    """Each check of the reader refuses the damage that it is there for, without much memory."""
    damage(stored_image)
    with bounded_memory(), pytest.raises(SquashfsCorrupt) as caught:
        list(read_bytes(stored_image).entries())
    assert any(text in caught.value.detail for text in words.split("|")), caught.value.detail
    with pytest.raises(SquashfsCorrupt):
        read_bytes(stored_image).files()


def test_the_export_table_is_compared(stored_image: bytearray) -> None:
    """An entry that leads to another inode would give NFS clients another file."""
    block = Superblock.unpack(stored_image)
    (table,) = unpack_from("<Q", stored_image, block.export_table)
    first, second = unpack_from("<QQ", stored_image, table + 2)
    pack_into("<QQ", stored_image, table + 2, second, first)
    with pytest.raises(SquashfsCorrupt) as caught:
        list(read_bytes(stored_image).entries())
    assert "export table" in caught.value.detail


@pytest.mark.parametrize(("offset", "value"), [(0, 5), (4, 3), (12, 0x41)])
def test_the_index_of_a_directory_is_compared(
    monkeypatch: pytest.MonkeyPatch, offset: int, value: int
) -> None:
    """An index that leads elsewhere would hide names from the kernel."""
    monkeypatch.setattr(writer, "metadata_compressor", store)
    image = bytearray(write_image(DirectoryNode(files_named(4000)), SquashfsOptions(GZIP)))
    place = inode_place(image, b"") + inodes.COMMON.size + inodes.LONG_DIRECTORY.size
    image[place + offset] ^= value
    with pytest.raises(SquashfsCorrupt) as caught:
        list(read_bytes(image).entries())
    assert "index" in caught.value.detail


def test_listings_that_many_directories_share_cost_little_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second directory with the same listing is refused before its names are read."""
    monkeypatch.setattr(writer, "metadata_compressor", store)
    names = [b"d%04d" % number for number in range(20)]
    directories = [(name, DirectoryNode()) for name in names]
    root = DirectoryNode([(b"a", DirectoryNode(files_named(2000))), *directories])
    image = bytearray(write_image(root, SquashfsOptions(GZIP)))
    places = [inode_place(image, path) for path in (b"a", *names)]
    for place in places[1:]:
        image[place + 16 : place + 28] = image[places[0] + 16 : places[0] + 28]
    entries: list[ListedEntry] = []
    with pytest.raises(SquashfsCorrupt) as caught:
        entries.extend(read_bytes(image).entries())
    assert "a listing of" in caught.value.detail
    assert len(entries) <= 2021 + 1


def test_metadata_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on memory ends the reading of a table."""
    monkeypatch.setattr(blocks, "MEMORY_LIMIT", 50_000)
    image = write_image(DirectoryNode(files_named(4000)), SquashfsOptions(ZSTD))
    with pytest.raises(SquashfsUnsupported, match="50 kB of metadata"):
        read_bytes(image)


@pytest.mark.parametrize("header", [0x0000, 0x8000, 0x7FFF, 0xFFFF, 0xA001])
def test_sizes_of_metadata_blocks(stored_image: bytearray, header: int) -> None:
    """A block is not empty, and has at most 8 KiB on disk."""
    pack_into("<H", stored_image, Superblock.unpack(stored_image).inode_table, header)
    with pytest.raises(SquashfsCorrupt) as caught:
        read_bytes(stored_image)
    assert "a metadata block" in caught.value.detail
