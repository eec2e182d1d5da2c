"""Images that the packer and the composer make together, from layers of real bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from threading import Event

import pytest
import pytest_twisted

from shiftergw.build.compose import compose
from shiftergw.build.pack_files import Pack
from shiftergw.build.packer import Packer
from shiftergw.model.build_options import BuildLimits, PackerName
from shiftergw.oci.budget import Budget
from shiftergw.oci.flatten import flatten
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import Layer
from tests.build.packing import PackSite
from tests.build.parts import content_of
from tests.build.site import ABOVE, CREATION_TIME, TREE, Site
from tests.images import entry, tar_of
from tests.oci.test_sparse import sparse_file
from tests.parts import need, need_module


async def compose_image(packer: Packer, layers: Sequence[Layer], output: Path) -> list[Pack]:
    """Pack the layers, and write the image of their packs; return the packs."""
    budget = Budget(BuildLimits())
    async with AsyncExitStack() as use:
        packs = [await packer.pack(layer, budget.layer(), lambda _: None, use) for layer in layers]
        plan = flatten([pack.index for pack in packs], budget, keep_setuid=False)
        await packer.tools.threads.run(
            compose,
            *(plan, packs, packer.options, CREATION_TIME, output, Event(), lambda _, __: None),
        )
    return packs


def sparse_tar(directory: Path) -> bytes:
    """Return an archive with a sparse file."""
    sparse_file(directory / "holes", 5, 700_000)
    argv = [need("tar"), "--sparse", "-C", str(directory), "-cf", "-", "holes"]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize(
    ("packer_name", "compressor"),
    [
        ("mksquashfs", "gzip"),
        ("mksquashfs", "zstd"),
        ("mksquashfs", "xz"),
        ("direct", "gzip"),
        ("direct", "zstd"),
        ("direct", "xz"),  # by `mksquashfs` all the same
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_image_is_that_of_the_whole_builder(
    tmp_path: Path,
    threads: Threads,
    whole_site: Site,
    packer_name: PackerName,
    compressor: str,
) -> None:
    """Names, modes and contents are the same, with packs that were made and that were found."""
    if compressor == "gzip":
        need_module("deflate")
    packs = PackSite(tmp_path, threads, packer=packer_name)
    copy = tar_of([entry("data copy", TREE[-2][1]), entry("data", b"replaced")])
    tars = [tar_of(TREE), tar_of(ABOVE), sparse_tar(tmp_path), copy]
    layers = [packs.layer(tar, "gzip") for tar in tars]
    level = None if compressor == "xz" else 1
    async with whole_site.build(layers, compressor=compressor, level=level) as image:
        expected = content_of(image.path)
    packer = packs.packer(compressor=compressor, level=level, memory="64M")
    images = [tmp_path / name for name in ("made", "found")]
    for output in images:
        await compose_image(packer, layers, output)
        assert content_of(output) == expected
    assert images[0].read_bytes() == images[1].read_bytes()
    assert images[0].stat().st_size <= 1.01 * image.size
    assert expected["data copy"][2] == TREE[-2][1]
