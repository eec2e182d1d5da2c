"""The data of composed images: each content once, live ranges only, new blocks for live tails."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from shiftergw.build import data_layout
from shiftergw.build.compose import Composition
from shiftergw.build.image_output import ImageOutput
from shiftergw.errors import BlobCorrupt
from shiftergw.oci.compression import StopRequested
from shiftergw.oci.tree import Leaf
from tests.build.pack_maker import ZSTD, Stack, make_pack, stack
from tests.build.parts import content_of
from tests.images import entry
from tests.parts import small_disk
from tests.patience import patient
from tests.squashfs.parts import read_file

BLOCK = 1 << 17
NOISE = random.Random(2)


def noise(size: int) -> bytes:
    """Return new bytes that do not compress."""
    return NOISE.randbytes(size)


def copied_ranges(composition: Composition) -> list[tuple[str, int, int, int]]:
    """Return pack, position there, position in the image, and bytes of all ranges."""
    return [(ranges.path.name, *numbers) for ranges in composition.ranges for numbers in ranges]


def check_ranges(composition: Composition, layers: Stack, image: Path) -> None:
    """Check that the ranges are what they should be copies of, in order and without overlaps."""
    data = image.read_bytes()
    packs = {pack.path.name: pack.path.read_bytes() for pack in layers.packs}
    end = 0
    for name, source, target, length in copied_ranges(composition):
        assert target >= end
        assert data[target : target + length] == packs[name][source : source + length]
        end = target + length
    assert end <= read_file(image).tables.superblock.inode_table


def test_a_content_of_several_layers_is_stored_once(tmp_path: Path) -> None:
    """An upper layer that changes modes alone, as `chmod -R`, adds no data: the lower has it."""
    files = [(f"f{n}", noise(size)) for n, size in enumerate((10, 5000, BLOCK, 3 * BLOCK + 5))]
    lower = [entry(name, content) for name, content in files]
    upper = [entry(name, content, mode=0o755) for name, content in files]
    layers = stack(tmp_path, lower, [*upper, entry("copy", files[3][1])])
    composition = layers.compose(tmp_path / "composed")
    check_ranges(composition, layers, tmp_path / "composed")
    assert {name for name, _, _, _ in copied_ranges(composition)} == {"pack-0"}
    assert composition.tails_size == 5015  # of two small blocks of the lower pack
    contents = content_of(tmp_path / "composed")
    assert {contents[name][1:] for name, _ in files} == {(0o755, content) for _, content in files}
    assert contents["copy"][2] == files[3][1]


def test_a_layer_that_occurs_twice_is_read_once(tmp_path: Path) -> None:
    """Its pack may be the same file for both."""
    lower = [entry("a", noise(1000)), entry("b", noise(300_000))]
    layers = stack(tmp_path, lower, [entry(".wh.a", b"")], lower)
    layers.packs[2] = layers.packs[0]
    composition = layers.compose(tmp_path / "composed")
    assert len(composition.ranges) == 2
    assert content_of(tmp_path / "composed")["a"][2] == lower[0][1]


def test_data_that_no_file_needs_is_not_copied(tmp_path: Path) -> None:
    """Of three large files the one in the middle is replaced: two ranges remain of the pack."""
    contents = [noise(8 * BLOCK) for _ in range(3)]
    lower = [entry(f"{n}", content) for n, content in enumerate(contents)]
    layers = stack(tmp_path, lower, [entry("1", b"small")])
    composition = layers.compose(tmp_path / "composed")
    check_ranges(composition, layers, tmp_path / "composed")
    lengths = [length for name, _, _, length in copied_ranges(composition) if name == "pack-0"]
    assert lengths == [8 * BLOCK, 8 * BLOCK]
    assert composition.size < 17 * BLOCK


def test_long_ranges_keep_their_place_in_a_block_of_the_file_system(tmp_path: Path) -> None:
    """File systems that share blocks can do so; short ranges leave no gaps."""
    lower = [entry("large", noise(9 * BLOCK)), entry("dead", noise(777)), entry("x", noise(BLOCK))]
    upper = [entry("large too", noise(10 * BLOCK + 1)), entry("dead", b"small")]
    layers = stack(tmp_path, lower, upper)
    composition = layers.compose(tmp_path / "composed")
    check_ranges(composition, layers, tmp_path / "composed")
    previous_end = None
    for _, source, target, length in copied_ranges(composition):
        if length > 256 * 4096:
            assert (source - target) % 4096 == 0
        elif previous_end is not None:
            assert target == previous_end
        previous_end = target + length
    gaps = composition.size - composition.copied_size - composition.tails_size
    assert gaps < 4 * 4096


def test_tails_of_a_block_with_dead_ones_go_into_new_blocks(tmp_path: Path) -> None:
    """More than 1 % of a fragment block is replaced: the rest of it is compressed anew."""
    small = [(f"d/{n:03}", noise(1000)) for n in range(300)]
    lower = [entry(name, content) for name, content in small]
    upper = [entry(name, b"new" + name.encode()) for name, _ in small[5:8]]
    layers = stack(tmp_path, lower, upper)
    composition = layers.compose(tmp_path / "composed")
    check_ranges(composition, layers, tmp_path / "composed")
    # The first block has 131 files, 3 of them dead; two blocks are whole; the upper one is small.
    assert composition.tails_size == 128 * 1000 + sum(len(content) for _, content in upper)
    contents = content_of(tmp_path / "composed")
    for name, content in small[:5] + small[8:]:
        assert contents[name][2] == content
    whole = layers.build_whole(tmp_path / "whole")
    assert composition.size <= whole.stat().st_size * 1.01 + 4096


def test_a_block_with_few_dead_bytes_is_copied(tmp_path: Path) -> None:
    """At most 1 % of a block may be of no use, so that it need not be compressed anew."""
    lower = [entry("dead", noise(1200)), *(entry(f"{n}", noise(2500)) for n in range(50))]
    layers = stack(tmp_path, lower, [entry("dead", noise(3 * BLOCK))])
    composition = layers.compose(tmp_path / "composed")
    assert composition.tails_size == 0
    check_ranges(composition, layers, tmp_path / "composed")


def test_small_blocks_of_several_layers_are_combined(tmp_path: Path) -> None:
    """Thirty layers of one small text are no larger than the image of the other builder."""
    text = b"".join(b"a word or two of line %d\n" % n for n in range(200))
    layers = stack(tmp_path, *([entry(f"{n}", b"%d" % n + text)] for n in range(30)))
    composition = layers.compose(tmp_path / "composed")
    assert composition.copied_size == 0
    assert len(read_file(tmp_path / "composed").tables.fragments) == 2
    whole = layers.build_whole(tmp_path / "whole")
    assert composition.size <= whole.stat().st_size


def test_replaced_small_files_cost_no_space(tmp_path: Path) -> None:
    """With 30 % of the small files replaced, the size is that of the other builder, within 1 %."""
    words = random.Random(3)

    def text() -> bytes:
        return b" ".join(b"%d" % words.randrange(500) for _ in range(words.randrange(900)))

    lower = [entry(f"{n}", text()) for n in range(300)]
    upper = [entry(f"{n}", text()) for n in words.sample(range(300), 90)]
    layers = stack(tmp_path, lower, upper)
    composition = layers.compose(tmp_path / "composed")
    whole = layers.build_whole(tmp_path / "whole")
    assert content_of(tmp_path / "composed") == content_of(whole)
    assert composition.size <= whole.stat().st_size * 1.01


def refuse(*_: int) -> int:
    """Fail as `copy_file_range` does between some file systems."""
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def copy_nothing(*_: int) -> int:
    """Return 0, as `copy_file_range` does for some file systems."""
    return 0


def copy_little(source: int, target: int, length: int, start: int, position: int) -> int:
    """Copy at most 1000 bytes at a time."""
    return os.pwrite(target, os.pread(source, min(length, 1000), start), position)


@pytest.mark.parametrize("copy", [refuse, copy_nothing, copy_little])
def test_a_kernel_that_does_not_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: Callable[..., int]
) -> None:
    """The bytes are the same when they are read and written, or copied in small pieces."""
    layers = stack(tmp_path, [entry("a", noise(3 << 20)), entry("b", noise(10_000))])
    layers.compose(tmp_path / "expected")
    monkeypatch.setattr(os, "copy_file_range", copy)
    layers.compose(tmp_path / "composed")
    assert (tmp_path / "composed").read_bytes() == (tmp_path / "expected").read_bytes()


def test_another_file_system_and_a_full_one(tmp_path: Path) -> None:
    """An image on another disk has the same bytes; a full disk is an error of the system."""
    layers = stack(tmp_path, [entry("a", noise(1 << 20)), entry("b", noise(10_000))])
    layers.compose(tmp_path / "expected")
    for size in ("4m", "512k"):
        with small_disk(tmp_path / "disk", f"size={size}"):
            path = tmp_path / "disk" / "composed"
            if size == "4m":
                layers.compose(path)
                assert path.read_bytes() == (tmp_path / "expected").read_bytes()
            else:
                with pytest.raises(OSError, match="No space left") as caught:
                    layers.compose(path)
                assert caught.value.errno == errno.ENOSPC


def test_a_source_that_ends_too_early(tmp_path: Path) -> None:
    """A pack that became shorter while it is copied is damaged."""
    (tmp_path / "pack").write_bytes(b"short")
    with (tmp_path / "pack").open("rb") as pack, (tmp_path / "image").open("wb") as image:
        output = ImageOutput(image.fileno(), 100, threading.Event())
        counts: list[int] = []
        with pytest.raises(BlobCorrupt, match="shorter"):
            output.copy(pack.fileno(), 0, 100, 6, counts.append)
    assert counts == [5]


@pytest.mark.parametrize("reports", [0, 1, 6])
def test_a_stop_ends_the_work(tmp_path: Path, reports: int) -> None:
    """Before it begins, between copies, or between new blocks; no file gets a superblock."""
    files = [entry(f"{n}", noise(60_000)) for n in range(30)]
    layers = stack(tmp_path, [entry("a", noise(17 << 20)), *files], [entry("0", b"new")])
    stop = threading.Event()
    count = 0

    def report(_: int, __: int) -> None:
        nonlocal count
        count += 1
        if count >= reports:
            stop.set()

    if not reports:
        stop.set()
    start = time.monotonic()
    with pytest.raises(StopRequested):
        layers.compose(tmp_path / "composed", report, stop=stop)
    assert time.monotonic() - start < patient(10)
    output = tmp_path / "composed"
    assert not output.exists() or not output.read_bytes().startswith(b"hsqs")
    assert count in {reports, reports + 1}


def test_a_stop_ends_each_stage_before_the_first_copy(tmp_path: Path) -> None:
    """Reading packs, choosing contents and laying them out hear it, wherever they are."""

    class StopOnSight(threading.Event):
        """Is set when it is looked at for the n-th time."""

        def __init__(self, looks: int) -> None:
            super().__init__()
            self.looks = looks

        def is_set(self) -> bool:
            self.looks -= 1
            return self.looks < 0

    layers = stack(tmp_path, [entry("a", noise(10)), entry("b", noise(200_000))], [entry("c", b"")])
    looks = 0
    while True:
        stop = StopOnSight(looks)
        try:
            layers.compose(tmp_path / "composed", stop=stop)
        except StopRequested:
            looks += 1
            continue
        break
    assert looks > 15
    assert stop.looks == 0


def test_files_that_are_not_in_the_order_of_their_data(tmp_path: Path) -> None:
    """Ranges and tails are found for packs whose data lies in any order."""
    contents: Sequence[bytes] = [noise(size) for size in (BLOCK, 10, 3 * BLOCK, 20, BLOCK + 7)]
    layers = stack(tmp_path, [entry(f"{n}", content) for n, content in enumerate(contents)])
    pack = make_pack(tmp_path / "other", contents[::-1], ZSTD)
    for _, node in zip(contents, layers.plan.root.children.values(), strict=True):
        assert isinstance(node, Leaf)
        node.number = len(contents) - 1 - node.number
    composition = layers.compose(tmp_path / "composed", packs=[pack])
    assert composition.copied_size == 5 * BLOCK
    read = content_of(tmp_path / "composed")
    assert [read[f"{n}"][2] for n in range(len(contents))] == list(contents)


def test_segments_are_sorted_only_where_they_must_be() -> None:
    """Overlapping and touching segments form one range."""
    ranges = data_layout.PackRanges(Path("pack"), 96)
    segments = data_layout._ascending([(500, 10), (100, 50), (120, 10), (150, 50), (300, 1)])
    end = data_layout._add_ranges(ranges, segments, 1000)
    assert list(ranges) == [(100, 1000, 100), (300, 1100, 1), (500, 1101, 10)]
    assert end == 1111
    assert list(ranges.in_data()) == [(4, 1000, 100), (204, 1100, 1), (404, 1101, 10)]
    assert [ranges.move(position) for position in (100, 199, 300, 505)] == [1000, 1099, 1100, 1106]
