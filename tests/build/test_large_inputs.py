"""Inputs of a few bytes that stand for very much, and directories of very many entries."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.model.images import Digest, LayerFile
from shiftergw.plumbing.threads import Threads
from tests.build.parts import listing_of
from tests.build.site import ID, Site
from tests.images import tar_of
from tests.matrices import LONG
from tests.oci.test_sparse import pax

SIZE = 20 * 10**9


@pytest.fixture
def pack_site(tmp_path: Path, threads: Threads) -> Site:
    """Return a site that composes images of packs."""
    return Site(tmp_path, threads, builder="packs")


def layer_of(directory: Path, tar: bytes) -> LayerFile:
    """Put an uncompressed layer on the disk."""
    path = directory / "tar"
    path.write_bytes(tar)
    return LayerFile(path, Digest.of(tar))


@pytest_twisted.ensureDeferred
async def test_20_gb_of_holes_cost_nothing(pack_site: Site, tmp_path: Path) -> None:
    """A sparse file without data takes no time and no room, whatever its size."""
    start = time.process_time()
    members = {b"major": b"0", b"minor": b"1", b"size": b"%d" % SIZE, b"map": b""}
    image = await pack_site.build_image([layer_of(tmp_path, pax(members, b""))])
    assert image.report.size == SIZE
    assert image.size < 1 << 20  # its list of blocks
    assert b" %d " % SIZE in listing_of(image.path)[-1]
    assert time.process_time() - start < 3


@pytest.mark.parametrize("count", [100_000 if LONG else 5000])
@pytest_twisted.ensureDeferred
async def test_a_directory_of_many_files(pack_site: Site, tmp_path: Path, count: int) -> None:
    """The processor time is linear in the files of a directory."""
    tar = tar_of({f"data/{number:06}": b"x%d" % number for number in range(count)})
    start = time.process_time()
    image = await pack_site.build_image([layer_of(tmp_path, tar)], image_id=ID)
    assert image.report.entries == count + 1
    assert time.process_time() - start < 3 + 100e-6 * count
