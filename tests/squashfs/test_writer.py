"""The writer: what it writes is read by our reader, by `unsquashfs` and by the kernel."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from struct import pack

import pytest
from hypothesis import given, settings

from shiftergw.errors import SquashfsUnsupported
from shiftergw.squashfs import inode_writer
from shiftergw.squashfs.compressors import Compression, Compressor
from shiftergw.squashfs.inodes import InodeKind, encode_device
from shiftergw.squashfs.nodes import (
    DirectoryNode,
    FileData,
    FileNode,
    FragmentBlock,
    Node,
    SpecialNode,
    SymlinkNode,
)
from shiftergw.squashfs.reader import SquashfsReader
from shiftergw.squashfs.superblock import Superblock, SuperblockFlags
from shiftergw.squashfs.writer import SquashfsOptions, write_metadata
from tests.matrices import examples
from tests.squashfs.parts import (
    GZIP,
    TIME,
    XZ,
    ZSTD,
    files_named,
    nodes_of,
    read_bytes,
    write_image,
)
from tests.squashfs.strategies import BLOCK_SIZE, DATA_SIZE, RandomTree, compressions, trees


def plain(node: Node) -> Node:
    """Return a tree whose children are lists, and whose links are no keys, so that it compares."""
    if isinstance(node, DirectoryNode):
        return node._replace(children=[(name, plain(child)) for name, child in node.children])
    return node._replace(link=None)


@settings(max_examples=examples(60))
@given(trees(), compressions)
def test_the_reader_reads_what_the_writer_wrote(
    random_tree: RandomTree, compression: Compression
) -> None:
    """Every field of every entry comes back, for any tree and compressor."""
    options = SquashfsOptions(compression, BLOCK_SIZE, TIME)
    data = bytes(DATA_SIZE - options.data_start())
    image = write_image(random_tree.root, options, data, random_tree.fragments)
    reader = read_bytes(image)
    entries = list(reader.entries())
    assert plain(nodes_of(entries)) == plain(random_tree.root)
    assert reader.tables.fragments == random_tree.fragments
    assert reader.tables.compression == compression
    assert len(image) % 4096 == 0
    assert Superblock.unpack(image).created == TIME


def test_positions_beyond_4_gib() -> None:
    """A file whose data lies behind the first 4 GiB has a long inode; nothing else is longer."""
    position = 5 << 30
    near_file = FileNode(FileData(500, 4096, blocks=BLOCKS))
    far_file = FileNode(FileData(500, (1 << 32) + 7, blocks=BLOCKS))
    pieces: list[bytes] = []
    options = SquashfsOptions(GZIP)
    root = DirectoryNode([(b"far", far_file), (b"near", near_file)])
    head = write_metadata(root, [], options, position, pieces.append).pack()
    end = b"".join(pieces)

    def read_at(length: int, offset: int) -> bytes:
        start = offset - position
        return head[offset : offset + length] if start < 0 else end[start : start + length]

    reader = SquashfsReader(read_at, position + len(end))
    columns = reader.files()
    assert [columns[0], columns[1]] == [far_file.data, near_file.data]
    assert len(reader.tables.inodes.data) == (56 + 4) + (32 + 4) + 32


def test_the_same_tree_gives_the_same_bytes() -> None:
    """Nothing of the process or of the time is in the file."""
    root = DirectoryNode([(b"d", DirectoryNode(list(files_named(3000))))])
    for compression in (GZIP, ZSTD, XZ):
        options = SquashfsOptions(compression)
        assert write_image(root, options) == write_image(root, options)


@pytest.mark.parametrize("is_exportable", [True, False])
def test_flags_say_what_the_file_has(is_exportable: bool) -> None:
    """The flags of exports and options agree with the tables."""
    options = SquashfsOptions(Compression(Compressor.GZIP, 5), exportable=is_exportable)
    tables = read_bytes(write_image(DirectoryNode(), options)).tables
    flags = SuperblockFlags(tables.superblock.flags)
    assert bool(flags & SuperblockFlags.EXPORTABLE) == is_exportable == bool(tables.exports)
    assert flags & SuperblockFlags.COMPRESSOR_OPTIONS
    assert flags & SuperblockFlags.NO_XATTRS
    assert tables.compression == options.compression


def test_default_options_take_no_block() -> None:
    """Options are left out if all of them are the defaults, as `mksquashfs` does."""
    for compression in (GZIP, XZ, Compression(Compressor.ZSTD, 15)):
        assert SquashfsOptions(compression).data_start() == 96
    assert SquashfsOptions(ZSTD).data_start() == 102


def test_long_names_get_an_index_entry_for_every_8_kib() -> None:
    """A header has at most 8 KiB of entries, so that the kernel unpacks few blocks for a name."""
    root = DirectoryNode(files_named(2000, b"%0250d"))
    reader = read_bytes(write_image(root, SquashfsOptions(ZSTD)))
    table = reader.tables.inodes
    position = table.resolve(*divmod(reader.tables.superblock.root, 1 << 16))
    index_entries = int.from_bytes(table.data[position + 32 : position + 34], "little")
    assert index_entries >= len(reader.tables.directories.data) // 8192 - 1
    assert sum(1 for _ in reader.entries()) == 2001


def with_children(*children: tuple[bytes, Node]) -> DirectoryNode:
    """Return a root with these children."""
    return DirectoryNode(children)


LEAF = FileNode()
BLOCKS = pack("<I", 100)


@pytest.mark.parametrize(
    ("root", "words"),
    [
        (with_children((b"b", LEAF), (b"a", LEAF)), "the name a is invalid, or does not belong"),
        (with_children((b"a", LEAF), (b"a", LEAF)), "the name a is invalid"),
        (with_children((b"", LEAF)), "the name  is invalid"),
        (with_children((b"a/b", LEAF)), "the name a/b is invalid"),
        (with_children((b"a\0", LEAF)), "invalid"),
        (with_children((b"..", LEAF)), "invalid"),
        (with_children((b"n" * 256, LEAF)), "invalid"),
        (with_children((b"a", SymlinkNode(b""))), "a target of 0 bytes"),
        (with_children((b"a", SymlinkNode(b"x" * 4096))), "a target of 4096 bytes"),
        (with_children((b"a", FileNode(mtime=2**32))), "out of its range"),
        (with_children((b"a", FileNode(mtime=-1))), "out of its range"),
        (with_children((b"a", FileNode(uid=2**32))), "out of its range"),
        (with_children((b"a", FileNode(links=2))), "without other names has 2 links"),
        (with_children((b"a", FileNode(links=2, link=1))), "1 names of hard links are not"),
        (
            with_children(*((name, FileNode(links=2, link=1)) for name in (b"a", b"b", b"c"))),
            "more names than it should",
        ),
        (with_children((b"a", SpecialNode(InodeKind.FILE))), "the kind FILE"),
        (
            with_children((b"a", SpecialNode(InodeKind.CHARACTER_DEVICE, os.makedev(4096, 1)))),
            "4096 and 1",
        ),
        (with_children((b"a", FileNode(FileData(5)))), "5 bytes has 0 blocks"),
        (with_children((b"a", FileNode(FileData(5, 2000, blocks=BLOCKS)))), "1 blocks at 2000"),
        (with_children((b"a", FileNode(FileData(5, fragment=1)))), "fragment 1 at 0"),
        (with_children((b"a", FileNode(FileData(5, fragment=0, offset=131_070)))), "at 131070"),
        (with_children((b"a", LEAF), (b"b", FileNode(FileData(5, fragment=1)))), "fragment 1 at 0"),
        (
            with_children((b"a", LEAF), (b"b", FileNode(FileData(5, 0, 0, 131_068)))),
            "fragment 0 at 131068",
        ),
        (with_children((b"a", FileNode(FileData(5, 96, sparse=5, blocks=BLOCKS)))), "holes of 5"),
        (with_children((b"a", FileNode(FileData(0, 96, blocks=BLOCKS)))), "0 bytes has 1 blocks"),
        (with_children((b"a", FileNode(FileData(-1)))), "-1 bytes"),
    ],
)
def test_what_squashfs_cannot_hold_is_refused(root: DirectoryNode, words: str) -> None:
    """A tree that would make a wrong or unreadable file ends in an error that says why."""
    options = SquashfsOptions(GZIP)
    with pytest.raises(SquashfsUnsupported, match=words):
        write_image(root, options, bytes(1000), [FragmentBlock(96, 500)])


def test_tails_end_with_their_fragment_block() -> None:
    """Files with an owner that is new, and with one that occurs again, have the same data."""
    data = FileData(5, fragment=0, offset=131_067)
    root = with_children((b"a", FileNode(data, uid=7)), (b"b", FileNode(data, uid=7, gid=7)))
    image = write_image(root, SquashfsOptions(GZIP), bytes(1000), [FragmentBlock(96, 500)])
    assert plain(nodes_of(list(read_bytes(image).entries()))) == plain(root)


def test_owners_are_as_many_as_the_id_table_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inode has 16 bits for the place of its owner; the limit is lowered here."""
    monkeypatch.setattr(inode_writer, "_IDS_LIMIT", 5)
    for count in (5, 6):
        root = DirectoryNode([(b"%d" % n, FileNode(uid=n)) for n in range(count)])
        with nullcontext() if count <= 5 else pytest.raises(SquashfsUnsupported, match="owners"):
            tables = read_bytes(write_image(root, SquashfsOptions(GZIP))).tables
            assert list(tables.ids) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "options",
    [
        SquashfsOptions(GZIP, 2048),
        SquashfsOptions(GZIP, 5000),
        SquashfsOptions(GZIP, 1 << 21),
        SquashfsOptions(Compression(Compressor.GZIP, 10)),
        SquashfsOptions(Compression(Compressor.ZSTD, 0)),
        SquashfsOptions(Compression(Compressor.XZ, dictionary=5 << 13)),
        SquashfsOptions(Compression(Compressor.LZ4)),
    ],
)
def test_invalid_options_are_refused(options: SquashfsOptions) -> None:
    """Options that the kernel does not take end in an error before anything is written."""
    pieces: list[bytes] = []
    with pytest.raises(SquashfsUnsupported):
        write_metadata(DirectoryNode(), [], options, 96, pieces.append)
    assert pieces == []


@pytest.mark.parametrize("device", [(0, 0), (5, 300), (4095, 2**20 - 1)])
def test_devices_are_encoded_as_the_kernel_does(device: tuple[int, int]) -> None:
    """12 bits of the minor number stand above the major one (`new_encode_dev`)."""
    major, minor = device
    assert encode_device(os.makedev(*device)) == (
        minor & 0xFF | major << 8 | (minor & 0xFFF00) << 12
    )


def test_what_stops_the_writer_comes_out() -> None:
    """An error of the tree or of the file ends the work at once, and is not translated."""

    def stopping() -> Iterator[tuple[bytes, Node]]:
        yield b"a", LEAF
        raise InterruptedError

    def full(_: bytes) -> None:
        raise BlockingIOError

    with pytest.raises(InterruptedError):
        write_image(DirectoryNode(stopping()), SquashfsOptions(GZIP))
    with pytest.raises(BlockingIOError):
        write_metadata(DirectoryNode(), [], SquashfsOptions(GZIP), 96, full)


def written_by(root: DirectoryNode, write: Callable[[bytes], None]) -> None:
    """Write a tree with zstd."""
    write_metadata(root, [], SquashfsOptions(ZSTD), 102, write)


def test_memory_does_not_grow_with_the_inodes() -> None:
    """Pieces are small, and only compressed listings and 8 bytes for an export are kept."""
    largest = 0

    def write(piece: bytes) -> None:
        nonlocal largest
        largest = max(largest, len(piece))

    directories = ((b"%05d" % n, DirectoryNode(files_named(1000))) for n in range(20))
    tracemalloc.start()
    try:
        written_by(DirectoryNode(directories), write)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert largest < 1 << 17
    assert peak < 20_000 * 60
