"""The processor time of an image grows as the number of its entries, and no faster.

`mksquashfs` takes quadratic time for the entries of one directory, and its search for duplicates
for files of one size. Processor time is measured, since it does not depend on other programs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.model.images import Digest, LayerFile
from shiftergw.oci.header import END, header, padding
from shiftergw.plumbing.threads import Threads
from tests.build.site import Site
from tests.matrices import LONG

GROWTH = 10
"""The number of entries of the larger image, as a multiple of the smaller one's."""

LIMIT = 14
"""The most processor time of the larger image, as a multiple of the smaller one's."""


def regular(name: bytes, content: bytes) -> bytes:
    """Return a file of an archive."""
    return header(name, 0o644, 0, b"0", len(content)) + content + padding(len(content))


def one_directory(count: int) -> Iterator[bytes]:
    """Yield files of one directory."""
    for number in range(count):
        yield regular(b"directory/file %07d" % number, b"%d" % number)


def one_size(count: int) -> Iterator[bytes]:
    """Yield files of one size, a hundred to a directory."""
    for number in range(count):
        yield regular(b"%05d/%02d" % divmod(number, 100), b"%0300d" % number)


def hard_links(count: int) -> Iterator[bytes]:
    """Yield names, of which each hundred are links to a file."""
    for number in range(0, count, 100):
        yield regular(b"%05d" % number, b"%d" % number)
        for link in range(1, 100):
            yield header(b"links %05d" % (number + link), 0o644, 0, b"1", 0, b"%05d" % number)


def used_seconds() -> float:
    """Return the processor time of this process and of the programs that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


async def cost(directory: Path, threads: Threads, archive: bytes) -> float:
    """Return the processor time of the image of a layer."""
    site = Site(directory, threads, builder="packs")
    path = directory / "layer"
    path.write_bytes(archive)
    layer = LayerFile(path, Digest.of(archive))
    begin = used_seconds()
    await site.build_image([layer], compressor="zstd", level=1, processors=1)
    return used_seconds() - begin


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        (one_directory, 10_000 if LONG else 1500),
        (one_size, 10_000 if LONG else 1000),
        (hard_links, 10_000 if LONG else 1000),
    ],
)
@pytest_twisted.ensureDeferred
async def test_time_is_linear(
    tmp_path: Path, threads: Threads, shape: Callable[[int], Iterator[bytes]], count: int
) -> None:
    """Ten times the entries take at most 14 times the processor time."""
    costs = []
    for number in (count, GROWTH * count):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        costs.append(await cost(directory, threads, b"".join(shape(number)) + END))
    assert costs[1] <= LIMIT * costs[0], costs
