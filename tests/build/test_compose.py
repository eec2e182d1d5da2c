"""Images composed of packs: the trees and contents are those of the builder of whole images."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from shiftergw.errors import SquashfsUnsupported
from shiftergw.model.build_options import SquashOptions
from shiftergw.squashfs.superblock import Superblock
from tests.build.pack_maker import GZIP, IMAGE_DATE, XZ, ZSTD, Stack, stack, stack_tars
from tests.build.parts import content_of, mount
from tests.images import entry, tar_of
from tests.matrices import LONG
from tests.oci.layers import Layer, contents, hard_link, symlink
from tests.oci.model import LAYERS, InvalidLayers, flatten_model
from tests.oci.test_sparse import FORMATS, sparse_file
from tests.parts import lacking, need, need_root
from tests.squashfs.parts import facts_of_tree, listing_of, read_file
from tests.trees import links, tree

BLOCK = 1 << 17
NOISE = random.Random(1).randbytes(5 * BLOCK)
TEXT = b"".join(b"line %d\n" % number for number in range(20_000))

LOWER = [
    entry("usr"),
    entry("usr/bin", mode=0o700),
    entry("usr/bin/tool", NOISE[:5000], mode=0o755),
    hard_link("usr/bin/alias", "usr/bin/tool"),
    symlink("bin", "usr/bin"),
    entry("empty", b""),
    entry("zeros", bytes(3 * BLOCK + 7)),
    entry("block", NOISE[:BLOCK]),
    entry("large", NOISE[: 4 * BLOCK + 99]),
    entry("text", TEXT),
    entry("gone", NOISE[7 : 2 * BLOCK]),
    entry("new\nline", b"1"),
    entry("\udcff\udc80", b"3", mtime=0),
    entry("n" * 255, b"long name"),
]
UPPER = [
    entry(".wh.gone", b""),
    entry("bin/through", b"4"),
    entry("copy of text", TEXT),
    entry("usr/bin/tool", b"#!another tool", mode=0o4755),
    symlink("dangling", "x" * 4000),
    entry("empty directory"),
]

STACKS: dict[str, list[Layer]] = {
    "all kinds of entries": [LOWER, UPPER],
    "nothing": [[]],
    "only directories and links": [[entry("a"), symlink("a/b", "c"), entry("d", b"")]],
    "one byte": [[entry("a", b"x")]],
    "one block exactly": [[entry("a", NOISE[:BLOCK])]],
    "the same layer twice": [LOWER, UPPER, LOWER],
    "a layer of which nothing remains": [[entry("a/b", NOISE[:300_000])], [entry("a", b"file")]],
    "a hard link to a file of the lower layer": [LOWER, [hard_link("link", "large")]],
    "a hard link whose other names are replaced": [LOWER, [entry("usr/bin/tool", b"new")]],
    "many files of one size": [[entry(f"d/{n:04}", b"%0300d" % n) for n in range(600)]],
    "many small layers": [[entry(f"{n}", TEXT[: 100 * n + 1])] for n in range(12)],
}


def assert_same(image: Path, whole: Path) -> None:
    """Check that two files have the same tree with the same contents, for two readers."""
    assert listing_of(image) == listing_of(whole)
    assert content_of(image) == content_of(whole)


@pytest.mark.parametrize("name", STACKS)
def test_the_tree_is_that_of_the_whole_image_builder(tmp_path: Path, name: str) -> None:
    """Names, types, modes, times, sizes, targets and contents are the same; so is the size."""
    layers = stack(tmp_path, *STACKS[name])
    composition = layers.compose(tmp_path / "composed")
    whole = layers.build_whole(tmp_path / "whole")
    assert_same(tmp_path / "composed", whole)
    size = (tmp_path / "composed").stat().st_size
    assert composition.size == size
    assert size % 4096 == 0
    assert size <= whole.stat().st_size * 1.01 + 4096


@pytest.mark.parametrize("options", [GZIP, ZSTD, XZ], ids=["gzip", "zstd", "xz"])
def test_the_kernel_mounts_it(tmp_path: Path, options: SquashOptions) -> None:
    """The kernel shows the tree, the links and the contents of the file of the other builder."""
    need_root()
    layers = stack(tmp_path, LOWER, UPPER, options=options)
    layers.compose(tmp_path / "composed")
    layers.build_whole(tmp_path / "whole")
    trees = []
    for name in ("composed", "whole"):
        point = tmp_path / f"{name} mount"
        point.mkdir()
        with mount("-o", "loop,ro", str(tmp_path / name), str(point)) as is_mounted:
            if not is_mounted:
                lacking("mounting is not allowed here")
            blocks = {
                path: os.lstat(os.fsencode(point) + b"/" + path).st_blocks for path in tree(point)
            }
            trees.append((facts_of_tree(point), tree(point), links(point), blocks))
    assert trees[0] == trees[1]


@settings(max_examples=3000 if LONG else 5, deadline=None)
@given(LAYERS)
def test_random_stacks_give_the_trees_of_both_builders(random_layers: list[Layer]) -> None:
    """Whiteouts, links, symlinks and type changes of few names, in up to four layers."""
    try:
        flatten_model(random_layers)
    except InvalidLayers:
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        layers = stack(directory, *random_layers)
        image, whole = directory / "composed", directory / "whole"
        layers.compose(image)
        layers.build_whole(whole)
        assert listing_of(image) == listing_of(whole)
        # Unlike `content_of` this does not follow symlinks that have hard links.
        assert contents(tar_of_image(image)) == contents(tar_of_image(whole))


def tar_of_image(image: Path) -> bytes:
    """Return the tar that `sqfs2tar` makes of a squashfs file."""
    return subprocess.run([need("sqfs2tar"), image], check=True, stdout=subprocess.PIPE).stdout


def sparse_tar(directory: Path, pieces: int, tail: int) -> bytes:
    """Return a tar of a sparse file `holes` (see `sparse_file`), which it writes there."""
    sparse_file(directory / "holes", pieces, tail)
    argv = [need("tar"), "--sparse", *FORMATS["PAX 1.0"], "-C", str(directory), "-cf", "-", "holes"]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize(
    ("pieces", "tail"), [(0, 1), (0, 3 * BLOCK), (1, 12_345), (3, BLOCK), (60, 0), (2, -58_536)]
)
def test_holes_of_sparse_files_are_in_no_pack(tmp_path: Path, pieces: int, tail: int) -> None:
    """The file has its size and its bytes, and the blocks between its data are holes."""
    tar = sparse_tar(tmp_path, pieces, tail)
    data = (tmp_path / "holes").read_bytes()
    layers = stack_tars(tmp_path, tar, tar_of([entry("after", TEXT)]))
    layers.compose(tmp_path / "composed")
    assert content_of(tmp_path / "composed")["holes"][2] == data
    assert_same(tmp_path / "composed", layers.build_whole(tmp_path / "whole"))


@pytest.mark.parametrize("options", [GZIP, ZSTD], ids=["gzip", "zstd"])
def test_the_same_packs_give_the_same_bytes(tmp_path: Path, options: SquashOptions) -> None:
    """The bytes do not depend on the number of processors, nor on what was in the output."""
    files = [entry(f"{n}", TEXT[: 70 * n]) for n in range(120)]
    layers = stack(tmp_path, files, [*files[::2][:50], entry(".wh.7", b"")], options=options)
    (tmp_path / "1").write_bytes(NOISE)
    for processors in (1, 3):
        options = dataclasses.replace(options, processors=processors)
        layers.compose(tmp_path / f"{processors}", options=options)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()
    assert (tmp_path / "3").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("compressor", "level", "block_size"),
    [("gzip", None, "4K"), ("zstd", None, "4K"), ("zstd", 9, "1M")],
)
def test_other_levels_and_block_sizes(
    tmp_path: Path, compressor: str, level: int | None, block_size: str
) -> None:
    """Without a level it is the compressor's default; blocks may have 4 KiB to 1 MiB."""
    options = SquashOptions(compressor, level, block_size, memory="64M", processors=1)
    layers = stack(tmp_path, LOWER, UPPER, options=options)
    layers.compose(tmp_path / "composed")
    assert_same(tmp_path / "composed", layers.build_whole(tmp_path / "whole"))


@pytest.mark.parametrize("mtime", [IMAGE_DATE - 1, IMAGE_DATE + 1])
def test_the_date_of_the_file_is_the_latest_of_all(tmp_path: Path, mtime: int) -> None:
    """It is the image's date, or the time of its newest entry, as in the other builder."""
    layers = stack(tmp_path, [entry("a", b"a", mtime=mtime)])
    layers.compose(tmp_path / "composed")
    for path in (tmp_path / "composed", layers.build_whole(tmp_path / "whole")):
        assert Superblock.unpack(path.read_bytes()).created == max(IMAGE_DATE, mtime)


def test_times_to_come(tmp_path: Path) -> None:
    """The root gets the latest time that squashfs can have, whenever the image is made."""
    layers = stack(tmp_path, [entry("a", b"a", mtime=2**32 - 1)])
    layers.compose(tmp_path / "composed")
    root, *files = read_file(tmp_path / "composed").entries()
    assert [root.mtime, *(file.mtime for file in files)] == [2**32 - 1] * 2


def test_options_that_packs_cannot_keep_are_refused(tmp_path: Path) -> None:
    """Compressors without a reader here, and raw arguments, need the other builder."""
    layers = stack(tmp_path, UPPER)
    for options in (SquashOptions("lz4"), SquashOptions("lzo"), SquashOptions(extra=("-no-x",))):
        assert options.needs_whole_builder
        with pytest.raises(SquashfsUnsupported):
            layers.compose(tmp_path / "composed", options=options)
    assert not (tmp_path / "composed").exists()
    assert not ZSTD.needs_whole_builder


def test_progress_is_in_bytes_of_data_up_to_all_of_them(tmp_path: Path) -> None:
    """Each report has more bytes done; the last one has all; the total never changes."""
    reports: list[tuple[int, int]] = []
    layers = stack(tmp_path, LOWER, UPPER)
    composition = layers.compose(tmp_path / "x", lambda done, total: reports.append((done, total)))
    dones = [done for done, _ in reports]
    assert dones == sorted(set(dones))
    assert {total for _, total in reports} == {dones[-1]}
    assert dones[-1] == composition.copied_size + composition.tails_size


def large_stack(directory: Path, names: int) -> Stack:
    """Return two layers of `names` small files, the upper with a tenth of them changed."""
    lower = [entry(f"d{n // 500}/{n}", b"content of %d" % n) for n in range(names)]
    upper = [entry(f"d{n // 500}/{n}", b"new %d" % n) for n in range(0, names, 10)]
    return stack(directory, lower, upper)


def test_many_files(tmp_path: Path) -> None:
    """A million with `SHIFTERGW_LONG=1`, else 1,200, have their contents."""
    names = 1_000_000 if LONG else 1200
    layers = large_stack(tmp_path, names)
    layers.compose(tmp_path / "composed")
    files = content_of(tmp_path / "composed")
    assert all(
        files[f"d{n // 500}/{n}"][2] == (b"content of %d" if n % 10 else b"new %d") % n
        for n in range(names)
    )
    assert sum(kind == tarfile.REGTYPE for kind, _, _ in files.values()) == names
