"""Images of the bench are made of real files, and have the size that was asked for."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from functools import partial
from pathlib import Path

import pytest

from tests.bench.contents import (
    LIBRARIES,
    big_directory,
    copy_real_files,
    hard_links,
    real_files,
    replace_small_files,
    same_size_files,
    small_files,
)
from tests.bench.image_files import ImageOnDisk, make_layer


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a root directory with a few files of a machine."""
    root = tmp_path / "machine"
    for number in range(8):
        directory = root / f"usr/lib/any-linux-gnu/part{number}"
        directory.mkdir(parents=True)
        (directory / "library").write_bytes(bytes([number]) * 1000)
    (root / "usr/share").mkdir()
    (root / "usr/share/text").write_bytes(b"text" * 1000)
    (root / "usr/lib/any-linux-gnu/part0/link").symlink_to("library")
    (root / "usr/lib/any-linux-gnu/part0/library").chmod(0o755)
    return root


def test_real_files_are_limited(machine: Path, tmp_path: Path) -> None:
    """Copied files keep content, mode and links, and have at most the given bytes."""
    assert len([*real_files(LIBRARIES, machine)]) == 9
    copy_real_files(LIBRARIES, 1 << 20, tmp_path / "all", machine)
    link = tmp_path / "all/usr/lib/any-linux-gnu/part0/link"
    assert link.is_symlink()
    assert link.read_bytes() == bytes(1000)
    assert link.stat().st_mode & 0o777 == 0o755
    assert (link.parents[1] / "part1/library").stat().st_mode & 0o777 == 0o644
    copy_real_files(LIBRARIES, 4500, tmp_path / "some", machine)
    sizes = [path.lstat().st_size for path in (tmp_path / "some").rglob("library")]
    assert len(sizes) == 4


def test_small_files_are_the_same_each_time(machine: Path, tmp_path: Path) -> None:
    """Small files are pieces of real files; another number at the start gives other ones."""
    trees = [tmp_path / name for name in "abc"]
    for tree, first in zip(trees, (0, 0, 150), strict=True):
        small_files(150, tree, first, machine)
    first_tree, same_tree, next_tree = (
        {path.relative_to(tree): path.read_bytes() for path in tree.rglob("f*")} for tree in trees
    )
    assert first_tree == same_tree
    assert len(first_tree) == len(next_tree) == 150
    assert not first_tree.keys() & next_tree.keys()
    assert {100 <= len(content) <= 8000 for content in first_tree.values()} == {True}


def test_one_directory_has_all_entries(machine: Path, tmp_path: Path) -> None:
    """All files of the big directory have 300 bytes."""
    big_directory(40, tmp_path / "tree", machine)
    assert [path.stat().st_size for path in (tmp_path / "tree/data").iterdir()] == [300] * 40


def test_files_of_one_size(machine: Path, tmp_path: Path) -> None:
    """Many files have one size, and a hundred of them are in each directory."""
    same_size_files(250, tmp_path / "tree", machine)
    paths = [path for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    assert len(paths) == 250
    assert {path.stat().st_size for path in paths} == {300}
    assert max(len([*path.parent.iterdir()]) for path in paths) == 100


def test_hard_links(machine: Path, tmp_path: Path) -> None:
    """A hundred names are links to one file, also in the layer."""
    layer = make_layer(tmp_path, "layer", partial(hard_links, 250, root=machine))
    paths = [path for path in layer.tree.rglob("*") if path.is_file()]
    assert sorted(path.stat().st_nlink for path in paths) == [50] * 50 + [100] * 200
    with tarfile.open(layer.blob) as archive:
        assert sum(member.islnk() for member in archive) == 247


def test_a_share_of_the_files_is_replaced(machine: Path, tmp_path: Path) -> None:
    """About the given share of the small files has new content of the same size."""
    small_files(100, tmp_path / "old", 0, machine)
    replace_small_files(tmp_path / "old", 0.3, tmp_path / "new")
    paths = [path for path in (tmp_path / "new").rglob("f*") if path.is_file()]
    assert 15 < len(paths) < 45
    for path in paths:
        old_path = tmp_path / "old" / path.relative_to(tmp_path / "new")
        assert path.stat().st_size == old_path.stat().st_size


def test_a_layer_has_the_digests_of_its_bytes(machine: Path, tmp_path: Path) -> None:
    """Digest, size and `diff_id` of a layer are those of its file; all entries belong to root."""
    layer = make_layer(
        tmp_path, "layer", partial(copy_real_files, LIBRARIES, 1 << 20, root=machine)
    )
    blob = layer.blob.read_bytes()
    assert layer.size == len(blob)
    assert layer.digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(gzip.decompress(blob)).hexdigest()}"
    with tarfile.open(layer.blob) as archive:
        members = archive.getmembers()
    assert len(members) == layer.entries == 8 + 9 + 3
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}
    image = ImageOnDisk("bench/x:1", [layer, layer])
    assert (image.entries, image.size) == (40, 2 * len(blob))
    assert image.describe() == "2 layers, 0.0 MB compressed, 40 entries"
