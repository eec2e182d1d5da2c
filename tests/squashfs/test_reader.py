"""The reader against files that other programs made."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from shiftergw.errors import SquashfsUnsupported
from shiftergw.squashfs.inodes import STORED_BLOCK, InodeKind
from shiftergw.squashfs.tables import integers
from tests.matrices import LONG
from tests.parts import lacking, need, small_disk
from tests.squashfs.parts import (
    content_of,
    facts_of_entries,
    facts_of_tree,
    make_squashfs,
    make_tree,
    read_file,
)

OPTIONS = [
    "-comp gzip",
    "-comp gzip -Xcompression-level 1 -Xwindow-size 10 -Xstrategy huffman_only,filtered",
    "-comp zstd -Xcompression-level 1",
    "-comp zstd -Xcompression-level 22",
    "-comp xz",
    "-comp xz -Xdict-size 64K -Xbcj x86,arm",
    "-comp zstd -b 4K",
    "-comp xz -b 1M",
    "-comp zstd -no-fragments",
    "-comp gzip -noI",
    "-comp gzip -noD",
    "-comp gzip -noF",
    "-comp gzip -noI -noId -noD -noF -noX",
    "-comp zstd -always-use-fragments",
    "-comp gzip -no-exports",
    "-comp gzip -no-xattrs",
    "-comp zstd -all-root",
    "-comp zstd -no-duplicates -nopad",
    "-comp gzip -no-sparse -no-hardlinks",
]
"""Options of `mksquashfs`; each set makes another layout."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tree of every kind of entry."""
    return make_tree(tmp_path_factory.mktemp("tree") / "root")


@pytest.mark.parametrize("options", OPTIONS)
def test_a_file_of_mksquashfs_is_read_as_the_tree_that_it_was_made_of(
    tree: Path, tmp_path: Path, options: str
) -> None:
    """Every fact of every entry is right, and so is the content of every file."""
    path = make_squashfs(tree, tmp_path / "x.squashfs", *options.split())
    reader = read_file(path)
    entries = list(reader.entries())
    expected = facts_of_tree(tree, is_all_root="-all-root" in options)
    facts = facts_of_entries(entries)
    if "-no-hardlinks" in options:  # then every name has an inode of its own
        expected, facts = (
            {path: replace(fact, links=0) for path, fact in tree_facts.items()}
            for tree_facts in (expected, facts)
        )
    assert facts == expected
    files = [entry for entry in entries if entry.kind == InodeKind.FILE]
    for entry in files:
        assert content_of(path, reader, entry.data) == (tree / os.fsdecode(entry.path)).read_bytes()
    columns = reader.files()
    assert [columns[index] for index in range(len(columns))] == [entry.data for entry in files]
    for index, entry in enumerate(files):
        words = integers("I", entry.data.blocks)
        assert columns.stored_size(index) == sum(word & ~STORED_BLOCK for word in words)


def test_another_program_is_read_too(tree: Path, tmp_path: Path) -> None:
    """`gensquashfs` of squashfs-tools-ng shares no code with `mksquashfs`."""
    path = tmp_path / "x.squashfs"
    argv = [need("gensquashfs"), "--pack-dir", str(tree), "--keep-time", "--exportable", "-q"]
    subprocess.run([*argv, "--compressor", "zstd", str(path)], check=True)
    reader = read_file(path)
    entries = list(reader.entries())
    assert {entry.path for entry in entries} == set(facts_of_tree(tree))
    for entry in entries:
        if entry.kind == InodeKind.FILE:
            content = (tree / os.fsdecode(entry.path)).read_bytes()
            assert content_of(path, reader, entry.data) == content


def test_entries_come_in_the_order_of_the_names(tree: Path, tmp_path: Path) -> None:
    """Parents come first, and the names of a directory in bytewise order."""
    reader = read_file(make_squashfs(tree, tmp_path / "x.squashfs"))
    paths = [entry.path for entry in reader.entries()]
    assert paths == sorted(paths, key=lambda path: path.split(b"/"))
    assert paths[0] == b""


def test_hard_links_share_a_number(tree: Path, tmp_path: Path) -> None:
    """Two names of a file are one inode."""
    reader = read_file(make_squashfs(tree, tmp_path / "x.squashfs"))
    numbers = {entry.path: entry.number for entry in reader.entries()}
    assert numbers[b"another name"] == numbers[b"a/b/c/d/e/f/g/h/file"]
    assert len(set(numbers.values())) == len(numbers) - 1


def test_xattrs_are_noticed(tmp_path: Path) -> None:
    """An inode with xattrs is told from one without."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("with", "without"):
        (root / name).write_bytes(b"x")
    (root / "link").symlink_to("with")
    try:
        os.setxattr(root / "with", "user.word", b"value" * 100)
        os.setxattr(root, "user.word", b"value")
    except OSError:
        lacking("the file system has no xattrs")
    reader = read_file(make_squashfs(root, tmp_path / "x.squashfs"))
    flags = {entry.path: entry.has_xattrs for entry in reader.entries()}
    assert flags == {b"": True, b"link": False, b"with": True, b"without": False}


def test_a_directory_of_30_000_names(tmp_path: Path) -> None:
    """A long listing has an index, which is checked while the listing is read."""
    root = tmp_path / "root"
    names = [b"a name of some length %05d" % number for number in range(30_000)]
    with small_disk(root, "size=30m,nr_inodes=40k"):  # a disk would need seconds to remove them
        for name in names:
            os.mknod(os.fsencode(root) + b"/" + name)
        path = make_squashfs(root, tmp_path / "x.squashfs")
    assert [entry.path for entry in read_file(path).entries()] == [b"", *names]


@pytest.mark.parametrize("compressor", ["lzo", "lz4"])
def test_other_compressors_are_refused_with_their_name(tmp_path: Path, compressor: str) -> None:
    """The error says what is not supported."""
    (tmp_path / "root").mkdir()
    path = make_squashfs(tmp_path / "root", tmp_path / "x.squashfs", "-comp", compressor)
    with pytest.raises(SquashfsUnsupported, match=f"compressed with {compressor}"):
        read_file(path)


def test_an_empty_root(tmp_path: Path) -> None:
    """A file system without entries has its root alone."""
    (tmp_path / "root").mkdir()
    reader = read_file(make_squashfs(tmp_path / "root", tmp_path / "x.squashfs"))
    assert [entry.path for entry in reader.entries()] == [b""]
    assert len(reader.files()) == 0


def test_a_file_of_holes(tmp_path: Path) -> None:
    """Holes have no data; with `SHIFTERGW_LONG=1` the file has more than 4 GiB."""
    size = (5 << 30) + 5 if LONG else (1 << 20) + 5
    root = tmp_path / "root"
    root.mkdir()
    with (root / "file").open("wb") as file:
        file.truncate(size)
    reader = read_file(make_squashfs(root, tmp_path / "x.squashfs", "-comp", "zstd"))
    data = reader.files()[0]
    assert data.size == size
    assert not any(data.blocks)
    assert size - (1 << 17) < data.sparse < size
