"""Data of packs is copied into an image by a thread, beside what is written behind it."""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from shiftergw.build.data_copy import copied_data
from shiftergw.build.data_layout import PackRanges
from shiftergw.build.image_output import ImageOutput
from shiftergw.build.pack_contents import OpenPack
from shiftergw.errors import BlobCorrupt

DATA = os.urandom(300)
START = 96
LIMIT = 60.0  # seconds


@contextmanager
def parts(
    directory: Path, *numbers: tuple[int, int, int]
) -> Iterator[tuple[list[OpenPack], list[PackRanges], ImageOutput]]:
    """Yield a pack that has `DATA`, its ranges with these numbers, and an empty image."""
    path = directory / "pack"
    path.write_bytes(DATA)
    sources, targets, lengths = (array("Q", column) for column in zip(*numbers, strict=True))
    with path.open("rb") as pack, (directory / "image").open("wb") as image:
        packs = [OpenPack(path, pack.fileno(), range(0), [], [], 0)]
        ranges = [PackRanges(path, 0, sources, targets, lengths)]
        yield packs, ranges, ImageOutput(image.fileno(), START, Event())


def test_both_write_at_the_same_time(tmp_path: Path) -> None:
    """The block does not wait for the copy, nor the copy for the block."""
    block_end, steps = Event(), []

    def report(count: int) -> None:
        steps.append(count)
        assert block_end.wait(LIMIT)

    with parts(tmp_path, (0, START, 100), (200, START + 120, 50)) as (packs, ranges, image):
        with copied_data(packs, ranges, image, report):
            assert image.position == START + 170
            image.append(b"behind")
            block_end.set()
        assert steps == [100, 50]
    expected = bytes(START) + DATA[:100] + bytes(20) + DATA[200:250] + b"behind"
    assert (tmp_path / "image").read_bytes() == expected


def test_an_error_of_the_copy_is_raised_at_the_end(tmp_path: Path) -> None:
    """The block may be done, but an image without its data is none."""
    with (
        parts(tmp_path, (200, START, 101)) as (packs, ranges, image),
        pytest.raises(BlobCorrupt, match="shorter"),
        copied_data(packs, ranges, image, lambda _: None),
    ):
        image.append(b"behind")


def test_an_error_of_the_block_ends_the_copy(tmp_path: Path) -> None:
    """No thread goes on with a file that is about to be removed."""
    first_step, steps = Event(), []

    def report(count: int) -> None:
        steps.append(count)
        first_step.set()
        time.sleep(0.01)

    def write_behind() -> None:
        assert first_step.wait(LIMIT)
        raise OSError("the disk")

    numbers = [(n % 300, START + n, 1) for n in range(10_000)]
    threads = threading.active_count()
    with (
        parts(tmp_path, *numbers) as (packs, ranges, image),
        pytest.raises(OSError, match="disk"),
        copied_data(packs, ranges, image, report),
    ):
        write_behind()
    assert len(steps) < len(numbers)
    assert threading.active_count() == threads
