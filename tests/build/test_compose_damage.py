"""Damaged packs, and packs that do not fit the plan: an error, and never a wrong image."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from shiftergw.build.pack_contents import PackContents
from shiftergw.errors import BlobCorrupt
from shiftergw.model.build_options import SquashOptions
from shiftergw.oci.tree import NO_CONTENT, Leaf
from tests.build.pack_maker import GZIP, XZ, ZSTD, Stack, make_pack, stack
from tests.images import entry
from tests.matrices import LONG
from tests.squashfs.parts import read_file

NOISE = random.Random(4)
LARGE = NOISE.randbytes(300_000)
SMALL = [NOISE.randbytes(700) for _ in range(20)]


def layers_with(directory: Path, options: SquashOptions = ZSTD) -> Stack:
    """Return two layers: the upper one replaces a small file of the lower one."""
    lower = [entry("large", LARGE), *(entry(f"{n}", content) for n, content in enumerate(SMALL))]
    return stack(directory, lower, [entry("0", b"new")], options=options)


def remove(layers: Stack) -> None:
    """Remove the pack."""
    layers.packs[0].path.unlink()


def empty(layers: Stack) -> None:
    """Cut the pack to nothing."""
    layers.packs[0].path.write_bytes(b"")


def cut_tables(layers: Stack) -> None:
    """Cut the end of the pack."""
    os.truncate(layers.packs[0].path, layers.packs[0].path.stat().st_size - 4096)


def lose_a_digest(layers: Stack) -> None:
    """Give fewer digests than contents."""
    layers.packs[0].digests.pop()


def swap_a_digest(layers: Stack) -> None:
    """Give two contents of different sizes the same digest."""
    layers.packs[0].digests[0] = layers.packs[0].digests[1]


def leaf_of(layers: Stack, name: bytes) -> Leaf:
    """Return a leaf in the root."""
    leaf = layers.plan.root.children[name]
    assert isinstance(leaf, Leaf)
    return leaf


def number_too_high(layers: Stack) -> None:
    """Let the plan name a content that the pack does not have."""
    leaf_of(layers, b"large").number = 21


def number_below_zero(layers: Stack) -> None:
    """Let the plan name a content before the first one."""
    leaf_of(layers, b"large").number = -2


def without_number(layers: Stack) -> None:
    """Let the plan name no content for a file of some bytes."""
    leaf_of(layers, b"large").number = NO_CONTENT


def other_size(layers: Stack) -> None:
    """Let the plan have another size than the pack."""
    leaf_of(layers, b"large").size += 1


def other_pieces(layers: Stack) -> None:
    """Let the plan have another number of blocks with data than the pack."""
    leaf_of(layers, b"large").sparse = ((0, 10),)


def spoil_tails(layers: Stack) -> None:
    """Overwrite the fragment block that must be opened."""
    fragments = read_file(layers.packs[0].path).tables.fragments
    with layers.packs[0].path.open("r+b") as file:
        for start, _ in fragments:
            file.seek(start)
            file.write(b"\xff" * 30)


def other_compressor(layers: Stack) -> None:
    """Give the pack of another compressor."""
    path = layers.packs[0].path
    path.unlink()
    make_pack(path, [LARGE, *SMALL], XZ)


def other_level(layers: Stack) -> None:
    """Give the pack of another level."""
    path = layers.packs[0].path
    path.unlink()
    make_pack(path, [LARGE, *SMALL], dataclasses.replace(layers.options, level=7))


def other_block_size(layers: Stack) -> None:
    """Give the pack of another block size."""
    path = layers.packs[0].path
    path.unlink()
    make_pack(path, [LARGE, *SMALL], dataclasses.replace(layers.options, block_size="64K"))


def fewer_contents(layers: Stack) -> None:
    """Give the pack of other files."""
    path = layers.packs[0].path
    path.unlink()
    make_pack(path, [LARGE], layers.options)


def fragments_beyond_the_pack(layers: Stack) -> None:
    """Let the columns name a fragment block that the pack does not have."""
    layers.packs[0].columns.fragments[3] = 9


def data_beyond_the_pack(layers: Stack) -> None:
    """Let the columns name a position behind the pack."""
    layers.packs[0].columns.starts[0] = 1 << 40


DAMAGES = [
    remove, empty, cut_tables, lose_a_digest, swap_a_digest, number_too_high, number_below_zero,
    without_number, other_size, other_pieces, other_compressor, other_level, other_block_size,
    fewer_contents, fragments_beyond_the_pack, data_beyond_the_pack,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_pack_that_does_not_fit_is_refused(
    tmp_path: Path, damage: Callable[[Stack], None]
) -> None:
    """The error is that of a damaged layer, which is made again, and the file is incomplete."""
    layers = layers_with(tmp_path)
    damage(layers)
    with pytest.raises(BlobCorrupt):
        layers.compose(tmp_path / "composed")
    output = tmp_path / "composed"
    assert not output.exists() or not output.read_bytes().startswith(b"hsqs")


@pytest.mark.parametrize("options", [GZIP, ZSTD, XZ], ids=["gzip", "zstd", "xz"])
def test_a_damaged_block_that_must_be_opened_is_noticed(
    tmp_path: Path, options: SquashOptions
) -> None:
    """A block whose live tails are compressed anew is unpacked, which shows the damage."""
    layers = layers_with(tmp_path, dataclasses.replace(options, level=options.level and 9))
    path = layers.packs[0].path
    path.unlink()
    texts = [LARGE, *(b"%d" % n * (350 - n) for n in range(10, 30))]  # not stored as they are
    layers.packs[0] = make_pack(path, texts, layers.options)
    for n, text in enumerate(texts[1:]):
        leaf_of(layers, b"%d" % n).size = 3 if n == 0 else len(text)
    layers.compose(tmp_path / "composed")
    spoil_tails(layers)
    with pytest.raises(BlobCorrupt):
        layers.compose(tmp_path / "composed")


def test_a_fragment_block_that_is_too_short_is_noticed(tmp_path: Path) -> None:
    """A compressed block may unpack to fewer bytes than the tails in it need."""
    layers = layers_with(tmp_path)
    short = make_pack(tmp_path / "short", [b"short text " * 20], layers.options)
    texts = [LARGE, *(b"%d" % n * 500 for n in range(10, 30))]
    long = make_pack(tmp_path / "long", texts, layers.options)
    for n, text in enumerate(texts[1:]):
        leaf_of(layers, b"%d" % n).size = 3 if n == 0 else len(text)
    ((start, size),) = read_file(short.path).tables.fragments
    block = short.path.read_bytes()[start : start + size]
    for start, _ in read_file(long.path).tables.fragments:
        with long.path.open("r+b") as file:
            file.seek(start)
            file.write(block)
    with pytest.raises(BlobCorrupt):
        layers.compose(tmp_path / "composed", packs=[long, *layers.packs[1:]])


def test_a_flipped_bit_in_the_tables_gives_an_error_or_the_same_image(tmp_path: Path) -> None:
    """The tables of gzip have checksums, and what is beside them is compared."""
    layers = layers_with(tmp_path, GZIP)
    layers.compose(tmp_path / "expected")
    expected = (tmp_path / "expected").read_bytes()
    path = layers.packs[0].path
    original = path.read_bytes()
    tables = read_file(path).tables
    places = [*range(96), *range(tables.superblock.inode_table, tables.superblock.bytes_used)]
    errors = 0
    for place in places if LONG else NOISE.sample(places, 60):
        spoilt_pack = bytearray(original)
        spoilt_pack[place] ^= 1 << NOISE.randrange(8)
        path.write_bytes(spoilt_pack)
        try:
            layers.compose(tmp_path / "composed")
        except BlobCorrupt:
            errors += 1
        else:
            assert (tmp_path / "composed").read_bytes() == expected
    assert errors >= 20


def test_the_error_names_no_path_to_users(tmp_path: Path) -> None:
    """The file is named in the detail, which only the log shows."""
    layers = layers_with(tmp_path)
    remove(layers)
    with pytest.raises(BlobCorrupt) as caught:
        layers.compose(tmp_path / "composed")
    assert str(tmp_path) not in str(caught.value)
    assert "pack-0" in caught.value.detail
    assert caught.value.retryable


def test_a_leaf_of_a_layer_without_contents() -> None:
    """A plan that refers to a layer without packs is refused, not read at random."""
    contents = PackContents(4096, Event())
    with pytest.raises(BlobCorrupt):
        contents.place_of(Leaf(0, size=1, layer=0, number=0))
