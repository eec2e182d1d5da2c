"""Other judges of what the writer wrote: the kernel mounts it, and `unsquashfs` lists it."""

from __future__ import annotations

import os
import random
from pathlib import Path
from struct import pack

import pytest

from shiftergw.squashfs.compressors import Compression
from shiftergw.squashfs.inodes import InodeKind
from shiftergw.squashfs.nodes import DirectoryNode, FileData, FileNode, FragmentBlock, Node
from shiftergw.squashfs.writer import SquashfsOptions
from tests.build.parts import mount
from tests.parts import lacking, need_root
from tests.squashfs.parts import (
    GZIP,
    TIME,
    XZ,
    ZSTD,
    data_of,
    facts_of_tree,
    files_named,
    listing_of,
    make_squashfs,
    make_tree,
    nodes_of,
    read_file,
    rewrite,
    shift_fragments,
    write_image,
)

COMPRESSORS = ["-comp gzip", "-comp zstd -Xcompression-level 3", "-comp xz"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tree of every kind of entry."""
    return make_tree(tmp_path_factory.mktemp("tree") / "root")


@pytest.mark.parametrize("options", COMPRESSORS)
def test_other_programs_and_the_kernel_read_the_same_tree(
    tree: Path, tmp_path: Path, options: str
) -> None:
    """`unsquashfs` lists what it lists of the original, and the kernel shows the tree."""
    original = make_squashfs(tree, tmp_path / "original", *options.split())
    copy = rewrite(original, tmp_path / "copy")
    assert listing_of(copy) == listing_of(original)
    need_root()
    (tmp_path / "mount").mkdir()
    with mount("-o", "loop,ro", str(copy), str(tmp_path / "mount")) as is_mounted:
        if not is_mounted:
            lacking("mounting is not allowed here")
        assert facts_of_tree(tmp_path / "mount") == facts_of_tree(tree)
        for path, fact in facts_of_tree(tree).items():
            if fact.kind == InodeKind.FILE:
                name = os.fsdecode(path)
                assert (tmp_path / "mount" / name).read_bytes() == (tree / name).read_bytes()


def test_the_kernel_reads_files_whose_data_comes_from_two_others(tmp_path: Path) -> None:
    """Data blocks and fragments of two files lie one behind the other, with a gap between them."""
    noise = random.Random(2)
    options = SquashfsOptions(ZSTD, created=TIME)
    data = b""
    fragments: list[FragmentBlock] = []
    children: list[tuple[bytes, Node]] = []
    for name in ("a", "b"):
        root = tmp_path / name
        root.mkdir()
        for number in range(20):
            (root / f"{number}").write_bytes(noise.randbytes(number**4))
        pack_file = make_squashfs(
            root, tmp_path / f"{name}.squashfs", "-comp", "zstd", "-Xcompression-level", "3"
        )
        reader = read_file(pack_file)
        distance = options.data_start() + len(data) - reader.tables.data_start
        entries = list(reader.entries())
        children.append((name.encode(), nodes_of(entries, distance, len(fragments))))
        fragments += shift_fragments(pack_file, distance)
        data += data_of(pack_file) + bytes(4321)
    path = tmp_path / "x.squashfs"
    path.write_bytes(write_image(DirectoryNode(children), options, data, fragments))
    need_root()
    point = tmp_path / "mount"
    point.mkdir()
    with mount("-o", "loop,ro", str(path), str(point)) as is_mounted:
        if not is_mounted:
            lacking("mounting is not allowed here")
        for name in ("a", "b"):
            for number in range(20):
                content = (tmp_path / name / f"{number}").read_bytes()
                assert (point / name / f"{number}").read_bytes() == content


@pytest.mark.parametrize("compression", [GZIP, ZSTD, XZ], ids=["gzip", "zstd", "xz"])
def test_the_kernel_finds_names_in_a_directory_of_100_000(
    tmp_path: Path, compression: Compression
) -> None:
    """All names are listed, present names are found by the index, and absent ones are not."""
    count = 100_000 if compression == ZSTD else 5000
    names = b"a name of some length %07d"
    root = DirectoryNode([(b"many", DirectoryNode(files_named(count, names)))])
    path = tmp_path / "x.squashfs"
    path.write_bytes(write_image(root, SquashfsOptions(compression)))
    entries = sum(1 for _ in read_file(path).entries())
    assert entries == count + 2
    need_root()
    point = tmp_path / "mount"
    point.mkdir()
    with mount("-o", "loop,ro", str(path), str(point)) as is_mounted:
        if not is_mounted:
            lacking("mounting is not allowed here")
        directory = os.fsencode(point / "many")
        places = [0, count - 1, *random.Random(1).sample(range(count), 300)]
        for place in places:
            assert os.lstat(directory + b"/" + names % place).st_mtime == TIME
        # The kernel looks for an absent name until the first byte differs, index or not.
        for name in (b"A", b"a", names % 7 + b"x", names % count, b"z"):
            assert not os.path.lexists(directory + b"/" + name)
        with os.scandir(directory) as scan:
            assert {entry.name for entry in scan} == {names % place for place in range(count)}


def test_the_kernel_reads_large_files_links_and_subdirectories(tmp_path: Path) -> None:
    """A file of 5 GiB of holes, 70,000 names of one file, and 3,000 subdirectories."""
    size = (5 << 30) + 3
    blocks = pack("<40960I", *[0] * 40_960) + bytes(4)
    sparse = FileNode(FileData(size, sparse=size - 1, blocks=blocks))
    linked_file = FileNode(links=70_000, link="linked", mtime=TIME)
    children: list[tuple[bytes, Node]] = [
        (b"directories", DirectoryNode([(b"%05d" % n, DirectoryNode()) for n in range(3000)])),
        (b"links", DirectoryNode([(b"%05d" % n, linked_file) for n in range(70_000)])),
        (b"sparse", sparse),
    ]
    path = tmp_path / "x.squashfs"
    path.write_bytes(write_image(DirectoryNode(children), SquashfsOptions(ZSTD)))
    reader = read_file(path)
    assert reader.tables.superblock.inodes == 1 + 3 + 3000 + 1
    columns = reader.files()
    assert len(columns) == 70_001
    assert columns[70_000] == sparse.data
    need_root()
    point = tmp_path / "mount"
    point.mkdir()
    with mount("-o", "loop,ro", str(path), str(point)) as is_mounted:
        if not is_mounted:
            lacking("mounting is not allowed here")
        assert (point / "sparse").stat().st_size == size
        with (point / "sparse").open("rb") as file:
            file.seek(size - 3)
            assert file.read() == bytes(3)
        first, last = point / "links" / "00000", point / "links" / "69999"
        assert first.stat().st_ino == last.stat().st_ino
        assert last.stat().st_nlink == 70_000
        assert len(list((point / "directories").iterdir())) == 3000
        assert (point / "directories").stat().st_nlink == 3002


@pytest.mark.parametrize("compression", [GZIP, ZSTD, XZ], ids=["gzip", "zstd", "xz"])
def test_the_kernel_mounts_an_empty_root(tmp_path: Path, compression: Compression) -> None:
    """The smallest file has an empty directory table."""
    path = tmp_path / "x.squashfs"
    path.write_bytes(write_image(DirectoryNode(), SquashfsOptions(compression, 4096, TIME)))
    assert len(listing_of(path)) == 1
    need_root()
    point = tmp_path / "mount"
    point.mkdir()
    with mount("-o", "loop,ro", str(path), str(point)) as is_mounted:
        if not is_mounted:
            lacking("mounting is not allowed here")
        assert list(point.iterdir()) == []
